"""What the benchmarks share: the models, random windows, and peak memory of one task in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ropescope as rs

DEVICES = ("cpu", "cuda")


def describe(device: str) -> str:
    if device == "cpu":
        return f"SmolLM2-135M-Instruct, float32, CPU with {torch.get_num_threads()} threads"
    return f"Llama-3-8B shape, random weights, bfloat16, {torch.cuda.get_device_name()}"


def load(device: str) -> Any:
    """SmolLM2 in float32 on the CPU; a causal model of Llama-3-8B's shape in bfloat16 on a GPU."""
    if device == "cpu":
        return rs.load_model("builtin", device="cpu", dtype="float32")[0]
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=131072, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )  # fmt: skip
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()


def random_windows(model: Any, count: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.randint(vocabulary, (count, length), generator=generator)


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


# The C library keeps what is freed between arrays that stay, hundreds of megabytes of a backward pass; it gives back at
# once what is larger than this many bytes, and so what is resident is what is in use.
GIVING_BACK = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def peak_mb(script: str, device: str, task: str, count: int, length: int) -> float:
    """Peak memory of one task of a script in a new process: resident on the CPU, allocated on a GPU."""
    command = [sys.executable, script, "--device", device, "--peak-of", task, str(count), str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=GIVING_BACK).stdout)


def print_peak(device: str, warm_up: Callable[[], object], task: Callable[[], object]) -> None:
    """Print the peak over a task in MB, leaving out what loading the model and the first run needed."""
    warm_up()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        task()
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")
    task()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(found[1]) / 2**10 if found else float("nan"))
