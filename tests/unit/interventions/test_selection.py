"""Expressions select what plain NumPy selects, NaN and padding never, and nothing in them runs; controls match."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from ropescope.base.axes import HEAD_AXIS
from ropescope.base.errors import InputError
from ropescope.base.pair_variables import CONDITIONS, MEASURED, PLACES, WORTH
from ropescope.base.selections import NAMED
from ropescope.interventions.controls import lowest_norm, matched_random
from ropescope.interventions.masks import PairMask
from ropescope.interventions.selection import select
from ropescope.measurement.results import provenance
from synthetic import BAND_HEAD, BAND_PAIRS, MISSING_PAIRS, NARROW_LAYER, UNDEFINED, synthetic_result

PAIR_VARIABLES = [variable.name for variable in MEASURED]
NAMES = (*PAIR_VARIABLES, *PLACES)

STREAMS = ("query", "key")


@cache
def result() -> xr.DataTree:
    """Padded; two key heads, a layer without rotation, a pair defined in one sequence only, another by one entropy."""
    tree = synthetic_result(kv_heads=2)
    tree["query"]["spectrum_fe"][0, 1, 2, 3] = np.nan
    tree["query"]["sequence_fe"][:, 2, 1, 4] = np.nan
    return tree


def arrays(tree: xr.DataTree, stream: str) -> dict[str, np.ndarray]:
    """Every name of the language as an array (layer, head, pair), by NumPy alone."""
    data, rotary = tree[stream], tree["rotary"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        values = {name: np.nanmean(data[name].values.astype(np.float64), 0) for name in PAIR_VARIABLES}
    shape = values["mean_norm"].shape
    layer, head, pair = np.indices(shape)
    per_layer = {name: np.broadcast_to(rotary[name].values[:, None], shape) for name in ("frequency", "rotated")}
    defined = ~np.isnan(values["spectrum_fe"]) & ~np.isnan(values["sequence_fe"])
    places = {"layer": layer + int(data["layer"][0]), "head": head, "pair": pair}
    return values | per_layer | places | {"defined": defined}


def present(tree: xr.DataTree, stream: str) -> np.ndarray:
    return ~np.isnan(arrays(tree, stream)["mean_norm"])


def same(mask: PairMask, expected: Callable[[dict[str, np.ndarray]], np.ndarray], tree: xr.DataTree) -> None:
    for stream, chosen in mask.streams().items():
        there = present(tree, stream)
        np.testing.assert_array_equal(chosen.values, expected(arrays(tree, stream)) & there)
        np.testing.assert_array_equal(mask.present(stream).values, there)


EXPRESSIONS: list[tuple[str, Callable[[dict[str, np.ndarray]], Any]]] = [
    ("spectrum_fe < 0.2", lambda v: v["spectrum_fe"] < 0.2),
    ("0.2 > spectrum_fe", lambda v: v["spectrum_fe"] < 0.2),
    ("spectrum_fe<=.2e0", lambda v: v["spectrum_fe"] <= 0.2),
    ("sequence_fe >= 0.9", lambda v: v["sequence_fe"] >= 0.9),
    ("mean_norm > 1", lambda v: v["mean_norm"] > 1),
    ("dc_share > peak_share", lambda v: v["dc_share"] > v["peak_share"]),
    ("dominant_period == 64", lambda v: v["dominant_period"] == 64),
    ("dominant_period != 64", lambda v: v["mean_norm"] < 0),
    ("layer == 2", lambda v: v["layer"] == 2),
    ("head != 1", lambda v: v["head"] != 1),
    ("pair >= +12", lambda v: v["pair"] >= 12),
    ("frequency < 1e-2", lambda v: v["frequency"] < 1e-2),
    ("mean_norm > -1", lambda v: v["mean_norm"] > -1),
    ("pair < -0.5", lambda v: v["pair"] < -0.5),
    ("rotated", lambda v: v["rotated"]),
    ("not rotated", lambda v: ~v["rotated"]),
    ("undefined", lambda v: np.isnan(v["spectrum_fe"]) | np.isnan(v["sequence_fe"])),
    ("defined and pair < 3", lambda v: v["defined"] & (v["pair"] < 3)),
    ("0.2 < spectrum_fe < 0.3", lambda v: (v["spectrum_fe"] > 0.2) & (v["spectrum_fe"] < 0.3)),
    ("0 < layer <= 2 != pair", lambda v: (v["layer"] > 0) & (v["layer"] <= 2) & (v["pair"] != 2)),
    ("layer == 0 or layer == 1 and pair < 3", lambda v: (v["layer"] == 0) | ((v["layer"] == 1) & (v["pair"] < 3))),
    ("(layer == 0 or layer == 1) and pair < 3", lambda v: (v["layer"] < 2) & (v["pair"] < 3)),
    ("not layer == 0 and pair < 3", lambda v: (v["layer"] != 0) & (v["pair"] < 3)),
    ("not (layer == 0 and pair < 3)", lambda v: (v["layer"] != 0) | (v["pair"] >= 3)),
    ("not not rotated", lambda v: v["rotated"]),
    ("rotated and rotated and head == 0 and layer == 1", lambda v: v["rotated"] & (v["head"] == 0) & (v["layer"] == 1)),
    ("rotated and not spectrum_fe < 0.2", lambda v: v["rotated"] & (v["spectrum_fe"] >= 0.2)),
    ("1 < 2", lambda v: v["pair"] >= 0),
    ("2 < 1", lambda v: v["pair"] < 0),
    ("layer < 0xA and pair < 1_0", lambda v: v["pair"] < 10),
    ("layer < 2and head < 1or pair < 2", lambda v: ((v["layer"] < 2) & (v["head"] < 1)) | (v["pair"] < 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("expression", "expected"), EXPRESSIONS, ids=[text for text, _ in EXPRESSIONS])
def test_expressions_select_what_numpy_selects(
    expression: str, expected: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> None:
    same(select(result(), expression), expected, result())


def test_every_name_of_the_language_was_tried() -> None:
    tried = " ".join(text for text, _ in EXPRESSIONS)
    assert set(NAMES) == {name for name in NAMES if name in tried} == {*arrays(result(), "query")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bands", lambda v: v["spectrum_fe"] < 0.2),
        ("spectrum-outliers", lambda v: v["spectrum_fe"] > 0.4),
        ("periodic", lambda v: v["sequence_fe"] < 0.6),
        ("table1", lambda v: (v["spectrum_fe"] > 0.4) | (v["sequence_fe"] < 0.6)),
        ("silent", lambda v: v["mean_norm"] == 0),
    ],
)
def test_selections_of_the_paper_and_silent_pairs_have_names(
    name: str, expected: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> None:
    mask = select(result(), name)
    same(mask, expected, result())
    assert all(chosen.any() for chosen in mask.streams().values())
    assert mask.provenance["selection"] == name


def test_the_planted_band_is_selected_by_its_own_stream() -> None:
    tree = synthetic_result(nope_layers=(), heads=3, kv_heads=1)
    mask = select(tree, "bands")
    layer, head = BAND_HEAD
    assert [tuple(place) for place in np.argwhere(mask.query.values)] == [(layer, head, pair) for pair in BAND_PAIRS]
    assert [tuple(place) for place in np.argwhere(mask.key.values)] == [(layer, 0, pair) for pair in BAND_PAIRS]


def test_a_mask_is_labelled_and_says_where_it_comes_from() -> None:
    mask = select(result(), "bands")
    for stream, chosen in mask.streams().items():
        assert chosen.dims == ("layer", HEAD_AXIS[stream], "pair")
        assert chosen.dtype == bool
        for axis in chosen.dims:
            np.testing.assert_array_equal(chosen[axis], result()[stream][axis])
    assert mask.pairing == tuple(result()["rotary"]["pairing"].values.tolist())
    assert mask.provenance["measured"] == provenance(result())


def test_layers_are_named_by_their_index_in_the_model() -> None:
    tree = result().map_over_datasets(lambda data: data.assign_coords(layer=[3, 7, 11, 15]) if data.dims else data)
    mask = select(tree, "layer == 11 and pair == 0")
    assert mask.layers == [3, 7, 11, 15]
    assert mask.query.sel(layer=11, pair=0).values.tolist() == [True, True, False]
    assert mask.query.values.sum() == 2


def test_space_around_and_inside_does_not_matter() -> None:
    plain = select(result(), "layer < 2 and rotated")
    spread = select(result(), "  layer\n  <  2\n\tand rotated ")
    assert spread.provenance == plain.provenance
    xr.testing.assert_identical(spread.query, plain.query)
    assert select(result(), " bands\n").provenance["selection"] == "bands"


def test_padding_is_never_selected() -> None:
    for expression in ("layer >= 0", "not layer < 0", "not rotated or rotated", "not mean_norm < 0"):
        mask = select(result(), expression)
        for stream, chosen in mask.streams().items():
            xr.testing.assert_identical(chosen, mask.present(stream))
        assert not mask.query.values[NARROW_LAYER, -1].any()
        assert not mask.query.values[NARROW_LAYER, :, -MISSING_PAIRS:].any()
        assert not mask.key.values[NARROW_LAYER, :, -MISSING_PAIRS:].any()


def test_a_value_that_is_not_defined_satisfies_neither_a_comparison_nor_its_negation() -> None:
    assert np.isnan(arrays(result(), "query")["spectrum_fe"][UNDEFINED])
    assert present(result(), "query")[UNDEFINED]
    for comparison in ("spectrum_fe < 9", "spectrum_fe >= 9", "spectrum_fe != 9", "spectrum_fe == spectrum_fe"):
        for expression in (comparison, f"not {comparison}", f"not not {comparison}", f"0 < 1 and {comparison}"):
            assert not select(result(), expression).query.values[UNDEFINED], expression


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("spectrum_fe > 0.4 or layer == 0", True),
        ("layer == 0 or spectrum_fe > 0.4", True),
        ("not (spectrum_fe > 0.4 and layer == 1)", True),
        ("not (layer == 1 and spectrum_fe > 0.4)", True),
        ("not (spectrum_fe > 0.4 or layer == 1)", False),
        ("not (spectrum_fe > 0.4 and layer == 0)", False),
        ("0 <= layer < 1 < spectrum_fe", False),
        ("not 1 <= layer < spectrum_fe", False),
    ],
)
def test_what_is_not_defined_matters_only_where_the_rest_does_not_decide(expression: str, holds: bool) -> None:
    """A chain of comparisons is one comparison: any term that is not defined leaves it undefined."""
    assert bool(select(result(), expression).query.values[UNDEFINED]) is holds


@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_what_is_not_defined_is_not_defined_under_not_either(threshold: float) -> None:
    """`not (false or undefined)` is undefined, so nothing is selected; `not (true or undefined)` is false."""
    layer = arrays(result(), "query")["layer"][UNDEFINED]
    for expression in (f"layer == {layer} or", f"layer != {layer} or"):
        mask = select(result(), f"not ({expression} spectrum_fe > {threshold})")
        assert not mask.query.values[UNDEFINED]
    mask = select(result(), "not (layer == 1 or spectrum_fe > 0.4)")
    same(mask, lambda v: (v["layer"] != 1) & (v["spectrum_fe"] <= 0.4), result())


def test_entropies_count_as_their_mean_over_the_sequences_where_they_are_defined() -> None:
    undefined, defined = result()["query"]["spectrum_fe"].values[:, 1, 2, 3].tolist()
    assert np.isnan(undefined)
    assert select(result(), f"spectrum_fe == {defined!r}").query.values[1, 2, 3]
    first, second = result()["query"]["mean_norm"].values[:, 0, 0, 0].tolist()
    assert select(result(), f"mean_norm == {(first + second) / 2!r}").query.values[0, 0, 0]


# The language once more, as nested tuples: text for `select`, and for a reference that knows each pair on its own.
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
terms = st.sampled_from([name for name in NAMES if name not in CONDITIONS]) | st.sampled_from(
    ["0", "1", "2", "-1", "0.2", "0.3", "0.9", "1e-3", "+3", "64", "7.5"]
)
comparisons = st.tuples(
    st.just("compare"), terms, st.lists(st.tuples(st.sampled_from(list(OPERATORS)), terms), min_size=1, max_size=3)
)
conditions = st.recursive(
    comparisons | st.sampled_from([(name,) for name in CONDITIONS]),
    lambda inner: (
        st.tuples(st.just("not"), inner)
        | st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3))
    ),
    max_leaves=6,
)
BINDING = {"or": 0, "and": 1, "not": 2, "compare": 3, **dict.fromkeys(CONDITIONS, 3)}


def written(tree: tuple[Any, ...], brackets: bool) -> str:
    """The text of a condition, with no more parentheses than Python's precedence asks for, or with all of them."""

    def inside(part: tuple[Any, ...]) -> str:
        # Equal operators join: `a and (b and c)` would come back flat.
        needed = brackets or BINDING[part[0]] < BINDING[tree[0]]
        return f"({written(part, brackets)})" if needed else written(part, brackets)

    match tree:
        case ("compare", first, links):
            return f"{first} " + " ".join(f"{op} {term}" for op, term in links)
        case ("not", part):
            return f"not {inside(part)}"
        case (("and" | "or") as word, parts):
            return f" {word} ".join(map(inside, parts))
    return "rotated"


