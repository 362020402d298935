"""What several processes do together in tests; each job compares with one process and ends silently, or raises."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as distributed
import xarray as xr

import ropescope as rs
from architectures import LLAMA, LLAMA4, QWEN3, Architecture, tokens
from ropescope.base.errors import InputError, ModelError, NonFiniteError
from ropescope.evaluation.sweep.arms import Controls
from ropescope.model.identity import model_provenance
from ropescope.run.launch import launched
from ropescope.run.workers import Workers

FRAMES = {"frame_length": 32, "hop_length": 16}
ARCHITECTURES = (LLAMA, LLAMA4, QWEN3)
GROUPS = ("query", "key", "rotary")
NORM_HEADS = [(0, 3), (2, 0), (2, 2)]


def same_values(one: xr.DataTree, other: xr.DataTree, rtol: float = 0.0) -> None:
    for group in GROUPS:
        compared = [result[group].to_dataset() for result in (one, other)]
        if rtol:
            # the strongest of many nearly equal bins changes with rounding
            compared = [data.drop_vars("dominant_period", errors="ignore") for data in compared]
            xr.testing.assert_allclose(*compared, rtol=rtol, atol=rtol)
        else:
            xr.testing.assert_identical(*compared)


def same_everywhere(workers: Workers, *arrays: np.ndarray) -> None:
    digests = workers.gathered([hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays])
    assert all(digest == digests[0] for digest in digests)


def share_windows(workers: Workers, folder: Path) -> None:
    """Each measurement and evaluation, with windows that the processes do not divide and with fewer than processes."""
    for architecture in ARCHITECTURES:
        model = architecture.shared()
        for count, batch_size in ((5, 1), (5, 2), (1, 1)):
            windows, options = tokens(count, 96), {"batch_size": batch_size, **FRAMES}
            together = rs.measure(model, windows, group=workers.group, norm_heads=NORM_HEADS, **options)
            same_values(together, rs.measure(model, windows, norm_heads=NORM_HEADS, **options))
            same_everywhere(workers, together["key"].spectrum_fe.values, together["query"].mean_spectrum.values)
            judged = rs.perplexity(model, windows, batch_size=batch_size, group=workers.group)
            alone = rs.perplexity(model, windows, batch_size=batch_size)
            np.testing.assert_array_equal(judged.window_nats, alone.window_nats)
            assert judged.value == alone.value and judged.protocol == alone.protocol
        share_cells(workers, model, folder / f"{architecture}.nc")
    share_plans(workers, folder)
    share_worth(workers, LLAMA.shared(), folder / "worth.nc")
    automatic = rs.measure(LLAMA.shared(), tokens(5, 96), batch_size="auto", group=workers.group, **FRAMES)
    same_values(automatic, rs.measure(LLAMA.shared(), tokens(5, 96), **FRAMES))


def share_cells(workers: Workers, model: Any, path: Path) -> None:
    result = rs.measure(model, tokens(2, 96), **FRAMES)
    masks = {"high": rs.select(result, "pair >= 5"), "low": rs.select(result, "pair < 2")}
    options = {"alphas": (0, 0.5), "controls": Controls(seeds=(0,))}
    alone = rs.sweep(model, tokens(3, 24, seed=1), masks, **options)
    for _ in range(2):
        together = rs.sweep(model, tokens(3, 24, seed=1), masks, path=path, group=workers.group, **options)
        # not the attributes: each process has measured for itself, at a time of its own
        xr.testing.assert_equal(together, alone)
    assert not path.with_name(f"{path.name}.partial").exists()


def share_plans(workers: Workers, folder: Path) -> None:
    """Calibration, with fewer windows than processes too, then plans to judge; the first process alone times."""
    model = LLAMA.shared()
    for count in (5, 1):
        given = {"keep": (0.6,), "sinks": 2}
        alone = rs.frontier_plans(model, tokens(count, 96, seed=5), **given)
        together = rs.frontier_plans(
            model, tokens(count, 96, seed=5), folder=folder / f"plans-{count}", group=workers.group, **given
        )
        assert len(set(workers.gathered(" ".join(plan.digest() for plan in together)))) == 1
        latent, drop = ([*zip(alone[way].layers, together[way].layers, strict=True)] for way in (0, 1))
        for one, other in latent:
            torch.testing.assert_close(one.down @ one.up, other.down @ other.up, atol=1e-3, rtol=0)
        assert all(torch.equal(one.dimensions, other.dimensions) for one, other in drop)
    windows, timing = tokens(3, 96), rs.Timing(48, tokens=1, rounds=1)
    data = rs.frontier(model, windows, together, timing=timing, path=folder / "frontier.nc", group=workers.group)
    plain = rs.frontier(model, windows, together)
    np.testing.assert_array_equal(data["nats"], plain["nats"])
    np.testing.assert_array_equal(data["key_bytes"], plain["key_bytes"])
    same_everywhere(workers, data["prefill_seconds"].values, data["decode_seconds"].values)
    assert bool((data["decode_seconds"][1:] > 0).all())


def share_worth(workers: Workers, model: Any, path: Path) -> None:
    windows, both = tokens(3, 24), {"path": path, "group": workers.group}
    for batch_size in (1, 2):
        alone = rs.importance(model, windows, batch_size=batch_size)
        for _ in range(2):
            together = rs.importance(model, windows, batch_size=batch_size, overwrite=batch_size == 2, **both)
            for stream in ("query", "key"):
                xr.testing.assert_identical(together[stream].to_dataset(), alone[stream].to_dataset())
    both["path"] = path.with_name(f"{path.stem}-check.nc")
    # of a file that both have read: each has weighed alone for itself, at a time of its own
    check = rs.validate_importance(model, windows[:2], together, 4, **both)
    xr.testing.assert_identical(check, rs.validate_importance(model, windows[:2], together, 4))
    assert not list(path.parent.glob("*.partial"))


def share_heads(workers: Workers, folder: Path) -> None:
    """Tensor parallelism against one process: probe, measure, weighted and derotated perplexity, sweep, refusals."""
    for architecture in ARCHITECTURES:
        whole, _ = rs.load_model(folder / str(architecture), device="cpu")
        spread, _ = rs.load_model(folder / str(architecture), tensor_parallel=True, dtype="float32")
        assert model_provenance(spread)["fingerprint"] == model_provenance(whole)["fingerprint"]
        assert str(rs.probe(spread)) == str(rs.probe(whole))
        windows = tokens(3, 96)
        measured = rs.measure(spread, windows, batch_size=2, norm_heads=NORM_HEADS, **FRAMES)
        alone = rs.measure(whole, windows, batch_size=2, norm_heads=NORM_HEADS, **FRAMES)
        same_values(measured, alone, rtol=1e-4)
        intervene(
            whole,
            spread,
            rs.select(alone, "layer != 1 and (head == 0 and pair < 3 or head == 1 and pair > 4 or head == 3)"),
        )
        path = folder / f"{architecture}-spread.nc"
        data = rs.sweep(spread, windows, {"low": rs.select(measured, "pair < 2")}, alphas=(0,), path=path)
        np.testing.assert_allclose(
            data["nats"],
            rs.sweep(whole, windows, {"low": rs.select(alone, "pair < 2")}, alphas=(0,))["nats"],
            rtol=1e-5,
        )
    refuse(workers, whole, spread, folder)


def intervene(whole: Any, spread: Any, mask: rs.PairMask) -> None:
    """The selection differs from head to head, so that heads of another process would not do."""
    windows = tokens(2, 48, seed=2)
    plain = rs.perplexity(whole, windows).value
    for context in (lambda m: rs.weighted_rope(m, mask, 0.1), lambda m: rs.derotated(m, mask)):
        found = []
        for model in (whole, spread):
            with context(model):
                found.append(rs.perplexity(model, windows).value)
                generated = model.generate(windows, max_new_tokens=4, do_sample=False)
                found.append(generated[:, 48:].tolist())
        assert found[2] == pytest.approx(found[0], rel=1e-5)
        assert found[3] == found[1]
        assert abs(found[0] / plain - 1) > 1e-3
    worth = rs.importance(whole, windows, draws=1)
    lost = [rs.validate_importance(model, windows, worth, 4).kl for model in (whole, spread)]
    np.testing.assert_allclose(lost[1], lost[0], rtol=1e-2, atol=1e-7)


def refuse(workers: Workers, whole: Any, spread: Any, folder: Path) -> None:
    windows = tokens(2, 96)
    with pytest.raises(InputError, match="is already spread over 2 processes"):
        rs.measure(spread, windows, group=workers.group, **FRAMES)
    with pytest.raises(InputError, match="importance got a model spread over processes"):
        rs.importance(spread, windows)
    with pytest.raises(InputError, match="batch_size got 'auto' with a model spread over processes"):
        rs.perplexity(spread, windows, batch_size="auto")
    with pytest.raises(ModelError, match=r"Linear with weights of type DTensor.* use weighted_rope at run time"):
        rs.bake(spread, rs.select(rs.measure(whole, windows, **FRAMES), "pair < 2"), 0.5)
    with pytest.raises(ModelError, match="tensor_parallel chooses the devices itself"):
        rs.load_model(folder / "llama", tensor_parallel=True, device="cpu")
    with pytest.raises(ModelError, match="cannot split 3 query and 1 key heads over 2 processes"):
        rs.load_model(folder / "uneven", tensor_parallel=True)
    # Last, since it leaves one process waiting for the other.
    with torch.no_grad():
        spread.model.layers[2].self_attn.q_proj.weight.to_local()[:] = torch.nan
    with pytest.raises(NonFiniteError, match=f"query of layer 2, head {2 * workers.rank} is not finite"):
        rs.measure(spread, windows, **FRAMES)


def share_smollm2(workers: Workers, folder: Path) -> None:
    """The real small model, whose windows and whose 9 query and 3 key heads three processes share."""
    model, tokenizer = rs.load_model(folder, device="cpu")
    windows, frames = rs.token_windows(tokenizer, "builtin", length=256, count=4), {"frame_length": 128}
    together = rs.measure(model, windows, group=workers.group, hop_length=64, **frames)
    alone = rs.measure(model, windows, hop_length=64, **frames)
    same_values(together, alone)
    mask = rs.select(alone, "bands")
    options = {"alphas": (0,), "controls": Controls(seeds=(0,))}
    plain = rs.sweep(model, windows[:2], {"bands": mask}, **options)
    xr.testing.assert_equal(rs.sweep(model, windows[:2], {"bands": mask}, group=workers.group, **options), plain)
    spread, _ = rs.load_model(folder, tensor_parallel=True, dtype="float32")
    same_values(
        rs.measure(spread, windows[:2], hop_length=64, **frames),
        rs.measure(model, windows[:2], hop_length=64, **frames),
        1e-3,
    )
    with rs.weighted_rope(spread, mask, 0.0):
        nats = rs.perplexity(spread, windows[:2]).window_nats
    np.testing.assert_allclose(nats, plain["nats"].sel(selection="bands", arm="selection", alpha=0), rtol=1e-4)


def share_tasks(workers: Workers, folder: Path) -> None:
    """Tasks and arms shared out, and asked of a model whose heads are spread; the folder holds models and tasks."""
    from lm_eval.tasks import TaskManager

    from ropescope.evaluation.tasks import harness
    from ropescope.evaluation.tasks.harness import TaskProtocol

    # the harness's own index takes seconds
    harness.task_manager = lambda path: TaskManager(include_path=str(path), include_defaults=False)
    protocol = TaskProtocol(limit=4, include_path=folder)
    for architecture in ARCHITECTURES:
        model, tokenizer = rs.load_model(folder / str(architecture), device="cpu")
        masks = {"low": rs.select(rs.measure(model, tokens(2, 96), **FRAMES), "pair < 2")}
        options = {"alpha": 0.0, "protocol": protocol}
        alone = rs.evaluate_tasks(model, tokenizer, ["first", "rolling"], masks, **options)
        path = folder / f"{architecture}.nc"
        for _ in range(2 if architecture is LLAMA else 1):
            together = rs.evaluate_tasks(
                model, tokenizer, ["first", "rolling"], masks, path=path, group=workers.group, **options
            )
            xr.testing.assert_equal(together, alone)
        assert not path.with_name(f"{path.name}.partial").exists()
        spread, _ = rs.load_model(folder / str(architecture), tensor_parallel=True, dtype="float32")
        data = rs.evaluate_tasks(spread, tokenizer, ["rolling"], masks, **options)
        np.testing.assert_allclose(data["outcome"], alone["outcome"][:, -data.sizes["item"] :], rtol=1e-4)


JOBS = {"windows": share_windows, "heads": share_heads, "smollm2": share_smollm2, "tasks": share_tasks}


def save_models_with_text(folder: Path) -> None:
    """The small architectures with a vocabulary that text can be written in."""
    from tiny import SIZES, byte_level_tokenizer

    for architecture in ARCHITECTURES:
        wide = replace(architecture, settings={**architecture.settings, "vocab_size": SIZES["vocab_size"]})
        wide.build().save_pretrained(folder / str(architecture))
        byte_level_tokenizer().save_pretrained(folder / str(architecture))


def save_models(folder: Path) -> None:
    """The small architectures as folders, and one whose heads two processes cannot split."""
    from tiny import byte_level_tokenizer

    odd = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}
    uneven = Architecture("uneven", "LlamaConfig", settings={**LLAMA.settings, **odd})
    for architecture in (*ARCHITECTURES, uneven):
        architecture.build().save_pretrained(folder / str(architecture))
        byte_level_tokenizer().save_pretrained(folder / str(architecture))


def take_part(job: str, folder: str) -> None:
    """What each of the processes runs."""
    torch.set_num_threads(1)
    with launched() as workers:
        JOBS[job](workers, Path(folder))
        distributed.barrier()
