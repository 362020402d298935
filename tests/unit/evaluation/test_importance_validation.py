"""Single pairs taken away cost what the plain computation says, and the prediction is judged by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import ropescope as rs
from architectures import ARCHITECTURES, LLAMA, SMOLLM3, Architecture, state_of, tokens
from ropescope.base.errors import InputError, ModelError, NonFiniteError
from ropescope.base.statistics import bootstrapped, rank_correlation
from ropescope.evaluation import ablation
from ropescope.evaluation.importance_validation import in_words, sampled, validate_importance
from ropescope.interventions.derotation import derotated
from ropescope.interventions.masks import PairMask
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.importance import importance
from ropescope.model.access import undisturbed
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.lm_head import headless
from ropescope.model.partial_forward import recorded

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = tokens(2, 24)


@pytest.fixture(scope="module")
def worth() -> xr.DataTree:
    return importance(LLAMA.shared(), WINDOWS, draws=16)


@pytest.fixture(scope="module")
def check(worth: xr.DataTree) -> xr.Dataset:
    return validate_importance(LLAMA.shared(), WINDOWS, worth, 24)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_upper_layers_run_again_give_the_bits_of_the_whole_model(architecture: Architecture) -> None:
    model = architecture.shared()
    before = state_of(model)
    ran = recorded(model, WINDOWS)
    for layer in ran.places:
        with undisturbed(model), intercepted(model, half_of(layer)):
            whole = headless(model)(input_ids=WINDOWS, use_cache=False).last_hidden_state
        found = ran.hidden_states(layer, half_of(layer))
        assert torch.equal(found, whole) and not torch.equal(found, ran.output.last_hidden_state)
    assert state_of(model) == before


def half_of(layer: int) -> Any:
    def halve(call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        return (call.query / 2, call.key) if call.layer == layer else None

    return halve


def test_only_the_upper_layers_are_run_again() -> None:
    ran, seen = recorded(LLAMA.shared(), WINDOWS), []
    ran.hidden_states(2, lambda call: seen.append(call.layer))
    assert ran.resumable and seen == [2, 3]


@pytest.mark.slow
def test_losses_are_those_of_the_plain_computation(check: xr.Dataset) -> None:
    model = LLAMA.shared()
    for place in (0, 12, 23):
        mask = pair_mask(*(int(check[name][place]) for name in ("layer", "head", "pair")))
        for window in range(len(WINDOWS)):
            ours, theirs = logits(model, window), {}
            with weighted_rope(model, mask, 0.0):
                theirs["scale"] = logits(model, window)
            with derotated(model, mask):
                theirs["rotation"] = logits(model, window)
            for kind, changed in theirs.items():
                kl = (ours.exp() * (ours - changed)).sum(-1).mean()
                nll = (ours - changed).gather(-1, WINDOWS[window, 1:, None]).mean()
                found = check.sel(kind=kind).isel(sample=place, sequence=window)
                assert float(found.kl) == pytest.approx(float(kl), rel=1e-3, abs=1e-7)
                assert float(found.nll) == pytest.approx(float(nll), rel=1e-3, abs=1e-6)


def logits(model: Any, window: int) -> Tensor:
    with torch.no_grad():
        return model(WINDOWS[window][None]).logits[0, :-1].double().log_softmax(-1)


def pair_mask(layer: int, head: int, pair: int) -> PairMask:
    result = rs.measure(LLAMA.shared(), tokens(1, 96), frame_length=32, hop_length=16)
    none = rs.select(result, "pair < 0")
    key = none.key.copy()
    key.loc[{"layer": layer, "kv_head": head, "pair": pair}] = True
    return none.replaced(none.query, key, "one pair")


@pytest.mark.parametrize("size", [1e-5, 1e-2, 1.0, 100.0])
def test_losses_of_logits_are_those_of_float64_however_small(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = 4 * torch.randn(20, 500, generator=generator)
    theirs = ours + size * torch.randn(20, 500, generator=generator) + 0.1
    targets = torch.arange(20)
    before, after = (logits.double().log_softmax(-1) for logits in (ours, theirs))
    kl, nll = ablation.lost(ours, theirs.clone(), targets)
    torch.testing.assert_close(kl.double(), (before.exp() * (before - after)).sum(-1), rtol=1e-3, atol=1e-12)
    change = (before - after).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(nll.double(), change, rtol=1e-3, atol=1e-6)


def test_tokens_that_a_model_never_gives_cost_nothing_and_one_that_it_no_longer_gives_everything() -> None:
    ours, targets = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]), torch.tensor([1])
    theirs = torch.tensor([[0.5, 1.0, 1.5, -torch.inf]])
    kl, nll = ablation.lost(ours[:, :3], theirs[:, :3].clone(), targets)
    assert torch.equal(ablation.lost(ours, theirs.clone(), targets), torch.stack((kl, nll))) and kl > 0
    theirs[0, 0] = -torch.inf
    assert not ablation.lost(ours, theirs, targets).isfinite().all()


@pytest.mark.slow
def test_importance_foretells_what_random_weights_lose(check: xr.Dataset) -> None:
    scale = check.sel(kind="scale")
    value, low, high = scale.kl_correlation.values
    assert value > 0.8 and low < value < high
    assert value == rank_correlation(scale.predicted_kl.values, scale.kl.mean("sequence").values)
    assert float(scale.nll_correlation.sel(estimate="value")) > 0.5
    assert 0.5 < float(scale.kl_ratio.sel(estimate="value")) < 2


def test_a_score_that_foretells_too_little_is_not_to_be_used(worth: xr.DataTree, check: xr.Dataset) -> None:
    good = check.copy()
    good["kl_correlation"].values[:] = [[0.9, 0.8, 0.95], [0.69, 0.6, 0.7]]
    good["small_kl_ratio"].values[:] = 1.0
    scale, rotation = in_words(good)
    assert scale.startswith(
        "24 single key pairs taken away: rank correlation of predicted with true KL divergence 0.90"
    )
    assert scale.endswith(".") and "do not use" not in scale
    assert rotation.endswith("Under 0.7: do not use this score to say what losing a pair's rotation costs.")
    good["kl_correlation"].values[:], good["small_kl_ratio"].values[:, 0] = 0.9, [0.4, 1.9]
    scale, rotation = in_words(good)
    assert scale.endswith(" More than a factor 2 off: it gives the order alone of what losing a pair costs.")
    assert "order alone" not in rotation
    alone = validate_importance(LLAMA.shared(), WINDOWS, worth, 3, rotation=False)
    assert len(in_words(alone)) == 1 and alone.kl.sel(kind="rotation").isnull().all()
    assert "(too few pairs for an interval), sum" in in_words(alone)[0] and "nan" not in in_words(alone)[0]


def test_the_sample_holds_one_pair_of_every_part_and_none_that_is_silent(worth: xr.DataTree) -> None:
    tree = worth.copy(deep=True)
    tree["key"].fisher.values[:, 1, 0, 3] = 0
    fisher = tree["key"].fisher.mean("sequence").values
    places = sampled(tree, "key", 10, seed=0)
    ordered = np.sort(fisher[fisher > 0])
    assert len(ordered) == fisher.size - 1
    for part, place in zip(np.array_split(ordered, 10), places, strict=True):
        assert part[0] <= fisher[place] <= part[-1]
    assert places != sampled(tree, "key", 10, seed=1)
    assert (1, 0, 3) not in sampled(tree, "key", 1000, seed=0)


def test_a_pair_that_does_not_turn_is_not_derotated() -> None:
    model = SMOLLM3.shared()
    check = validate_importance(model, WINDOWS, importance(model, WINDOWS), 12)
    rotates = {layer.layer: layer.rotates for layer in SMOLLM3.expected()}
    turning = [rotates[layer] for layer in check.layer.values]
    np.testing.assert_array_equal(check.kl.sel(kind="rotation").notnull().all("sequence"), turning)
    assert check.kl.sel(kind="scale").notnull().all()


def test_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: xr.DataTree) -> None:
    own, calls = ablation.Unchanged.against, []

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return own(*given)

    path = tmp_path / "check.nc"
    monkeypatch.setattr(ablation.Unchanged, "against", interrupted)
    with pytest.raises(KeyboardInterrupt):
        validate_importance(LLAMA.shared(), WINDOWS, worth, 6, path=path)
    kept = len(list((tmp_path / "check.nc.partial").glob("*.safetensors")))
    found = validate_importance(LLAMA.shared(), WINDOWS, worth, 6, path=path)
    assert kept >= 1 and len(calls) < 7 + 24
    xr.testing.assert_identical(found, validate_importance(LLAMA.shared(), WINDOWS, worth, 6))
    xr.testing.assert_identical(rs.load(path), found)


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (torch.OutOfMemoryError("out of memory"), ModelError, "the memory does not suffice for a window and all its"),
        (None, NonFiniteError, r"without key pair \d of layer \d, head \d the model gives tokens no finite prob"),
    ],
)
def test_what_ends_a_validation_is_said_in_one_line_and_loses_nothing(
    error: Any, raised: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: xr.DataTree
) -> None:
    own, calls, path = ablation.Unchanged.against, [], tmp_path / "check.nc"

    def failing(*given: Any) -> Any:
        calls.append(1)
        if len(calls) < 5:
            return own(*given)
        if error is None:
            return np.nan, 0.0
        raise error

    with monkeypatch.context() as patch, pytest.raises(raised, match=text):
        patch.setattr(ablation.Unchanged, "against", failing)
        validate_importance(LLAMA.shared(), WINDOWS, worth, 6, rotation=False, path=path)
    assert list((tmp_path / "check.nc.partial").glob("*.safetensors"))
    found = validate_importance(LLAMA.shared(), WINDOWS, worth, 6, rotation=False, path=path)
    xr.testing.assert_identical(found, validate_importance(LLAMA.shared(), WINDOWS, worth, 6, rotation=False))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"count": 2}, "count got 2; it is at least 3"),
        ({"seed": -1}, "seed got -1; it is at least 0"),
        ({"stream": "keys"}, "got stream 'keys'"),
    ],
)
def test_options_out_of_range_are_refused(worth: xr.DataTree, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        validate_importance(LLAMA.shared(), WINDOWS, worth, **options)


def test_importance_of_another_model_is_refused(worth: xr.DataTree) -> None:
    with pytest.raises(InputError, match="the importance is of another model"):
        validate_importance(LLAMA.build(seed=1), WINDOWS, worth)


def test_rank_correlation_puts_equal_values_at_the_mean_of_their_ranks() -> None:
    from scipy.stats import spearmanr

    first, other = np.array([1.0, 2.0, 2.0, 5.0, 0.0]), np.array([3.0, 1.0, 4.0, 4.0, 4.0])
    assert rank_correlation(first, other) == pytest.approx(spearmanr(first, other).statistic)
    assert np.isnan(rank_correlation(first, np.ones(5)))


def test_rank_correlations_are_those_of_each_row() -> None:
    first, other = np.random.default_rng(0).integers(6, size=(2, 20, 9)).astype(float)
    one_by_one = [rank_correlation(*rows) for rows in zip(first, other, strict=True)]
    np.testing.assert_array_equal(rank_correlation(first, other), one_by_one)


def test_a_bootstrap_draws_units_together() -> None:
    def mean(drawn: np.ndarray) -> Any:
        return drawn.mean(-1)

    values = np.random.default_rng(0).normal(size=400)
    value, low, high = bootstrapped(mean, values)
    assert value == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    np.testing.assert_allclose(bootstrapped(lambda a, b: (a / b).mean(-1), values, values), 1.0)
    assert np.isnan(bootstrapped(mean, values[:4])).tolist() == [False, True, True]
    assert np.isnan(bootstrapped(mean, values[:0])).all()
