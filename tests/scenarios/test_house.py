"""The house as CONTRIBUTING shows it: rooms, lengths, one place for one thing, two steps from a question to a file."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from architectures import ARCHITECTURES, OF_EACH_KIND
from checkout import ROOT
from ropescope.base.selections import PAPER

SOURCE = ROOT / "src" / "ropescope"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 350, 40
# The rest is ours: what is bound to `self` or to a class that is being defined.
OWN = {"self", "cls"}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def named(file: Path) -> str:
    return str(file.relative_to(SOURCE))


def too_long(files: int, functions: int) -> list[str]:
    """What has more lines, a function's docstring left out."""
    found = [named(file) for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > files]
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > functions:
                found.append(f"{named(file)}: {node.name}")
    return found


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    own = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return own
    docstring = function.body[0]
    return own - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def test_no_file_and_no_function_is_too_long():
    assert not too_long(LONGEST_FILE, LONGEST_FUNCTION)
    assert {"base/files.py", "run/launch.py"} & set(too_long(80, LONGEST_FUNCTION))
    assert any(": " in place for place in too_long(LONGEST_FILE, 20))


def private_names(file: Path) -> Iterator[str]:
    """Names with an underscore that the file reads or sets on what other libraries have made."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in OWN):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "hasattr", "setattr"):
            yield from (part.value for part in node.args if isinstance(part, ast.Constant) and str(part.value))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("ropescope"):
            yield from (part for part in node.module.split(".") if part != "__future__")


@cache
def defined_here() -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for file in FILES for node in ast.walk(tree_of(file)) if isinstance(node, kinds)}


def test_a_private_name_of_another_library_stands_in_one_file():
    places = defaultdict(set)
    for file in FILES:
        for name in private_names(file):
            if re.match(r"_[^_]", str(name)) and name not in defined_here():
                places[name].add(named(file))
    assert "_hf_hook" in places and "_global_mapping" in places
    assert not {name: files for name, files in places.items() if len(files) > 1}


# What a rule of a selection looks like in text, Python or JavaScript.
_RULE = re.compile(r"(?:spectrum_?fe|sequence_?fe)\W{1,3}[<>]=? ?0?\.\d", re.IGNORECASE)


def rules_written_out() -> list[str]:
    """Lines that repeat a threshold of the table; what an example types is a person's."""
    table = SOURCE / "base" / "selections.py"
    return [
        f"{named(file)}: {line.strip()}"
        for file in sorted(SOURCE.rglob("*"))
        if file.suffix in (".py", ".js", ".j2") and file != table
        for line in file.read_text(encoding="utf-8").splitlines()
        if _RULE.search(line) and ">>> " not in line and "Example: " not in line
    ]


def test_thresholds_and_names_of_selections_stand_in_the_table_alone():
    assert _RULE.search("spectrum_fe < 0.2") and _RULE.search("SequenceFE < 0.6")
    assert not rules_written_out()
    names = {selection.name for selection in PAPER.values()}
    repeated = [
        f"{named(file)}:{node.lineno}"
        for file in FILES
        if file != SOURCE / "base" / "selections.py"
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not repeated


def imports_of(file: Path) -> set[Path]:
    """Our own modules that are loaded when this one is."""
    wanted = {
        f"{node.module}.{name.name}"
        if (SOURCE.parent / node.module.replace(".", "/") / f"{name.name}.py").exists()
        else node.module
        for node in tree_of(file).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ropescope")
        for name in node.names
    }
    places = [SOURCE.parent / name.replace(".", "/") for name in wanted]
    return {
        place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py" for place in places
    }


def test_no_modules_import_each_other_in_a_circle():
    assert len(imports_of(SOURCE / "measurement" / "measure.py")) > 5
    # Raises CycleError, which names the circle.
    TopologicalSorter({file: imports_of(file) for file in FILES}).prepare()


def test_every_question_leads_to_a_file_by_way_of_its_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^  (\w+)/ +\d ", text, re.MULTILINE)
    assert rooms == [room for room in rooms if (SOURCE / room / "__init__.py").is_file()] and len(rooms) == 10
    answers = re.findall(r"^\| [^|]+\? \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(answers) >= 10
    for answer in answers:
        for path in re.findall(r"`([^`]+)`", answer):
            assert path.split("/")[0] in rooms and (SOURCE / path).is_file(), path


def test_unit_tests_lie_in_folders_that_are_rooms():
    folders = {folder.name for folder in (ROOT / "tests" / "unit").iterdir() if any(folder.glob("test_*.py"))}
    assert folders - {"support"} <= {room.name for room in SOURCE.iterdir()} and len(folders) >= 8
    assert not list((ROOT / "tests").glob("test_*.py"))


def test_the_fast_part_keeps_architectures_of_the_matrix():
    assert set(OF_EACH_KIND) <= {str(architecture) for architecture in ARCHITECTURES}
