"""Sets of pairs turned down cost what the plain computation says, and importance added up is judged by that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import ropescope as rs
from architectures import LLAMA, tokens
from drawn import curve
from ropescope.base.errors import InputError
from ropescope.display.figures.sets import set_predictions
from ropescope.evaluation import ablation
from ropescope.evaluation.set_prediction import (
    SET_VALIDATION,
    VARIABLES,
    predicted_kl,
    sets_in_words,
    sets_table,
    trusted,
)
from ropescope.evaluation.set_validation import validate_sets
from ropescope.interventions.masks import PairMask
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.importance import importance
from synthetic import synthetic_result
from synthetic_worth import synthetic_worth

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = tokens(5, 24)
ALPHAS = (0.0, 0.9)


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return rs.measure(LLAMA.shared(), tokens(1, 96), frame_length=32, hop_length=16)


@pytest.fixture(scope="module")
def worth() -> xr.DataTree:
    return importance(LLAMA.shared(), WINDOWS)


@pytest.fixture(scope="module")
def masks(result: xr.DataTree) -> dict[str, PairMask]:
    return {name: rs.select(result, name) for name in ("layer == 2 and pair > 4", "pair < 3", "pair < 0")}


@pytest.fixture(scope="module")
def check(worth: xr.DataTree, masks: dict[str, PairMask]) -> xr.Dataset:
    return validate_sets(LLAMA.shared(), WINDOWS, worth, masks, alphas=ALPHAS)


def of(mask: PairMask, query: Any, key: Any) -> PairMask:
    """The mask with these places of (layer, head, pair) alone."""
    chosen = {stream: xr.zeros_like(array) for stream, array in mask.streams().items()}
    chosen["query"].values[query], chosen["key"].values[key] = True, True
    return mask.replaced(chosen["query"], chosen["key"], "places")


NOWHERE = (slice(0), slice(None), slice(None))


def test_costs_are_those_of_the_plain_computation(check: xr.Dataset, masks: dict[str, PairMask]) -> None:
    model = LLAMA.shared()
    for name, mask in masks.items():
        for alpha in ALPHAS:
            with weighted_rope(model, mask, alpha):
                changed = logits(model)
            ours = logits(model)
            kl = (ours.exp() * (ours - changed)).sum(-1).mean(-1)
            nll = (ours - changed).gather(-1, WINDOWS[:, 1:, None])[..., 0].mean(-1)
            found = check.sel(selection=name, alpha=alpha)
            np.testing.assert_allclose(found.kl, kl, rtol=1e-3, atol=1e-7)
            np.testing.assert_allclose(found.nll, nll, rtol=1e-3, atol=1e-6)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(WINDOWS).logits[:, :-1].double().log_softmax(-1)


def test_layers_below_the_first_selected_pair_are_not_run_again(
    worth: xr.DataTree, masks: dict[str, PairMask], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, layers = ablation.Unchanged.against, []

    def against(self: Any, layer: int, handler: Any) -> Any:
        layers.append(layer)
        return own(self, layer, handler)

    monkeypatch.setattr(ablation.Unchanged, "against", against)
    same = {**masks, "again": masks["pair < 3"]}
    validate_sets(LLAMA.shared(), WINDOWS[:2], worth, same, alphas=(0.5,))
    assert layers == [2, 0] * 2


def test_the_ratio_has_an_interval_over_windows_and_none_where_nothing_is_selected(check: xr.Dataset) -> None:
    value, low, high = (check.ratio.sel(estimate=end) for end in ("value", "low", "high"))
    some = check.selection != "pair < 0"
    np.testing.assert_allclose(value[some], (check.predicted_kl / check.kl.mean("sequence"))[some])
    assert ((low < value) & (value < high))[some].all()
    nothing = check.sel(selection="pair < 0")
    assert nothing.ratio.isnull().all() and not nothing.kl.any() and not nothing.predicted_kl.any()
    assert check.selected_pairs.values.tolist() == [[4 * 3, 2 * 3], [4 * 4 * 3, 4 * 2 * 3], [0, 0]]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.97])
@pytest.mark.parametrize(("query", "key"), [(True, True), (True, False), (False, True)])
def test_the_prediction_is_of_what_logits_lose_where_heads_do_not_interact(
    alpha: float, query: bool, key: bool
) -> None:
    """Derivatives g of the four query heads of two groups, independent: the key's is their sum."""
    result = synthetic_result(layers=1, heads=4, kv_heads=2, nope_layers=(), padded=False)
    for stream in ("query", "key"):
        result[stream].mean_norm.values[:] = 1
    variance = np.array([1.0, 4.0, 9.0, 16.0])
    worth = synthetic_worth(result, lambda mean: mean["mean_norm"] * 0 + 1)
    worth["query"].fisher.values[:] = variance[None, None, :, None]
    worth["key"].fisher.values[:] = variance.reshape(2, 2).sum(1)[None, None, :, None]
    none = rs.select(result, "pair < 0")
    mask = of(none, (0, [0, 3], 1) if query else NOWHERE, (0, 0, 1) if key else NOWHERE)
    weight = np.ones(4)
    weight[[0, 3]] *= alpha if query else 1
    weight[:2] *= alpha if key else 1
    # The key pair's derivative is of both its heads at once, which independence adds up.
    assert predicted_kl(worth, mask, alpha) == pytest.approx(((1 - weight) ** 2 * variance).sum() / 2)
    with pytest.raises(InputError, match="alpha got 2"):
        predicted_kl(worth, mask, 2.0)