def truth(tree: tuple[Any, ...], value: dict[str, float]) -> bool | None:
    """Kleene's logic for one pair: True, False, or None where it is not defined."""
    match tree:
        case ("compare", first, links):
            names = [first, *(term for _, term in links)]
            numbers = [float(value[name]) if name in value else float(name) for name in names]
            if any(number != number for number in numbers):
                return None
            return all(OPERATORS[op](a, b) for (op, _), a, b in zip(links, numbers, numbers[1:], strict=False))
        case ("not", part):
            inner = truth(part, value)
            return None if inner is None else not inner
        case (("and" | "or") as word, parts):
            found = [truth(part, value) for part in parts]
            decisive = word == "or"
            if decisive in found:
                return decisive
            return None if None in found else not decisive
    return bool(value["rotated"])


@cache
def small_result() -> xr.DataTree:
    """Few pairs, a third of all values missing each on its own, some pairs absent."""
    tree = synthetic_result(layers=3, heads=2, kv_heads=1, pairs=10, sequences=1, nope_layers=(1,), padded=False)
    random = np.random.default_rng(0)
    for stream in STREAMS:
        for name in PAIR_VARIABLES:
            values = tree[stream][name].values
            values[random.random(values.shape) < (0.1 if name == "mean_norm" else 0.33)] = np.nan
    return tree


