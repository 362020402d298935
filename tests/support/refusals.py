"""What bad input is answered with, by the library and by the command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ropescope import cli
from ropescope.base.errors import RopescopeError


def refused(error: type[RopescopeError], call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The message, in one line, of the error of that kind that the call raises."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command ends with, its name left out."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    output = capsys.readouterr()
    assert stopped.value.code == 2
    lines = output.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ropescope: "), output.err
    return lines[0].removeprefix("ropescope: ")
