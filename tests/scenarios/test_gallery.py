"""The gallery: its commands parse and feed each other, a call goes on where it was, pages say what files hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure

import ropescope as rs
from checkout import ROOT
from planted import RUN, frontier, importance, look, measurement, sweep, tasks
from ropescope.base.strengths import DEROTATION
from ropescope.cli import app, main
from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
from ropescope.evaluation.claims.findings import CANNOT, FAILS, HOLDS, Claim, Finding
from ropescope.evaluation.claims.sources import FREQUENCY_ENTROPY
from ropescope.evaluation.claims.table import CLAIMS
from ropescope.evaluation.frontier.dataset import FRONTIER
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.sweep.in_words import findings
from ropescope.evaluation.tasks.dataset import TASKS


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_build"))
    import gallery

    monkeypatch.setattr(gallery, "FOLDER", tmp_path)
    return gallery


def test_every_step_is_a_command_on_what_earlier_steps_wrote(gallery: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "documents.jsonl").touch()
    for texts in (gallery.Texts(), gallery.Texts.under(tmp_path)):
        written: set[str] = set()
        for name, arguments in gallery.steps(gallery.MODELS["smollm2"], texts).items():
            app.parse_args(arguments, exit_on_error=False, print_error=False)
            made = [arguments[place + 1] for place, word in enumerate(arguments) if word in ("--output", "--look")]
            assert {word for word in arguments if word.endswith(".nc")} - set(made) <= written, name
            written |= set(made)
    assert written >= {"wikitext.nc", "c4.nc", "long.nc", "worth.nc", "sweep.nc", "tasks.nc", "thin.nc", "look.nc"}


def test_a_call_goes_on_where_the_last_one_ended(
    gallery: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = gallery.Model("one", "One", "builtin")
    monkeypatch.setattr(gallery, "steps", lambda *_: {"first": ["--version"], "second": ["measures"]})
    with pytest.raises(SystemExit, match="one, second: ended with 2"):
        gallery.run(one, gallery.Texts(), [])
    kept = tmp_path / "one" / "first.txt"
    assert kept.read_text().strip() == rs.__version__
    assert sorted(path.name for path in kept.parent.iterdir()) == ["first.txt"]
    monkeypatch.setattr(gallery, "steps", lambda *_: {"first": ["measures"], "second": ["--version"]})
    gallery.run(one, gallery.Texts(), ["first"])
    assert sorted(path.name for path in kept.parent.iterdir()) == ["first.txt"]
    gallery.run(one, gallery.Texts(), [])
    assert (tmp_path / "one" / "second.txt").exists()


@pytest.mark.slow
def test_pages_say_what_the_files_hold_and_leave_out_what_is_not_there(
    gallery: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, bare = tmp_path / "full", tmp_path / "bare"
    full.mkdir()
    bare.mkdir()
    result, bands = measurement(RUN), sweep("bands", 1.0, 0.1)
    for folder in (full, bare):
        rs.save(result, folder / "wikitext.nc")
    rs.save(importance(RUN, 50.0), full / "worth.nc")
    SWEEP.save(bands, full / "sweep.nc")
    SWEEP.save(sweep("bands", 0.5, 0.1, intervention=DEROTATION), full / "derotated.nc")
    TASKS.save(tasks([1.0, 0.0] * 50, [1.0, 0.0] * 49 + [0.0, 0.0]), full / "tasks.nc")
    FRONTIER.save(frontier(), full / "thin.nc")
    BEHAVIOUR.save(look(), full / "look.nc")
    rs.save(measurement(RUN, corpus="c4"), full / "c4.nc")
    rs.save(measurement(RUN, length=8192), full / "long.nc")
    monkeypatch.chdir(full)
    # Which files there are is what counts here; drawing them takes a minute.
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: Path(file).touch())
    drawn = ["figures", "wikitext.nc", "sweep.nc", "thin.nc", "--importance", "worth.nc", "--output-dir", "figures"]
    main(drawn)
    main(["compare", "wikitext.nc", "c4.nc", "long.nc", "--output-dir", "same-places"])
    sys.modules["gallery_pages"].write_pages({"Full": full, "Bare": bare, "None": tmp_path / "none"}, tmp_path / "docs")
    pages = {path.stem: path.read_text() for path in (tmp_path / "docs" / "models").glob("*.md")}
    pictures = {path.name for path in (tmp_path / "docs" / "models").glob("*.png")}
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", pages["full"])
    assert pictures == {f"full-{name}.png" for name in sys.modules["gallery_pages"]._PICTURES}
    assert "## Does C4 have its bands where WikiText has them?" in pages["full"]
    assert sorted(shown) == sorted(pictures) and "![" not in pages["bare"]
    assert set(pages) == {"full", "bare", "index"}
    assert rs.summary_text(result) in pages["bare"] and "Does Frequency Entropy foretell" not in pages["bare"]
    assert rs.importance_foretold(result, importance(RUN, 50.0)).markdown() in pages["full"]
    lines = {line.split(" | ")[0]: line for line in pages["index"].splitlines()}
    assert lines["| bands, % of query pairs"] == "| bands, % of query pairs | 25 | 25 |"
    held = rs.importance_shares(result, importance(RUN, 50.0))["importance"].sel(stream="query", selection="bands")
    assert f"| {100 * float(held[0]):.3g} [" in lines["| query importance in bands, %"]
    assert lines["| query importance in bands, %"].endswith("| - |")
    assert lines["| perplexity without bands"].startswith("| perplexity without bands | +171.8 % [")
    assert lines["| perplexity without bands"].endswith("| - | rises in all four |")
    assert lines["| perplexity without the rotation of bands"].startswith(
        "| perplexity without the rotation of bands | +64.9 % ["
    )
    assert "## Pairs without their rotation" in pages["full"] and "rotation at 0 raises perplexity" in pages["full"]
    assert "| none | - | falls" in lines["| perplexity without periodic pairs"]
    assert lines["| HellaSwag"].startswith("| HellaSwag | -1.00 [") and "100 documents | - |" in lines["| HellaSwag"]
    assert all(sentence in pages["full"] for sentence in findings(bands))
    assert f"Of {len(CLAIMS)} claims on Full, " in pages["full"] and "claims on" not in pages["bare"]
    assert f"Of {len(CLAIMS)} claims, the same in every model: " in pages["index"]


def test_claims_stand_under_what_they_come_to_over_the_models(gallery: ModuleType) -> None:
    verdicts = {"both": (HOLDS, HOLDS), "one": (HOLDS, CANNOT), "not": (HOLDS, FAILS), "none": (CANNOT, CANNOT)}
    claims = [Claim(key, key, FREQUENCY_ENTROPY, "", "", lambda _: Finding(CANNOT, "")) for key in verdicts]
    findings = [[(claim, Finding(verdicts[claim.key][model], "")) for claim in claims] for model in range(2)]
    parted = sys.modules["gallery_pages"]._by_agreement(findings)
    assert [[row[0] for row in rows] for rows in parted.values()] == [["both"], ["one"], ["not"], ["none"]]
    assert parted["Not the same"] == [["not", FREQUENCY_ENTROPY.short, HOLDS, FAILS]]