@cache
def pairs_of_small_result(stream: str) -> list[tuple[bool, dict[str, float]]]:
    """Of every pair, whether it is there and its values."""
    values = {name: array.ravel().tolist() for name, array in arrays(small_result(), stream).items()}
    there = present(small_result(), stream).ravel().tolist()
    rows = zip(*values.values(), strict=True)
    return [(flag, dict(zip(values, row, strict=True))) for flag, row in zip(there, rows, strict=True)]


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(condition=conditions, brackets=st.booleans())
def test_random_expressions_agree_with_three_valued_logic_pair_by_pair(
    condition: tuple[Any, ...], brackets: bool
) -> None:
    mask = select(small_result(), written(condition, brackets))
    for stream, chosen in mask.streams().items():
        expected = [there and bool(truth(condition, values)) for there, values in pairs_of_small_result(stream)]
        assert chosen.values.ravel().tolist() == expected


@settings(max_examples=12, deadline=None)
@given(condition=conditions)
def test_a_condition_and_its_negation_never_meet(condition: tuple[Any, ...]) -> None:
    held = select(small_result(), written(condition, brackets=True))
    denied = select(small_result(), f"not ({written(condition, brackets=True)})")
    assert not (held & denied).query.any()
    assert not (held & denied).key.any()


def refused(expression: str) -> str:
    with pytest.raises(InputError) as caught:
        select(result(), expression)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


