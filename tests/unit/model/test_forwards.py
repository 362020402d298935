"""Forwards that are swapped for a while."""

from __future__ import annotations

import pytest
from torch import nn

from ropescope.model.decoder import with_forward


def test_a_module_runs_the_other_forward_while_the_context_is_open_and_its_class_s_own_again() -> None:
    module = nn.Identity()
    with with_forward(module, lambda value: value + 1):
        assert module(1) == 2
    assert module(1) == 1 and "forward" not in vars(module)


def test_a_forward_that_a_hook_has_set_stands_again_afterwards_whatever_happens() -> None:
    """Modules that are placed over devices, or wrapped, have one of their own."""
    module = nn.Identity()
    own = vars(module)["forward"] = lambda value: value * 10
    with pytest.raises(ZeroDivisionError), with_forward(module, lambda value: value + 1):
        assert module(1) == 2
        raise ZeroDivisionError
    assert vars(module)["forward"] is own and module(1) == 10
