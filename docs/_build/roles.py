"""Docstrings are numpydoc; their Sphinx roles become Markdown when the reference is built."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from ropescope import __all__ as PUBLIC

_MATH_BLOCK = re.compile(r"^( *)\.\. math:: *((?:.+\n?)(?:\1 +.+\n?)*)", re.MULTILINE)
_MATH = re.compile(r":math:`([^`]+)`")
_GROUP = re.compile(r"^(\w+(?:, \w+)+)\n((?: +.+\n?)+)", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr):`([^`]+)`")


class Roles(griffe.Extension):
    """Rewrite the docstring of every object as it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Formulas between dollars, references to public names as links, all others as code.

    Parameters that share a description get one each: read together, all would be given the first one's type.

    Examples
    --------
    >>> as_markdown("As :func:`ropescope.sweep`, :math:`K`.")
    'As [`sweep`][ropescope.sweep], $K$.'
    """
    text = _GROUP.sub(_apart, _MATH_BLOCK.sub(_block, text))
    return _ROLE.sub(_reference, _MATH.sub(r"$\1$", text))


def _block(match: re.Match[str]) -> str:
    formula = textwrap.indent(" ".join(match[2].split()), match[1])
    return f"{match[1]}$$\n{formula}\n{match[1]}$$\n"


def _apart(match: re.Match[str]) -> str:
    description = match[2].rstrip("\n")
    return "".join(f"{name}\n{description}\n" for name in match[1].split(", "))


def _reference(match: re.Match[str]) -> str:
    name = match[1].rpartition(".")[2]
    public = match[1] in (name, f"ropescope.{name}") and name in PUBLIC
    return f"[`{name}`][ropescope.{name}]" if public else f"`{name}`"