READS_LIKE = (
    "a selection reads like 'spectrum_fe < 0.2 and layer >= 4', or is one of bands, spectrum-outliers, periodic, "
    "table1, silent, undefined"
)
# Importance is known by name everywhere, whatever a result holds.
ALLOWED = ", ".join((*PAIR_VARIABLES, *(variable.name for variable in WORTH), *PLACES))
NAMES_OF_SELECTIONS = "bands, spectrum-outliers, periodic, table1, silent, undefined"
PARTS = f"use names, numbers, comparisons, and, or, not, or one of {NAMES_OF_SELECTIONS}"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("", f"cannot parse ''; {READS_LIKE}"),
        (" \n ", f"cannot parse ''; {READS_LIKE}"),
        ("layer <", f"cannot parse 'layer <'; {READS_LIKE}"),
        ("(layer < 2", f"cannot parse '(layer < 2'; {READS_LIKE}"),
        ("layer = 2", f"cannot parse 'layer = 2'; {READS_LIKE}"),
        ("layer := 2", f"cannot parse 'layer := 2'; {READS_LIKE}"),
        ("layer < 2; head", f"cannot parse 'layer < 2; head'; {READS_LIKE}"),
        ("import os", f"cannot parse 'import os'; {READS_LIKE}"),
        ("layer < 2\0", f"cannot parse 'layer < 2\\x00'; {READS_LIKE}"),
        ("layer < \ud800", f"cannot parse 'layer < \\ud800'; {READS_LIKE}"),
        (
            "spectrum_ef < 1",
            f"unknown name 'spectrum_ef' in 'spectrum_ef < 1'; did you mean 'spectrum_fe'? (allowed: {ALLOWED})",
        ),
        ("layer < nan", f"unknown name 'nan' in 'layer < nan'; allowed: {ALLOWED}"),
        ("period", None),
        (
            "band",
            "unknown name 'band' in 'band'; did you mean 'bands' or 'head'? "
            f"(allowed: {ALLOWED}, bands, spectrum-outliers, periodic, table1, silent, undefined)",
        ),
        (
            "rotated and bands",
            f"unknown name 'bands' in 'rotated and bands'; allowed: {ALLOWED}; "
            "bands is a whole selection: combine masks with & and |",
        ),
        ("spectrum-outlier", f"'spectrum-outlier' is not allowed in a selection; {PARTS}"),
        ("5", "'5' is no condition; compare it with a number, as in 'spectrum_fe < 0.2'"),
        ("layer", "'layer' is no condition; compare it with a number, as in 'spectrum_fe < 0.2'"),
        ("-3", "'-3' is no condition; compare it with a number, as in 'spectrum_fe < 0.2'"),
        ("not layer", "'layer' in 'not layer' is no condition; compare it with a number"),
        ("rotated and 3", "'3' in 'rotated and 3' is no condition; compare it with a number"),
        ("rotated == 1", "'rotated' in 'rotated == 1' is a condition; only names and numbers compare"),
        ("(layer < 2) < 3", "'layer < 2' in '(layer < 2) < 3' is a condition; only names and numbers compare"),
        ("3 < (not rotated)", "'not rotated' in '3 < (not rotated)' is a condition; only names and numbers compare"),
        ("layer in (1, 2)", "only < <= > >= == != compare in a selection, got 'layer in (1, 2)'"),
        ("layer not in (1, 2)", "only < <= > >= == != compare in a selection, got 'layer not in (1, 2)'"),
        ("layer is 3", "only < <= > >= == != compare in a selection, got 'layer is 3'"),
        ("1 < layer is 3", "only < <= > >= == != compare in a selection, got '1 < layer is 3'"),
        (f"layer < {'9' * 400}", f"the number '{'9' * 77}...' is too large; at most 1e308 is allowed"),
        ("layer < 1e999", "the number '1e999' is too large; at most 1e308 is allowed"),
        ("-1e999 < layer", "the number '1e999' is too large; at most 1e308 is allowed"),
        (f"layer < {'9' * 993}", "got an expression of 1001 characters; at most 1000 are allowed"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_errors_say_what_is_wrong(expression: str, text: str | None) -> None:
    # Where Python sees the mistake differs with its version.
    got = re.sub(r" at character \d+", "", refused(expression))
    assert got == text or (text is None and "did you mean 'periodic'" in got)


@pytest.mark.parametrize(
    "part",
    [
        "print(1)",
        "__import__('os').system('true')",
        "layer.values",
        "layer[0]",
        "lambda: layer",
        "f'{layer}'",
        "(layer := 2)",
        "layer + 1",
        "layer ** 9 ** 9 ** 9",
        "-layer",
        "--1",
        "~rotated",
        "'high'",
        "b'high'",
        "True",
        "-True",
        "None",
        "1j",
        "...",
        "[layer]",
        "(layer, 2)",
        "{1: 2}",
        "{layer}",
        "[x for x in (1,)]",
        "(yield)",
        "layer if rotated else head",
        "'\\d'",
    ],
)
def test_nothing_but_names_numbers_and_logic_is_allowed(part: str) -> None:
    for expression in (part, f"layer < ({part})", f"rotated or ({part})", f"not ({part})"):
        assert refused(expression).endswith(f"is not allowed in a selection; {PARTS}")


def test_nothing_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    call = f"open({str(trace)!r}, 'w')"
    for expression in (call, f"{call} < layer", f"rotated or {call}", f"layer < f'{{{call}}}'", f"[{call}][0] < 1"):
        refused(expression)
    assert not trace.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 490 + "rotated" + ")" * 490,
        "not " * 248 + "rotated",
        "not " * 51 + "rotated",
        "-" * 990 + "1",
        "layer < " + "-" * 900 + "1",
        "1" + "+1" * 490,
        "layer < 1" + "**1" * 300,
        "f" + "()" * 490,
        "a" + ".b" * 490,
        "a" + "[0]" * 300,
        "[" * 500,
        "lambda:" * 140 + "1",
        "1 if " * 150 + "1" + " else 1" * 5,
        "(rotated and (layer < 2 or " * 30 + "rotated" + "))" * 30,
    ],
    ids=lambda text: text[:20],
)
def test_deep_nesting_is_refused_whatever_nests(expression: str) -> None:
    assert len(expression) <= 1000
    refused(expression)


