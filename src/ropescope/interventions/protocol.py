"""What an intervention is: a context in which a model runs otherwise, at a strength from nothing to all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from ropescope.base.errors import InputError
from ropescope.interventions.masks import PairMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Intervention(Protocol):
    """A named function that gives a context in which the selected pairs of a model keep a share of something.

    At 1 it changes nothing, bit for bit; at 0 all of it is gone. On exit the model is as it was, also after an error.
    :func:`ropescope.weighted_rope` and `rotation_kept` are two.
    """

    def __call__(self, model: PreTrainedModel, mask: PairMask, alpha: float, /) -> AbstractContextManager[None]:
        """The context, for the pairs of a mask and a strength of 0 to 1."""


def intervention_name(intervention: Callable[..., object]) -> str:
    """What the record calls an intervention: where it is defined, one of our own by its name alone.

    Raises
    ------
    InputError
        If it has no name of its own.
    """
    name = getattr(intervention, "__qualname__", "<none>")
    if "<" in name:
        raise InputError(f"got the intervention {intervention!r}; give a function with a name, which the file records")
    home = intervention.__module__
    return f"{'ropescope' if home.startswith('ropescope.') else home}.{name}"
