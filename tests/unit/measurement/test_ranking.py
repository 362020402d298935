"""The pairs that stand out, by name."""

from __future__ import annotations

import numpy as np
import pytest

from ropescope.base.errors import InputError
from ropescope.base.tables import Table
from ropescope.measurement.ranking import ranked
from ropescope.measurement.summary import counts
from synthetic import OUTLIER_PAIR, PERIODIC_HEAD, PERIODIC_PAIRS, UNDEFINED, synthetic_result


def titled(tables: list[Table], word: str) -> Table:
    (found,) = [table for table in tables if word in table.title]
    return found


def test_what_was_planted_is_listed_by_its_place() -> None:
    tables = ranked(synthetic_result())
    layer, head = PERIODIC_HEAD
    assert titled(tables, "outlier").rows[0][:4] == [str(layer), str(head), str(OUTLIER_PAIR), "0.470"]
    periodic = titled(tables, "periodic").rows
    assert {tuple(row[:3]) for row in periodic} == {(str(layer), str(head), str(pair)) for pair in PERIODIC_PAIRS}
    assert [row[4:] for row in periodic] == [["64", "rhythm"]] * len(PERIODIC_PAIRS)
    assert titled(tables, "silent").rows == [[str(UNDEFINED[0]), str(UNDEFINED[2]), str(UNDEFINED[1])]]


def test_the_furthest_come_first_and_the_title_says_how_many_there_are() -> None:
    result = synthetic_result()
    result["query"]["spectrum_fe"][:, 0, 0, 2:6] = np.array([0.45, 0.6, 0.5, 0.41])
    table = titled(ranked(result, most=2), "outliers")
    assert [row[2:] for row in table.rows] == [["3", "0.600"], ["4", "0.500"]]
    assert table.title == f"query: {counts(result).outliers} spectrum outliers (SpectrumFE > 0.4), the 2 furthest"


def test_what_drifts_says_so_and_a_period_that_windows_do_not_share_is_left_blank() -> None:
    result = synthetic_result()
    layer, head = PERIODIC_HEAD
    result["query"]["dominant_period"][0, layer, head, list(PERIODIC_PAIRS)] = 4096.0
    result["query"]["dominant_period"][1, layer, head, list(PERIODIC_PAIRS)] = 1365.0
    assert [row[4:] for row in titled(ranked(result), "periodic").rows] == [["", "drift"]] * len(PERIODIC_PAIRS)


def test_a_selection_without_pairs_has_no_table() -> None:
    result = synthetic_result()
    result["query"]["sequence_fe"][:] = 0.9
    assert not [table for table in ranked(result) if "periodic" in table.title]


def test_keys_have_their_own_heads() -> None:
    assert all(table.title.startswith("key: ") for table in ranked(synthetic_result(kv_heads=2), "key"))


def test_fewer_than_one_row_is_refused() -> None:
    with pytest.raises(InputError, match="got most=0"):
        ranked(synthetic_result(), most=0)
