"""Masks combine by the laws of logic within the pairs that exist, and come back from their file as they were."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ropescope.base import files
from ropescope.base.errors import InputError, ResultError
from ropescope.interventions.masks import MASK, PairMask
from ropescope.interventions.selection import select
from synthetic import synthetic_result

STREAMS = ("query", "key")


@cache
def result(kv_heads: int = 2, fingerprint: str = "0" * 16, padded: bool = True) -> xr.DataTree:
    tree = synthetic_result(kv_heads=kv_heads, padded=padded)
    facts = json.loads(tree.attrs["provenance"])
    facts["model"] |= {"fingerprint": fingerprint, "id": f"model-{fingerprint}"}
    tree.attrs["provenance"] = json.dumps(facts)
    return tree


@cache
def bands() -> PairMask:
    return select(result(), "bands")


def random_mask(seed: int) -> PairMask:
    """Any present pairs."""
    random = np.random.default_rng(seed)
    query, key = (
        bands().present(stream) & (random.random(chosen.shape) < 0.5) for stream, chosen in bands().streams().items()
    )
    return bands().replaced(query, key, f"random {seed}")


def check_identical(one: PairMask, other: PairMask) -> None:
    for stream in STREAMS:
        xr.testing.assert_identical(one.streams()[stream], other.streams()[stream])
        xr.testing.assert_identical(one.present(stream), other.present(stream))
    assert one.pairing == other.pairing
    assert one.provenance == other.provenance


def same_pairs(one: PairMask, other: PairMask) -> bool:
    return all(one.streams()[stream].identical(other.streams()[stream]) for stream in STREAMS)


def test_truth_tables() -> None:
    one, other = random_mask(0), random_mask(1)
    both, either, neither = one & other, one | other, ~(one | other)
    for stream in STREAMS:
        a, b = one.streams()[stream].values, other.streams()[stream].values
        there = one.present(stream).values
        np.testing.assert_array_equal(both.streams()[stream].values, a * b == 1)
        np.testing.assert_array_equal(either.streams()[stream].values, a + b > 0)
        np.testing.assert_array_equal(neither.streams()[stream].values, (a + b == 0) & there)
        assert {(x, y) for x, y in zip(a[there].tolist(), b[there].tolist(), strict=True)} == {
            (x, y) for x in (True, False) for y in (True, False)
        }


@settings(max_examples=10, deadline=None)
@given(seeds=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)))
def test_laws_of_logic_hold_padding_included(seeds: tuple[int, int, int]) -> None:
    a, b, c = map(random_mask, seeds)
    assert same_pairs(~(a & b), ~a | ~b)
    assert same_pairs(~(a | b), ~a & ~b)
    assert same_pairs(~~a, a)
    assert same_pairs(a & (b | c), (a & b) | (a & c))
    assert same_pairs(a | ~a, b | ~b)
    assert not (a & ~a).query.any()
    for mask in (~a, a & b, a | b, ~a | ~b):
        for stream, chosen in mask.streams().items():
            assert not (chosen & ~mask.present(stream)).any()


def test_the_complement_of_nothing_is_every_pair_that_the_model_has() -> None:
    everything = ~select(result(), "pair < 0")
    for stream, chosen in everything.streams().items():
        xr.testing.assert_identical(chosen, everything.present(stream))
        assert not chosen.all()


def test_combined_masks_say_how_they_were_made() -> None:
    combined = ~(bands() & select(result(), "layer < 2")) | select(result(), "periodic")
    assert combined.provenance["selection"] == "(not ((bands) and (layer < 2))) or (periodic)"
    assert combined.provenance["measured"] == bands().provenance["measured"]
    assert bands().provenance["selection"] == "bands"


def test_combining_equals_selecting_by_the_combined_expression() -> None:
    one, other = select(result(), "layer < 2"), select(result(), "pair > 3")
    assert same_pairs(one & ~other, select(result(), "layer < 2 and not pair > 3"))
    assert same_pairs(one | other, select(result(), "layer < 2 or pair > 3"))


def test_a_mask_counts_its_pairs_by_layer() -> None:
    counts = bands().counts()
    for stream, chosen in bands().streams().items():
        assert counts[stream].dims == ("layer",)
        assert counts[stream].values.tolist() == [int(layer.sum()) for layer in chosen.values]
    assert counts["layer"].values.tolist() == bands().layers == [0, 1, 2, 3]
    assert counts["query"].values[3] == 24
    everything = (~select(result(), "pair < 0")).counts()
    assert everything["query"].values.tolist() == [48, 48, 24, 48]
    assert everything["key"].values.tolist() == [32, 32, 12, 32]


def test_a_mask_reads_as_one_line() -> None:
    query, key = (int(chosen.sum()) for chosen in bands().streams().values())
    assert str(bands()) == f"bands: {query} of 168 query pairs, {key} of 108 key pairs"


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            synthetic_result(kv_heads=2, layers=5),
            "4 layers, 3 heads, 16 pairs, 2 kv_heads paired half-split[0:32] against "
            "5 layers, 3 heads, 16 pairs, 2 kv_heads paired half-split[0:32]",
        ),
        (synthetic_result(kv_heads=2, heads=4), "against 4 layers, 4 heads, 16 pairs, 2 kv_heads paired"),
        (synthetic_result(kv_heads=1), "against 4 layers, 3 heads, 16 pairs, 1 kv_heads paired"),
        (synthetic_result(kv_heads=2, pairs=12), "against 4 layers, 3 heads, 12 pairs, 2 kv_heads paired"),
        (synthetic_result(kv_heads=2, padded=False), "against 4 layers, 3 heads, 16 pairs, 2 kv_heads paired"),
    ],
    ids=["layers", "heads", "kv_heads", "pairs", "absent pairs"],
)
def test_masks_of_another_shape_do_not_combine(other: xr.DataTree, text: str) -> None:
    mask = select(other, "bands")
    for combine in (PairMask.__and__, PairMask.__or__):
        with pytest.raises(InputError, match=r"^the masks are of different models: 4 layers, 3 heads") as caught:
            combine(bands(), mask)
        assert text in str(caught.value)
        with pytest.raises(InputError, match=r"^the masks are of different models"):
            combine(mask, bands())


def test_masks_of_other_layers_or_another_pairing_do_not_combine() -> None:
    shifted = {
        name: getattr(bands(), name).assign_coords(layer=[1, 2, 3, 4])
        for name in ("query", "key", "query_present", "key_present")
    }
    with pytest.raises(InputError, match=r"^the masks are of different models"):
        bands() & replace(bands(), **shifted)
    turned = replace(bands(), pairing=("half-split[0:32]",) * 3 + ("interleaved[0:32]",))
    with pytest.raises(InputError, match=r"paired half-split\[0:32\] against .* half-split\[0:32\], interleaved"):
        bands() | turned


def test_masks_measured_on_other_weights_combine_only_when_told_to() -> None:
    other = select(result(fingerprint="1" * 16), "periodic")
    text = (
        r"^the masks were measured on other weights \(model-0{16} and model-1{16}\); select both on one model "
        r"\(in Python mask\.for_any_model\(\) lifts the check\)$"
    )
    with pytest.raises(InputError, match=text):
        bands() | other
    joined = bands() | other.for_any_model()
    assert same_pairs(joined, bands() | select(result(), "periodic"))
    assert joined.measured_on == bands().measured_on


def test_for_any_model_forgets_only_the_model() -> None:
    free = bands().for_any_model()
    assert same_pairs(free, bands())
    assert free.pairing == bands().pairing
    assert free.provenance == {"selection": "bands"}
    assert free.measured_on == {}
    assert bands().measured_on["fingerprint"] == "0" * 16


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return bands().save(tmp_path / "bands.safetensors")


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_comes_back_as_it_was(tmp_path: Path, seed: int) -> None:
    mask = random_mask(seed)
    path = mask.save(tmp_path / "mask.safetensors")
    assert path == tmp_path / "mask.safetensors"
    check_identical(PairMask.load(path), mask)
    check_identical(PairMask.load(str(path)), mask)
    assert [file.name for file in tmp_path.iterdir()] == ["mask.safetensors"]


@pytest.mark.parametrize("made", [lambda: bands(), lambda: ~bands(), lambda: bands().for_any_model()])
def test_every_kind_of_mask_comes_back(tmp_path: Path, made: object) -> None:
    mask: PairMask = made()  # type: ignore[operator]
    check_identical(PairMask.load(mask.save(tmp_path / "mask.safetensors")), mask)


def test_layer_indices_and_mixed_pairings_come_back(tmp_path: Path) -> None:
    arrays = {
        name: getattr(bands(), name).assign_coords(layer=[3, 7, 11, 15])
        for name in ("query", "key", "query_present", "key_present")
    }
    mask = replace(bands(), **arrays, pairing=("half-split[0:32]", "interleaved[8:40]") * 2)
    loaded = PairMask.load(mask.save(tmp_path / "mask.safetensors"))
    check_identical(loaded, mask)
    assert loaded.layers == [3, 7, 11, 15]
    assert isinstance(loaded.pairing, tuple)


def test_provenance_in_any_script_comes_back(tmp_path: Path) -> None:
    mask = replace(bands(), provenance={"selection": "Ω → 選択 \U0001f600", "measured": {"model": {"id": None}}})
    check_identical(PairMask.load(mask.save(tmp_path / "mask.safetensors")), mask)


def test_a_file_is_plain_safetensors(saved: Path) -> None:
    tensors = load_file(saved)
    np.testing.assert_array_equal(tensors["query"], bands().query.values)
    assert tensors["layer"].tolist() == [0, 1, 2, 3]
    with safe_open(saved, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "ropescope-mask"
    assert json.loads(metadata["ropescope"])["provenance"] == bands().provenance


def test_saving_again_replaces_the_file(saved: Path) -> None:
    random_mask(0).save(saved)
    check_identical(PairMask.load(saved), random_mask(0))


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    before = saved.read_bytes()
    with pytest.raises(ResultError, match=r"^cannot write .*bands\.safetensors: \[Errno 28\] No space left on device;"):
        random_mask(0).save(saved)
    assert saved.read_bytes() == before
    with pytest.raises(ResultError, match="No space left"):
        bands().save(saved.with_name("other.safetensors"))
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"^cannot write .*: .*nowhere is not a folder; make it first$"):
        bands().save(tmp_path / "nowhere" / "mask.safetensors")
    with pytest.raises(ResultError, match=r"it is a folder"):
        bands().save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == []


def load_error(path: Path) -> str:
    with pytest.raises(ResultError) as caught:
        PairMask.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert load_error(tmp_path / "none.safetensors").startswith(f"cannot read the mask {tmp_path / 'none.safetensors'}")
    assert load_error(tmp_path).startswith(f"cannot read the mask {tmp_path}: ")


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(0, 12), *range(12, len(content), 97), len(content) - 1]:
        saved.write_bytes(content[:length])
        assert load_error(saved).endswith("; select again")
    saved.write_bytes(content)
    check_identical(PairMask.load(saved), bands())


def test_any_damaged_byte_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    random = np.random.default_rng(0)
    for place in [*range(0, 40), *random.integers(40, len(content), 250)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        saved.write_bytes(damaged)
        load_error(saved)


def test_a_flipped_selection_is_noticed(saved: Path) -> None:
    tensors = load_file(saved)
    with safe_open(saved, framework="numpy") as file:
        metadata = file.metadata()
    tensors["query"][0, 0, 0] ^= 1
    save_file(tensors, saved, metadata)
    assert load_error(saved) == f"the mask {saved} is damaged: it does not hold what was saved; select again"


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file as save_torch

    save_torch({"weight": torch.zeros(2, dtype=torch.bfloat16)}, path, {"format": "pt"})
    assert load_error(path) == f"{path} is not a mask; make one with 'ropescope select'"
    save_torch({"query": torch.zeros(2)}, path)
    assert load_error(path) == f"{path} is not a mask; make one with 'ropescope select'"
    path.write_text("{}")
    assert load_error(path).startswith(f"cannot read the mask {path}: ")


def test_a_mask_file_that_lacks_a_part_is_refused(saved: Path) -> None:
    with safe_open(saved, framework="numpy") as file:
        metadata = file.metadata()
    for part in ("query", "key_present", "layer"):
        tensors = load_file(saved)
        kept = {name: tensor for name, tensor in tensors.items() if name != part}
        path = saved.with_name(f"without-{part}.safetensors")
        save_file(kept, path, metadata)
        assert load_error(path).startswith(f"cannot read the mask {path}: ")
    for part in ("ropescope", "sha256"):
        path = saved.with_name(f"without-{part}.safetensors")
        save_file(load_file(saved), path, {name: text for name, text in metadata.items() if name != part})
        assert load_error(path).endswith("select again")


@pytest.mark.parametrize("version", [str(MASK.version + 1), "0", None])
def test_a_mask_of_another_version_is_refused(saved: Path, version: str | None) -> None:
    with safe_open(saved, framework="numpy") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "version"}
    save_file({"unknown": np.zeros(1)}, saved, metadata if version is None else metadata | {"version": version})
    assert load_error(saved) == (
        f"{saved} is a mask of version {version}; this ropescope reads version {MASK.version}: select again"
    )


def test_a_mask_file_of_the_first_schema_opens(tmp_path: Path) -> None:
    """Written by hand, as version 1 lays it down: what people have stored must stay readable."""
    present = np.ones((2, 1, 3), dtype=np.uint8)
    query = np.array([[[1, 0, 0]], [[0, 1, 1]]], dtype=np.uint8)
    arrays = {"query": query, "key": 1 - query, "query_present": present, "key_present": present}
    content = {**arrays, "layer": np.array([4, 7], dtype=np.int64)}
    facts = json.dumps({"pairing": ["half-split[0:6]"] * 2, "provenance": {"selection": "by hand"}})
    digest = hashlib.sha256(facts.encode())
    for name in ("key", "key_present", "layer", "query", "query_present"):
        digest.update(f"{name}{content[name].dtype}{content[name].shape}".encode() + content[name].tobytes())
    told = {"format": "ropescope-mask", "version": "1", "ropescope": facts, "sha256": digest.hexdigest()}
    save_file(content, tmp_path / "mask.safetensors", told)
    mask = PairMask.load(tmp_path / "mask.safetensors")
    np.testing.assert_array_equal(mask.query.values, query == 1)
    np.testing.assert_array_equal(mask.key.values, query == 0)
    assert (list(mask.layers), mask.pairing, mask.provenance["selection"]) == (
        [4, 7],
        ("half-split[0:6]", "half-split[0:6]"),
        "by hand",
    )
