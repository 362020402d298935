"""Masks are compared with a model: one look serves all of them only where that is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ropescope as rs
from architectures import LLAMA, tokens
from ropescope.base.errors import InputError
from ropescope.evaluation.sweep.arms import Controls
from ropescope.interventions import fitting
from ropescope.interventions.fitting import fitting_card, looked_at_once

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models of every look."""
    seen: list[Any] = []
    for name in ("probe", "model_identity"):
        own = getattr(fitting, name)
        monkeypatch.setattr(fitting, name, lambda model, own=own: (seen.append(model), own(model))[1])
    return seen


@pytest.fixture(scope="module")
def mask() -> rs.PairMask:
    return rs.select(rs.measure(LLAMA.shared(), tokens(1, 96), frame_length=32, hop_length=16), "pair < 2")


def test_each_mask_has_a_look_of_its_own_unless_one_is_to_serve_all(looks: list[Any], mask: rs.PairMask) -> None:
    model = LLAMA.build()
    for _ in range(2):
        fitting_card(model, mask)
    assert len(looks) == 4
    looks.clear()
    with looked_at_once(model), looked_at_once(model):
        cards = [fitting_card(model, mask) for _ in range(3)]
    assert len(looks) == 2 and cards[0] is cards[1] is cards[2]
    fitting_card(model, mask)
    assert len(looks) == 4


def test_another_model_and_one_under_an_intervention_are_looked_at_anew(looks: list[Any], mask: rs.PairMask) -> None:
    model, other = LLAMA.build(), LLAMA.build(seed=1)
    with looked_at_once(model):
        plain = fitting_card(model, mask)
        with pytest.raises(InputError, match="the mask was selected on other weights"):
            fitting_card(other, mask)
        looks.clear()
        with rs.weighted_rope(model, mask, 0.5):
            assert fitting_card(model, mask) is not plain
        assert looks == [model, model]
        assert fitting_card(model, mask) is plain


def test_what_changed_is_seen_once_the_context_is_left(mask: rs.PairMask) -> None:
    model = LLAMA.build()
    with pytest.raises(ZeroDivisionError), looked_at_once(model):
        fitting_card(model, mask)
        raise ZeroDivisionError
    model.model.layers[0].self_attn.q_proj.weight.mul_(torch.tensor(2.0))
    with pytest.raises(InputError, match="the mask was selected on other weights"):
        fitting_card(model, mask)


def test_a_sweep_looks_once(looks: list[Any], mask: rs.PairMask) -> None:
    rs.sweep(LLAMA.shared(), tokens(2, 24), {"low": mask}, alphas=(0, 0.5), controls=Controls(seeds=(0,)))
    assert len(looks) == 2
