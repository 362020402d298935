"""Several plans come from one calibration, baselines keep the pairs that they say, and what is made is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from architectures import GEMMA4, LLAMA, tokens
from ropescope.base.errors import InputError, ResultError
from ropescope.base.key_plans import BASELINES
from ropescope.compression import several
from ropescope.compression.plans import KeyPlan
from ropescope.compression.scores import order_by
from ropescope.compression.several import frontier_plans
from ropescope.measurement.measure import measure
from ropescope.measurement.results import save
from ropescope.model.identity import model_provenance
from ropescope.model.probing import probe

pytestmark = pytest.mark.usefixtures("one_thread")

CALIBRATION = tokens(4, 48, seed=5)


def planned(**arguments: Any) -> list[KeyPlan]:
    given: dict[str, Any] = {"keep": (0.6, 0.7), "method": ("drop",), "metric": "query", "sinks": 2}
    return frontier_plans(LLAMA.shared(), CALIBRATION, **{**given, **arguments})


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return measure(LLAMA.shared(), CALIBRATION, frame_length=48, hop_length=24)


def pairs_of(plan: KeyPlan, layer: int = 0) -> list[set[int]]:
    return [{number % 8 for number in head} for head in plan.layers[layer].dimensions.tolist()]


def test_ways_and_shares_come_in_order_each_of_the_bytes_asked_for() -> None:
    plans = planned(method=("latent", "drop"), baselines=("random",))
    assert [(plan.way, plan.provenance["parameters"]["keep"]) for plan in plans] == [
        (way, share) for way in ("latent", "drop", "random") for share in (0.7, 0.6)
    ]
    assert {plan.method for plan in plans[4:]} == {"drop"}


@pytest.mark.parametrize(
    ("name", "stands_out"),
    [
        ("norm", lambda query, key: key["mean_norm"]),
        ("spectrum-fe", lambda query, key: -key["spectrum_fe"]),
        ("norm-product", lambda query, key: key["mean_norm"] * query["mean_norm"].values.reshape(4, 2, 2, 8).sum(2)),
    ],
)
def test_a_baseline_keeps_the_pairs_that_it_says(name: str, stands_out: Any, result: xr.DataTree) -> None:
    (plan,) = planned(keep=(0.6,), method=(), baselines=(name,), result=result)
    query, key = (result[stream].to_dataset().mean("sequence") for stream in ("query", "key"))
    scores = stands_out(query, key).values
    for layer in plan.layers:
        for head, kept in enumerate(pairs_of(plan, layer.layer)):
            best = set(np.argsort(-scores[layer.layer, head])[: len(kept)].tolist())
            assert kept == best


def test_baselines_keep_the_same_share_of_every_layer_and_as_many_bytes(result: xr.DataTree) -> None:
    plans = planned(keep=(0.6,), baselines=tuple(BASELINES), result=result)
    for plan in plans[1:]:
        kept = [layer.kept for layer in plan.layers]
        assert max(kept) - min(kept) <= 4, "a pair of each of two heads"
        assert abs(sum(kept) - sum(layer.kept for layer in plans[0].layers)) <= 4


def test_random_pairs_are_the_same_again_and_a_silent_pair_comes_last(result: xr.DataTree) -> None:
    assert planned(baselines=("random",))[-1].digest() == planned(baselines=("random",))[-1].digest()
    silent = result.copy(deep=True)
    silent["key"]["spectrum_fe"][:, 1, 0, 3] = np.nan
    card, model = probe(LLAMA.shared(), 48), model_provenance(LLAMA.shared())
    assert int(order_by("spectrum-fe", card, silent, model).scores[1][0].argmin()) == 3


def test_layers_of_other_shapes_are_scored_by_their_own_heads() -> None:
    model = GEMMA4.shared()
    measured = measure(model, CALIBRATION, frame_length=48, hop_length=24)
    card = probe(model, 48)
    scores = order_by("norm-product", card, measured, model_provenance(model)).scores
    for rotation in card.layers:
        assert scores[rotation.layer].shape == (rotation.kv_heads, rotation.pairing.pairs)
        assert torch.isfinite(scores[rotation.layer]).all()


@pytest.mark.slow
def test_a_plan_that_was_made_is_read_and_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plans"
    made = planned(folder=folder, baselines=("norm",))
    names = [f"{name}.safetensors" for name in ("drop-0.6", "drop-0.7", "norm-0.6", "norm-0.7")]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "measured.nc"])
    with monkeypatch.context() as patch:
        patch.setattr(several, "planner_of", None)
        again = planned(folder=folder, baselines=("norm",))
        assert [plan.digest() for plan in again] == [plan.digest() for plan in made]
        with pytest.raises(ResultError, match=r"drop-0\.7.*holds another run \(other parameters\.sinks 2 against 3\)"):
            planned(folder=folder, sinks=3)
    (folder / "drop-0.6.safetensors").unlink()
    assert planned(folder=folder)[1].digest() == made[1].digest()
    assert planned(folder=folder, sinks=3, overwrite=True)[0].sinks == 3


def test_what_was_planned_before_the_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, left = KeyPlan.save, 1

    def dying(plan: KeyPlan, path: Path, **options: Any) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return saved(plan, path, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KeyPlan, "save", dying)
        planned(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["drop-0.7.safetensors"]
    assert [plan.digest() for plan in planned(folder=tmp_path)] == [plan.digest() for plan in planned()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": ()}, "got nothing to plan"),
        ({"method": ()}, "got nothing to plan"),
        ({"keep": (0.5, 1.5)}, r"keep got 1\.5"),
        ({"method": ("latnet",)}, "did you mean 'latent'"),
        ({"baselines": ("nrom",)}, "unknown baseline 'nrom'; did you mean 'norm'"),
        ({"sinks": -1}, "sinks got -1"),
    ],
)
def test_what_cannot_be_planned_is_said_and_leaves_nothing(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        planned(folder=tmp_path / "plans", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_measurement_of_another_model_is_refused(tmp_path: Path) -> None:
    other = measure(LLAMA.build(seed=1), CALIBRATION, frame_length=48, hop_length=24)
    save(other, tmp_path / "other.nc")
    with pytest.raises(InputError, match="the measurement is of another model"):
        planned(baselines=("norm",), result=other)
