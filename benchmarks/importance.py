"""What importance costs over the bare forward pass with its head: medians of ratios within one run.

    python benchmarks/importance.py                   SmolLM2 on the CPU, 1024 tokens
    python benchmarks/importance.py --device cuda     Llama-3-8B shape, random weights, bfloat16, 4096 tokens

Rows: time over the bare forward, each with and without checkpointing: of the forward pass with one gradient, of each
gradient more, and of `draws=1`, which has two, the text's own and that of the draw. The first two are told apart by a
run of two draws. Then extra peak memory over the bare forward, which holds all logits of a window at once, and over
perplexity, which does not. A layer's activations are what a pass without checkpointing needs over perplexity, over the
number of layers.

Last, what one window of 4096 tokens of a model of Llama-3-8B's shape needs in bfloat16 with checkpointing and two
draws, worked out, no allocator's loss counted. With N tokens of D hidden and M intermediate values, L layers and V
tokens in the vocabulary, 2 bytes a value: weights; L N D for what enters each layer; about N (32 D + 6 M) for the one
layer that is run again (what autograd keeps of it, and the gradients on their way); 3 N D for the gradients at the last
hidden states; and about six arrays of 2^26 logits in float32, V of each position.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import ropescope as rs
from common import DEVICES, describe, load, peak_mb, print_peak, random_windows, seconds

LENGTHS = {"cpu": 1024, "cuda": 4096}
PARAMETERS, LAYERS, HIDDEN, INTERMEDIATE, TOKENS, DRAWS = 8.03e9, 32, 4096, 14336, 4096, 2
LOGITS, BYTES = 6 * 4 * 2**26, 2


def forward(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.to(model.device).split(1):
            model(window, use_cache=False)


def decoder(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.to(model.device).split(1):
            model.get_decoder()(input_ids=window, use_cache=False)


TASKS: dict[str, Callable[[Any, torch.Tensor], object]] = {
    "forward": forward,
    "perplexity": rs.perplexity,
    "plain": partial(rs.importance, draws=1),
    "checkpointing": partial(rs.importance, draws=1, checkpointing=True),
    "plain-2": partial(rs.importance, draws=2),
    "checkpointing-2": partial(rs.importance, draws=2, checkpointing=True),
}
WAYS = ("plain", "checkpointing")


def compare_times(device: str, count: int, length: int, rounds: int) -> int:
    """Print the ratios; how many layers the model has."""
    model = load(device)
    windows = random_windows(model, count, length)
    for task in ("forward", *WAYS):
        TASKS[task](model, windows[:, :64])
    timed = {name: partial(task, model, windows) for name, task in TASKS.items() if name != "perplexity"}
    times = [{name: seconds(task) for name, task in timed.items()} for _ in range(rounds)]
    bare = statistics.median(each["forward"] for each in times)
    print(f"\n{count} windows of {length} tokens, {rounds} rounds; bare forward with head {bare:.2f} s")
    print(f"{'time over the bare forward':<44}{'median':>9}{'lowest':>9}{'highest':>9}")
    for way in WAYS:
        two, three = ([each[name] / each["forward"] for each in times] for name in (way, f"{way}-2"))
        rows = {
            "forward and one gradient": [2 * few - many for few, many in zip(two, three, strict=True)],
            "each gradient more": [many - few for few, many in zip(two, three, strict=True)],
            "draws=1, two gradients": two,
        }
        for name, ratios in rows.items():
            told = f"{way}, {name}"
            print(f"{told:<44}{statistics.median(ratios):>9.2f}{min(ratios):>9.2f}{max(ratios):>9.2f}")
    return int(model.config.num_hidden_layers)


def compare_memory(device: str, length: int, layers: int) -> None:
    def peak(task: str, count: int = 1) -> float:
        return peak_mb(__file__, device, task, count, length)

    peaks = {task: peak(task) for task in ("forward", "perplexity", *WAYS)}
    four = peak("checkpointing", 4) - peak("perplexity", 4)
    print(f"\n{'extra peak memory, MB':<32}{'over the bare forward':>23}{'over perplexity':>17}")
    for way in WAYS:
        print(f"{way:<32}{peaks[way] - peaks['forward']:>23.0f}{peaks[way] - peaks['perplexity']:>17.0f}")
    print(f"{'checkpointing, four windows':<32}{'':>23}{four:>17.0f}")
    print(f"activations of two layers: {2 * (peaks['plain'] - peaks['perplexity']) / layers:.0f} MB")


def needs() -> dict[str, float]:
    """Bytes that a window of a model of Llama-3-8B's shape needs with checkpointing, worked out."""
    return {
        "weights": PARAMETERS * BYTES,
        "layers' inputs": LAYERS * TOKENS * HIDDEN * BYTES,
        "one layer again": TOKENS * (32 * HIDDEN + 6 * INTERMEDIATE) * BYTES,
        "gradients at the end": (1 + DRAWS) * TOKENS * HIDDEN * BYTES,
        "logits": LOGITS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--length", type=int, help="tokens in a window (cpu: 1024; cuda: 4096)")
    parser.add_argument("--windows", type=int, default=3, help="each run probes the model once, however many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", nargs=3, metavar=("TASK", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        model = load(options.device)
        task, count, length = options.peak_of[0], *map(int, options.peak_of[1:])
        windows = random_windows(model, count, length)
        print_peak(options.device, lambda: decoder(model, windows[:1]), lambda: TASKS[task](model, windows))
        return
    print(describe(options.device))
    length = options.length or LENGTHS[options.device]
    layers = compare_times(options.device, options.windows, length, options.rounds)
    compare_memory(options.device, length, layers)
    parts = needs()
    told = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    print(f"\nLlama-3-8B shape, {TOKENS} tokens, worked out, GB: {told}; together {sum(parts.values()) / 1e9:.1f}")


if __name__ == "__main__":
    main()
