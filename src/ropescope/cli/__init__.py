"""The command. It parses, calls the library, and writes: nothing is computed here."""

from __future__ import annotations

import os
import sys

from cyclopts import CycloptsError

from ropescope.cli import demo, judging, measuring  # noqa: F401  they register their commands
from ropescope.cli.options import app
from ropescope.errors import RopescopeError


def main(arguments: list[str] | None = None) -> None:
    """Run the command; bad input exits with 2 after one line, an interrupt with 130."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (RopescopeError, CycloptsError) as error:
        line = " ".join(str(error).split())
        print(f"ropescope: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ropescope: interrupted; nothing was left half-written", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