@pytest.mark.slow
def test_near_one_a_pair_whose_query_and_key_are_turned_down_costs_what_is_predicted() -> None:
    """One head for each key: then nothing interacts, and counting query and key apart would predict half of it."""
    alone = replace(LLAMA, name="llama-alone", settings={**LLAMA.settings, "num_key_value_heads": 4})
    model, windows = alone.shared(), tokens(4, 24)
    worth = importance(model, windows, draws=192)
    none = rs.select(rs.measure(model, tokens(1, 96), frame_length=32, hop_length=16), "pair < 0")
    place = (1, 2, 5)
    check = validate_sets(model, windows, worth, {"both": of(none, place, place)}, alphas=(0.95,))
    # 768 draws of a square: a standard error of about 5 %.
    assert check.ratio.sel(estimate="value").item() == pytest.approx(1, abs=0.2)
    fisher = sum(float(worth[stream].fisher.mean("sequence")[place]) for stream in ("query", "key"))
    assert 0.05**2 * fisher / 2 == pytest.approx(check.predicted_kl.item() / 1.9, rel=0.06)


def test_goes_on_where_it_was_and_takes_further_strengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: xr.DataTree, masks: dict[str, PairMask]
) -> None:
    own, calls = ablation.Unchanged.against, []

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return own(*given)

    path, windows = tmp_path / "sets.nc", WINDOWS[:3]
    monkeypatch.setattr(ablation.Unchanged, "against", interrupted)
    with pytest.raises(KeyboardInterrupt):
        validate_sets(LLAMA.shared(), windows, worth, masks, alphas=(0.5,), path=path)
    found = validate_sets(LLAMA.shared(), windows, worth, masks, alphas=(0.5, 0.9), path=path)
    assert len(calls) == 4 + 3 * 2 * 2 - 3
    xr.testing.assert_identical(found, validate_sets(LLAMA.shared(), windows, worth, masks, alphas=(0.9, 0.5)))
    xr.testing.assert_identical(rs.load(path), found)


def a_check(points: dict[str, list[tuple[float, float, float]]]) -> xr.Dataset:
    """(alpha, predicted, true) of each selection, over five windows that agree."""
    alphas = [alpha for alpha, _, _ in next(iter(points.values()))]
    predicted = np.array([[place[1] for place in places] for places in points.values()])
    true = np.array([[place[2] for place in places] for places in points.values()])
    arrays = {
        "kl": true[..., None] * np.ones(5),
        "nll": true[..., None] * np.ones(5),
        "predicted_kl": predicted,
        "ratio": (predicted / true)[..., None] * np.ones(3),
        "selected_pairs": np.full((len(points), 2), 7),
    }
    labels = {"selection": list(points), "alpha": alphas, "stream": ["query", "key"]}
    labels["estimate"] = ["value", "low", "high"]
    facts = {"model": {"id": "tiny"}, "windows": {"corpus": "wikitext", "split": "test", "length": 1024}}
    variables = {name: (dims, arrays[name]) for name, (_, _, dims) in VARIABLES.items()}
    return xr.Dataset(variables, labels, SET_VALIDATION.attributes(facts))


