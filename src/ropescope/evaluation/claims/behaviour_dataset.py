"""What a look at a model's behaviour holds."""

from __future__ import annotations

from ropescope.base.axes import HEAD, LAYER, SEQUENCE
from ropescope.base.schema import Schema

ARM, READING = "arm", "reading"
READINGS = ("first", "second")
LOOKED = {
    "previous": "attention to the token before",
    "diagonal": "share of the variance of attention that distance explains",
    "best": "share of the highest tokens that the quarter of pairs chooses which chooses best on other queries",
    "random": "share of the highest tokens that a random quarter of pairs chooses",
}
VARIABLES = {
    **{name: (what, "1", (SEQUENCE, LAYER, HEAD)) for name, what in LOOKED.items()},
    "nats": ("negative log-likelihood of a window", "nat/token", (ARM, SEQUENCE)),
    "readings": ("negative log-likelihood of a passage read twice", "nat/token", (ARM, READING, SEQUENCE)),
    "pairs": ("key pairs that the arm changes", "1", (ARM,)),
}
BEHAVIOUR = Schema(
    "ropescope-behaviour",
    1,
    {name: dims for name, (_, _, dims) in VARIABLES.items()},
    what="a look at a model's behaviour",
    command="ropescope claims --model",
    again="look again",
)
