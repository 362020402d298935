"""Counts, bands and the printed summary on results whose contents are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from ropescope.base.errors import InputError
from ropescope.base.pair_variables import MEASURED
from ropescope.measurement.labelling import build_result
from ropescope.measurement.summary import Band, Counts, bands, counts, format_tokens, summary_text
from synthetic import BAND_HEAD, BAND_PAIRS, MISSING_PAIRS, UNDEFINED, synthetic_result

PAIR_VARIABLES = [variable.name for variable in MEASURED]


def one_head(spectrum_fe: object, mean_norm: object, sequence_fe: object = 0.9) -> xr.DataTree:
    """A result of one layer and head; the values are (pair,) or (sequence, pair)."""
    given = {"spectrum_fe": spectrum_fe, "mean_norm": mean_norm, "sequence_fe": sequence_fe}
    pairs = np.atleast_2d(spectrum_fe).shape
    filled = {name: np.broadcast_to(given.get(name, 0.5), pairs) for name in PAIR_VARIABLES}
    arrays = {name: np.asarray(values, float)[:, None, None, :] for name, values in filled.items()}
    return build_result(
        arrays,
        arrays,
        layers=[5],
        frequency=2 * math.pi / 10.0 ** np.arange(1, pairs[1] + 1)[None],
        rotated=np.ones((1, pairs[1]), bool),
        pairing=["interleaved[0:8]"],
        provenance={},
        spectra=dict.fromkeys(("query", "key"), np.full((1, 1, 3), 1 / 3)),
        frame_length=4,
    )


class TestCounts:
    def test_planted(self) -> None:
        query = counts(synthetic_result())
        missing = 16 + 3 * MISSING_PAIRS - MISSING_PAIRS
        assert query == Counts(
            pairs=4 * 3 * 16 - missing,
            bands=len(BAND_PAIRS) + 3 * 8,
            outliers=1,
            periodic=2,
            rhythm=2,
            drift=0,
            undefined_spectrum=1,
            undefined_sequence=1,
            silent=1,
        )
        assert counts(synthetic_result(), "key").pairs == 4 * 16 - MISSING_PAIRS

    def test_thresholds_are_strict_and_nan_is_never_selected(self) -> None:
        result = one_head([0.0, 0.25, 0.5, math.nan], [1, 1, 1, 0], [0.5, math.nan, 0.75, math.nan])
        assert counts(result) == Counts(4, 1, 1, 1, 0, 0, 1, 2, 1)

    def test_thresholds_apply_to_the_mean_over_sequences(self) -> None:
        result = one_head([[0.1, 0.1, math.nan], [0.2, 0.4, 0.1]], 1)
        assert counts(result) == Counts(3, 2, 0, 0, 0, 0, 0, 0, 0)

    def test_padding_is_not_undefined(self) -> None:
        result = one_head([0.3, math.nan, math.nan], [1, 0, math.nan])
        assert counts(result) == Counts(2, 0, 0, 0, 0, 0, 1, 0, 1)

    def test_unknown_stream(self) -> None:
        with pytest.raises(InputError, match=r"got stream 'kye': did you mean 'key'\?"):
            counts(synthetic_result(), "kye")


class TestBands:
    def test_planted(self) -> None:
        found = bands(synthetic_result())
        assert (found[0].layer, found[0].head) == BAND_HEAD
        assert (found[0].first_pair, found[0].last_pair) == (BAND_PAIRS[0], BAND_PAIRS[-1])
        assert sorted((band.layer, band.head, band.first_pair, band.last_pair) for band in found[1:]) == [
            (3, head, 0, 7) for head in range(3)
        ]
        assert all(math.isinf(band.shortest_wavelength) for band in found[1:])

    def test_values(self) -> None:
        result = one_head([0.1, 0.15, 0.3, 0.1, math.nan, 0.19], [6, 4, 2, 0.5, 0, math.nan])
        head_mean = 12.5 / 5
        first, second = bands(result)
        assert (first.first_pair, first.last_pair, second.first_pair) == (0, 1, 3)
        assert first.spectrum_fe == pytest.approx(0.1)
        assert first.relative_norm == pytest.approx(5 / head_mean)
        assert (first.shortest_wavelength, first.longest_wavelength) == pytest.approx((10, 100))
        assert second.relative_norm == pytest.approx(0.5 / head_mean)

    def test_loud_before_quiet_then_low_before_high(self) -> None:
        result = one_head([0.09, 0.3, 0.19, 0.3, 0.12], [0.01, 1, 4, 1, 4])
        assert [band.first_pair for band in bands(result)] == [4, 2, 0]

    def test_whole_head_and_none(self) -> None:
        whole = bands(one_head([0.1] * 4, 1))
        assert [(band.first_pair, band.last_pair, band.relative_norm) for band in whole] == [(0, 3, 1.0)]
        assert bands(one_head([0.2] * 4, 1)) == []

    def test_keys_name_their_own_heads(self) -> None:
        assert {band.head for band in bands(synthetic_result(kv_heads=2), "key")} == {0, 1}

    def test_unknown_stream(self) -> None:
        with pytest.raises(InputError, match="allowed: query, key"):
            bands(synthetic_result(), "value")


class TestText:
    def test_counts_and_percentages(self) -> None:
        lines = summary_text(synthetic_result()).splitlines()
        assert lines[0] == "query: 168 pairs in 4 layers x 3 heads, mean over 2 sequences"
        assert lines[1].split() == ["bands", "SpectrumFE", "<", "0.2", "27", "16.1%"]
        assert lines[2].split() == ["outliers", "SpectrumFE", ">", "0.4", "1", "0.6%"]
        assert lines[3].split() == ["periodic", "SequenceFE", "<", "0.6", "2", "1.2%"]
        assert lines[4].split() == ["-", "rhythm", "8", "cycles", "or", "more", "2", "1.2%"]
        assert lines[5].split() == ["-", "drift", "fewer", "than", "8", "0", "0.0%"]
        assert lines[6].split()[:6] == ["-", "red", "noise", "passes", "for", "rhythm"]
        assert lines[7].split() == ["undefined", "SpectrumFE", "1", "0.6%"]
        assert lines[8].split() == ["undefined", "SequenceFE", "1", "0.6%"]
        assert lines[9].split() == ["silent", "norm", "always", "0", "1", "0.6%"]
        assert len({len(line) for line in lines[1:10]}) == 1

    def test_kinds_of_periodic_pairs_are_told_only_where_there_are_any(self) -> None:
        lines = summary_text(one_head([0.3], 1, [0.9])).splitlines()
        assert [line.split()[0] for line in lines[3:5]] == ["periodic", "undefined"]

    def test_strongest_bands(self) -> None:
        lines = summary_text(synthetic_result(), strongest=2).splitlines()
        assert lines[10].strip() == "strongest bands"
        assert lines[11].split("  ")[-1] == "norm / head mean"
        cells = lines[12].split()
        assert cells[:4] == [str(BAND_HEAD[0]), str(BAND_HEAD[1]), "4-6", "63-199"]
        assert 0.08 < float(cells[4]) < 0.12
        assert float(cells[5]) > 2
        assert lines[13].split()[3] == "inf"
        assert len({len(line) for line in lines[11:14]}) == 1
        assert lines[14] == ""
        assert lines[15].startswith("key: 60 pairs in 4 layers x 1 head,")

    def test_plain_ascii_without_a_last_newline(self) -> None:
        text = summary_text(synthetic_result())
        assert text.isascii()
        assert not text.endswith("\n")

    def test_no_bands_listed(self) -> None:
        assert "strongest" not in summary_text(synthetic_result(), strongest=0)
        assert summary_text(one_head([0.3], 1)).count("  no bands") == 2

    def test_one_sequence(self) -> None:
        assert "mean over 1 sequence\n" in summary_text(synthetic_result(sequences=1))

    def test_negative_number_of_bands(self) -> None:
        with pytest.raises(InputError, match="got strongest=-1; the number of bands to list must be 0 or more"):
            summary_text(synthetic_result(), strongest=-1)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (2 * math.pi, "6.3"),
        (9.96, "10"),
        (63.2, "63"),
        (628.4, "628"),
        (999.6, "1.0k"),
        (3540, "3.5k"),
        (62_831, "63k"),
        (999_600, "1.0M"),
        (1.2e6, "1.2M"),
        (0.5, "0.5"),
        (math.inf, "inf"),
    ],
)
def test_format_tokens(tokens: float, text: str) -> None:
    assert format_tokens(tokens) == text


def test_the_undefined_pair_is_in_no_band() -> None:
    layer, head, pair = UNDEFINED
    inside = [band for band in bands(synthetic_result()) if (band.layer, band.head) == (layer, head)]
    assert not [band for band in inside if band.first_pair <= pair <= band.last_pair]
    assert all(isinstance(band, Band) for band in inside)
