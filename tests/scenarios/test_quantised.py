"""Quantised weights are measured and weighted as the model runs them; what cannot be scaled in place is not baked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from architectures import LLAMA, tokens
from ropescope.base.errors import ModelError
from ropescope.evaluation.perplexity import perplexity
from ropescope.interventions.baking import bake
from ropescope.interventions.derotation import derotated
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.importance import importance
from ropescope.measurement.measure import measure
from ropescope.model.fingerprint import fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES: dict[str, Any] = {"frame_length": 32, "hop_length": 16}
WINDOWS = tokens(2, 96)


class Int8Linear(nn.Module):
    """A projection as bitsandbytes, GPTQ or AWQ make it: another class, integer weights, scales beside them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.register_buffer("scale", linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        integers = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)

    def whole(self) -> Tensor:
        return self.weight.float() * self.scale

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.whole(), self.bias)


class Int8Tensor(Tensor):
    """A weight as torchao makes it: a tensor of another class in an ordinary linear layer, made of two tensors."""

    values: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> Int8Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values, self.scale = values, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        if function is torch.ops.aten.t.default:
            return (args[0].values.float() * args[0].scale).t()
        raise NotImplementedError(function)


def quantised_modules() -> tuple[Any, Any]:
    """A model whose q_proj and k_proj are quantised, and a plain one of the very same weights."""
    quantised, plain = LLAMA.build(), LLAMA.build()
    for ours, theirs in zip(quantised.model.layers, plain.model.layers, strict=True):
        for name in ("q_proj", "k_proj"):
            setattr(ours.self_attn, name, Int8Linear(getattr(ours.self_attn, name)))
            with torch.no_grad():
                getattr(theirs.self_attn, name).weight.copy_(getattr(ours.self_attn, name).whole())
    return quantised, plain


def quantised_tensors() -> Any:
    model, _ = quantised_modules()
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj"):
            packed = getattr(layer.self_attn, name)
            linear = nn.Linear(packed.in_features, packed.out_features, bias=False)
            linear.weight = nn.Parameter(Int8Tensor(packed.weight.data, packed.scale), requires_grad=False)
            setattr(layer.self_attn, name, linear)
    return model


MODELS = {"modules": lambda: quantised_modules()[0], "tensors": quantised_tensors}


@pytest.mark.parametrize("kind", MODELS)
def test_a_quantised_model_is_measured_and_weighted_as_it_runs(kind: str) -> None:
    quantised, (_, plain) = MODELS[kind](), quantised_modules()
    results = [measure(model, WINDOWS, norm_heads=[(0, 1)], **FRAMES) for model in (quantised, plain)]
    for group in ("query", "key", "rotary"):
        xr.testing.assert_allclose(*(result[group].to_dataset() for result in results), rtol=1e-5)
    mask = select(results[0], "pair < 3")
    for context in (lambda m, s: weighted_rope(m, s, 0.1), lambda m, s: derotated(m, s)):
        nats = []
        for model in (quantised, plain):
            with context(model, mask.for_any_model()):
                nats.append(perplexity(model, WINDOWS).window_nats)
        np.testing.assert_allclose(*nats, rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_quantised_model_is_worth_what_a_plain_one_of_its_weights_is(kind: str) -> None:
    quantised, (_, plain) = MODELS[kind](), quantised_modules()
    worth, expected = (importance(model, WINDOWS[:, :24]) for model in (quantised, plain))
    for stream in ("query", "key"):
        xr.testing.assert_allclose(worth[stream].to_dataset(), expected[stream].to_dataset(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("modules", "Int8Linear"), ("tensors", r"Linear with weights of type Int8Tensor, torch\.float32")],
)
def test_quantised_weights_cannot_be_baked(kind: str, said: str) -> None:
    model = MODELS[kind]()
    before = fingerprint(model)
    mask = select(measure(model, WINDOWS, **FRAMES), "pair < 3")
    with pytest.raises(ModelError, match=f"q_proj of layer 0 is a {said}, whose weights cannot be scaled in place"):
        bake(model, mask, 0.5)
    assert fingerprint(model) == before


def test_the_fingerprint_knows_the_values_and_scales_of_quantised_weights() -> None:
    model = quantised_tensors()
    weight, prints = model.model.layers[1].self_attn.k_proj.weight, [fingerprint(model)]
    for part in (weight.values, weight.scale):
        part[0, 0] += 1
        prints.append(fingerprint(model))
    assert len(set(prints)) == 3
