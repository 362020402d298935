"""The command show: what a file says, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ropescope.base.axes import STREAMS
from ropescope.base.errors import InputError
from ropescope.cli.options import WorthPath, app, worth_of
from ropescope.cli.printing import say


@app.command
def show(
    file: Annotated[
        Path, Parameter(help="File of measure, importance, sweep, tasks, compress, select, claims --model.")
    ],
    *,
    most: int = 10,
    importance: WorthPath = None,
) -> None:
    """Print what a file says: of a measurement its summary and the pairs that stand out, of others their table.

    With importance, a measurement also says whether Frequency Entropy foretells it.

    The pairs are the bands, loudest first; the outliers and the periodic pairs furthest beyond their thresholds, these
    with the period that windows share and whether they beat or drift; the silent ones.

    Example: `ropescope show qwen3.nc --most 20`

    Parameters
    ----------
    most
        Rows of each list of pairs.
    """
    if most < 1:
        raise InputError(f"got --most {most}; the number of pairs to list is 1 or more")
    import ropescope as rs
    from ropescope.measurement.results import SCHEMA

    found, worth = rs.load(file), worth_of(importance)
    if worth is None:
        say(_text(found, most))
        return
    if getattr(found, "attrs", {}).get("schema") != SCHEMA:
        raise InputError(
            f"got --importance with {file}, which is no file of 'ropescope measure'; leave one of them out"
        )
    foretold = rs.importance_foretold(found, worth)
    say(_text(rs.joined(found, worth), most), end="\n\n")
    say(foretold.text())


def _text(found: Any, most: int) -> str:
    from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
    from ropescope.evaluation.claims.behaviour_in_words import look_section
    from ropescope.evaluation.frontier.changes import frontier_table
    from ropescope.evaluation.frontier.dataset import FRONTIER
    from ropescope.evaluation.frontier.in_words import findings as thin_findings
    from ropescope.evaluation.importance_validation import VALIDATION, in_words
    from ropescope.evaluation.set_prediction import SET_VALIDATION, sets_in_words, sets_table
    from ropescope.evaluation.sweep.changes import sweep_table
    from ropescope.evaluation.sweep.dataset import SWEEP
    from ropescope.evaluation.sweep.in_words import findings
    from ropescope.evaluation.tasks.dataset import TASKS
    from ropescope.evaluation.tasks.table import tasks_table
    from ropescope.measurement.ranking import ranked
    from ropescope.measurement.results import IMPORTANCE, SCHEMA
    from ropescope.measurement.summary import summary_text
    from ropescope.measurement.worth_in_words import importance_text

    schema = getattr(found, "attrs", {}).get("schema")
    if schema == SCHEMA:
        tables = [table.text() for stream in STREAMS for table in ranked(found, stream, most)]
        return "\n\n".join([summary_text(found, strongest=most), *tables])
    if schema == SWEEP.name:
        return "\n".join([sweep_table(found), "", *findings(found)])
    if schema == FRONTIER.name:
        return "\n".join([frontier_table(found), "", *thin_findings(found)])
    if schema == IMPORTANCE:
        return importance_text(found)
    if schema == VALIDATION.name:
        return "\n".join(in_words(found))
    if schema == SET_VALIDATION.name:
        return "\n".join([sets_table(found).text(), "", *sets_in_words(found)])
    if schema == BEHAVIOUR.name:
        return look_section(found).text()
    return tasks_table(found) if schema == TASKS.name else str(found)
