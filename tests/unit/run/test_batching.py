"""Automatic batches shrink until they fit, remember what did, and give the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from architectures import LLAMA, tokens
from ropescope.base.errors import InputError, ModelError
from ropescope.evaluation.perplexity import perplexity
from ropescope.evaluation.sweep.sweeping import sweep
from ropescope.interventions.selection import select
from ropescope.measurement import measure as measurement
from ropescope.measurement.measure import measure
from ropescope.run import batching
from ropescope.run.batching import Batches

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES: dict[str, Any] = {"frame_length": 32, "hop_length": 16}
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError(),
]


def holding(most: int, tried: list[int], error: Exception = FULL[0]) -> Callable[[list[int]], list[int]]:
    """A step that takes so many windows and no more."""

    def step(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > most:
            raise error
        return batch

    return step


def run(batches: Batches, windows: int, step: Callable[[list[int]], list[int]]) -> list[list[int]]:
    return [found for _, found in batches.run(list(batches.units(windows).values()), step)]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_batches_are_halved_until_they_fit_and_stay_so(error: Exception) -> None:
    tried: list[int] = []
    found = run(Batches("auto", "cuda"), 75, holding(10, tried, error))
    assert [window for batch in found for window in batch] == list(range(75))
    assert tried == [32, 16, 8, 8, 8, 8, 8, 8, 8, 8, 8, 3]


def test_few_windows_are_one_batch() -> None:
    tried: list[int] = []
    assert run(Batches("auto", "cuda"), 5, holding(10, tried)) == [[0, 1, 2, 3, 4]]
    assert tried == [5]


def test_on_the_cpu_each_window_is_a_batch() -> None:
    tried: list[int] = []
    run(Batches("auto", "cpu"), 3, holding(10, tried))
    assert tried == [1, 1, 1]


@pytest.mark.parametrize(("size", "what"), [("auto", "one window"), (4, "a batch of 4 windows")])
def test_what_does_not_fit_at_all_is_said(size: Any, what: str) -> None:
    with pytest.raises(
        ModelError, match=rf"the memory does not suffice for {what}; use smaller batches \(batch_size\), shorter"
    ):
        run(Batches(size, "cuda"), 9, holding(0, []))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_EXECUTION_FAILED"):
        run(Batches("auto", "cuda"), 9, holding(0, [], RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")))


@pytest.mark.parametrize("size", [0, -1, 1.5, "many", None])
def test_bad_sizes(size: Any) -> None:
    for judge in (perplexity, measure):
        with pytest.raises(InputError, match=r"batch_size got .*; it is at least 1, or 'auto'"):
            judge(LLAMA.shared(), tokens(1, 1024), batch_size=size)


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU on which eight windows are tried first, and two fit."""
    monkeypatch.setitem(batching._FIRST_TRY, "cpu", 8)
    own = LLAMA.shared().model.forward

    def forward(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if len(input_ids) > 2:
            raise FULL[1]
        return own(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LLAMA.shared().model, "forward", forward)


@pytest.mark.usefixtures("room_for_two")
def test_automatic_batches_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = tokens(5, 96)
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "probe", lambda *_args, **_kwargs: CARD)
        automatic = measure(LLAMA.shared(), windows, batch_size="auto", norm_heads=[(1, 2)], **FRAMES)
        by_two = measure(LLAMA.shared(), windows, batch_size=2, norm_heads=[(1, 2)], **FRAMES)
    for group in ("query", "key"):
        xr.testing.assert_identical(automatic[group].to_dataset(), by_two[group].to_dataset())
    parameters = json.loads(automatic.attrs["provenance"])["parameters"]
    assert (parameters["batch_size"], parameters["batch_sizes"]) == ("auto", [1, 2])


@pytest.mark.usefixtures("room_for_two")
def test_automatic_batches_judge_the_same() -> None:
    windows = tokens(5, 24)
    automatic, by_two = (perplexity(LLAMA.shared(), windows, batch_size=size) for size in ("auto", 2))
    np.testing.assert_array_equal(automatic.window_nats, by_two.window_nats)
    assert (automatic.protocol["batch_size"], automatic.protocol["batch_sizes"]) == ("auto", [1, 2])


def test_a_sweep_remembers_what_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    from ropescope.evaluation.sweep import sweeping as sweep_module

    mask = select(measure(LLAMA.shared(), tokens(1, 96), **FRAMES), "pair < 2")
    sizes: list[Any] = []

    def noting(*args: Any, batch_size: Any, **kwargs: Any) -> Any:
        sizes.append(batch_size)
        return perplexity(*args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(sweep_module, "perplexity", noting)
    monkeypatch.setitem(batching._FIRST_TRY, "cpu", 8)
    sweep(LLAMA.shared(), tokens(3, 24), {"low": mask}, alphas=(0,), batch_size="auto")
    assert sizes == ["auto", 3, 3, 3, 3]


CARD = measurement.probe(LLAMA.shared(), 96)
