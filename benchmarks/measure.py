"""What measuring costs over the bare forward pass of the same windows: medians of ratios within one run.

    python benchmarks/measure.py                   SmolLM2 on the CPU, 4096 tokens
    python benchmarks/measure.py --device cuda     Llama-3-8B shape, random weights, bfloat16

Rows: time over the bare forward of the base model (head never run), and extra peak memory over that forward. The last
way is the obvious one: keep every query and key, then take one pair after the other with SciPy.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import torch

import ropescope as rs
from common import DEVICES, describe, load, peak_mb, print_peak, random_windows, seconds
from ropescope.base.counting import counted
from ropescope.model.attention import AttentionCall, intercepted


def forward(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.split(1):
            model.get_decoder()(input_ids=window.to(model.device), use_cache=False)


def hooks_and_scipy(model: Any, windows: torch.Tensor) -> None:
    from scipy.signal import get_window
    from scipy.stats import entropy

    hann = get_window("hann", 1024)
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
                    entropy((np.abs(np.fft.rfft(frames * hann)) ** 2).mean(0))
                    entropy(np.abs(np.fft.rfft(pair)[1 : len(pair) // 2]) ** 2)


WAYS = {"forward": forward, "measure": rs.measure, "hooks+scipy": hooks_and_scipy}


def compare(device: str, count: int, length: int, rounds: int, ways: list[str]) -> None:
    model = load(device)
    windows = random_windows(model, count, length)
    for way in ("forward", "measure"):
        WAYS[way](model, windows[:1])
    times = [{way: seconds(partial(WAYS[way], model, windows)) for way in ways} for _ in range(rounds)]
    del model
    base = peak_mb(__file__, device, "forward", 1, length)
    bare = statistics.median(each["forward"] for each in times)
    print(f"\n{counted(count, 'window')} of {length} tokens, {rounds} rounds; bare forward {bare:.2f} s")
    print(f"{'way':<24}{'time / forward':>16}{'lowest':>9}{'highest':>9}{'extra peak memory':>20}")
    for way in ways[1:]:
        ratios = sorted(t[way] / t["forward"] for t in times)
        extra = peak_mb(__file__, device, way, 1, length) - base
        print(f"{way:<24}{statistics.median(ratios):>16.3f}{ratios[0]:>9.3f}{ratios[-1]:>9.3f}{extra:>17.0f} MB")
    four = peak_mb(__file__, device, "measure", 4, length) - peak_mb(__file__, device, "forward", 4, length)
    print(f"{'measure, four windows':<58}{four:>17.0f} MB")


def import_seconds(rounds: int = 5) -> float:
    """Median time that `import ropescope` adds to starting Python."""
    starts = {code: [seconds(partial(_python, code)) for _ in range(rounds)] for code in ("pass", "import ropescope")}
    return statistics.median(starts["import ropescope"]) - statistics.median(starts["pass"])


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens in a window (cpu: 4096; cuda: 4096 and 32768)")
    parser.add_argument("--windows", type=int, default=3, help="each run probes the model once, however many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", nargs=3, metavar=("WAY", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        way, count, length = options.peak_of[0], *map(int, options.peak_of[1:])
        model = load(options.device)
        windows = random_windows(model, count, length)
        print_peak(options.device, lambda: forward(model, windows[:1]), lambda: WAYS[way](model, windows))
        return
    print(describe(options.device))
    print(f"import ropescope: {import_seconds():.2f} s")
    cpu = options.device == "cpu"
    for length in options.lengths or ([4096] if cpu else [4096, 32768]):
        compare(options.device, options.windows, length, options.rounds, list(WAYS) if cpu else ["forward", "measure"])


if __name__ == "__main__":
    main()
