"""What thin keys cost and save: bytes as stored, and medians of ratios to the stock cache within one run.

    python benchmarks/thin_keys.py                   SmolLM2 on the CPU, 8192 tokens
    python benchmarks/thin_keys.py --device cuda     Llama-3-8B shape, random weights, bfloat16, 8192 tokens

Half of the key bytes are kept; the decoder runs without its head. Plans are calibrated on random tokens: time and
bytes do not depend on the text; perplexity does, and stands in docs/results/thin-keys.md.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import ropescope as rs
from common import DEVICES, describe, load, peak_mb, print_peak, random_windows
from ropescope.evaluation.frontier.changes import bytes_share
from ropescope.evaluation.frontier.dataset import SIDES
from ropescope.model.lm_head import headless

KEEP = 0.5


def plan_of(model: Any, method: Any) -> rs.KeyPlan:
    return rs.plan_keys(model, random_windows(model, 2, 1024), keep=KEEP, method=method, metric="query")


def prefill(model: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        headless(model)(input_ids=ids.to(model.device), use_cache=True)


def report(data: Any, plan: str) -> None:
    own = data.sel({"plan": plan})
    print(f"{plan + ', key bytes / stock':<40}{float(bytes_share(data).sel({'plan': plan})):>12.3f}")
    for name in ("decode", "prefill"):
        thin, stock = (own[f"{name}_seconds"].sel({"side": side}).values for side in reversed(SIDES))
        ratios = thin / stock
        line = f"{plan}, {name} / stock {np.median(stock):.2f} s"
        print(f"{line:<40}{np.median(ratios):>12.3f}{ratios.min():>9.3f}{ratios.max():>9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--length", type=int, default=8192, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", nargs=3, metavar=("TASK", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = load(options.device)
    if options.peak_of:
        method, ids = options.peak_of[0], random_windows(model, 1, int(options.peak_of[2]))
        if method == "stock":
            print_peak(options.device, lambda: prefill(model, ids[:, :64]), lambda: prefill(model, ids))
        else:
            with rs.thin_keys(model, plan_of(model, method)):
                print_peak(options.device, lambda: prefill(model, ids[:, :64]), lambda: prefill(model, ids))
        return
    print(describe(options.device))
    window = random_windows(model, 1, options.length)
    print(f"\n{options.length} tokens, {options.rounds} rounds{'':<15}{'ratio':>12}{'lowest':>9}{'highest':>9}")
    for method in ("drop", "latent"):
        timing = rs.Timing(options.length, tokens=33, rounds=options.rounds)
        data = rs.frontier(model, window, {method: plan_of(model, method)}, timing=timing, stride=16)
        report(data, method)
    stock, *thin = (peak_mb(__file__, options.device, task, 1, options.length) for task in ("stock", "drop", "latent"))
    print(f"peak memory of a prefill beyond stock's: drop {thin[0] - stock:+.0f} MB, latent {thin[1] - stock:+.0f} MB")


if __name__ == "__main__":
    main()
