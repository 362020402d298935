"""The command. It parses, calls the library, and writes: nothing is computed here."""

from __future__ import annotations

import os
import sys

from cyclopts import CycloptsError

from ropescope.base.errors import RopescopeError
from ropescope.cli import (  # noqa: F401  they register their commands
    bake,
    claims,
    compare,
    compress,
    demo,
    figures,
    importance,
    inspect,
    measure,
    report,
    select,
    show,
    sweep,
    tasks,
)
from ropescope.cli.options import RUN, app


def main(arguments: list[str] | None = None) -> None:
    """Run the command; bad input exits with 2 after one line, an interrupt with 130."""
    # figures go into files; a notebook leaves a backend in the environment that may not exist here
    os.environ["MPLBACKEND"] = "agg"
    try:
        with RUN:
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            print(end="", flush=True)
    except (RopescopeError, CycloptsError) as error:
        _say(" ".join(str(error).split()))
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted; nothing was left half-written")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _say(line: str) -> None:
    """One line for the whole run, from whichever of its processes comes first."""
    if _first_to_speak():
        print(f"ropescope: {line}", file=sys.stderr)


def _first_to_speak() -> bool:
    from ropescope.run import launch

    joined = sys.modules.get("ropescope.run.processes")
    if joined is None or joined.all_launched().group is None:
        return launch.first_to_speak()
    return bool(joined.first_to_speak())
