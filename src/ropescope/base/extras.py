"""Packages that only some of the work needs, and how to get them."""

from __future__ import annotations

import importlib.util

from ropescope.base.errors import MissingExtraError

# The packages that each extra of the distribution brings, by the names they are imported by.
EXTRAS = {
    "figures": ("matplotlib",),
    "report": ("jinja2", "bokeh", "matplotlib"),
    "tasks": ("lm_eval", "accelerate"),
    "gguf": ("gguf", "accelerate"),
    "hub": ("datasets",),
}


def require(extra: str, what: str) -> None:
    """Raise MissingExtraError unless the packages of an extra are installed.

    Parameters
    ----------
    extra
        A key of `EXTRAS`.
    what
        What needs them, as the start of a sentence, such as "figures" or "reading GGUF files".
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{what} needs {' and '.join(missing)}, not installed here: pip install 'ropescope[{extra}]'"
        )
