"""A frontier's bytes are those of its caches, its nats those of its plans; it survives a kill and knows its limits."""

from __future__ import annotations

import csv
import functools
import io
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from architectures import GEMMA4, LLAMA, QWEN3_NEXT, Architecture, state_of, tokens
from forking import forked
from planted import frontier as planted_frontier
from ropescope.base.errors import InputError, ResultError
from ropescope.compression.planning import plan_keys
from ropescope.compression.plans import KeyPlan
from ropescope.compression.several import frontier_plans
from ropescope.compression.thinning import thin_keys
from ropescope.evaluation.frontier import judging
from ropescope.evaluation.frontier.changes import OTHER, bytes_share, compared, frontier_table, value_percent
from ropescope.evaluation.frontier.dataset import FRONTIER, PLAN, STOCK
from ropescope.evaluation.frontier.in_words import findings, section
from ropescope.evaluation.frontier.judging import frontier
from ropescope.evaluation.frontier.timing import Timing
from ropescope.evaluation.opening import load
from ropescope.evaluation.perplexity import perplexity

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = LLAMA.shared()
WINDOWS = tokens(5, 48)


@functools.cache
def plans() -> list[KeyPlan]:
    return frontier_plans(
        MODEL, tokens(4, 48, seed=5), (0.6,), ("latent", "drop"), baselines=("random",), metric="query", sinks=2
    )


