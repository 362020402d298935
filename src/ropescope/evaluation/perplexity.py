"""Perplexity of a model on token windows, without ever holding the logits of a whole window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ropescope.base.arguments import AUTO, BatchSize
from ropescope.base.counting import counted
from ropescope.base.errors import InputError, NonFiniteError
from ropescope.base.tables import preformatted
from ropescope.model.access import check_windows, input_device, undisturbed, vocabulary_size
from ropescope.model.decoder import check_head
from ropescope.model.lm_head import headless, logits_of, positions_at_once
from ropescope.model.windows import windows_protocol
from ropescope.run.batching import batches_of
from ropescope.run.engine import Cells, in_batches
from ropescope.run.workers import workers_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

_ROWS = 16


@dataclass(frozen=True, eq=False)
class Perplexity:
    r"""Perplexity of a model on a text, with what it was made of.

    Parameters
    ----------
    value
        exp(nats / tokens), at least 1.
    nats
        Negative log likelihood of all scored tokens, summed in float64.
    tokens
        Number of scored tokens.
    window_nats, window_tokens
        The same per window, (window).
    protocol
        How windows were made, what of them was scored, and in which dtype the model ran.

    Examples
    --------
    >>> found = rs.perplexity(model, windows)  # doctest: +SKIP
    >>> found.value == np.exp(found.nats / found.tokens)  # doctest: +SKIP
    True
    """

    value: float
    nats: float
    tokens: int
    window_nats: np.ndarray
    window_tokens: np.ndarray
    protocol: dict[str, object]

    def _repr_html_(self) -> str:
        return preformatted(self)

    def __str__(self) -> str:
        return f"perplexity {self.value:.4g} over {self.tokens} tokens of {counted(len(self.window_nats), 'window')}"


def perplexity(
    model: PreTrainedModel,
    windows: TokenIds,
    *,
    stride: int | None = None,
    batch_size: BatchSize = 1,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> Perplexity:
    r"""Perplexity of a causal language model as it stands, interventions that are open included.

    .. math:: \exp\Big(\frac{1}{N} \sum_{w} \sum_{n} -\ln p(x_{w,n} \mid x_{w,<n})\Big)

    The logits are the model's own (soft cap, logit scale and head bias included), made for a few positions at a time.

    Parameters
    ----------
    model
        Any transformers causal language model.
    windows
        Token ids, shape (sequence, position), at least 2 positions, as :func:`ropescope.token_windows` gives them.
    stride
        Score only the last `stride` tokens of each window, 1 to length - 1, the earlier ones being context; for
        windows of a text that start `stride` tokens apart. None scores every token but a window's first.
    batch_size
        Windows in one forward pass, at least 1; "auto" takes as many as the memory of the accelerator holds.
    group
        Processes that share the windows, each of which makes this call with a copy of the model; all of them get the
        whole result. None is this process alone, or all those that tensor parallelism has spread the model over.
    progress
        Show how far it is: a bar on a terminal, elsewhere a line every 30 seconds.

    Returns
    -------
    Perplexity
        With nats per window, and the protocol.

    Raises
    ------
    InputError
        If the windows are empty, too short or of another vocabulary, or stride or batch size are out of range.
    NonFiniteError
        If the model gives a token no finite probability.
    ModelError
        If the model has no language-model head, or the memory does not suffice for one batch.
    WorkerError
        If another process of the group has ended.

    Examples
    --------
    >>> perplexity(model, windows).value  # doctest: +SKIP
    23.237
    """
    scored = check_scoring(model, windows, stride, batch_size)
    workers = workers_of(model, group)
    batches = batches_of(batch_size, model.device.type, workers)
    units = batches.units(len(windows))

    def judged(batch: list[int]) -> dict[str, np.ndarray]:
        of_tokens = _token_nats(model, windows[batch], scored)
        _check_finite(of_tokens, batch[0])
        return {"nats": of_tokens.sum(-1), "batch_size": np.full(len(batch), len(batch))}

    cells = Cells("perplexity", "window", workers, progress)
    share = cells.shared({name: len(unit) for name, unit in units.items()})
    with undisturbed(model):
        found = cells.everywhere(dict(share.found(in_batches(batches, units, judged))))
    facts = protocol(model, windows, stride, batch_size)
    if batch_size == AUTO:
        facts["batch_sizes"] = sorted({int(size) for cell in found.values() for size in cell["batch_size"]})
    return _summed(np.concatenate([found[name]["nats"] for name in units]), scored, facts)


def check_scoring(model: PreTrainedModel, windows: TokenIds, stride: int | None, batch_size: BatchSize) -> int:
    """Check what :func:`perplexity` takes; give the number of tokens that it scores in each window.

    Raises
    ------
    InputError, ModelError
        As :func:`perplexity`.
    """
    check_windows(model, windows, batch_size)
    check_head(model)
    most = windows.shape[1] - 1
    if most < 1:
        raise InputError("windows got 1 position; a perplexity needs at least 2 tokens in a window")
    if stride is not None and not 1 <= stride <= most:
        raise InputError(f"stride got {stride}; it is 1 to {most} for windows of {most + 1} tokens, or None for all")
    return most if stride is None else stride


def protocol(model: PreTrainedModel, windows: TokenIds, stride: int | None, batch_size: BatchSize) -> dict[str, object]:
    """Say what a perplexity of this model on these windows means, in values that JSON can hold."""
    scored = "every token but a window's first" if stride is None else f"the last {stride} tokens of each window"
    numbers = {"dtype": str(model.dtype).removeprefix("torch."), "batch_size": batch_size}
    return {**windows_protocol(windows), "stride": stride, "scored": scored, **numbers}


def _summed(nats: np.ndarray, scored: int, protocol: dict[str, object]) -> Perplexity:
    total, tokens = float(nats.sum()), scored * len(nats)
    with np.errstate(over="ignore"):
        value = float(np.exp(total / tokens))
    return Perplexity(value, total, tokens, nats, np.full(len(nats), scored), protocol)


def _token_nats(model: PreTrainedModel, batch: TokenIds, scored: int) -> np.ndarray:
    """Nats of the last `scored` tokens of every window, (window, token)."""
    ids = batch.to(input_device(model))
    output = headless(model)(input_ids=ids, use_cache=False, return_dict=True)
    hidden = output.last_hidden_state[:, -scored - 1 : -1].flatten(0, 1)
    targets = ids[:, -scored:].flatten()
    size = positions_at_once(hidden, vocabulary_size(model), scored)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    nats = [_cross_entropy(logits_of(model, output, part, wanted), wanted) for part, wanted in chunks]
    rows: np.ndarray = torch.cat(nats).unflatten(0, (len(batch), scored)).cpu().double().numpy()
    return rows


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.device.type != "cpu":
        return cross_entropy(logits.float(), targets.to(logits.device), reduction="none")
    # A few rows at a time stay in the cache, where a second block of all logits would not.
    rows = zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)
    return torch.cat([cross_entropy(part.float(), wanted, reduction="none") for part, wanted in rows])


def _check_finite(nats: np.ndarray, first: int) -> None:
    bad = (~np.isfinite(nats)).sum(-1)
    if bad.any():
        window = int(bad.argmax())
        raise NonFiniteError(
            f"the model gives {bad[window]} of {nats.shape[1]} tokens of window {first + window} no finite "
            "probability; check the weights, or use dtype float32 or bfloat16"
        )
