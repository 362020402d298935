"""A model's identity: a digest over samples of its weights, the same wherever they are kept."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from ropescope.model.conventions import is_saved, kept_values
from ropescope.run.head_holders import is_spread

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

_SAMPLES = 16
_PART = 2**22


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over name and shape of every parameter and up to 16 of its values, rounded to bfloat16."""
    named = sorted((name.replace("_orig_mod.", ""), weight) for name, weight in _weights(model))
    values = _fetched({name: weight for name, weight in named if not weight.is_meta and weight.numel()})
    digest = hashlib.sha256()
    for name, weight in named:
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(values.get(name, b""))
    return digest.hexdigest()


def checksum(model: nn.Module) -> str:
    """SHA-256 over name and sum of the bits of every parameter and every buffer that is saved with the model.

    It knows every value, and the dtype that it is kept in. The sum does not depend on the order, so it is the same
    however the values are spread over processes.
    """
    sums: dict[str, Tensor] = {}
    spread: dict[ProcessGroup, list[str]] = defaultdict(list)
    for name, weight in sorted((*_weights(model), *_saved_buffers(model)), key=lambda named: named[0]):
        name = name.replace("_orig_mod.", "")
        if is_spread(weight) and weight.device_mesh.ndim == 1:
            spread[weight.device_mesh.get_group()].append(name)
            counted = not weight.placements[0].is_replicate() or weight.device_mesh.get_local_rank() == 0
            sums[name] = _bit_sum(weight.to_local()) * counted
        elif not weight.is_meta:
            sums[name] = _bit_sum(weight.full_tensor() if is_spread(weight) else weight)
    for group, names in spread.items():
        joined = torch.stack([sums[name] for name in names])
        distributed.all_reduce(joined, group=group)
        sums |= dict(zip(names, joined, strict=True))
    values = _on_cpu(sums)
    return hashlib.sha256("".join(f"{name}{values[name]}" for name in sorted(values)).encode()).hexdigest()


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        kept = kept_values(module)
        for name, buffer in module.named_buffers(recurse=False):
            if is_saved(module, name):
                yield from _parts(f"{prefix}.{name}", buffer if kept is None or not buffer.is_meta else kept[name])


def _bit_sum(weight: Tensor) -> Tensor:
    """The sum of all values taken as integers of their own size, int64: that of parts is that of the whole."""
    flat = weight.detach().reshape(-1)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(flat.element_size(), torch.int64)
    # A wider type needs a copy, so it is made of a part at a time.
    sums = [part.sum(dtype=torch.int64) for part in flat.view(integers).split(_PART)]
    return torch.stack(sums).sum()


def _on_cpu(sums: dict[str, Tensor]) -> dict[str, int]:
    """Values with one transfer a device."""
    by_device: dict[torch.device, list[str]] = defaultdict(list)
    for name, value in sums.items():
        by_device[value.device].append(name)
    moved = [(names, torch.stack([sums[name] for name in names]).tolist()) for names in by_device.values()]
    return {name: value for names, values in moved for name, value in zip(names, values, strict=True)}


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter; where accelerate keeps its values on the CPU or the disk, what it keeps."""
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        kept = kept_values(model.get_submodule(owner))
        yield from _parts(name, parameter if kept is None or not parameter.is_meta else kept[own_name])


def _parts(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight, or what it is made of: one that is quantised holds its values and scales as tensors of their own."""
    inner: Any = getattr(weight, "__tensor_flatten__", None)
    if inner is None or is_spread(weight):
        yield name, weight
        return
    for part in inner()[0]:
        yield from _parts(f"{name}.{part}", getattr(weight, part))


def _fetched(weights: dict[str, Tensor]) -> dict[str, bytes]:
    """The samples of each parameter as bytes, with one transfer a device, and one over the processes of a model."""
    samples: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    spread: dict[ProcessGroup, dict[str, Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        if is_spread(weight) and weight.device_mesh.ndim == 1:
            spread[weight.device_mesh.get_group()][name] = _held_samples(weight)
        else:
            whole = weight.full_tensor() if is_spread(weight) else weight
            samples[whole.device][name] = _bits(whole.detach().reshape(-1)[:: _step(whole)][:_SAMPLES])
    parts = [(named, torch.cat(list(named.values()))) for named in samples.values()]
    for group, named in spread.items():
        joined = torch.cat(list(named.values()))
        distributed.all_reduce(joined, group=group)
        parts.append((named, joined))
    return {name: values for named, joined in parts for name, values in _split(named, joined.cpu())}


def _held_samples(weight: DTensor) -> Tensor:
    """The samples of a weight that this process holds, zero for those of others, so that their sum is all of them."""
    from torch.distributed.tensor import distribute_tensor

    places = torch.arange(0, weight.numel(), _step(weight))[:_SAMPLES]
    where = list(torch.unravel_index(places, weight.shape))
    local: Tensor = weight.to_local().detach()
    placement: Any = weight.placements[0]
    if placement.is_replicate():
        found = torch.full_like(places, weight.device_mesh.get_local_rank() == 0, dtype=torch.bool)
    else:
        dim = placement.dim % weight.ndim
        # Splitting the indices as the weight is split tells which of them are here, whatever the layout.
        index = torch.arange(weight.shape[dim]).view([-1 if axis == dim else 1 for axis in range(weight.ndim)])
        split = distribute_tensor(index, weight.device_mesh, weight.placements, src_data_rank=None)
        held = split.to_local().flatten().cpu()
        row = torch.searchsorted(held, where[dim].contiguous()).clamp_max(max(0, len(held) - 1))
        found = held[row] == where[dim] if len(held) else torch.zeros_like(places, dtype=torch.bool)
        where[dim] = row
    bits = torch.zeros(len(places), dtype=torch.int32, device=local.device)
    mine = found.to(local.device)
    bits[mine] = _bits(local[tuple(axis[found].to(local.device) for axis in where)])
    return bits


def _step(weight: Tensor) -> int:
    return max(1, (weight.numel() - 1) // (_SAMPLES - 1))


def _bits(values: Tensor) -> Tensor:
    """The bits of bfloat16 values as integers that can be summed."""
    return values.to(torch.bfloat16).view(torch.int16).to(torch.int32)


def _split(named: dict[str, Tensor], joined: Tensor) -> Iterator[tuple[str, bytes]]:
    pieces = torch.split(joined.to(torch.int16), [len(part) for part in named.values()])
    for name, piece in zip(named, pieces, strict=True):
        yield name, piece.numpy().tobytes()
