"""A plan comes back from its file as it was, says what it is, and refuses what it cannot be made of."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

from architectures import LLAMA, QWEN3, tokens
from ropescope.base.errors import InputError, ResultError
from ropescope.base.key_plans import METHODS
from ropescope.compression.planning import plan_keys
from ropescope.compression.plans import KeyPlan
from ropescope.compression.thinning import thin_keys
from ropescope.evaluation.opening import load

pytestmark = pytest.mark.usefixtures("one_thread")


def planned(**arguments: Any) -> KeyPlan:
    return plan_keys(LLAMA.shared(), tokens(8, 48), **{"keep": 0.6, "metric": "query"} | arguments)


@functools.cache
def plan_of(method: str = "latent") -> KeyPlan:
    return planned(method=method)


def worth(loud: int) -> xr.DataTree:
    """An importance of LLAMA's keys that knows one pair alone, and one layer more than others."""
    fisher = np.full((2, 4, 2, 8), 1e-6)
    fisher[..., loud] = 1.0
    fisher[:, 3] *= 100.0
    dims = ("sequence", "layer", "kv_head", "pair")
    data = xr.Dataset({"fisher": (dims, fisher)}, coords={"layer": np.arange(4)})
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"provenance": '{"corpus": "x"}'}), "key": data})


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_comes_back_from_its_file_as_it_was(method: str, tmp_path: Path) -> None:
    plan = plan_of(method)
    again = load(plan.save(tmp_path / "plan.safetensors"))
    assert again.digest() == plan.digest() and str(again) == str(plan)
    assert again.provenance == plan.provenance and again.stores == plan.stores and again.shared == plan.shared
    model = LLAMA.shared()
    with torch.no_grad():
        with thin_keys(model, plan):
            known = model(tokens(2)).logits
        with thin_keys(model, again):
            assert torch.equal(model(tokens(2)).logits, known)


def test_a_damaged_or_other_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = plan_of().save(tmp_path / "plan.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\x80?")
    with pytest.raises(ResultError, match="is damaged: it does not hold what was saved; plan again"):
        KeyPlan.load(path)
    path.write_bytes(content[:100])
    with pytest.raises(ResultError, match="cannot read the plan"):
        KeyPlan.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ResultError, match="is not a plan of thin keys"):
        KeyPlan.load(path)
    with pytest.raises(ResultError, match="cannot read the plan"):
        KeyPlan.load(tmp_path / "missing.safetensors")


def test_a_file_holds_plain_tensors_and_no_pickle(tmp_path: Path) -> None:
    tensors = load_file(plan_of().save(tmp_path / "plan.safetensors"))
    assert {name.split(".")[1] for name in tensors} == {"mean", "down", "up"}


def test_a_plan_says_how_much_it_keeps_and_of_what() -> None:
    text = str(plan_of())
    assert text.startswith("latent: ") and "of 128 numbers of a token's keys in 4 layers" in text
    facts = plan_of().provenance
    assert facts["parameters"]["keep"] == 0.6 and facts["importance"] is None and facts["windows"]["length"] == 48
    assert plan_of().made_for["architecture"] == "LlamaForCausalLM"


def test_what_is_kept_of_every_head_is_the_same_number_of_pairs() -> None:
    for layer in plan_of("drop").layers:
        kept = layer.dimensions
        assert kept.shape[0] == 2 and kept.shape[1] % 2 == 0
        for head in kept.tolist():
            assert head == sorted(head) and {(d + 8) % 16 for d in head} == set(head), "whole pairs"


def test_importance_decides_which_pairs_and_which_layers_keep_more() -> None:
    dropped = planned(method="drop", importance=worth(5))
    assert all({5, 13} <= set(head) for layer in dropped.layers for head in layer.dimensions.tolist())
    assert dropped.provenance["importance"] == {"corpus": "x"}
    latent = planned(importance=worth(5))
    assert latent.layers[3].kept > max(layer.kept for layer in latent.layers[:3])
    with pytest.raises(InputError, match="no Fisher values of this model's keys"):
        planned(importance=xr.DataTree())


def test_ranks_are_multiples_where_asked_for() -> None:
    assert {layer.kept % 8 for layer in planned(multiple=8).layers} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, r"keep got 0\.0; it is a share of the stock bytes above 0, to 1"),
        ({"keep": 1.5}, r"keep got 1\.5"),
        ({"keep": float("nan")}, "keep got nan"),
        ({"method": "latnet"}, "unknown method 'latnet'; did you mean 'latent'"),
        ({"metric": "fischer"}, "unknown metric 'fischer'; did you mean 'fisher'"),
        ({"sinks": -1}, "sinks got -1; it is at least 0"),
        ({"multiple": 0}, "multiple got 0; it is at least 1"),
        ({"keep": 0.05}, r"keep=0\.05 is too little to keep 4 sinks whole"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**arguments)


def test_too_few_tokens_for_the_rank_are_refused() -> None:
    with pytest.raises(InputError, match=r"16 calibration tokens beside the sinks are too few for \d+ directions"):
        plan_keys(QWEN3.shared(), tokens(1, 20), keep=0.95, metric="query")