@pytest.mark.slow
def test_moderate_nesting_and_long_chains_are_allowed() -> None:
    rotated = select(result(), "rotated").query.values
    for expression in ("(" * 150 + "rotated" + ")" * 150, "not " * 50 + "rotated", " and ".join(["rotated"] * 80)):
        np.testing.assert_array_equal(select(result(), expression).query.values, rotated)
    chain = " or ".join(f"pair == {pair}" for pair in range(16))
    np.testing.assert_array_equal(select(result(), chain).query.values, present(result(), "query"))
    assert not select(result(), "layer < " * 100 + "layer").query.any()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from([*NAMES, *NAMED, "and", "or", "not", "(", ")", "<", "==", "1", "0.2", ".", "-", "in", "x", ","])
    ).map(" ".join)
)
def test_any_text_gives_a_mask_or_one_line(expression: str) -> None:
    try:
        select(small_result(), expression)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


# Controls


@cache
def chosen_mask() -> PairMask:
    """Between none and all pairs of a head, in both streams."""
    mask = select(result(), "spectrum_fe < 0.2 or head == 1 and pair < 3 or layer == 2 and pair < 99")
    counts = mask.query.sum("pair").values
    assert counts.min() == 0 and counts.max() >= 12
    return mask


def counts_by_head(mask: PairMask) -> list[list[int]]:
    return [chosen.sum("pair").values.tolist() for chosen in mask.streams().values()]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_random_controls_hold_as_many_present_pairs_in_every_head(seed: int) -> None:
    mask = chosen_mask()
    control = matched_random(mask, seed)
    assert counts_by_head(control) == counts_by_head(mask)
    for stream, drawn in control.streams().items():
        assert not (drawn & ~mask.present(stream)).any()
        assert drawn.dims == mask.streams()[stream].dims
    assert control.pairing == mask.pairing


