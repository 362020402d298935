"""The schema of evaluated tasks, and one file for it: written whole or not at all, read fully into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ropescope.errors import ResultError, first_line
from ropescope.evaluation.harness import Evaluated, Score
from ropescope.files import written_whole

SCHEMA = "ropescope-tasks"
SCHEMA_VERSION = 1
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


def to_json(evaluated: Evaluated) -> str:
    """One evaluated task as text, every bit kept."""
    return json.dumps({"documents": evaluated.documents, "scores": [asdict(score) for score in evaluated.scores]})


def from_json(text: str) -> Evaluated:
    """What :func:`to_json` wrote."""
    content = json.loads(text)
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
    cells: Mapping[str, Sequence[Score]],
    provenance: Mapping[str, Any],
) -> xr.Dataset:
    """Label what every arm scored.

    Parameters
    ----------
    arms
        Selection and alpha of every arm, the plain one first.
    cells
        Scores of every arm, the same ones in the same order.
    provenance
        In values that JSON can hold.
    """
    plain = cells[PLAIN]
    outcomes = np.array([[pair[0] for score in cells[arm] for pair in score.outcomes] for arm in arms])
    directions = {True: 1, False: -1, None: 0}
    values = {
        "value": [[score.value for score in cells[arm]] for arm in arms],
        "stderr": [[score.stderr for score in cells[arm]] for arm in arms],
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
    text = json.dumps(provenance, allow_nan=False, ensure_ascii=False)
    return xr.Dataset(arrays, coordinates, {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "provenance": text})


def load_tasks(path: str | Path) -> xr.Dataset:
    """Read evaluated tasks fully into memory.

    Raises
    ------
    ResultError
        If the file is missing, damaged, of another kind, or of another schema version.
    """
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ResultError(f"cannot read {path}: it {kind}; give a file written by 'ropescope tasks'")
    try:
        with closing(xr.open_dataset(path, engine="h5netcdf", decode_times=False)) as opened:
            data = opened.load().drop_encoding()
    except Exception as error:  # a damaged file makes HDF5 raise almost any type
        raise ResultError(
            f"{path} is damaged or no NetCDF4 file ({first_line(error)}): copy it again or run the tasks again"
        ) from error
    check_tasks(data, str(path))
    return data


def check_tasks(data: xr.Dataset, source: str) -> None:
    """Refuse a dataset that does not hold evaluated tasks of this schema version.

    Raises
    ------
    ResultError
        Naming `source` and what is wrong.
    """
    if data.attrs.get("schema") != SCHEMA:
        raise ResultError(
            f"{source} holds no evaluated tasks: its schema is {data.attrs.get('schema')!r}, not {SCHEMA!r}; give a "
            "file written by 'ropescope tasks'"
        )
    if data.attrs.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{source} has schema version {data.attrs.get('schema_version')}; this ropescope reads {SCHEMA_VERSION}: "
            "upgrade ropescope, or run the tasks again"
        )
    for name, (_, dims) in VARIABLES.items():
        if name not in data or data[name].dims != dims:
            raise ResultError(f"{source}: {name} must have dims {dims}; run the tasks again")


def save_tasks(data: xr.Dataset, target: Path) -> None:
    """Write evaluated tasks as one NetCDF4 file, whole or not at all, the same bytes for the same scores."""
    # through memory, since HDF5 on a full disk also complains from its destructors
    content = data.to_netcdf(engine="h5netcdf")
    with written_whole(target) as partial:
        partial.write_bytes(content)
