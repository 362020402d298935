"""What the alpha of a record is the share of: words for the intervention that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WEIGHTING, DEROTATION = "ropescope.weighted_rope", "ropescope.rotation_kept"


@dataclass(frozen=True)
class Strength:
    """How tables, axes and sentences call what alpha does.

    Parameters
    ----------
    name
        Of a column or an axis.
    subject
        What a sentence calls it, before the number.
    title
        What is done to pairs.
    meaning
        What it is, in words.
    done
        What pairs are then, to tell files apart.
    """

    name: str
    subject: str
    title: str
    meaning: str
    done: str


_OURS = {
    WEIGHTING: Strength("alpha", "alpha", "Turning pairs down", "alpha, the weight of the selected pairs", "weighted"),
    DEROTATION: Strength(
        "rotation kept",
        "rotation at",
        "Taking rotation away",
        "the share of their rotation that the selected pairs keep",
        "derotated",
    ),
}


def is_weighting(facts: Mapping[str, Any]) -> bool:
    """Whether what was recorded turned pairs down, as all did before records named an intervention."""
    return str(facts.get("intervention", WEIGHTING)) == WEIGHTING


def strength_of(facts: Mapping[str, Any]) -> Strength:
    """The words for the intervention that a record names; one that is not of this package goes by its own name.

    Parameters
    ----------
    facts
        Provenance of a sweep or of scores of tasks.

    Examples
    --------
    >>> strength_of({"intervention": "ropescope.rotation_kept"}).name
    'rotation kept'
    """
    intervention = str(facts.get("intervention", WEIGHTING))
    name = intervention.rsplit(".", 1)[-1]
    title, meaning = f"Changing pairs by {name}", f"the alpha of {intervention}"
    return _OURS.get(intervention, Strength(f"alpha of {name}", f"{name} at", title, meaning, name))
