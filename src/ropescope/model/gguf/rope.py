"""Rope scaling as a GGUF file states it, as transformers' rope parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropescope.base.errors import ModelError
from ropescope.model.gguf.file import SOURCE_FIX, GgufFile

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = (FREQS, LONG, SHORT)
# original context, low and high frequency factor of every published Llama 3; others are fitted at this context
_LLAMA3 = (8192, 1.0, 4.0)


def rope_scaling(gguf: GgufFile, dimensions: int, source: str) -> dict[str, Any]:
    """Rope parameters without the base: those of llama.cpp, under the names of transformers.

    Parameters
    ----------
    gguf
        A file; its own factors (rope_freqs, rope_factors_long and _short) come before the scaling it names.
    dimensions
        Rotary dimensions of a head.
    source
        What the user calls the file.

    Raises
    ------
    ModelError
        If transformers has no rope parameters that turn as the file says.
    """
    kind, factor = _named(gguf)
    freqs, long, short = (gguf.values(name) for name in ROPE_TENSORS)
    if long is not None or short is not None:
        if freqs is not None or long is None or short is None or factor != 1:
            raise _refusal(gguf, source)
        return _longrope(gguf, long, short)
    if kind == "longrope":
        raise _refusal(gguf, source)
    if freqs is not None and any(value != 1 for value in freqs):
        if factor != 1:
            raise _refusal(gguf, source)
        return _llama3(freqs, gguf.get("rope.freq_base", 10000.0), dimensions, source)
    if kind == "yarn":
        return _yarn(gguf, factor, source)
    if gguf.get("rope.scaling.attn_factor", 1.0) not in (0, 1):
        raise _refusal(gguf, source)
    return {"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor}


def _named(gguf: GgufFile) -> tuple[str, float]:
    """Type and factor; a factor without a type is linear, and 0 is none."""
    kind = gguf.get("rope.scaling.type", "linear")
    factor = gguf.get("rope.scaling.factor") or gguf.get("rope.scale_linear") or 1.0
    return kind, 1.0 if kind == "none" else factor


def _refusal(gguf: GgufFile, source: str) -> ModelError:
    prefix = f"{gguf.architecture}.rope.scal"
    said = [f"{key} = {value}" for key, value in gguf.metadata.items() if key.startswith(prefix)]
    said += [tensor.name for tensor in gguf.tensors if tensor.name in ROPE_TENSORS]
    return ModelError(f"{source!r} scales its rotation in a way that cannot be read ({', '.join(said)}): {SOURCE_FIX}")


def _original(gguf: GgufFile) -> int:
    return int(gguf.get("rope.scaling.original_context_length") or gguf.get("context_length"))


def _yarn(gguf: GgufFile, factor: float, source: str) -> dict[str, Any]:
    if any(gguf.get(f"rope.scaling.yarn_{name}", 1.0) not in (-1, 1) for name in ("ext_factor", "attn_factor")):
        raise _refusal(gguf, source)
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": _original(gguf)}
    for name in ("beta_fast", "beta_slow"):
        value = gguf.get(f"rope.scaling.yarn_{name}")
        if value is not None:
            scaling[name] = value
    more = gguf.get("rope.scaling.attn_factor") or 1.0
    if more != 1:
        scaling["attention_factor"] = more * (0.1 * math.log(factor) + 1)
    return scaling


def _longrope(gguf: GgufFile, long: list[float], short: list[float]) -> dict[str, Any]:
    original = _original(gguf)
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "factor": max(1.0, gguf.get("context_length") / original),
        "original_max_position_embeddings": original,
        "attention_factor": gguf.get("rope.scaling.attn_factor") or 1.0,
    }


def _llama3(factors: list[float], base: float, dimensions: int, source: str) -> dict[str, Any]:
    """The parameters that Llama 3's formula gives these factors by: published ones, or fitted to those between."""
    given = np.array(factors)
    # tokens in a turn, of each pair
    wavelengths = 2 * np.pi * base ** (np.arange(0, dimensions, 2) / dimensions)
    if len(wavelengths) == len(given):
        for context, low, high in (_LLAMA3, *_fitted(given, wavelengths)):
            parameters = (float(given.max()), context, low, high)
            if np.allclose(_llama3_factors(wavelengths, *parameters), given, rtol=1e-5, atol=0):
                names = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
                return {"rope_type": "llama3", **dict(zip(names, parameters, strict=True))}
    raise ModelError(
        f"{source!r} holds {len(given)} frequency factors (rope_freqs.weight) that Llama 3's formula does not give for "
        f"{dimensions} rotary dimensions: {SOURCE_FIX}"
    )


def _llama3_factors(
    wavelengths: NDArray[np.float64], factor: float, context: int, low: float, high: float
) -> NDArray[np.float64]:
    smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    result: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return result


def _fitted(given: NDArray[np.float64], wavelengths: NDArray[np.float64]) -> list[tuple[int, float, float]]:
    """Low and high factor at the published context: where a factor is between, it is linear in turns per token."""
    factor, context = given.max(), _LLAMA3[0]
    between = (given > 1) & (given < factor)
    if between.sum() < 2:
        return []
    smooth = (1 / given - 1 / factor) / (1 - 1 / factor)
    slope, offset = np.polyfit(1 / wavelengths[between], smooth[between], 1)
    low = -offset * context / slope
    return [(context, round(float(low), 5), round(float(low + context / slope), 5))]
