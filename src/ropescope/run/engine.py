"""What every long run does: keep its cells or compute them, share them among processes, and end with one file.

A cell is the unit of work: named arrays, under a name that says all that decides them beside the facts of the run. A
caller says how cells are computed and how they become a result; everything between the two happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ropescope.base.facts import finished
from ropescope.base.files import check_target
from ropescope.run.batching import Batches
from ropescope.run.journal import Journal, drop_journal, journal_of, unseen
from ropescope.run.progress import Steps
from ropescope.run.progress import progress as steps_of
from ropescope.run.workers import Workers

Cell = Mapping[str, np.ndarray]
# Cells by name, in the order asked for or not; None instead of a cell says that it has failed.
Compute = Callable[[Sequence[str], Steps], Iterator[tuple[str, Cell | None]]]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Output(Generic[Result]):
    """The file that a run ends with, and what tells whether it has.

    Parameters
    ----------
    path
        None keeps nothing, neither file nor cells.
    overwrite
        Whether to work anew and replace whatever is there.
    facts
        All that decides what the file holds, in values that JSON can hold.
    cell_facts
        All that decides what a cell of a given name holds.
    load, save
        Read and write such a file.
    recorded
        The facts of a result; raises ResultError, KeyError or ValueError if it has none.
    complete
        Whether nothing is missing in a result: one with gaps is saved, but its cells stay, and the same call tries
        again.
    """

    path: str | Path | None
    overwrite: bool
    facts: Mapping[str, Any]
    cell_facts: Mapping[str, Any]
    load: Callable[[Path], Result]
    save: Callable[[Result, Path], object]
    recorded: Callable[[Result], Mapping[str, Any]]
    complete: Callable[[Result], bool] = lambda _: True

    def finished_or_made(self, cells: Cells, make: Callable[[Cells], Result]) -> Result:
        """The result that the file holds, if it is of this very run, else what `make` makes of the cells it is given.

        Parameters
        ----------
        cells
            Those of the run, not yet kept anywhere.
        make
            Called with cells that are kept beside the file until it is complete.

        Raises
        ------
        ResultError
            If the file or its journal cannot be written, belong to another run, or are in use.
        """
        if self.path is None:
            return make(cells)
        target, workers = check_target(self.path), cells.workers
        if workers.told(lambda: self._finished(target)):
            return self.load(target)
        with journal_of(target, self.cell_facts, workers) as journal:
            result = make(replace(cells, journal=journal))
            workers.told(lambda: self._write(result, target, journal))
        return result

    def _write(self, result: Result, target: Path, journal: Journal) -> None:
        self.save(result, target)
        if self.complete(result):
            journal.remove()

    def _finished(self, target: Path) -> bool:
        """Whether this very run has ended; what may be left of its journal is dropped."""
        whole = True

        def read(path: Path) -> Mapping[str, Any]:
            nonlocal whole
            result = self.load(path)
            whole = self.complete(result)
            return self.recorded(result)

        ended = finished(target, self.facts, read, self.overwrite) and whole
        if ended:
            drop_journal(target, self.cell_facts)
        return ended


@dataclass(frozen=True)
class Cells:
    """The cells of a run: who shares them, where they are kept, and how it shows.

    Parameters
    ----------
    what, unit
        What the progress calls the run, and one step of it.
    workers
        The processes that share the cells.
    progress
        Whether to show how far it is.
    journal
        Where finished cells are kept; None keeps none.
    """

    what: str
    unit: str
    workers: Workers
    progress: bool = False
    journal: Journal | None = None

    def shared(self, steps: Mapping[str, int]) -> Share:
        """This process's share of the cells, of which each takes so many steps."""
        done, left = self.workers.divided(list(steps), lambda name: self._kept(name) is not None)
        return Share(self, steps, done, left)

    def begun(self) -> str:
        """When the run was begun, however often it was interrupted since; ISO 8601, UTC."""
        begun: str = self.workers.agreed(_now() if self.journal is None else self.journal.begun)
        return begun

    def everywhere(self, found: Mapping[str, Cell]) -> dict[str, Cell]:
        """The cells that all processes have found, in every process; no name holds a slash, being that of a file."""
        arrays = {f"{name}/{key}": array for name, cell in found.items() for key, array in cell.items()}
        cells: dict[str, dict[str, np.ndarray]] = {}
        for theirs in self.workers.gathered_arrays(arrays):
            for place, array in theirs.items():
                name, _, key = place.partition("/")
                cells.setdefault(name, {})[key] = array
        return {**cells}

    def known(self, name: str) -> Cell:
        """A finished cell, which the leading process has seen in the journal."""
        cell = self._kept(name)
        if cell is None:
            raise unseen(name)
        return cell

    def keep(self, name: str, cell: Cell) -> None:
        """Write down a finished cell, where this process does so."""
        if self.journal is not None and self.workers.keeping:
            self.journal.write(name, cell)

    def _kept(self, name: str) -> Cell | None:
        return None if self.journal is None else self.journal.read(name)


@dataclass(frozen=True)
class Share:
    """The part of a run's cells that this process sees to.

    Parameters
    ----------
    cells
        All of them.
    steps
        How many steps of the progress each takes.
    done, left
        Names of those that are kept, and of those to compute.
    """

    cells: Cells
    steps: Mapping[str, int]
    done: Sequence[str]
    left: Sequence[str]

    def total(self) -> int:
        """Steps of the whole share."""
        return self._steps(self.done) + self._steps(self.left)

    def found(self, compute: Compute) -> Iterator[tuple[str, Cell]]:
        """Each cell by its name, those kept before first, the others kept as soon as they are computed.

        Parameters
        ----------
        compute
            Gives the cells of the names that it gets, and may say what it is at; :func:`one_by_one` and
            :func:`in_batches` make such.
        """
        for name in self.done:
            yield name, self.cells.known(name)
        run, known = self.cells, self._steps(self.done)
        shown = run.progress and run.workers.leading
        with steps_of(run.what, self.total(), run.unit, known=known, shown=shown) as steps:
            for name, cell in compute(self.left, steps):
                if cell is not None:
                    run.keep(name, cell)
                    yield name, cell
                steps.update(self.steps[name])

    def _steps(self, names: Sequence[str]) -> int:
        return sum(self.steps[name] for name in names)


def one_by_one(compute: Callable[[str], Cell | None], describe: Callable[[str], str]) -> Compute:
    """Compute each cell by itself, its description shown meanwhile."""

    def computed(names: Sequence[str], steps: Steps) -> Iterator[tuple[str, Cell | None]]:
        for name in names:
            steps.set_description(describe(name))
            yield name, compute(name)

    return computed


def in_batches(
    batches: Batches,
    units: Mapping[str, range],
    step: Callable[[list[int]], Cell],
    split: Callable[[list[int], Cell], Iterator[tuple[str, Cell]]] | None = None,
) -> Compute:
    """Compute windows in batches, as many at once as fit.

    Parameters
    ----------
    batches, units
        How many windows go together, and those of each cell, as `batches.units` gives them.
    step
        Gives arrays for the windows of a batch, windows along their first axis.
    split
        Gives the cells of a batch where an array is not by window; None is `batches.split`.
    """

    def computed(names: Sequence[str], _: Steps) -> Iterator[tuple[str, Cell | None]]:
        for batch, found in batches.run([units[name] for name in names], step):
            yield from (split or batches.split)(batch, found)

    return computed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
