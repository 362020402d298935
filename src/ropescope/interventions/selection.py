"""Select rotary pairs of a result by an expression.

Expressions are parsed and checked node by node, and computed on the labelled arrays; nothing in them runs as Python.
"""

from __future__ import annotations

import ast
import operator
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, LAYER, PAIR, STREAMS
from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.pair_variables import CONDITIONS, ENTROPIES, PLACES, pair_variables
from ropescope.base.selections import BANDS, NAMED
from ropescope.interventions.masks import PairMask, labelled
from ropescope.measurement.joining import joined
from ropescope.measurement.results import ROTARY, mean_over_sequences, provenance, stream_data

_MAX_CHARACTERS = 1000
_MAX_NESTING = 50
_MAX_QUOTED = 80
_COMPARISONS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def select(
    result: xr.DataTree, expression: str, *others: xr.DataTree, importance: xr.DataTree | None = None
) -> PairMask:
    """Select the pairs of a result for which an expression holds, each stream by its own values.

    Parameters
    ----------
    result
        What :func:`ropescope.measure` gave; entropies count as their mean over the sequences.
    expression
        Comparisons (chained too) of `spectrum_fe`, `sequence_fe`, `mean_norm`, `dc_share`, `dominant_period`,
        `peak_share`, `layer`, `head` (key head for keys), `pair`, `frequency` (rad/token) and numbers, joined by
        `and`, `or`, `not` and parentheses with each other and with `rotated` and `defined` (both entropies have a
        value); or a selection by name: the paper's "bands", "spectrum-outliers", "periodic", "table1", or "silent",
        the pairs that are exactly zero, or "undefined". Registered variables of other measurements count too.
    others
        Measurements of the same pairs, whose registered variables the expression may name.
    importance
        One of them, what :func:`ropescope.importance` gave: `fisher`, `gradient`, `rotation_fisher` and
        `rotation_gradient`, mean over its windows.

    Returns
    -------
    PairMask
        A value that is not defined (NaN) satisfies no comparison, whichever way it points, nor its negation.

    Raises
    ------
    InputError
        If the expression does not parse, names something unknown, or is not made of the parts above.

    References
    ----------
    Frequency Entropy paper, section 4.1, equation 7.

    Examples
    --------
    >>> mask = select(result, "spectrum_fe > 0.4 or sequence_fe < 0.6")  # doctest: +SKIP
    """
    expression = " ".join(expression.split())
    result = joined(result, *others, *([] if importance is None else [importance]))
    tree = _parse(NAMED.get(expression, expression))
    streams = {}
    for stream in STREAMS:
        values = _values(result, stream)
        holds, defined = _evaluate(tree, values)
        present = values["mean_norm"].notnull()
        chosen = (holds & defined & present).transpose(*present.dims)
        streams[stream] = [
            labelled(array.values, present[LAYER].values, HEAD_AXIS[stream]) for array in (chosen, present)
        ]
    return PairMask(
        query=streams["query"][0],
        key=streams["key"][0],
        query_present=streams["query"][1],
        key_present=streams["key"][1],
        pairing=tuple(result[ROTARY].to_dataset()["pairing"].values.tolist()),
        provenance={"selection": expression, "measured": provenance(result)},
    )


def _values(result: xr.DataTree, stream: str) -> dict[str, xr.DataArray]:
    """Every name of an expression as an array that broadcasts over (layer, head or kv_head, pair)."""
    data = mean_over_sequences(stream_data(result, stream))
    rotary = result[ROTARY].to_dataset()
    own = {name: data[name] for name in pair_variables() if name in data}
    places = {LAYER: data[LAYER], "head": data[HEAD_AXIS[stream]], PAIR: data[PAIR]}
    defined = reduce(operator.and_, [data[name].notnull() for name in ENTROPIES])
    return own | places | {"frequency": rotary["frequency"], "rotated": rotary["rotated"], "defined": defined}


def _parse(expression: str) -> ast.expr:
    if len(expression) > _MAX_CHARACTERS:
        raise InputError(f"got an expression of {len(expression)} characters; at most {_MAX_CHARACTERS} are allowed")
    try:
        with warnings.catch_warnings():
            # "0.2and" is two words to the parser, with a warning.
            warnings.simplefilter("ignore")
            tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise InputError(
            f"cannot parse {_quoted(expression)}{where}; a selection reads like '{BANDS.expression} and layer >= 4', "
            f"or is one of {', '.join(NAMED)}"
        ) from error
    _check(tree, expression)
    if not _is_condition(tree):
        raise InputError(f"{_quoted(expression)} is no condition; compare it with a number, as in '{BANDS.expression}'")
    return tree


