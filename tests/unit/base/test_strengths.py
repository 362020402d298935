"""What alpha is the share of is said wherever its numbers are: a sweep without rotation is no sweep of weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ropescope as rs
from planted import RUN, measurement, sweep, tasks
from ropescope.base.strengths import DEROTATION, WEIGHTING, is_weighting, strength_of
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.sweep.in_words import findings
from ropescope.interventions.derotation import rotation_kept
from ropescope.interventions.protocol import intervention_name
from ropescope.interventions.weighting import weighted_rope

TURNED = "somebody.turned"


def test_records_name_the_interventions_of_this_package_as_the_words_know_them() -> None:
    assert intervention_name(weighted_rope) == WEIGHTING and intervention_name(rotation_kept) == DEROTATION


def test_a_record_from_before_interventions_were_named_is_of_a_weighting() -> None:
    assert is_weighting({}) and strength_of({}) == strength_of({"intervention": WEIGHTING})
    assert not is_weighting({"intervention": DEROTATION}) and not is_weighting({"intervention": TURNED})


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (WEIGHTING, "alpha", "alpha 0 raises"),
        (DEROTATION, "rotation kept", "rotation at 0 raises"),
        (TURNED, "alpha of turned", "turned at 0 raises"),
    ],
)
def test_sentences_tables_and_axes_say_what_was_done(kind: str, name: str, said: str) -> None:
    data = sweep("bands", 0.5, 0.1, intervention=kind)
    assert f": {said} perplexity" in findings(data)[0]
    assert re.match(rf"selection +pairs +{name} +perplexity", rs.sweep_table(data))
    assert rs.sweep_curves({"it": data}).axes[0].get_xlabel() == name
    scored = rs.tasks_table(tasks([1.0, 0.0] * 20, [1.0, 0.0] * 20, intervention=kind), format="markdown")
    assert f"| selection | {name} | plain |" in scored


def test_curves_of_several_interventions_have_an_axis_for_all() -> None:
    both = {kind: sweep("bands", 0.5, 0.1, intervention=kind) for kind in (WEIGHTING, DEROTATION)}
    assert rs.sweep_curves(both).axes[0].get_xlabel() == "alpha"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DEROTATION, TURNED])
def test_a_report_tells_a_weighting_from_another_intervention(kind: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("measured.nc", "weighted.nc", "other.nc")]
    rs.save(measurement(RUN), files[0])
    for path, each in zip(files[1:], (WEIGHTING, kind), strict=True):
        SWEEP.save(sweep("bands", 0.5, 0.1, intervention=each), path)
    text = rs.report(files, tmp_path / "page.html").read_text(encoding="utf-8")
    words = strength_of({"intervention": kind})
    assert "<h2>Turning pairs down: synthetic/tiny-irope</h2>" in text
    assert f"<h2>{words.title}: synthetic/tiny-irope, {words.done}</h2>" in text
    assert "Perplexity over alpha, the weight of the selected pairs;" in text
    assert f"Perplexity over {words.meaning};" in text


@pytest.mark.parametrize("kind", [DEROTATION, TURNED])
def test_claims_on_turning_pairs_down_are_not_judged_by_another_intervention(kind: str) -> None:
    right = [1.0] * 1500 + [0.0] * 500
    # Both would refute the claims, and stand first.
    given = {
        "swept": sweep("bands", 0.0, 0.1, intervention=kind),
        "scored": tasks(right, [0.0] * 500 + right[500:], intervention=kind),
    }
    verdicts = rs.claims(given, only=["bands-are-essential", "tasks-are-unchanged"])
    assert [found.verdict for _, found in verdicts.findings] == ["cannot be said"] * 2
    weighted = {"swept": sweep("bands", 1.0, 0.1), "scored": tasks(right, right)}
    verdicts = rs.claims(given | {f"weighted {name}": each for name, each in weighted.items()})
    assert verdicts["bands-are-essential"].verdict == verdicts["tasks-are-unchanged"].verdict == "holds"
