"""Cells are kept or computed, once among all processes, and end in one file; whatever a cell holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropescope.base.errors import ResultError, UnreadableError
from ropescope.base.files import written_whole
from ropescope.run.engine import Cell, Cells, Output, Share, one_by_one
from ropescope.run.journal import journal_folder, journal_of
from ropescope.run.progress import Steps
from ropescope.run.workers import Workers

NAMES = ("a", "b", "c")
FACTS = {"model": "m", "names": list(NAMES)}
Numbers = dict[str, Any]


def load(path: Path) -> Numbers:
    content: Numbers = json.loads(path.read_text())
    if "numbers" not in content:
        raise ResultError(f"{path} holds no numbers")
    return content


def save(result: Numbers, path: Path) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(result))


def output(path: Path | None, overwrite: bool = False, **facts: Any) -> Output[Numbers]:
    return Output(
        path=path,
        overwrite=overwrite,
        facts=FACTS | facts,
        cell_facts={"model": "m"},
        load=load,
        save=save,
        recorded=lambda result: result["facts"],
        complete=lambda result: len(result["numbers"]) == len(NAMES),
    )


class Job:
    """Squares the place of every name, and counts what it computes; those in `failing` come to nothing."""

    def __init__(self, *failing: str, ends_at: str = "") -> None:
        self.failing, self.ends_at = failing, ends_at
        self.computed: list[str] = []

    def compute(self, name: str) -> Cell | None:
        if name == self.ends_at:
            raise KeyboardInterrupt
        self.computed.append(name)
        return None if name in self.failing else {"number": np.array([NAMES.index(name) ** 2]), "text": np.zeros(0)}

    def make(self, cells: Cells) -> Numbers:
        share = cells.shared(dict.fromkeys(NAMES, 1))
        found = cells.everywhere(dict(share.found(one_by_one(self.compute, str.upper))))
        return {"facts": FACTS, "numbers": {name: int(cell["number"][0]) for name, cell in found.items()}}

    def run(self, path: Path | None, **options: Any) -> Numbers:
        return output(path, **options).finished_or_made(Cells("square", "cell", Workers()), self.make)


SQUARES = {"a": 0, "b": 1, "c": 4}


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Job().run(None)["numbers"] == SQUARES
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        Job(ends_at="c").run(path)
    assert not path.exists()
    job = Job()
    assert job.run(path)["numbers"] == SQUARES and job.computed == ["c"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_a_finished_run_is_read_again_and_another_refused(tmp_path: Path) -> None:
    path, job = tmp_path / "out.json", Job()
    Job().run(path)
    assert job.run(path)["numbers"] == SQUARES and not job.computed
    with pytest.raises(ResultError, match='it exists and holds another run \\(other model "m" against "n"\\)'):
        job.run(path, model="n")
    assert not job.computed
    job.run(path, overwrite=True)
    assert job.computed == [*NAMES]


def test_what_was_left_of_the_journal_of_a_finished_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        Job(ends_at="c").run(path)
    save({"facts": FACTS, "numbers": SQUARES}, path)
    assert Job(ends_at="a").run(path)["numbers"] == SQUARES
    assert not journal_folder(path).exists()


def test_a_result_with_gaps_is_saved_and_only_its_gaps_are_tried_again(tmp_path: Path) -> None:
    path, second, third = tmp_path / "out.json", Job("b"), Job()
    assert Job("b").run(path)["numbers"] == {"a": 0, "c": 4}
    assert load(path)["numbers"] == {"a": 0, "c": 4} and journal_folder(path).is_dir()
    second.run(path)
    assert third.run(path)["numbers"] == SQUARES
    assert second.computed == third.computed == ["b"] and not journal_folder(path).exists()


def test_every_kind_of_array_comes_back_bit_for_bit(tmp_path: Path) -> None:
    bits = np.array([0x7FF8_0000_DEAD_BEEF, 0x8000_0000_0000_0000], dtype=np.uint64).view(np.float64)
    cell = {
        "nan with a payload, and minus zero": bits,
        "rows/of a table": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
        "text": np.frombuffer("größer".encode(), dtype=np.uint8),
        "nothing": np.empty((0, 4), dtype=np.float32),
        "flag": np.array(True),
    }
    seen: list[Mapping[str, np.ndarray]] = []

    def make(cells: Cells) -> Numbers:
        for kept in (False, True):
            share = cells.shared({"one": 1})
            assert (share.done == ["one"]) == kept
            seen.extend(cells.everywhere(dict(share.found(one_by_one(lambda name: cell, str)))).values())
        return {"facts": FACTS, "numbers": {}}

    output(tmp_path / "out.json").finished_or_made(Cells("keep", "cell", Workers()), make)
    for found in seen:
        assert found.keys() == cell.keys()
        for name, array in cell.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()


def test_each_cell_is_kept_before_it_is_given_and_the_next_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "out.json"

    def computed(names: Sequence[str], steps: Steps) -> Iterator[tuple[str, Cell]]:
        for index, name in enumerate(names):
            assert len(list(journal_folder(path).glob("*.safetensors"))) == index
            yield name, {"number": np.zeros(1)}

    def make(cells: Cells) -> Numbers:
        found = cells.shared(dict.fromkeys(NAMES, 1)).found(computed)
        assert [(journal_folder(path) / f"{name}.safetensors").is_file() for name, _ in found] == [True] * len(NAMES)
        return {"facts": FACTS, "numbers": {}}

    output(path).finished_or_made(Cells("keep", "cell", Workers()), make)


class Recorded:
    """Stands for the progress, and writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, what: str, total: int, unit: str, *, known: int, shown: bool) -> Recorded:
        self.told.append((what, total, unit, known, shown))
        return self

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.told.append(n)

    def set_description(self, desc: str) -> None:
        self.told.append(desc)


