"""How far long work is: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

INTERVAL = 30.0


class Steps(Protocol):
    """What long work tells of itself."""

    def update(self, n: int = 1) -> object:
        """That many steps more are done."""

    def set_description(self, desc: str) -> object:
        """What is being done now."""


@contextmanager
def progress(what: str, total: int = 0, unit: str = "", *, known: int = 0, shown: bool = True) -> Iterator[Steps]:
    """Show how far work is while the block runs.

    On a terminal a bar; where there is none, a line on the standard error stream every 30 seconds, so work that is
    shorter says nothing. Work without steps (`total` 0) shows no bar, since who does it may show its own.

    Parameters
    ----------
    what
        The work, such as "measure".
    total, unit, known
        How many steps there are, what one is called, and how many were done before.
    shown
        Whether to show anything: only the leading one of several processes does.

    Examples
    --------
    >>> with progress("measure", 8, "window") as steps:
    ...     steps.update()
    """
    if shown and not sys.stderr.isatty():
        with _Lines(what, total, unit, known, sys.stderr) as lines:
            yield lines
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=known, unit=unit, disable=not (shown and total)) as bar:
        yield bar


class _Lines:
    """Says from a second thread how far the work is: a step may last longer than the time between two lines."""

    def __init__(self, what: str, total: int, unit: str, known: int, stream: TextIO) -> None:
        self.what, self.total, self.unit, self.known, self.stream = what, total, unit, known, stream
        self.done, self.doing, self.began = known, "", time.monotonic()
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def update(self, n: int = 1) -> None:
        self.done += n

    def set_description(self, desc: str) -> None:
        self.doing = f" ({desc})"

    def __enter__(self) -> _Lines:
        self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._teller.join()

    def _tell(self) -> None:
        while not self._over.wait(INTERVAL):
            print(self.line(time.monotonic() - self.began), file=self.stream, flush=True)

    def line(self, elapsed: float) -> str:
        """Such as "measure: 3 of 8 windows, 1 min 12 s, about 2 min left"."""
        if not self.total:
            return f"{self.what}: {_duration(elapsed)} so far"
        line = f"{self.what}{self.doing}: {self.done} of {self.total} {self.unit}s, {_duration(elapsed)}"
        steps = self.done - self.known
        return f"{line}, about {_duration(elapsed / steps * (self.total - self.done))} left" if steps else line


def _duration(seconds: float) -> str:
    """Two units at most: 42 s, 1 min 12 s, 3 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    larger, smaller = ((minutes, "min"), (left, "s")) if whole < 3600 else ((minutes // 60, "h"), (minutes % 60, "min"))
    return " ".join(f"{number} {unit}" for number, unit in (larger, smaller) if number)