def test_random_controls_are_told_apart_by_their_seed() -> None:
    mask = chosen_mask()
    first, again, other = matched_random(mask, 0), matched_random(mask, 0), matched_random(mask, 1)
    for stream in STREAMS:
        xr.testing.assert_identical(first.streams()[stream], again.streams()[stream])
        assert not first.streams()[stream].equals(other.streams()[stream])
        assert not first.streams()[stream].equals(mask.streams()[stream])
    assert first.provenance["selection"] == f"random pairs, seed 0, matched to: {mask.provenance['selection']}"
    assert first.provenance["measured"] == mask.provenance["measured"]


def test_random_controls_draw_every_present_pair_equally_often() -> None:
    mask = chosen_mask()
    draws = 600
    for stream in STREAMS:
        share = sum(matched_random(mask, seed).streams()[stream].values.astype(int) for seed in range(draws)) / draws
        there = mask.present(stream).values
        wanted = mask.streams()[stream].values.sum(-1) / np.maximum(there.sum(-1), 1)
        expected = np.where(there, wanted[..., None], 0.0)
        deviation = np.abs(share - expected)
        spread = np.sqrt(expected * (1 - expected) / draws)
        assert (deviation <= 5 * spread).all()


def test_low_norm_controls_are_exactly_the_quietest_pairs() -> None:
    mask = chosen_mask()
    control = lowest_norm(mask, result())
    assert counts_by_head(control) == counts_by_head(mask)
    for stream, drawn in control.streams().items():
        norms = arrays(result(), stream)["mean_norm"]
        for layer, head in np.ndindex(norms.shape[:2]):
            count = int(mask.streams()[stream].values[layer, head].sum())
            quietest = sorted(
                (pair for pair in range(norms.shape[2]) if not np.isnan(norms[layer, head, pair])),
                key=lambda pair: norms[layer, head, pair],
            )
            assert sorted(quietest[:count]) == np.flatnonzero(drawn.values[layer, head]).tolist()
    assert control.provenance["selection"] == f"pairs of lowest mean norm, matched to: {mask.provenance['selection']}"
    assert control.query.values[UNDEFINED] or not mask.query.values[UNDEFINED[:2]].any()


def test_controls_of_an_empty_mask_are_empty() -> None:
    mask = select(result(), "pair < 0")
    for control in (matched_random(mask, 0), lowest_norm(mask, result())):
        assert not control.query.any()
        assert not control.key.any()


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            {"kv_heads": 2, "pairs": 10},
            r"the mask has 168 query pairs in \{'layer': 4, 'head': 3, 'pair': 16\}, the result 102 in "
            r"\{'layer': 4, 'head': 3, 'pair': 10\}; give a result of the model that the mask is for",
        ),
        (
            {"kv_heads": 2, "layers": 3, "nope_layers": ()},
            r"the mask has 168 query pairs in .*, the result 120 in \{'layer': 3,",
        ),
        ({"kv_heads": 1}, r"the mask has 108 key pairs in .*, the result 60 in \{'layer': 4, 'kv_head': 1,"),
        ({"kv_heads": 2, "padded": False}, r"the mask has 168 query pairs in .*, the result 192 in "),
    ],
    ids=str,
)
def test_low_norm_controls_refuse_a_result_of_another_shape(other: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=f"^{text}"):
        lowest_norm(chosen_mask(), synthetic_result(**other))
