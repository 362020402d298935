"""What measuring costs over the bare forward pass of the same windows: medians of ratios within one run.

    python benchmarks/measure.py                                   SmolLM2 on the CPU, 4096 tokens
    python benchmarks/measure.py --device cuda                     Llama-3-8B shape, random weights, bfloat16

Rows: time over the bare forward of the base model (head never run), and extra peak memory over that forward. The last
row is the obvious way to do it: forward hooks that keep every query and key, then SciPy on one pair at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ropescope as rs
from ropescope.attention import AttentionCall, intercepted

WAYS = ("forward", "measure", "hooks+scipy")


def load(device: str) -> Any:
    if device == "cpu":
        return rs.load_model("builtin", device="cpu", dtype="float32")[0]
    from transformers import AutoModel, LlamaConfig

    shape = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=131072, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModel.from_config(shape).eval()
    torch.set_default_dtype(torch.float32)
    return model


def forward(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.split(1):
            model.get_decoder()(input_ids=window.to(model.device), use_cache=False)


def hooks_and_scipy(model: Any, windows: torch.Tensor) -> None:
    """Keep all queries and keys of a forward pass, then take one pair after the other on the CPU."""
    from scipy.signal import ShortTimeFFT
    from scipy.stats import entropy

    stft = ShortTimeFFT.from_window(("hann"), 1.0, 1024, 512, fft_mode="onesided", symmetric_win=False)
    for window in windows.split(1):
        captured: list[torch.Tensor] = []

        def keep(call: AttentionCall, captured: list[torch.Tensor] = captured) -> None:
            captured.extend((call.query, call.key))

        with intercepted(model, keep):
            forward(model, window)
        for heads in captured:
            half = heads.shape[-1] // 2
            norms = torch.hypot(heads[..., :half].float(), heads[..., half:].float()).flatten(0, 1).cpu().numpy()
            for head in norms:
                for pair in head.T:
                    frames = np.lib.stride_tricks.sliding_window_view(pair, 1024)[::512]
                    entropy((np.abs(np.fft.rfft(frames * stft.win)) ** 2).mean(0))
                    entropy(np.abs(np.fft.rfft(pair)[1 : len(pair) // 2]) ** 2)


def run(way: str, model: Any, windows: torch.Tensor) -> None:
    {"forward": forward, "measure": rs.measure, "hooks+scipy": hooks_and_scipy}[way](model, windows)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def seconds(way: str, model: Any, windows: torch.Tensor) -> float:
    start = time.perf_counter()
    run(way, model, windows)
    return time.perf_counter() - start


def random_windows(model: Any, count: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.randint(vocabulary, (count, length), generator=generator)


def peak_mb(device: str, way: str, count: int, length: int) -> float:
    """Peak memory of one way in a process of its own: resident on the CPU, allocated on a GPU."""
    command = [sys.executable, __file__, "--device", device, "--peak-of", way, f"{count}", f"{length}"]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def report_peak(device: str, way: str, count: int, length: int) -> None:
    """Print the peak over a run, leaving out what loading the model needed."""
    model = load(device)
    windows = random_windows(model, count, length)
    run("forward", model, windows[:1])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    run(way, model, windows)
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10)


def compare(device: str, length: int, rounds: int, with_scipy: bool) -> None:
    model = load(device)
    windows = random_windows(model, 1, length)
    ways = WAYS if with_scipy else WAYS[:2]
    for way in ways[:2]:
        run(way, model, windows)
    times = [{way: seconds(way, model, windows) for way in ways} for _ in range(rounds)]
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    base = peak_mb(device, "forward", 1, length)
    print(f"\n{length} tokens, {rounds} rounds; bare forward {statistics.median(t['forward'] for t in times):.2f} s")
    print(f"{'way':<14}{'time / forward':>16}{'lowest':>9}{'highest':>9}{'extra peak memory':>20}")
    for way in ways[1:]:
        ratios = sorted(t[way] / t["forward"] for t in times)
        extra = peak_mb(device, way, 1, length) - base
        print(f"{way:<14}{statistics.median(ratios):>16.3f}{ratios[0]:>9.3f}{ratios[-1]:>9.3f}{extra:>17.0f} MB")
    four = peak_mb(device, "measure", 4, length) - peak_mb(device, "forward", 4, length)
    print(f"{'measure, four windows':<48}{four:>20.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens in a window (cpu: 4096; cuda: 4096 and 32768)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", nargs=3, metavar=("WAY", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        way, count, length = options.peak_of
        report_peak(options.device, way, int(count), int(length))
        return
    cpu = options.device == "cpu"
    print(
        "SmolLM2-135M-Instruct, float32, CPU" if cpu else f"Llama-3-8B shape, bfloat16, {torch.cuda.get_device_name()}"
    )
    for length in options.lengths or ([4096] if cpu else [4096, 32768]):
        compare(options.device, length, options.rounds, with_scipy=cpu)


if __name__ == "__main__":
    main()
