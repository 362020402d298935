"""A model whose layers lie on several devices, in memory or on the disk, gives what it gives on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from architectures import LLAMA, LLAMA4, QWEN3, Architecture, tokens
from ropescope.base.errors import ModelError
from ropescope.evaluation.importance_validation import validate_importance
from ropescope.evaluation.perplexity import perplexity
from ropescope.interventions.baking import bake
from ropescope.interventions.derotation import derotated
from ropescope.interventions.selection import select
from ropescope.interventions.weighting import weighted_rope
from ropescope.measurement.importance import importance
from ropescope.measurement.measure import measure
from ropescope.model.identity import model_provenance
from ropescope.model.loading import load_model
from ropescope.model.probing import probe
from tiny import byte_level_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES: dict[str, Any] = {"frame_length": 32, "hop_length": 16}
WINDOWS = tokens(3, 96)


def offloaded_to_disk(layers: tuple[int, ...]) -> dict[str, str]:
    places = {f"model.layers.{layer}": "disk" if layer in layers else "cpu" for layer in range(4)}
    return {"model.embed_tokens": "cpu", **places, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}


def offloaded_to_cpu(model: Any) -> Any:
    """All weights wait on the CPU and are brought to the device, which is the CPU again, for their own module only."""
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.fixture(scope="module", params=[LLAMA, LLAMA4, QWEN3], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture: Architecture = request.param
    path: Path = tmp_path_factory.mktemp("models") / str(architecture)
    architecture.build().save_pretrained(path)
    byte_level_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return load_model(folder, device="cpu")[0]


PLACEMENTS = {
    "one device": lambda folder: load_model(folder, device_map={"": "cpu"})[0],
    "automatic": lambda folder: load_model(folder, device_map="auto", dtype="float32")[0],
    "disk": lambda folder: load_model(folder, device_map=offloaded_to_disk((1, 3)), dtype="float32")[0],
    "all on the disk": lambda folder: load_model(folder, device_map={"": "disk"}, dtype="float32")[0],
    "offloaded": lambda folder: offloaded_to_cpu(load_model(folder, device="cpu")[0]),
}


def runs_bare(model: Any) -> None:
    try:
        model(WINDOWS)
    except NotImplementedError:
        pytest.skip(f"transformers' own forward of {type(model).__name__} fails with its embedding offloaded")


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_wherever_the_layers_are_all_is_the_same(placement: str, folder: Path, whole: Any) -> None:
    model = PLACEMENTS[placement](folder)
    runs_bare(model)
    hooks = {name: vars(module).get("forward") for name, module in model.named_modules()}
    assert model_provenance(model)["fingerprint"] == model_provenance(whole)["fingerprint"]
    assert str(probe(model)) == str(probe(whole))
    result, expected = (measure(m, WINDOWS, norm_heads=[(1, 1)], **FRAMES) for m in (model, whole))
    for group in ("query", "key", "rotary"):
        xr.testing.assert_identical(result[group].to_dataset(), expected[group].to_dataset())
    mask = select(expected, "pair < 3 and layer > 0")
    for context in (lambda m: weighted_rope(m, mask, 0.1), lambda m: derotated(m, mask)):
        nats = []
        for each in (model, whole):
            with context(each):
                nats.append(perplexity(each, WINDOWS).window_nats)
        np.testing.assert_array_equal(*nats)
    short, worth = WINDOWS[:1, :24], []
    for each in (model, whole):
        worth.append(importance(each, short, draws=1, checkpointing=True))
    for stream in ("query", "key"):
        xr.testing.assert_identical(*(found[stream].to_dataset() for found in worth))
    lost = (validate_importance(each, short, worth[0], 3).kl for each in (model, whole))
    xr.testing.assert_identical(*lost)
    assert {name: vars(module).get("forward") for name, module in model.named_modules()} == hooks


def test_offloaded_weights_cannot_be_baked(folder: Path) -> None:
    if "qwen" in folder.name or "llama4" in folder.name:
        pytest.skip("refused for its norms in any case")
    model = PLACEMENTS["disk"](folder)
    mask = select(measure(model, WINDOWS, **FRAMES), "pair < 3")
    with pytest.raises(
        ModelError, match="q_proj of layer 1 is a Linear with offloaded weights, whose weights cannot be"
    ):
        bake(model, mask, 0.5)
