"""What interventions and perplexity cost: medians of ratios within one run.

    python benchmarks/sweep.py                   SmolLM2 on the CPU, 1024 tokens
    python benchmarks/sweep.py --device cuda     Llama-3-8B shape, random weights, bfloat16, 2048 tokens

Rows: weighted and derotated forward over the stock forward; perplexity over the plain loop `model(ids).logits` into a
cross-entropy, and the extra peak memory of both over the bare forward of the base model. On the CPU perplexity once
more under a head of 262144 tokens, Gemma's, on two layers of random weights.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import ropescope as rs
from common import DEVICES, describe, load, peak_mb, print_peak, random_windows, seconds


def base_forward(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.split(1):
            model.get_decoder()(input_ids=window.to(model.device), use_cache=False)


def plain_loop(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        for window in windows.to(model.device).split(1):
            logits = model(window, use_cache=False).logits[0, :-1]
            cross_entropy(logits.float(), window[0, 1:], reduction="none").double().sum().item()


TASKS = {"forward": base_forward, "plain loop": plain_loop, "perplexity": rs.perplexity}


def half_of_all_pairs(model: Any) -> rs.PairMask:
    """Random pairs, half of every head: interventions cost the same whichever are selected."""
    result = rs.measure(model, random_windows(model, 1, 64), frame_length=16, hop_length=8)
    pairs = result["query"].sizes["pair"]
    return rs.matched_random(rs.select(result, f"pair < {pairs // 2}"), seed=0)


def compare_forwards(model: Any, windows: torch.Tensor, rounds: int) -> None:
    mask = half_of_all_pairs(model)
    stock: list[float] = []
    ratios: dict[str, list[float]] = {"weighted forward": [], "derotated forward": []}
    base_forward(model, windows)
    for _ in range(rounds):
        stock.append(seconds(lambda: base_forward(model, windows)))
        with rs.weighted_rope(model, mask, 0.5):
            ratios["weighted forward"].append(seconds(lambda: base_forward(model, windows)) / stock[-1])
        with rs.derotated(model, mask):
            ratios["derotated forward"].append(seconds(lambda: base_forward(model, windows)) / stock[-1])
    print(f"\n{windows.shape[1]} tokens, {rounds} rounds; stock forward {statistics.median(stock):.2f} s")
    print(f"{'':<32}{'time ratio':>12}{'lowest':>9}{'highest':>9}")
    for name, found in ratios.items():
        print(f"{name + ' / stock':<32}{statistics.median(found):>12.3f}{min(found):>9.3f}{max(found):>9.3f}")


def large_vocabulary() -> Any:
    """Two layers of random weights under a head of Gemma's size, most of what this model computes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = LlamaConfig(
        hidden_size=640, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=10, vocab_size=2**18
    )
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()


def compare_perplexity(model: Any, windows: torch.Tensor, rounds: int, name: str) -> None:
    plain_loop(model, windows)
    rs.perplexity(model, windows)
    found = []
    for turn in range(rounds):
        order = ("perplexity", "plain loop") if turn % 2 else ("plain loop", "perplexity")
        took = {task: seconds(partial(TASKS[task], model, windows)) for task in order}
        found.append(took["perplexity"] / took["plain loop"])
    print(f"{name:<32}{statistics.median(found):>12.3f}{min(found):>9.3f}{max(found):>9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--length", type=int, help="tokens in a window (cpu: 1024; cuda: 2048)")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-of", nargs=3, metavar=("TASK", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = load(options.device)
    if options.peak_of:
        task, count, length = options.peak_of[0], *map(int, options.peak_of[1:])
        windows = random_windows(model, count, length)
        print_peak(options.device, lambda: base_forward(model, windows[:1]), lambda: TASKS[task](model, windows))
        return
    print(describe(options.device))
    windows = random_windows(model, options.windows, options.length or (1024 if options.device == "cpu" else 2048))
    compare_forwards(model, windows, options.rounds)
    compare_perplexity(model, windows, options.rounds, "perplexity / plain loop")
    if options.device == "cpu":
        large = large_vocabulary()
        compare_perplexity(large, random_windows(large, *windows.shape), options.rounds, "the same, 262144 tokens")
    base, plain, ours = (peak_mb(__file__, options.device, task, *windows.shape) for task in TASKS)
    print(f"extra peak memory: plain loop {plain - base:.0f} MB, perplexity {ours - base:.0f} MB")


if __name__ == "__main__":
    main()
