"""What is read from a file is what xarray's own, slower way reads from it: values, types, order and attributes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import ropescope as rs
from reported import small_sweep
from ropescope.base.netcdf import read_groups
from ropescope.evaluation.sweep.dataset import SWEEP
from synthetic import synthetic_result


def odd() -> xr.Dataset:
    """Whatever a dataset may hold beside what results hold."""
    return xr.Dataset(
        {
            "plain": (("row", "letter"), np.arange(6, dtype=np.int16).reshape(2, 3)),
            "holes": (("row",), np.array([1.5, np.nan], dtype=np.float32), {"units": "nat", "weights": [0.5, 0.25]}),
            "flags": (("letter",), np.array([True, False, True])),
            "words": (("row",), np.array(["", "größer"])),
            "one": ((), 7, {"scale": 2, "tags": ["a", "bc"]}),
            "none": (("nothing",), np.zeros(0)),
        },
        {"letter": ["a", "b", "c"], "beside": ("row", [3.0, 4.0]), "alone": 1.25},
        {"text": "naïve", "number": 3, "share": 0.5, "list": [1, 2]},
    )


def written(kind: str, path: Path) -> Path:
    if kind == "result":
        return rs.save(synthetic_result(), path)
    if kind == "sweep":
        SWEEP.save(small_sweep(), path)
    else:
        odd().to_netcdf(path, engine="h5netcdf", encoding={"plain": {"zlib": True, "fletcher32": True}})
    return path


@pytest.mark.parametrize("kind", ["result", "sweep", "odd"])
def test_all_is_read_as_xarray_reads_it(kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path / "file.nc")
    groups = read_groups(path)
    with closing(xr.open_datatree(path, engine="h5netcdf", decode_times=False)) as opened:
        expected = {node.path: node.to_dataset(inherit=False).load().drop_encoding() for node in opened.subtree}
    assert {"/" + name.strip("/") for name in groups} == set(expected)
    for name, data in groups.items():
        other = expected["/" + name.strip("/")]
        xr.testing.assert_identical(data, other)
        assert list(data.variables) == list(other.variables) and list(data.coords) == list(other.coords)
        assert {each: data[each].dtype for each in data.variables} == {
            each: other[each].dtype for each in data.variables
        }
        for each in (data, *data.variables.values()):
            assert not each.encoding
        assert {key: type(value) for key, value in data.attrs.items()} == {
            key: type(value) for key, value in other.attrs.items()
        }