def test_the_progress_counts_steps_and_says_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Recorded()
    monkeypatch.setattr("ropescope.run.engine.steps_of", told)
    share = Share(Cells("square", "step", Workers(), True), {"a": 2, "b": 3, "c": 1}, [], ["a", "b", "c"])
    assert [name for name, _ in share.found(one_by_one(Job("b").compute, str.upper))] == ["a", "c"]
    assert told.told == [("square", 6, "step", 0, True), "A", 2, "B", 3, "C", 1]


def test_what_was_kept_counts_as_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        Job(ends_at="c").run(tmp_path / "out.json")
    told = Recorded()
    monkeypatch.setattr("ropescope.run.engine.steps_of", told)
    Job().run(tmp_path / "out.json")
    assert told.told == [("square", 3, "cell", 2, False), "C", 1]


def first(said: list[Any]) -> Workers:
    """The first of several processes, whose word to the others goes to a list."""

    class First(Workers):
        def agreed(self, value: Any) -> Any:
            said.append(value)
            return value

    return First()


def second(answer: Any) -> Workers:
    """The second of several processes, to which the first gives one answer to everything."""

    class Second(Workers):
        rank = 1

        def agreed(self, value: Any) -> Any:
            return answer

    return Second()


@pytest.mark.parametrize("kind", [ResultError, UnreadableError])
def test_what_ends_the_leading_process_ends_the_others_alike(kind: type[Exception], tmp_path: Path) -> None:
    def fail() -> None:
        raise kind("the file is in use")

    said: list[Any] = []
    with pytest.raises(kind, match="the file is in use"):
        first(said).told(fail)
    job = Job()
    with pytest.raises(kind, match="the file is in use"):
        output(tmp_path / "out.json").finished_or_made(Cells("square", "cell", second(said[-1])), job.make)
    assert not job.computed


def test_a_file_that_cannot_be_written_ends_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "out.json", []

    def full(result: Numbers, target: Path) -> None:
        raise ResultError(f"cannot write {target}: no space left")

    monkeypatch.setattr(f"{__name__}.save", full)
    with pytest.raises(ResultError, match="no space left"):
        output(path).finished_or_made(Cells("square", "cell", first(said)), Job().make)
    assert said[-1] == {"error": "ResultError", "text": f"cannot write {path}: no space left"}


def test_a_process_that_does_not_see_the_journal_says_so(tmp_path: Path) -> None:
    held = journal_of(tmp_path / "out.json", {}, second({"found": "2001-01-01T00:00:00+00:00"}))
    with pytest.raises(ResultError, match="is not there for every process of the run; write to a folder that"), held:
        pass
