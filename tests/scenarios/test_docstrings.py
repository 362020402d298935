"""Docstrings of everything public are whole and in one style: what is taken, given and raised, with an example."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ropescope as rs
from ropescope.base import pair_variables

ORDER = ("Parameters", "Returns", "Yields", "Raises", "References", "Examples")
_HEADING = re.compile(r"^([A-Z]\w+(?: \w+)?)\n-{3,}$", re.MULTILINE)


def public() -> Iterator[tuple[str, Any]]:
    """Everything that `rs` offers by its name, and what its classes offer of their own; of properties the getter."""
    for name in rs.__all__:
        thing = getattr(rs, name)
        if not isinstance(thing, str):
            yield name, thing
        if inspect.isclass(thing):
            for own, member in vars(thing).items():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                if not own.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{own}", function


THINGS = dict(public())
ERRORS = [name for name, thing in THINGS.items() if inspect.isclass(thing) and issubclass(thing, Exception)]
WHOLE = [name for name in THINGS if name not in ERRORS]
FUNCTIONS = [name for name in WHOLE if inspect.isfunction(THINGS[name])]


def split(docstring: str) -> tuple[str, dict[str, str]]:
    """What comes before the first heading, and the text under each."""
    first, *rest = _HEADING.split(docstring)
    return first.strip(), dict(zip(rest[::2], rest[1::2], strict=True))


def sections(name: str) -> dict[str, str]:
    return split(inspect.cleandoc(THINGS[name].__doc__ or ""))[1]


def entries(section: str) -> list[str]:
    """Lines at the margin: names of parameters, several with commas between, or of errors."""
    lines = [line for line in section.splitlines() if line.strip() and not line.startswith(" ")]
    return [part.strip().lstrip("*") for line in lines for part in line.split(",")]


def raised(function: Callable[..., Any]) -> set[str]:
    """Our errors that the function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)} & set(ERRORS)


@pytest.mark.parametrize("name", THINGS)
def test_it_begins_with_one_sentence_on_one_line(name: str) -> None:
    docstring = inspect.cleandoc(THINGS[name].__doc__ or "")
    summary, _, rest = docstring.partition("\n")
    assert re.fullmatch(r"[A-Z].*\w.*\.", summary) and not re.search(r"[a-z]\. [A-Z]", summary), summary
    assert not rest or rest.startswith("\n")


@pytest.mark.parametrize("name", WHOLE)
def test_every_parameter_stands_under_parameters_without_its_type(name: str) -> None:
    taken = [one for one in inspect.signature(THINGS[name]).parameters if one not in ("self", "cls")]
    assert entries(sections(name).get("Parameters", "")) == taken


@pytest.mark.parametrize("name", WHOLE)
def test_it_has_an_example_and_its_sections_stand_in_order(name: str) -> None:
    found = sections(name)
    assert ">>> " in found["Examples"]
    assert list(found) == [section for section in ORDER if section in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_gives_and_raises_is_said(name: str) -> None:
    found, gives = sections(name), inspect.signature(THINGS[name]).return_annotation
    assert ("Returns" in found or "Yields" in found) == (gives != "None")
    assert raised(THINGS[name]) <= set(entries(found.get("Raises", "")))


@pytest.mark.parametrize("name", WHOLE)
def test_examples_that_need_no_model_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_variables, "_registered", pair_variables.pair_variables())
    thing = THINGS[name]
    names = {**vars(inspect.getmodule(thing)), "rs": rs}
    (example,) = [doctest.DocTestParser().get_doctest(thing.__doc__ or "", names, name, None, None)]
    report: list[str] = []
    outcome = doctest.DocTestRunner().run(example, out=report.append)
    assert not outcome.failed, "".join(report)


def test_what_is_missing_is_seen() -> None:
    parameters, errors = "Parameters\n----------\nfirst, second\n    Both.", "Raises\n------\nInputError\n    Why."
    found = split(f"One sentence.\n\n{parameters}\n\n{errors}")
    assert found[0] == "One sentence." and list(found[1]) == ["Parameters", "Raises"]
    assert entries(found[1]["Parameters"]) == ["first", "second"]
    assert entries("first : int\n    One.\n") == ["first : int"]
    assert raised(rs.register) == {"InputError"}
