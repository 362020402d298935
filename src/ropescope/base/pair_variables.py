"""The numbers that a pair can have: what each is called, its unit and its meaning, registered once for every room.

What is registered here is known to :func:`ropescope.select`, the summary, the figures and the report.
"""

from __future__ import annotations

from dataclasses import dataclass

from ropescope.base.axes import HEAD, LAYER, PAIR
from ropescope.base.errors import InputError

# Further names that a selection knows; they are of the pair's place and rotation.
# Conditions of their own: whether the layer turns the pair, and whether both entropies have a value.
CONDITIONS = ("rotated", "defined")
PLACES = (LAYER, HEAD, PAIR, "frequency", *CONDITIONS)


@dataclass(frozen=True)
class PairVariable:
    """One number of every rotary pair of every head.

    Parameters
    ----------
    name
        What expressions and files call it, a Python identifier.
    label
        What figures and tables call it.
    unit
        Its unit, "1" where it has none.
    text
        What it is, in a few words.
    low
        What a low value means; None where low and high mean nothing of themselves.
    scale
        Its usual range, which every figure and page draws, so that two models compare by eye.
    logarithmic
        Whether figures draw it on a logarithmic scale, 0 as the least; it is never negative then.

    Examples
    --------
    >>> PairVariable("mean_norm", "mean norm", text="mean of the norm along the text").unit
    '1'
    """

    name: str
    label: str
    unit: str = "1"
    text: str | None = None
    low: str | None = None
    scale: tuple[float, float] | None = None
    logarithmic: bool = False

    @property
    def axis_label(self) -> str:
        """What an axis of its values is called, with the unit where it has one.

        Returns
        -------
        str

        Examples
        --------
        >>> PairVariable("dominant_period", "dominant period", "token").axis_label
        'dominant period (token)'
        """
        return self.label if self.unit == "1" else f"{self.label} ({self.unit})"


MEASURED = (
    PairVariable(
        "spectrum_fe",
        "SpectrumFE",
        text="entropy of the short-time spectrum of the pair's norm, 0 to 1",
        low="strongest band",
        scale=(0.0, 0.6),
    ),
    PairVariable(
        "sequence_fe",
        "SequenceFE",
        text="entropy of the whole-sequence spectrum of the pair's norm, 0 to 1",
        low="most periodic",
        scale=(0.4, 1.0),
    ),
    PairVariable(
        "mean_norm",
        "mean norm",
        text="mean over positions of the pair's L2 norm; NaN where the model has no such pair",
    ),
    PairVariable("dc_share", "DC share", text="share of SpectrumFE's power in the lobe around zero frequency, 0 to 1"),
    PairVariable("dominant_period", "dominant period", "token"),
    PairVariable("peak_share", "peak share", text="share of SequenceFE's power in its strongest bin, 0 to 1"),
)
ENTROPIES = ("spectrum_fe", "sequence_fe")
WORTH = (
    PairVariable(
        "fisher",
        "importance",
        "nat/token",
        text="mean squared derivative of the log-likelihood of tokens drawn from the model with respect to the pair's "
        "scale, over the tokens of a window; half of it is what the loss of the pair costs in KL divergence",
        logarithmic=True,
    ),
    PairVariable(
        "gradient",
        "loss gradient",
        "nat/token",
        text="derivative of the text's negative log-likelihood with respect to the pair's scale; negative where the "
        "loss falls as the pair is turned up",
    ),
    PairVariable(
        "rotation_fisher",
        "rotation importance",
        "nat/token",
        text="as importance, with respect to the share of its rotation that a key head's group loses in the pair",
        logarithmic=True,
    ),
    PairVariable(
        "rotation_gradient",
        "rotation gradient",
        "nat/token",
        text="as loss gradient, with respect to the share of its rotation that a key head's group loses in the pair",
    ),
)
_registered = {variable.name: variable for variable in (*MEASURED, *WORTH)}


def register(variable: PairVariable) -> PairVariable:
    """Make a variable of a measurement of your own known everywhere.

    Parameters
    ----------
    variable
        Its name must be free, or taken by this very variable.

    Returns
    -------
    PairVariable
        The same one.

    Raises
    ------
    InputError
        The name is no identifier, or stands for something else.

    Examples
    --------
    >>> register(PairVariable("norm_skewness", "skewness of the norm")).label
    'skewness of the norm'
    """
    name = variable.name
    if not name.isidentifier() or name in PLACES or _registered.get(name, variable) != variable:
        raise InputError(f"got the variable name {name!r}; choose an identifier that stands for nothing else yet")
    return _registered.setdefault(name, variable)


def pair_variables() -> dict[str, PairVariable]:
    """Every registered variable by its name, those of :func:`ropescope.measure` first."""
    return dict(_registered)
