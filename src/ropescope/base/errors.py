"""One root error and its few leaves.

Every message says what was got, what is allowed and what to do. The command prints it as one line and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RopescopeError(Exception):
    """Root of every error that ropescope raises on purpose."""


class InputError(RopescopeError, ValueError):
    """An argument is outside what the function accepts."""


class ModelError(RopescopeError):
    """A model cannot be loaded, or does not call attention through the seam."""


class ProbeError(ModelError):
    """The rotation that a model applies to its queries and keys could not be identified."""


class CorpusError(RopescopeError):
    """A text cannot be found, read, or cut into the windows asked for."""


class NonFiniteError(RopescopeError):
    """A query or key holds NaN or infinity."""


class MissingExtraError(RopescopeError, ImportError):
    """A package that only some of the work needs is not installed."""


class TaskError(RopescopeError):
    """A downstream task cannot be found or run."""


class ResultError(RopescopeError):
    """A result file is damaged, incompatible, or cannot be written."""


class UnreadableError(RopescopeError):
    """A result file cannot be read now: in use, not permitted, the disk fails.

    What it holds is not known, so it is no `ResultError`, which says that a file holds nothing worth keeping and may be
    replaced.
    """


def first_line(error: BaseException) -> str:
    """What an error of another library says, on one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """A trailing clause that lists what is allowed, near matches first.

    Examples
    --------
    >>> did_you_mean("han", ["hann", "hamming"])
    "did you mean 'hann'? (allowed: hann, hamming)"
    """
    names = list(allowed)
    near = get_close_matches(name, names, n=2, cutoff=0.5)
    listing = f"allowed: {', '.join(names)}"
    if not near:
        return listing
    return f"did you mean {' or '.join(repr(n) for n in near)}? ({listing})"
