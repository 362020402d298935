"""Write the reference of the command, docs/reference/command.md, from the command's own help."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

from ropescope.cli import app

PAGE = Path(__file__).parents[1] / "reference" / "command.md"
_HEAD = """\
<!-- Written by `make docs` from the command's own help; a test compares. Change the help, not this page. -->
"""


def reference() -> str:
    """The page: all commands in alphabetical order, each with its options as `--help` explains them."""
    # Usage lines take up how the running program was started, a test runner say.
    with mock.patch.object(sys, "argv", ["ropescope"]):
        text = app.generate_docs()
    overview, *commands = re.split(r"^(?=## ropescope )", text, flags=re.MULTILINE)
    overview = overview.replace("# ropescope\n", "# The command\n", 1)
    overview = re.sub(r"## Table of Contents\n.*?(?=\*\*Commands\*\*)", "", overview, flags=re.DOTALL)
    return f"{_HEAD}\n" + "\n".join(part.strip() + "\n" for part in (overview, *sorted(commands)))


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
