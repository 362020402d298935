"""Schema, round trip, atomicity, and every way in which a result file can be wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from ropescope.base.errors import InputError, ResultError, UnreadableError
from ropescope.base.pair_variables import MEASURED
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.measurement.labelling import KeptNorms, build_result
from ropescope.measurement.results import (
    check_target,
    load,
    mean_over_sequences,
    provenance,
    save,
    stream_data,
    wavelength,
)
from synthetic import NARROW_LAYER, synthetic_result

PAIR_VARIABLES = [variable.name for variable in MEASURED]

KEPT = [(0, 1), (1, 0)]
DIMS = {"query": ("sequence", "layer", "head", "pair"), "key": ("sequence", "layer", "kv_head", "pair")}


@pytest.fixture
def result() -> xr.DataTree:
    return synthetic_result(kept=KEPT, cells=32)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    result = synthetic_result(kept=KEPT, cells=32)
    return save(result, tmp_path_factory.mktemp("results") / "result.nc").read_bytes()


@pytest.fixture
def saved(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "result.nc"
    path.write_bytes(content)
    return path


def arguments(**changes: object) -> dict[str, object]:
    arrays = {name: np.zeros((1, 2, 3, 4)) for name in PAIR_VARIABLES}
    given = {
        "query": arrays,
        "key": arrays,
        "layers": [0, 1],
        "frequency": np.ones((2, 4)),
        "rotated": np.ones((2, 4), bool),
        "pairing": ["half-split[0:8]"] * 2,
        "provenance": {"a": 1},
        "spectra": {"query": np.zeros((2, 3, 5)), "key": np.zeros((2, 3, 5))},
        "frame_length": 8,
    }
    return given | changes


class TestSchema:
    @pytest.mark.parametrize("stream", ["query", "key"])
    def test_streams_are_labelled_and_float32(self, result: xr.DataTree, stream: str) -> None:
        data = result[stream].to_dataset()
        for name in PAIR_VARIABLES:
            assert data[name].dims == DIMS[stream]
            assert data[name].dtype == np.float32
        assert data["norm"].dims == ("kept", "pair", "position")
        assert data["norm"].coords["kept_layer"].values.tolist() == [0, 1]
        assert data["norm"].coords[f"kept_{DIMS[stream][2]}"].dims == ("kept",)

    def test_bins_are_in_cycles_per_token(self) -> None:
        spectrum = build_result(**arguments())["key"].mean_spectrum
        assert spectrum.dims == ("layer", "kv_head", "bin")
        assert spectrum.bin.values.tolist() == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8]

    def test_every_variable_has_a_name_and_a_unit(self, result: xr.DataTree) -> None:
        for group in result.children.values():
            for name, variable in group.to_dataset().variables.items():
                assert variable.attrs["long_name"], name
                assert variable.attrs["units"] in {"1", "token", "rad/token", "cycle/token"}, name
                if variable.attrs["units"] == "1" and name in group.data_vars:
                    assert variable.attrs["description"], name

    def test_layers_keep_their_model_index(self) -> None:
        tree = build_result(**arguments(layers=[3, 7]))
        for group in ("query", "key", "rotary"):
            assert tree[group].layer.values.tolist() == [3, 7]

    def test_provenance_is_one_json_string(self, result: xr.DataTree) -> None:
        assert isinstance(result.attrs["provenance"], str)
        assert provenance(result)["model"]["revision"] is None

    @pytest.mark.parametrize("text", ["{", "[1]", None, 3])
    def test_unreadable_provenance(self, result: xr.DataTree, text: object) -> None:
        result.attrs["provenance"] = text
        with pytest.raises(ResultError, match="it must be a JSON object: measure again"):
            provenance(result)

    def test_stream_data(self, result: xr.DataTree) -> None:
        assert stream_data(result, "key").sizes["kv_head"] == 1
        with pytest.raises(InputError, match=r"got stream 'keys': did you mean 'key'\? \(allowed: query, key\)"):
            stream_data(result, "keys")


class TestBuildErrors:
    def test_missing_variable(self) -> None:
        arrays = {name: np.zeros((1, 2, 3, 4)) for name in PAIR_VARIABLES if name != "dc_share"}
        with pytest.raises(InputError, match="got key arrays with 'dc_share' missing"):
            build_result(**arguments(key=arrays))

    def test_unknown_variable(self) -> None:
        arrays = {name: np.zeros((1, 2, 3, 4)) for name in [*PAIR_VARIABLES, "dc_shares"]}
        with pytest.raises(InputError, match="'dc_shares' unknown: did you mean 'dc_share'"):
            build_result(**arguments(query=arrays))

    @pytest.mark.parametrize(
        "changes",
        [
            {"query": {name: np.zeros((1, 3, 3, 4)) for name in PAIR_VARIABLES}},
            {"key": {name: np.zeros((1, 2, 3, 5)) for name in PAIR_VARIABLES}},
            {"key": {name: np.zeros((1, 2, 3, 4 + (name == "mean_norm"))) for name in PAIR_VARIABLES}},
            {"query": {name: np.zeros((2, 4)) for name in PAIR_VARIABLES}},
            {"layers": [0]},
            {"frequency": np.ones(4)},
        ],
    )
    def test_shapes_that_disagree(self, changes: dict[str, object]) -> None:
        with pytest.raises(InputError, match=r"must agree with \(layer, pair\): pad shorter layers with NaN"):
            build_result(**arguments(**changes))

    @pytest.mark.parametrize("changes", [{"rotated": np.ones((2, 3), bool)}, {"pairing": ["a"]}])
    def test_rotary_shapes_that_disagree(self, changes: dict[str, object]) -> None:
        with pytest.raises(InputError, match="give one flag per"):
            build_result(**arguments(**changes))

    def test_norms_that_disagree(self) -> None:
        norms = KeptNorms(np.array([0]), np.array([0]), np.arange(8), np.zeros((1, 4, 7)))
        with pytest.raises(InputError, match=r"query norms of shape \(1, 4, 7\).*must be \(1, 4, 8\)"):
            build_result(**arguments(norms={"query": norms}))

    def test_spectra_that_disagree(self) -> None:
        spectra = {"query": np.zeros((2, 3, 5)), "key": np.zeros((2, 3, 4))}
        with pytest.raises(InputError, match=r"key spectra of shape \(2, 3, 4\).*must be \(2, 3, 5\)"):
            build_result(**arguments(spectra=spectra))

    @pytest.mark.parametrize("content", [{"a": math.nan}, {"a": object()}])
    def test_provenance_that_json_cannot_hold(self, content: dict[str, object]) -> None:
        with pytest.raises(InputError, match="got a provenance that JSON cannot hold"):
            build_result(**arguments(provenance=content))


class TestDerived:
    def test_mean_skips_what_is_undefined(self, result: xr.DataTree) -> None:
        data = stream_data(result, "query")
        data["spectrum_fe"][0, 0, 0, 0] = np.nan
        mean = mean_over_sequences(data)
        assert mean["spectrum_fe"].dims == ("layer", "head", "pair")
        assert mean["spectrum_fe"].dtype == np.float64
        assert mean["spectrum_fe"][0, 0, 0] == data["spectrum_fe"][1, 0, 0, 0]
        assert mean["spectrum_fe"].sel(layer=NARROW_LAYER, head=2).isnull().all()
        assert "norm" not in mean

    def test_wavelength(self, result: xr.DataTree) -> None:
        turns = wavelength(result)
        assert turns.attrs["units"] == "token"
        assert turns.dims == ("layer", "pair")
        np.testing.assert_allclose(turns[0, :2], [2 * math.pi, 2 * math.pi * 10_000 ** (1 / 16)])
        assert np.isinf(turns.sel(layer=3)).all()

    def test_a_frequency_of_zero_has_no_wavelength(self) -> None:
        turns = wavelength(build_result(**arguments(frequency=np.array([[1, -1, 0, 1], [0, 0, 0, 0.0]]))))
        assert turns[0].values.tolist() == [2 * math.pi, 2 * math.pi, math.inf, 2 * math.pi]
        assert np.isinf(turns[1]).all()


class TestRoundTrip:
    def test_identical(self, result: xr.DataTree, saved: Path) -> None:
        loaded = load(saved)
        assert loaded.identical(result)
        assert loaded["rotary"].rotated.dtype == bool
        assert type(loaded.attrs["schema_version"]) is int

    def test_identical_once_more(self, result: xr.DataTree, saved: Path, tmp_path: Path) -> None:
        assert load(save(load(saved), tmp_path / "again.nc")).identical(result)

    def test_one_sequence_and_awkward_provenance(self, tmp_path: Path) -> None:
        content = {"model": {"id": "名前/\u0000\n'\"", "flag": True, "none": None}, "big": "x" * 100_000}
        tree = build_result(**arguments(provenance=content))
        loaded = load(save(tree, tmp_path / "one.nc"))
        assert loaded.identical(tree)
        assert provenance(loaded) == content

    def test_a_part_of_a_loaded_result(self, saved: Path, tmp_path: Path) -> None:
        part = load(saved).isel(sequence=[1], missing_dims="ignore")
        assert load(save(part, tmp_path / "part.nc")).identical(part)

    def test_loaded_result_does_not_need_the_file(self, result: xr.DataTree, saved: Path) -> None:
        loaded = load(saved)
        saved.unlink()
        assert loaded.identical(result)
        links = [entry for entry in Path("/proc/self/fd").glob("*") if entry.is_symlink()]
        assert not [entry for entry in links if entry.exists() and saved.name in str(entry.readlink())]

    def test_a_replaced_file_is_read_anew(self, saved: Path) -> None:
        load(saved)
        other = synthetic_result(seed=5)
        save(other, saved)
        assert load(saved).identical(other)

    def test_relative_path(self, result: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert save(result, "here.nc") == tmp_path / "here.nc"
        assert load("here.nc").identical(result)


class TestAtomicity:
    @pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
    def test_interruption_leaves_nothing(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
    ) -> None:
        before = saved.read_bytes()

        def interrupted(_: int) -> None:
            assert len(list(saved.parent.iterdir())) == 2
            raise raised

        monkeypatch.setattr("os.fsync", interrupted)
        with pytest.raises(raised):
            save(synthetic_result(seed=1), saved)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_interruption_while_hdf5_writes(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = saved.read_bytes()

        def interrupted(self: xr.DataTree, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(xr.DataTree, "to_netcdf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(synthetic_result(seed=1), saved)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_full_disk(self, saved: Path) -> None:
        resource = pytest.importorskip("resource")
        before = saved.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        try:
            with pytest.raises(ResultError, match=r"cannot write .*: .*too large; choose a folder") as caught:
                save(synthetic_result(seed=1, kept=KEPT), saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(caught.value)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_replaces_only_where_allowed(self, saved: Path) -> None:
        before = saved.read_bytes()
        with pytest.raises(ResultError, match="it exists; allow overwriting or choose another name"):
            save(synthetic_result(seed=1), saved, overwrite=False)
        assert saved.read_bytes() == before
        assert save(synthetic_result(seed=1), saved.with_name("new.nc"), overwrite=False).exists()

    def test_missing_folder(self, result: xr.DataTree, tmp_path: Path) -> None:
        with pytest.raises(ResultError, match="missing is not a folder; make it first"):
            save(result, tmp_path / "missing" / "result.nc")

    def test_file_as_folder(self, result: xr.DataTree, saved: Path) -> None:
        with pytest.raises(ResultError, match=r"result\.nc is not a folder; make it first"):
            save(result, saved / "result.nc")

    def test_folder_as_file(self, result: xr.DataTree, tmp_path: Path) -> None:
        with pytest.raises(ResultError, match="it is a folder; give a file name"):
            save(result, tmp_path)

    def test_unwritable_folder(self, result: xr.DataTree) -> None:
        if not Path("/proc/self/task").is_dir():
            pytest.skip("needs a folder where not even root can write")
        with pytest.raises(ResultError, match=r"cannot write /proc/\d+/task/result\.nc: .*; choose a folder"):
            save(result, "/proc/self/task/result.nc")

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)
        with pytest.raises(ResultError, match=r"result\.nc: no permission; choose a folder that can be written"):
            check_target(tmp_path / "result.nc")

    def test_a_target_can_be_checked_before_measuring(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(saved.parent)
        assert check_target("result.nc") == saved
        with pytest.raises(ResultError, match="it exists; allow overwriting"):
            check_target("result.nc", overwrite=False)
        assert list(saved.parent.iterdir()) == [saved]

    def test_only_results_are_saved(self, result: xr.DataTree, tmp_path: Path) -> None:
        with pytest.raises(ResultError, match="result to save is not a ropescope result: its schema is None"):
            save(xr.DataTree(xr.Dataset({"a": 1})), tmp_path / "result.nc")
        with pytest.raises(ResultError, match=r"result to save: query/spectrum_fe must have dims"):
            save(result.isel(sequence=0, missing_dims="ignore"), tmp_path / "result.nc")
        assert not list(tmp_path.iterdir())


class TestDamagedFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ResultError, match=r"cannot read .*none\.nc: it does not exist; give a result file"):
            load(tmp_path / "none.nc")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ResultError, match="it is a folder; give a result file"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\x89HD", b"layer,head\n0,1\n" * 100, b"CDF\x01" + bytes(64)])
    def test_not_netcdf4(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "result.nc"
        path.write_bytes(content)
        with pytest.raises(ResultError, match=r"result\.nc is not a NetCDF4 file; give a result file"):
            load(path)

    @pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
    def test_cut_short(self, saved: Path, share: float) -> None:
        content = saved.read_bytes()
        saved.write_bytes(content[: max(8, int(share * len(content)))])
        with pytest.raises(ResultError, match=r"is damaged or cut short .*: copy it again or measure again") as caught:
            load(saved)
        assert "\n" not in str(caught.value)

    @pytest.mark.slow
    @pytest.mark.parametrize("variable", ["query/spectrum_fe", "key/mean_norm", "query/norm", "rotary/frequency"])
    def test_changed_values(self, saved: Path, variable: str) -> None:
        with h5py.File(saved) as file:
            chunk = file[variable].id.get_chunk_info(0)
        changed = bytearray(saved.read_bytes())
        changed[chunk.byte_offset + chunk.size // 2] ^= 1
        saved.write_bytes(changed)
        with pytest.raises(ResultError, match="is damaged or cut short"):
            load(saved)

    @pytest.mark.slow
    def test_damage_raises_nothing_else(self, content: bytes, saved: Path) -> None:
        for place in np.random.default_rng(0).integers(8, len(content), 20).tolist():
            changed = bytearray(content)
            changed[place] ^= 0x10
            saved.write_bytes(changed)
            with suppress(ResultError):
                load(saved)

    def test_other_hdf5_file(self, tmp_path: Path) -> None:
        path = tmp_path / "other.nc"
        xr.Dataset({"a": ("x", np.arange(3))}).to_netcdf(path, engine="h5netcdf")
        with pytest.raises(ResultError, match=r"other\.nc is not a ropescope result: its schema is None, not"):
            load(path)

    @pytest.mark.slow
    @pytest.mark.parametrize(("version", "remedy"), [(3, "upgrade ropescope"), (1, "measure again"), ("x", "measure")])
    def test_other_schema_version(self, saved: Path, version: object, remedy: str) -> None:
        self.rewrite(saved, lambda tree: tree.attrs.update(schema_version=version))
        with pytest.raises(
            ResultError, match=f"has schema version {version}; this ropescope reads version 2: {remedy}"
        ):
            load(saved)

    def test_no_schema_version(self, saved: Path) -> None:
        self.rewrite(saved, lambda tree: tree.attrs.pop("schema_version"))
        with pytest.raises(ResultError, match="has schema version None"):
            load(saved)

    @pytest.mark.slow
    @pytest.mark.parametrize("group", ["query", "key", "rotary"])
    def test_missing_group(self, saved: Path, group: str) -> None:
        self.rewrite(saved, lambda tree: tree.__delitem__(group))
        with pytest.raises(ResultError, match=rf"result\.nc: {group}/\w+ must have dims .*, got no such variable"):
            load(saved)

    def test_missing_variable(self, saved: Path) -> None:
        self.rewrite(saved, lambda tree: tree["key"].__delitem__("peak_share"))
        with pytest.raises(ResultError, match=r"key/peak_share must have dims .*, got no such variable; measure again"):
            load(saved)

    def test_other_dims(self, saved: Path) -> None:
        def transpose(tree: xr.DataTree) -> None:
            tree["rotary"]["frequency"] = tree["rotary"].frequency.T

        self.rewrite(saved, transpose)
        with pytest.raises(ResultError, match=r"got dims \('pair', 'layer'\); measure again"):
            load(saved)

    def test_provenance_that_is_not_json(self, saved: Path) -> None:
        self.rewrite(saved, lambda tree: tree.attrs.update(provenance="{"))
        with pytest.raises(ResultError, match="it must be a JSON object"):
            load(saved)

    @staticmethod
    def rewrite(path: Path, change: object) -> None:
        tree = load(path)
        change(tree)  # type: ignore[operator]
        tree.to_netcdf(path, engine="h5netcdf")


def test_json_keeps_text_readable() -> None:
    tree = build_result(**arguments(provenance={"corpus": "青空"}))
    assert "青空" in tree.attrs["provenance"]
    assert json.loads(tree.attrs["provenance"]) == {"corpus": "青空"}


READERS = {"measurement": load, "sweep": SWEEP.load}


class TestOutOfReach:
    """What cannot be read now may be whole: it is never called damaged, so it is never replaced."""

    @pytest.fixture
    def held(self, saved: Path) -> Iterator[Path]:
        """A result that another process has open for writing."""
        hold = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('on', flush=True); sys.stdin.read()"
        arguments = [sys.executable, "-c", hold, str(saved)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "on\n"
            yield saved
            process.communicate()

    @pytest.mark.parametrize("read", READERS.values(), ids=READERS)
    def test_a_file_in_use(self, held: Path, read: Callable[[Path], object]) -> None:
        with pytest.raises(UnreadableError) as caught:
            read(held)
        reason = "another process holds it open for writing; wait until that has closed it"
        assert str(caught.value) == f"cannot read {held} now: {reason}; it is left as it is"

    @pytest.mark.parametrize("read", READERS.values(), ids=READERS)
    @pytest.mark.parametrize(
        ("raised", "reason"),
        [
            (PermissionError(errno.EACCES, "no"), "Permission denied; see to that first"),
            (OSError(errno.EIO, "no"), "Input/output error; see to that first"),
            (
                OSError("Can't read data (file read failed: errno = 5)"),
                "Input/output error; see to that first",
            ),
            (FileNotFoundError(errno.ENOENT, "gone"), "No such file or directory; see to that first"),
            (OSError(errno.ESTALE, "no"), f"{os.strerror(errno.ESTALE)}; see to that first"),
            (OSError(errno.EMFILE, "no"), "Too many open files; see to that first"),
            (MemoryError(), "the memory does not suffice"),
        ],
    )
    def test_a_file_that_the_system_withholds(
        self,
        saved: Path,
        monkeypatch: pytest.MonkeyPatch,
        read: Callable[[Path], object],
        raised: Exception,
        reason: str,
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise raised

        for name in ("open_datatree", "open_dataset"):
            monkeypatch.setattr(xr, name, fail)
        with pytest.raises(UnreadableError) as caught:
            read(saved)
        assert str(caught.value) == f"cannot read {saved} now: {reason}; it is left as it is"

    def test_a_file_that_may_not_even_be_looked_at(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(Path, "open", fail)
        with pytest.raises(UnreadableError, match="Permission denied; see to that first; it is left as it is"):
            load(saved)

    @pytest.mark.parametrize("raised", [OSError(errno.EINVAL, "no"), OSError("truncated file"), KeyError("a")])
    def test_what_only_the_content_explains_is_damage(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise raised

        monkeypatch.setattr(xr, "open_datatree", fail)
        with pytest.raises(ResultError, match="is damaged or cut short"):
            load(saved)
