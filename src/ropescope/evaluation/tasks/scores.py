"""What the harness found, as scores: one for every metric of every task and group, with every document's outcome."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """One metric of one task, or of a group of tasks.

    Parameters
    ----------
    task, metric, filter
        The harness's names.
    value, stderr
        As the harness gives them; stderr is NaN where it has none.
    higher_is_better
        None where the task does not say.
    members
        The tasks of a group; empty for a task.
    shots, version
        Few-shot examples and version of the task.
    documents
        Documents asked, and (original) in the whole task.
    outcomes
        Value of every document, as (value, weight); empty where the metric has no number for a document.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float
    higher_is_better: bool | None
    members: tuple[str, ...]
    shots: int
    version: str
    documents: tuple[int, int]
    outcomes: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Evaluated:
    """What a model did in one task asked for: all its scores, and a digest of the prompts it was given."""

    scores: tuple[Score, ...]
    documents: str
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict, compare=False)


def scores(found: Mapping[str, Any]) -> Iterator[Score]:
    """Every score in what ``simple_evaluate`` gave."""
    groups = found.get("groups") or {}
    members = found["group_subtasks"]
    for name, metrics in {**found["results"], **groups}.items():
        leaves = tuple(_leaves(name, members)) if name in groups else ()
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                yield _score(found, name, metric, chosen, value, leaves)


def _score(found: Mapping[str, Any], task: str, metric: str, chosen: str, value: Any, leaves: tuple[str, ...]) -> Score:
    any_leaf = leaves[0] if leaves else task
    metrics = {**found["results"], **(found.get("groups") or {})}[task]
    counts = [found["n-samples"][leaf] for leaf in leaves or (task,)]
    return Score(
        task=task,
        metric=metric,
        filter=chosen,
        value=_number(value),
        stderr=_number(metrics.get(f"{metric}_stderr,{chosen}")),
        higher_is_better=found["higher_is_better"].get(any_leaf, {}).get(metric),
        members=leaves,
        shots=int(found["n-shot"].get(any_leaf) or 0),
        version=str(found["versions"].get(task, "")),
        documents=(sum(count["effective"] for count in counts), sum(count["original"] for count in counts)),
        outcomes=() if leaves else tuple(_outcomes(found["samples"][task], metric, chosen)),
    )


def _leaves(group: str, members: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for member in members.get(group, ()):
        if member in members:
            yield from _leaves(member, members)
        else:
            yield member


def _outcomes(samples: Sequence[Mapping[str, Any]], metric: str, chosen: str) -> list[tuple[float, float]]:
    """Value and weight of every document; none where one of them is no number.

    A perplexity's document is a pair of its log likelihood and its words: that is a value per word, weighed by words.
    """
    outcomes = []
    for sample in sorted((s for s in samples if s["filter"] == chosen), key=lambda sample: sample["doc_id"]):
        value = sample.get(metric)
        total, weight = value if isinstance(value, tuple | list) and len(value) == 2 else (value, 1.0)
        total, weight = _number(total), _number(weight)
        if math.isnan(total) or not weight > 0:
            return []
        outcomes.append((total / weight, weight))
    return outcomes


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def digest_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """SHA-256 of what was asked: documents, prompts and targets, in the order of the tasks' names."""
    digest = hashlib.sha256()
    for task in sorted(samples):
        for sample in samples[task]:
            parts = (task, sample["doc_id"], sample["doc_hash"], sample["prompt_hash"], sample["target_hash"])
            digest.update(repr(parts).encode())
    return digest.hexdigest()
