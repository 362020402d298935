"""Long work says how far it is: a bar on a terminal, a line now and then elsewhere, nothing for what is short."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest

import ropescope as rs
from architectures import LLAMA, tokens
from ropescope import cli
from ropescope.evaluation.sweep.arms import Controls
from ropescope.run.progress import _duration, _Lines, progress

FRAMES = {"frame_length": 32, "hop_length": 16}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropescope.run.progress.INTERVAL", 0.001)


def slowly(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Let a function take long enough for a line."""
    module, name = place.rsplit(".", 1)
    own = getattr(__import__(module, fromlist=[name]), name)

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return own(*arguments, **options)

    monkeypatch.setattr(place, slow)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (72, "1 min 12 s"), (3600, "1 h"), (11130, "3 h 5 min")],
)
def test_durations_are_told_in_two_units_at_most(seconds: float, told: str) -> None:
    assert _duration(seconds) == told


def test_a_line_says_what_is_done_how_long_it_took_and_what_is_left() -> None:
    lines = _Lines("measure", 8, "window", 2, io.StringIO())
    assert lines.line(30) == "measure: 2 of 8 windows, 30 s"
    lines.update(3)
    assert lines.line(72) == "measure: 5 of 8 windows, 1 min 12 s, about 1 min 12 s left"
    lines.set_description("bands at 0.5")
    assert lines.line(72).startswith("measure (bands at 0.5): 5 of 8 windows")
    assert _Lines("loading builtin", 0, "", 0, io.StringIO()).line(61) == "loading builtin: 1 min 1 s so far"


@pytest.mark.usefixtures("often")
def test_a_pipe_gets_lines_even_while_one_step_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("measure", 3, "window"):
        time.sleep(0.1)
    assert "measure: 0 of 3 windows, 0 s\n" in capsys.readouterr().err


def test_nothing_is_said_of_what_is_short_or_not_to_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("measure", 3, "window") as steps:
        steps.update(3)
    monkeypatch.setattr("ropescope.run.progress.INTERVAL", 0.001)
    with progress("measure", 3, "window", shown=False) as steps:
        time.sleep(0.05)
        steps.set_description("quietly")
        steps.update(3)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_nothing_is_said_after_the_end_or_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), progress("measure", 3, "window"):
        raise ValueError("broken")
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropescope.run.progress.INTERVAL", 0.001)
    monkeypatch.setattr("sys.stderr", Terminal())
    with progress("measure", 3, "window") as steps:
        steps.update(3)
        time.sleep(0.05)
    with progress("loading builtin"):
        time.sleep(0.05)
    import sys

    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "3/3" in shown and "measure:" not in shown and "loading" not in shown


@pytest.mark.usefixtures("often")
def test_every_long_function_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, windows = LLAMA.shared(), tokens(2, 96)
    slowly(monkeypatch, "ropescope.measurement.measure._run")
    result = rs.measure(model, windows, **FRAMES, progress=True)
    assert re.search(r"^measure: [01] of 2 windows, 0 s", capsys.readouterr().err, re.MULTILINE)
    slowly(monkeypatch, "ropescope.evaluation.perplexity._token_nats")
    rs.perplexity(model, windows, progress=True)
    assert re.search(r"^perplexity: [01] of 2 windows, 0 s", capsys.readouterr().err, re.MULTILINE)
    masks = {"low": rs.select(result, "pair < 2")}
    rs.sweep(model, windows, masks, alphas=(0.5,), controls=Controls(seeds=()), progress=True)
    assert re.search(r"^sweep \(low selection at .*\): \d of 2 cells, 0 s", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.usefixtures("often")
def test_a_library_call_without_progress_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, windows = LLAMA.shared(), tokens(2, 96)
    slowly(monkeypatch, "ropescope.measurement.measure._run")
    slowly(monkeypatch, "ropescope.evaluation.perplexity._token_nats")
    rs.measure(model, windows, **FRAMES)
    rs.perplexity(model, windows)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_the_command_says_that_it_loads(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slowly(monkeypatch, "ropescope.model.loading._loaded")
    cli.main(["inspect", str(saved)])
    assert f"loading {saved}: 0 s so far\n" in capsys.readouterr().err
