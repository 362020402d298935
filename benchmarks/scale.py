"""How measuring grows: with processes, with windows, with tokens in a window.

    python benchmarks/scale.py                   SmolLM2 on the CPU: speed-up, memory over windows and over length
    python benchmarks/scale.py --device cuda     Llama-3-8B shape, random weights, bfloat16: up to 131072 tokens

Speed-up: the same windows measured by one process and by two that share them, one thread each, turn by turn within one
run, medians; of two, the slower one counts. Extra peak memory is over the bare forward pass of the same windows. On a
GPU: ratio to the bare forward, time per token and memory of measuring, of a sweep's cell, and of generating with a
weighted model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as distributed

import ropescope as rs
from common import DEVICES, describe, load, peak_mb, print_peak, random_windows, seconds
from ropescope.run.launch import launched
from ropescope.run.workers import Workers

FRAME = 1024
LENGTHS = (4096, 32768, 131072)
PROMPT, NEW_TOKENS = 4096, 64


def forward(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.split(1):
            model.get_decoder()(input_ids=window.to(model.device), use_cache=False)


TASKS = {"forward": forward, "measure": rs.measure}


def speed_up(rounds: int, windows: int) -> None:
    """Start two processes of this script, which take turns: the first alone, then both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    options = ["--share", str(windows), "--rounds", str(rounds)]
    subprocess.run([*command, *options], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def share(workers: Workers, windows: int, rounds: int) -> None:
    model = load("cpu")
    text = random_windows(model, windows, FRAME)
    rs.measure(model, text[:1])
    alone, together = [], []
    for _ in range(rounds):
        distributed.barrier()
        if workers.leading:
            alone.append(clocks(partial(rs.measure, model, text)))
        distributed.barrier()
        both = workers.gathered(clocks(partial(rs.measure, model, text, group=workers.group)))
        together.append([max(each) for each in zip(*both, strict=True)])
    if workers.leading:
        print(f"\n{windows} windows of {FRAME} tokens, one thread a process, {rounds} rounds")
        for clock, one, two in zip(
            ("wall", "processor"), zip(*alone, strict=True), zip(*together, strict=True), strict=True
        ):
            ratios = sorted(first / second for first, second in zip(one, two, strict=True))
            print(
                f"{clock} time: one process {statistics.median(one):.1f} s, two {statistics.median(two):.1f} s, "
                f"speed-up {statistics.median(ratios):.2f}, lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f}"
            )


def clocks(task: Callable[[], object]) -> list[float]:
    """Seconds on the wall, and seconds of this process alone, which other load on the machine does not lengthen."""
    processor = time.process_time()
    wall = seconds(task)
    return [wall, time.process_time() - processor]


def memory(device: str, sizes: list[tuple[int, int]]) -> None:
    print(f"\n{'windows':>8}{'tokens':>9}{'extra peak memory of measure':>32}")
    for count, length in sizes:
        base, ours = (peak_mb(__file__, device, task, count, length) for task in TASKS)
        print(f"{count:>8}{length:>9}{ours - base:>29.0f} MB")


def on_a_gpu(rounds: int) -> None:
    model = load("cuda")
    print(f"\n{'':<28}{'time / stock':>14}{'ms / token':>12}{'peak memory':>14}{'stock':>11}")
    for length in LENGTHS:
        windows = random_windows(model, 1, length)
        compare(
            f"measure, {length} tokens",
            partial(forward, model, windows),
            partial(rs.measure, model, windows),
            length,
            rounds,
        )
    mask = half_of_all_pairs(model)
    windows = random_windows(model, 1, PROMPT)
    prompt = windows.to(model.device)
    write = partial(model.generate, prompt, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False)
    stock = partial(rs.perplexity, model, windows)
    with rs.weighted_rope(model, mask, 0.5):
        pass
    compare("cell of a sweep", stock, partial(weighted, model, mask, stock), PROMPT, rounds)
    compare("weighted generation", write, partial(weighted, model, mask, write), NEW_TOKENS, rounds)


def weighted(model: Any, mask: rs.PairMask, task: Any) -> None:
    with rs.weighted_rope(model, mask, 0.5):
        task()


def compare(name: str, stock: Any, ours: Any, tokens: int, rounds: int) -> None:
    """Time and peak memory of ours against stock, turn by turn after one round to warm up."""
    times: dict[Any, list[float]] = {stock: [], ours: []}
    peaks: dict[Any, float] = {}
    for task in (stock, ours) * (rounds + 1):
        torch.cuda.reset_peak_memory_stats()
        times[task].append(seconds(task))
        peaks[task] = torch.cuda.max_memory_allocated() / 2**30
    ratio = statistics.median(b / a for a, b in zip(times[stock][1:], times[ours][1:], strict=True))
    per_token = 1000 * statistics.median(times[ours][1:]) / tokens
    print(f"{name:<28}{ratio:>14.3f}{per_token:>12.4f}{peaks[ours]:>10.2f} GiB{peaks[stock]:>7.2f} GiB")


def half_of_all_pairs(model: Any) -> rs.PairMask:
    """Random pairs, half of every head: interventions cost the same whichever are selected."""
    result = rs.measure(model, random_windows(model, 1, 64), frame_length=16, hop_length=8)
    pairs = result["query"].sizes["pair"]
    return rs.matched_random(rs.select(result, f"pair < {pairs // 2}"), seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=8, help="windows that the processes share")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", nargs=3, metavar=("TASK", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        with launched() as workers:
            share(workers, options.share, options.rounds)
    elif options.peak_of:
        task, count, length = options.peak_of[0], *map(int, options.peak_of[1:])
        model = load(options.device)
        windows = random_windows(model, count, length)
        print_peak(options.device, lambda: forward(model, windows[:1]), lambda: TASKS[task](model, windows))
    else:
        print(describe(options.device))
        if options.device == "cpu":
            speed_up(options.rounds, options.windows)
            memory("cpu", [(4, FRAME), (16, FRAME), (64, FRAME), (1, 4096), (1, 8192)])
        else:
            on_a_gpu(options.rounds)
            memory("cuda", [(4, 4096), (16, 4096), (64, 4096)])


if __name__ == "__main__":
    main()