def run(path: Path | None = None, **options: Any) -> xr.Dataset:
    return frontier(MODEL, WINDOWS, plans(), path=path, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every perplexity that a frontier computes."""
    counted: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted.append(1)
        return perplexity(*args, **kwargs)

    monkeypatch.setattr(judging, "perplexity", counting)
    return counted


def test_nats_are_those_inside_thin_keys_and_of_the_stock_model() -> None:
    before = state_of(MODEL)
    data = run()
    assert state_of(MODEL) == before
    assert data[PLAN].values.tolist() == [STOCK, "latent 0.6", "drop 0.6", "random 0.6"]
    stock = perplexity(MODEL, WINDOWS)
    np.testing.assert_array_equal(data["nats"].sel({PLAN: STOCK}), stock.window_nats)
    for plan in plans():
        with thin_keys(MODEL, plan):
            expected = perplexity(MODEL, WINDOWS)
        own = data.sel({PLAN: f"{plan.way} 0.6"})
        np.testing.assert_array_equal(own["nats"], expected.window_nats)
        assert float(own["perplexity"]) == pytest.approx(expected.value, rel=1e-12)
        assert abs(own["nats"].values - stock.window_nats).min() > 1e-4, "the keys are thinned"


@pytest.mark.parametrize("architecture", [LLAMA, GEMMA4, QWEN3_NEXT], ids=str)
def test_bytes_are_those_of_the_live_tensors_of_a_cache_that_has_read_a_window(architecture: Architecture) -> None:
    model = architecture.shared()
    plan = plan_keys(model, tokens(4, 48, seed=5), keep=0.6, metric="query", sinks=2)
    data = frontier(model, tokens(1, 48), [plan])
    with torch.no_grad():
        stock = model(tokens(1, 48), use_cache=True).past_key_values
        with thin_keys(model, plan):
            thin = model(tokens(1, 48)).past_key_values
    keys = [layer.keys.nbytes for layer in stock.layers if getattr(layer, "keys", None) is not None]
    live = [layer.keys.nbytes + layer.sinks.keys.nbytes for layer in thin.layers if hasattr(layer, "sinks")]
    assert data["key_bytes"].values.tolist() == [sum(keys), sum(live) + thin.positions.nbytes]
    assert 0.5 < float(bytes_share(data)[1]) <= 0.6


def test_a_file_holds_the_frontier_and_each_plan_is_judged_once(tmp_path: Path, calls: list[int]) -> None:
    path = tmp_path / "frontier.nc"
    data = run(path)
    assert len(calls) == 4
    xr.testing.assert_identical(load(path), data)
    xr.testing.assert_identical(run(path), data)
    assert len(calls) == 4 and [entry.name for entry in tmp_path.iterdir()] == ["frontier.nc"]
    facts = FRONTIER.provenance(data)
    assert facts["plans"]["latent 0.6"]["parameters"]["keep"] == 0.6 and facts["timing"] is None
    with pytest.raises(ResultError, match=r"holds another run \(other plans"):
        frontier(MODEL, WINDOWS, plans()[:1], path=path)


def test_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    path, left = tmp_path / "frontier.nc", 2

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return perplexity(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(judging, "perplexity", interrupting)
        run(path)
    data = run(path)
    assert len(calls) == 2
    xr.testing.assert_identical(data, run())


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from architectures import LLAMA, tokens
    from ropescope.compression import calibration
    from ropescope.compression.several import frontier_plans
    from ropescope.evaluation.frontier import judging

    torch.set_num_threads(1)
    model, folder = LLAMA.shared(), Path(sys.argv[1])

    def run(place):
        place.mkdir(exist_ok=True)
        plans = frontier_plans(
            model, tokens(3, 48, seed=5), (0.6,), baselines=("norm",), sinks=2, folder=place / "plans"
        )
        judging.frontier(model, tokens(2, 48), plans, path=place / "frontier.nc")
        return (place / "frontier.nc").read_bytes()

    def killed(place, module, name, count):
        function = getattr(module, name)

        def dying(*args, **kwargs):
            nonlocal count
            count -= 1
            if count < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        if (child := os.fork()) == 0:
            setattr(module, name, dying)
            run(place)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    expected = run(folder / "whole")
    names = sorted(path.name for path in (folder / "whole").rglob("*"))
    for module, name, count in ((calibration, "_felt", 2), (judging, "perplexity", 1), (judging, "perplexity", 3)):
        place = folder / f"{name}-{count}"
        assert killed(place, module, name, count) == -signal.SIGKILL
        found = run(place)
        assert len(found) == len(expected), "but for the times in the provenance, the same"
        assert sorted(path.name for path in place.rglob("*")) == names
    print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_a_run_killed_while_calibrating_or_judging_goes_on(tmp_path: Path) -> None:
    (ran,) = forked(textwrap.dedent(KILLED), tmp_path)
    assert ran.stdout == "same\n", ran.stderr


def test_prefill_and_decode_are_timed_for_what_is_no_baseline() -> None:
    data = run(timing=Timing(60, tokens=2, rounds=2))
    for name in ("prefill_seconds", "decode_seconds"):
        assert data[name].dims == ("plan", "side", "round") and data[name].shape == (4, 2, 2)
        assert bool((data[name][1:3] > 0).all()) and bool(data[name][[0, 3]].isnull().all())
    assert bool(data["extra_bytes"].isnull().all()), "a processor does not count the memory of one program's part"
    assert float(data["decode_seconds"][1:3].max()) < float(data["prefill_seconds"][1:3].sum())
    table = frontier_table(data)
    assert "decode time" in table and "x [" in table
    assert "decode time" not in frontier_table(run())
    assert FRONTIER.provenance(data)["timing"]["length"] == 60


# What is made of it


def test_changes_are_paired_and_relative() -> None:
    change = compared(planted_frontier())
    value, low, high = change.sel({PLAN: "latent 0.5", OTHER: STOCK}).values
    assert value == pytest.approx(np.expm1(0.01)) and low == pytest.approx(value) and high == pytest.approx(value)
    value, low, high = change.sel({PLAN: "drop 0.5", OTHER: "norm 0.5"}).values
    assert low < value < high < 0
    assert change.sel({PLAN: "drop 0.5", OTHER: "drop 0.5"}).values.tolist() == [0, 0, 0]


def test_of_few_windows_there_is_no_interval() -> None:
    change = compared(planted_frontier(4)).sel({PLAN: "latent 0.5", OTHER: STOCK}).values
    assert change[0] == pytest.approx(np.expm1(0.01)) and np.isnan(change[1:]).all()
    assert findings(planted_frontier(4))[0].startswith("latent 0.5: 50.2% of the key bytes, perplexity ")
    assert "raises" not in findings(planted_frontier(4))[0]
    assert "of fewer than 5 windows there are no intervals" in section(planted_frontier(4), "x").paragraphs[0]


def test_sentences_say_what_the_intervals_carry() -> None:
    latent, drop = findings(planted_frontier())
    assert latent.startswith("latent 0.5: 50.2% of the key bytes raises perplexity from ")
    assert "+1.01 % [+1.01, +1.01]" in latent and "lower than with norm (+171.8 %)" in latent
    assert "lower than with norm" in drop and len(findings(planted_frontier())) == 2


def test_the_table_has_a_row_for_every_plan_in_every_format() -> None:
    text, markdown = frontier_table(planted_frontier()), frontier_table(planted_frontier(), format="markdown")
    assert len(text.splitlines()) == 5 and len(markdown.splitlines()) == 6
    assert [value_percent(each) for each in (0.0053, -0.123, 2.345, 47.61, 1e4)] == [
        "+0.53 %",
        "-12.3 %",
        "+234.5 %",
        "+4761 %",
        "+1e+06 %",
    ]
    assert "| latent 0.5 | 50.2% |" in markdown and "+1.01 % [+1.01, +1.01]" in markdown
    rows = list(csv.DictReader(io.StringIO(frontier_table(planted_frontier(), format="csv"))))
    assert [row["method"] for row in rows] == [STOCK, "latent", "drop", "norm"]
    assert float(rows[1]["key_bytes_share"]) == 0.502 and float(rows[1]["change"]) == pytest.approx(np.expm1(0.01))
    assert rows[1]["decode"] == ""
    with pytest.raises(InputError, match="got format 'markdwon': did you mean 'markdown'"):
        frontier_table(planted_frontier(), format="markdwon")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plans": []}, "got no plans; give at least one"),
        ({"plans": ["latent"]}, "got a str among the plans"),
        ({"plans": lambda: [plans()[0], plans()[0]]}, "two plans called 'latent 0.6'; give them by names"),
        ({"plans": lambda: {"stock": plans()[0]}}, "two plans called 'stock'"),
        ({"timing": Timing(1)}, "length to time at got 1; it is at least 2"),
        ({"timing": Timing(8, rounds=0)}, "rounds of timing got 0"),
        ({"batch_size": 0}, "batch_size got 0"),
        ({"stride": 48}, "stride got 48"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    options: dict[str, Any], message: str, tmp_path: Path, calls: list[int]
) -> None:
    given = options.pop("plans", plans)
    with pytest.raises(InputError, match=message):
        frontier(MODEL, WINDOWS, given() if callable(given) else given, path=tmp_path / "x.nc", **options)
    assert not calls and not list(tmp_path.iterdir())


def test_a_plan_of_another_model_is_refused(calls: list[int]) -> None:
    with pytest.raises(InputError, match="made for other weights"):
        frontier(LLAMA.build(seed=1), WINDOWS, plans())
    assert not calls


def test_plans_by_name_are_shown_by_it() -> None:
    data = frontier(MODEL, WINDOWS[:1], {"mine": plans()[0]})
    assert data[PLAN].values.tolist() == [STOCK, "mine"] and data["method"].values.tolist() == [STOCK, "latent"]