def _check(node: ast.expr, expression: str, depth: int = 0) -> None:
    """Refuse every node but comparisons, names, numbers and the logic that joins them."""
    if depth > _MAX_NESTING:
        raise InputError(f"the expression nests deeper than {_MAX_NESTING} levels; write it flatter")
    match node:
        case ast.BoolOp(values=values):
            _check_conditions(values, expression, depth)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check_conditions([operand], expression, depth)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            _check_comparison([left, *comparators], ops, expression, depth)
        case ast.Name(id=name):
            _check_name(name, expression)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            _check_number(value, node, expression)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant() as number):
            _check(number, expression, depth + 1)
        case _:
            raise InputError(
                f"{_source(node, expression)} is not allowed in a selection; use names, numbers, comparisons, "
                f"and, or, not, or one of {', '.join(NAMED)}"
            )


def _check_name(name: str, expression: str) -> None:
    names = (*pair_variables(), *PLACES)
    if name in names:
        return
    allowed = (*names, *NAMED) if name == expression else names
    hint = f"; {name} is a whole selection: combine masks with & and |" if name in NAMED else ""
    raise InputError(f"unknown name {name!r} in {_quoted(expression)}; {did_you_mean(name, allowed)}{hint}")


def _check_number(value: float, node: ast.expr, expression: str) -> None:
    if not value <= sys.float_info.max:
        raise InputError(f"the number {_source(node, expression)} is too large; at most 1e308 is allowed")


def _check_conditions(nodes: list[ast.expr], expression: str, depth: int) -> None:
    for node in nodes:
        _check(node, expression, depth + 1)
        if not _is_condition(node):
            raise InputError(
                f"{_source(node, expression)} in {_quoted(expression)} is no condition; compare it with a number"
            )


def _check_comparison(terms: list[ast.expr], ops: list[ast.cmpop], expression: str, depth: int) -> None:
    if any(type(op) not in _COMPARISONS for op in ops):
        raise InputError(f"only < <= > >= == != compare in a selection, got {_quoted(expression)}")
    for term in terms:
        _check(term, expression, depth + 1)
        if _is_condition(term):
            raise InputError(
                f"{_source(term, expression)} in {_quoted(expression)} is a condition; only names and numbers compare"
            )


def _source(node: ast.expr, expression: str) -> str:
    return _quoted(ast.get_source_segment(expression, node) or "")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 3]}...")


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in CONDITIONS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.BoolOp | ast.Compare)


def _evaluate(node: ast.expr, values: Mapping[str, xr.DataArray]) -> tuple[Any, Any]:
    """Truth of a condition, and whether it is defined: false if anything it rests on is NaN."""
    match node:
        case ast.UnaryOp(operand=operand):
            holds, defined = _evaluate(operand, values)
            return ~holds, defined
        case ast.BoolOp(op=op, values=parts):
            return _join(isinstance(op, ast.And), [_evaluate(part, values) for part in parts])
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            terms = [_term(term, values) for term in (left, *comparators)]
            links = [_COMPARISONS[type(op)](*pair) for op, pair in zip(ops, pairwise(terms), strict=True)]
            return reduce(operator.and_, links), reduce(operator.and_, [term == term for term in terms])
        case _:
            flag = _term(node, values)
            return flag, flag == flag


def _join(conjunction: bool, parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Three-valued `and`, `or`: one defined false (true) decides, whatever the others are."""
    holds, defined = parts[0]
    for other, other_defined in parts[1:]:
        if conjunction:
            decided = (defined & ~holds) | (other_defined & ~other)
            holds, defined = holds & other, (defined & other_defined) | decided
        else:
            decided = (defined & holds) | (other_defined & other)
            holds, defined = (defined & holds) | (other_defined & other), (defined & other_defined) | decided
    return holds, defined


def _term(node: ast.expr, values: Mapping[str, xr.DataArray]) -> Any:
    match node:
        case ast.Name(id=name):
            if name not in values:
                raise InputError(
                    f"the result holds no {name}; give the file that does (--importance, or select(result, ..., it))"
                )
            return values[name]
        case ast.UnaryOp(op=op, operand=ast.Constant(value=value)):
            return np.float64(value) * (-1 if isinstance(op, ast.USub) else 1)  # type: ignore[arg-type]
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
    raise AssertionError("checked before")  # pragma: no cover
