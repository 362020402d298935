"""Statistics of keys are those of all tokens together, however they come, and their metrics are what they say."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from architectures import GEMMA4, LLAMA, QWEN3, Architecture, tokens
from ropescope.base.key_plans import METRICS, Metric
from ropescope.base.rotary import rotate
from ropescope.compression import calibration
from ropescope.compression.calibration import Calibration, calibrated, over_distances
from ropescope.compression.moments import Moments, Products
from ropescope.model.attention import AttentionCall, intercepted
from ropescope.model.card import LayerRotation
from ropescope.model.probing import probe
from ropescope.run.batching import batches_of
from ropescope.run.workers import Workers

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 32


def statistics(architecture: Architecture, metric: Metric, sinks: int = 2, batch_size: int = 1) -> Calibration:
    model, windows = architecture.shared(), tokens(4, LENGTH)
    batches = batches_of(batch_size, "cpu", Workers())
    return calibrated(model, windows, probe(model, LENGTH), batches, Workers(), metric=metric, sinks=sinks)


@functools.cache
def rotations() -> dict[int, LayerRotation]:
    return {rotation.layer: rotation for rotation in probe(LLAMA.shared(), LENGTH).layers}


def before_rotation(layer: int, heads: Tensor, sinks: int = 2) -> Tensor:
    """All heads of a token before rotation, (token, number)."""
    rotation = rotations()[layer]
    angle = -torch.arange(heads.shape[2])[:, None] * rotation.frequency
    turned = rotate(heads.detach(), angle, rotation.pairing)[:, :, sinks:]
    return turned.transpose(1, 2).flatten(0, 1).flatten(1).double()


def test_moments_of_parts_are_those_of_the_whole_with_a_mean_far_out() -> None:
    vectors = torch.randn(300, 5, dtype=torch.float64) + 1e4
    weights = torch.rand(300, dtype=torch.float64)
    moments = Moments.none(5)
    for part in (slice(0, 7), slice(7, 200), slice(200, 300)):
        moments.add(vectors[part].float(), weights[part])
    known = torch.cov(vectors.float().double().T, correction=0, aweights=weights)
    torch.testing.assert_close(moments.covariance, known, rtol=1e-4, atol=1e-5)
    assert moments.count == 300


def test_products_of_several_processes_have_the_mean_over_all_their_vectors() -> None:
    class Both(Workers):
        def summed(self, array: np.ndarray) -> np.ndarray:
            return array + (others.count if array.shape == (1,) else others.total.numpy())

    vectors = torch.randn(30, 4, dtype=torch.float64)
    mine, others = Products.none(4), Products.none(4)
    mine.add(vectors[:10].T @ vectors[:10], 10)
    others.add(vectors[10:].T @ vectors[10:], 20)
    torch.testing.assert_close(mine.shared(Both()).mean, vectors.T @ vectors / 30)


def test_keys_are_those_before_rotation_without_the_sinks() -> None:
    found, model = statistics(LLAMA, "query"), LLAMA.shared()
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), intercepted(model, lambda call: seen.__setitem__(call.layer, call.key)):
        model(tokens(4, LENGTH), use_cache=False)
    for layer, key in seen.items():
        flat, keys = before_rotation(layer, key), found.layers[layer].keys
        torch.testing.assert_close(keys.mean, flat.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(keys.covariance, torch.cov(flat.T, correction=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_batches_change_nothing(metric: Metric) -> None:
    one, all_at_once = (statistics(QWEN3, metric, batch_size=size) for size in (1, 4))
    for layer in one.layers:
        torch.testing.assert_close(one.layers[layer].cost, all_at_once.layers[layer].cost, atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(
            one.layers[layer].keys.covariance, all_at_once.layers[layer].keys.covariance, atol=1e-5, rtol=1e-3
        )


def test_the_query_metric_is_the_mean_square_of_logits_at_log_uniform_distances() -> None:
    rotation = probe(LLAMA.shared(), LENGTH).layers[0]
    queries = torch.randn(1, 50, 16, dtype=torch.float64)
    found = over_distances(queries.transpose(1, 2) @ queries, rotation, 1000)
    key = torch.randn(16, dtype=torch.float64)
    logits = []
    for distance in torch.logspace(0, 3, 64, dtype=torch.float64):
        logits.append(rotate(queries, distance * rotation.frequency[None], rotation.pairing).double() @ key)
    torch.testing.assert_close(key @ found[0] @ key, torch.stack(logits).square().sum(-1).mean(), rtol=1e-3, atol=0)


def test_the_fisher_metric_is_what_the_log_likelihood_feels_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_uniforms", lambda batch, length: torch.full((1, len(batch), length - 1), 0.5))
    found, model, windows = statistics(LLAMA, "fisher"), LLAMA.shared(), tokens(4, LENGTH)
    with torch.no_grad():
        below = model(windows, use_cache=False).logits[:, :-1].softmax(-1).cumsum(-1)
    drawn = (below < 0.5).sum(-1, keepdim=True)
    for layer in (0, 3):
        moves, keys = torch.zeros(4, 2, LENGTH, 16, requires_grad=True), {}

        def moved(call: AttentionCall) -> tuple[Tensor, Tensor]:
            keys[call.layer] = call.key.detach()  # noqa: B023
            return call.query, call.key + moves if call.layer == layer else call.key  # noqa: B023

        with torch.enable_grad(), intercepted(model, moved):
            likelihood = model(windows, use_cache=False).logits[:, :-1].log_softmax(-1).gather(-1, drawn).sum()
        gradient = torch.autograd.grad(likelihood, moves)[0]
        flat = before_rotation(layer, gradient)
        torch.testing.assert_close(found.layers[layer].cost, flat.T @ flat / len(flat), rtol=1e-3, atol=1e-6)
        # A pair that is scaled is scaled in all keys of a window but the sinks'.
        scaled = (gradient * keys[layer])[:, :, 2:].double().sum(2).unflatten(2, (2, 8)).sum(2)
        torch.testing.assert_close(found.layers[layer].pairs, scaled.square().sum(0), rtol=1e-3, atol=1e-6)


def test_both_metrics_add_up_in_proportion_to_what_an_error_alike_everywhere_costs_by_each() -> None:
    both, felt, asked = (statistics(QWEN3, metric) for metric in METRICS)
    for layer, each in both.layers.items():
        added = each.cost - felt.layers[layer].cost
        factor = float(added.flatten() @ asked.layers[layer].cost.flatten() / asked.layers[layer].cost.square().sum())
        torch.testing.assert_close(added, factor * asked.layers[layer].cost, rtol=1e-3, atol=1e-9)
        assert float(added.trace() / felt.layers[layer].cost.trace()) == pytest.approx(0.3, rel=1e-3)
        torch.testing.assert_close(each.keys.covariance, felt.layers[layer].keys.covariance)
        torch.testing.assert_close(each.pairs, felt.layers[layer].pairs)


def test_layers_that_use_the_keys_of_others_are_told_from_the_keys() -> None:
    for metric in METRICS:
        found = statistics(GEMMA4, metric)
        assert found.shared == {4: 2, 5: 3} and list(found.layers) == [0, 1, 2, 3]
