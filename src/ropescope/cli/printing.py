"""Standard output, which a reader such as `head` may close before the work is done."""

from __future__ import annotations

import os
import sys

from ropescope.base.errors import ResultError, first_line


def say(*texts: object, end: str = "\n") -> None:
    """Print at once. Where nobody reads any more, say nothing from then on: the files are still to be written.

    Raises
    ------
    ResultError
        If standard output cannot be written for another reason, such as a full disk.
    """
    try:
        print(*texts, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise ResultError(f"cannot print: {first_line(error)}; what was finished is in its files") from error
