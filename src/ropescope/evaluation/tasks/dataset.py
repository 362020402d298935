"""What evaluated tasks hold, as a dataset and, one by one, as text and as cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr

from ropescope.base.schema import Schema
from ropescope.evaluation.tasks.scores import Evaluated, Score

PLAIN = "plain"
ARM, SCORE, ITEM = "arm", "score", "item"
TASK, METRIC, FILTER, SELECTION, ALPHA = "task", "metric", "filter", "selection", "alpha"
VARIABLES = {
    "value": ("the harness's score", (ARM, SCORE)),
    "stderr": ("the harness's standard error", (ARM, SCORE)),
    "direction": ("1 if higher is better, -1 if lower is, 0 if the task does not say", (SCORE,)),
    "documents": ("documents asked", (SCORE,)),
    "original": ("documents of the whole task", (SCORE,)),
    "shots": ("few-shot examples", (SCORE,)),
    "outcome": ("the score's value for a document", (ARM, ITEM)),
    "weight": ("weight of a document in the score", (ITEM,)),
    "item_score": ("row of the score that a document belongs to", (ITEM,)),
}


TASKS = Schema(
    "ropescope-tasks",
    1,
    {name: dims for name, (_, dims) in VARIABLES.items()},
    what="a file of tasks",
    command="ropescope tasks",
    again="run the tasks again",
)


def to_json(evaluated: Evaluated) -> str:
    """One evaluated task as text, every bit kept."""
    return json.dumps({"documents": evaluated.documents, "scores": [asdict(score) for score in evaluated.scores]})


def as_cell(evaluated: Evaluated) -> dict[str, np.ndarray]:
    """One evaluated task as named arrays, its text being bytes."""
    return {"json": np.frombuffer(to_json(evaluated).encode(), dtype=np.uint8)}


def from_cell(cell: Mapping[str, np.ndarray]) -> Evaluated:
    """What :func:`as_cell` gave."""
    content = json.loads(cell["json"].tobytes())
    scores = [
        Score(
            **{
                **score,
                "members": tuple(score["members"]),
                "documents": tuple(score["documents"]),
                "outcomes": tuple((value, weight) for value, weight in score["outcomes"]),
            }
        )
        for score in content["scores"]
    ]
    return Evaluated(tuple(scores), content["documents"])


def labelled(
    arms: Mapping[str, tuple[str, float]],
    scores: Mapping[str, Sequence[Score]],
    provenance: Mapping[str, Any],
) -> xr.Dataset:
    """Label what every arm scored.

    Parameters
    ----------
    arms
        Selection and alpha of every arm, the plain one first.
    scores
        Those of every arm, the same ones in the same order.
    provenance
        In values that JSON can hold.
    """
    plain = scores[PLAIN]
    outcomes = np.array([[pair[0] for score in scores[arm] for pair in score.outcomes] for arm in arms])
    directions = {True: 1, False: -1, None: 0}
    values = {
        "value": [[score.value for score in scores[arm]] for arm in arms],
        "stderr": [[score.stderr for score in scores[arm]] for arm in arms],
        "direction": [directions[score.higher_is_better] for score in plain],
        "documents": [score.documents[0] for score in plain],
        "original": [score.documents[1] for score in plain],
        "shots": [score.shots for score in plain],
        "outcome": outcomes,
        "weight": [pair[1] for score in plain for pair in score.outcomes],
        "item_score": [row for row, score in enumerate(plain) for _ in score.outcomes],
    }
    arrays = {name: (dims, np.array(values[name]), {"long_name": what}) for name, (what, dims) in VARIABLES.items()}
    coordinates = {
        ARM: list(arms),
        SELECTION: (ARM, [selection for selection, _ in arms.values()]),
        ALPHA: (ARM, [alpha for _, alpha in arms.values()]),
        **{name: (SCORE, [getattr(score, name) for score in plain]) for name in (TASK, METRIC, FILTER)},
        "version": (SCORE, [score.version for score in plain]),
        "members": (SCORE, [" ".join(score.members) for score in plain]),
    }
    return xr.Dataset(arrays, coordinates, TASKS.attributes(provenance))
