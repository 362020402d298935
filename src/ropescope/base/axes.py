"""The name of every axis, written once, and the tensor types made of them.

The same word is used for a dimension in a type, a docstring, a result file and on a plot.
Tensor aliases are for annotations: import this module's types under ``TYPE_CHECKING``, so that jaxtyping is not
needed to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

SEQUENCE = "sequence"
LAYER = "layer"
HEAD = "head"
KV_HEAD = "kv_head"
PAIR = "pair"
POSITION = "position"
BIN = "bin"

QUERY = "query"
KEY = "key"
STREAMS = (QUERY, KEY)
HEAD_AXIS = {QUERY: HEAD, KEY: KV_HEAD}
STREAM_NAMES = {QUERY: "queries", KEY: "keys"}
HEAD_NAMES = {QUERY: "query head", KEY: "key head"}

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    TokenIds = Int[Tensor, "sequence position"]
    Signal = Float[Tensor, "*batch position"]
    Power = Float[Tensor, "*batch bin"]
    Entropy = Float[Tensor, "*batch"]
    Heads = Float[Tensor, "*batch position head_dim"]
    PairNorms = Float[Tensor, "*batch position pair"]
    Angles = Float[Tensor, "*batch position pair"]
    PairFlags = Bool[Tensor, "pair"]
    PairValues = Float[Tensor, "pair"]
