"""What numbers and names of an argument may be, checked without loading torch: a command can say it at once.

The functions that take these arguments make the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from ropescope.base.errors import CorpusError, InputError, ModelError, did_you_mean

AUTO = "auto"
BatchSize = int | Literal["auto"]

# Half the width of the main lobe in bins: the bins 0..lobe over which the window spreads a constant.
MAIN_LOBE = {"hann": 1, "hamming": 1, "blackman": 2, "rectangular": 0}
DTYPES = ("float32", "bfloat16", "float16", "float64")
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
DEVICES = "use auto, cpu, cuda, cuda:N or mps"


def check_share(name: str, value: float, hint: str = "") -> None:
    """Raise InputError unless a number is from 0 to 1."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} got {value}; it is a number from 0 to 1{hint}")


def check_at_least(name: str, value: float | None, least: int) -> None:
    """Raise InputError unless a number, where one is given, is not below `least`."""
    if value is not None and not value >= least:
        raise InputError(f"{name} got {value}; it is at least {least}")


def check_batch_size(batch_size: object) -> None:
    """Raise InputError unless it is a number from 1 or "auto"."""
    if batch_size != AUTO and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size got {batch_size!r}; it is at least 1, or 'auto'")


def check_cut(length: int, count: int | None) -> None:
    """Raise CorpusError unless windows can have that length, and there can be so many."""
    if length < 2:
        raise CorpusError(f"length={length}: a window needs at least 2 tokens")
    if count is not None and count < 1:
        raise CorpusError(f"count={count}: ask for at least 1 window, or for None to have all")


def check_frames(length: int, frame_length: int, hop_length: int) -> None:
    """Raise InputError unless a signal of `length` positions holds at least one frame."""
    if frame_length < 4:
        raise InputError(f"frame_length got {frame_length}; a frame needs at least 4 tokens")
    if hop_length < 1:
        raise InputError(f"hop_length got {hop_length}; frames must advance by at least 1 token")
    if length < frame_length:
        raise InputError(
            f"a signal of {length} positions is shorter than one frame of {frame_length}; "
            f"use at least {frame_length} tokens or a shorter frame_length"
        )


def check_analysis_window(name: str) -> None:
    """Raise InputError unless an analysis window has that name."""
    if name not in MAIN_LOBE:
        raise InputError(f"unknown analysis window {name!r}; {did_you_mean(name, MAIN_LOBE)}")


def check_dtype(name: str) -> None:
    """Raise ModelError unless a model can be loaded in a dtype of that name."""
    if name not in (AUTO, *DTYPES):
        raise ModelError(f"unknown dtype {name!r}: {did_you_mean(name, [AUTO, *DTYPES])}")


def check_place(device: str, device_map: str | Mapping[str, object] | None, spread: bool, processes: int) -> None:
    """Raise ModelError unless a model can be asked for there; whether the device exists, torch tells.

    Parameters
    ----------
    device, device_map
        As in :func:`ropescope.load_model`.
    spread
        Whether every layer is spread over the processes (tensor parallelism).
    processes
        How many there are.
    """
    if spread and (device != AUTO or device_map is not None):
        raise ModelError("tensor_parallel chooses the devices itself: leave device and device_map out")
    if spread and processes < 2:
        raise ModelError(
            "tensor_parallel got one process alone: start several, as in torchrun --nproc-per-node 2 -m ropescope ..."
        )
    if device_map is not None and device != AUTO:
        raise ModelError(f"device {device!r} and device_map {device_map!r} are both given: give one of them")
    if _DEVICE.fullmatch(device) is None:
        raise ModelError(f"unknown device {device!r}: {DEVICES}")
    if device == "meta":
        raise ModelError(f"device 'meta' holds no values: {DEVICES}")