IN_RANGE = {"bands": [(0.0, 3.0, 9.0), (0.9, 0.03, 0.04)], "outliers": [(0.0, 0.01, 0.006), (0.9, 1e-4, 1e-4)]}


def test_the_range_of_trust_ends_before_the_first_prediction_beyond_a_factor_two() -> None:
    check = a_check(IN_RANGE)
    assert trusted(check) == (0.03, 3)
    (sentence,) = sets_in_words(check)
    assert sentence == (
        "Importance added up over pairs foretells the KL divergence within a factor 2 up to a predicted 0.03 "
        "nat/token, 3 of 4 changes; do not trust it further. The first beyond is bands at alpha 0: predicted 3, true 9."
    )
    # One that is missed early ends the range, however well larger ones do.
    assert trusted(a_check({**IN_RANGE, "outliers": [(0.0, 0.01, 0.03), (0.9, 1e-4, 1e-4)]})) == (1e-4, 1)


def test_no_range_and_no_end_of_it_are_said() -> None:
    (none,) = sets_in_words(a_check({"bands": [(0.0, 3.0, 1.0), (0.9, 0.03, 0.2)]}))
    assert none.endswith(
        "misses even the least change by more than a factor 2 (bands at alpha 0.9: predicted 0.03, true 0.2 "
        "nat/token): do not add it up over sets like these."
    )
    (every,) = sets_in_words(a_check({"bands": [(0.0, 3.0, 4.0), (0.9, 0.03, 0.02)]}))
    assert every.endswith(
        "of all 2 changes within a factor 2, predicted 0.03 to 3 nat/token; larger ones were not tried."
    )
    (nothing,) = sets_in_words(a_check({"bands": [(0.0, 0.0, 1.0)]}))
    assert "nothing to foretell" in nothing


def test_the_table_has_a_row_for_every_strength_the_weakest_first() -> None:
    table = sets_table(a_check(IN_RANGE))
    assert table.rows[0] == ["bands", "7 + 7", "0.9", "0.03", "0.04", "0.75 [0.75, 0.75]"]
    assert [row[0] for row in table.rows] == ["bands", "bands", "outliers", "outliers"]


def test_the_figure_draws_true_over_predicted_and_where_trust_ends() -> None:
    figure = set_predictions(a_check(IN_RANGE))
    (axes,) = figure.axes
    assert curve(axes, "bands").tolist() == [[3.0, 9.0], [0.03, 0.04]]
    assert curve(axes, "trusted up to 0.03 nat/token")[:, 0].tolist() == [0.03, 0.03]
    diagonal = curve(axes, "equal")
    np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert {round(y / x, 6) for x, y in corners} == {0.5, 2.0}
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_xlim() == axes.get_ylim()
    assert [text.get_text() for text in axes.texts] == ["0", "0.9"] * 2
    assert figure.get_suptitle() == "tiny · wikitext test · 5 windows of 1024 tokens"
    with pytest.raises(InputError, match="no selection that the loss feels"):
        set_predictions(a_check({"bands": [(0.0, 0.0, 1.0)]}))


def test_what_cannot_be_asked_is_refused(worth: xr.DataTree, masks: dict[str, PairMask]) -> None:
    model = LLAMA.shared()
    with pytest.raises(InputError, match="alphas got 1, at which nothing changes"):
        validate_sets(model, WINDOWS, worth, masks, alphas=(0.5, 1.0))
    with pytest.raises(InputError, match="got no selections"):
        validate_sets(model, WINDOWS, worth, {})
    with pytest.raises(InputError, match="the importance is of another model"):
        validate_sets(LLAMA.build(seed=1), WINDOWS, worth, masks)
