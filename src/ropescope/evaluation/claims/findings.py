"""What a claim is, what is found of it, and the rules by which an interval decides.

An effect holds where its interval lies beyond the control in the stated direction. That something does not matter
holds where its interval lies inside a stated margin, never because a test finds nothing. Where the interval decides
neither way, or there is none, it cannot be said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ropescope.evaluation.claims.sources import Source

if TYPE_CHECKING:
    from ropescope.evaluation.claims.evidence import Evidence

Verdict = Literal["holds", "fails", "cannot be said"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "fails"
CANNOT: Verdict = "cannot be said"
VERDICTS = (HOLDS, FAILS, CANNOT)


@dataclass(frozen=True)
class Control:
    """What the claim would have to beat.

    Parameters
    ----------
    what
        In words, as in "as many random pairs".
    value
        What it gives, in the unit of the test; NaN where it is the bound itself and has no number of its own.
    """

    what: str
    value: float


@dataclass(frozen=True)
class Test:
    """One number that a claim stands or falls with.

    Parameters
    ----------
    what
        What was measured, in words.
    unit
        Its unit; empty for a plain number.
    value, low, high
        The number and its 95 % interval, NaN where there is none.
    over
        What the interval runs over, as in "30 layers".
    asked
        What the claim asks of the interval, as in "above 1".
    control
        What it is held against.
    verdict
        What the interval says.
    """

    __test__ = False

    what: str
    unit: str
    value: float
    low: float
    high: float
    over: str
    asked: str
    control: Control
    verdict: Verdict

    def sentence(self) -> str:
        """Number, interval and control in one sentence without a full stop."""
        unit = f" {self.unit}" if self.unit else ""
        interval = "no interval" if math.isnan(self.low) else f"{written(self.low)} to {written(self.high)}"
        return (
            f"{self.what}: {written(self.value)}{unit} (95 % {interval} over {self.over}), asked {self.asked}; "
            f"held against {self.against()}"
        )

    def against(self) -> str:
        """The control with its number."""
        unit = f" {self.unit}" if self.unit else ""
        number = "" if math.isnan(self.control.value) else f": {written(self.control.value)}{unit}"
        return f"{self.control.what}{number}"


@dataclass(frozen=True)
class Finding:
    """What the evidence says of a claim.

    Parameters
    ----------
    verdict
        "holds", "fails" or "cannot be said".
    reason
        Why, in a sentence.
    tests
        The numbers behind it.
    settles
        Where it cannot be said: what would settle it, a command where one does.
    """

    verdict: Verdict
    reason: str
    tests: tuple[Test, ...] = ()
    settles: str = ""


@dataclass(frozen=True)
class Claim:
    """Something that has been said of rotary pairs.

    Parameters
    ----------
    key
        What commands and files call it.
    statement
        One sentence.
    source, place
        Who said it, and where in the text.
    needs
        The evidence that it is judged on, in words.
    judge
        From evidence to a finding.
    """

    key: str
    statement: str
    source: Source
    place: str
    needs: str
    judge: Callable[[Evidence], Finding]


def above(
    what: str,
    estimate: Iterable[float],
    bound: float,
    control: Control | str,
    *,
    over: str,
    unit: str = "",
    least: float = 0.0,
) -> Test:
    """A test that asks for more than a bound.

    It holds where the interval lies above `bound + least`, and fails where it lies below: under that an effect does
    not deserve the word.

    Parameters
    ----------
    what, over, unit
        As in :class:`Test`.
    estimate
        Value, low and high.
    bound
        What must be exceeded.
    control
        What the number is held against; words alone stand for the bound.
    least
        The smallest effect that counts, at least 0.
    """
    value, low, high = (float(number) for number in estimate)
    verdict = FAILS if high < bound + least else HOLDS if low > bound + least else CANNOT
    asked = f"above {written(bound)}" + (f" by {written(least)} or more" if least else "")
    return _made(what, unit, (value, low, high), over, asked, _as_control(control, bound), verdict)


def below(
    what: str,
    estimate: Iterable[float],
    bound: float,
    control: Control | str,
    *,
    over: str,
    unit: str = "",
    least: float = 0.0,
) -> Test:
    """A test that asks for less than a bound; as :func:`above`, mirrored."""
    value, low, high = (float(number) for number in estimate)
    verdict = FAILS if low > bound - least else HOLDS if high < bound - least else CANNOT
    asked = f"below {written(bound)}" + (f" by {written(least)} or more" if least else "")
    return _made(what, unit, (value, low, high), over, asked, _as_control(control, bound), verdict)


def inside(
    what: str,
    estimate: Iterable[float],
    margin: tuple[float, float],
    control: Control | str,
    *,
    over: str,
    unit: str = "",
) -> Test:
    """A test that asks for no more than a margin either way: equivalence, by the whole interval."""
    value, low, high = (float(number) for number in estimate)
    lowest, highest = margin
    verdict = HOLDS if lowest < low and high < highest else FAILS if low > highest or high < lowest else CANNOT
    asked = f"within {written(lowest)} to {written(highest)}"
    return _made(what, unit, (value, low, high), over, asked, _as_control(control, math.nan), verdict)


def judged(tests: Sequence[Test], settles: str = "", remark: str = "") -> Finding:
    """What several tests say together: all must hold, one that fails refutes.

    Parameters
    ----------
    tests
        At least one.
    settles
        What would settle it, where the intervals decide neither way.
    remark
        A further sentence.
    """
    verdicts = [test.verdict for test in tests]
    verdict = FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else CANNOT
    if verdict == HOLDS:
        reason = "Every interval lies where the claim asks for it."
    else:
        names = " and ".join(test.what for test in tests if test.verdict == verdict)
        reason = f"Not so: {names}." if verdict == FAILS else f"The interval decides neither way: {names}."
        if any(math.isnan(test.low) for test in tests if test.verdict == verdict):
            reason = f"There is no interval to judge by: {names}."
    found = Finding(verdict, " ".join(filter(None, (reason, remark))), tuple(tests))
    return found if verdict != CANNOT else replace(found, settles=settles)


def unknown(why: str, settles: str) -> Finding:
    """A claim that the evidence does not reach.

    Parameters
    ----------
    why
        A sentence.
    settles
        What would settle it.
    """
    return Finding(CANNOT, why, settles=settles)


def written(number: float) -> str:
    """A number in three digits."""
    if math.isnan(number):
        return "unknown"
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def _made(
    what: str,
    unit: str,
    estimate: tuple[float, float, float],
    over: str,
    asked: str,
    control: Control,
    verdict: Verdict,
) -> Test:
    asked = f"{asked} {unit}" if unit else asked
    # Without an interval nothing is decided, and comparisons with NaN are all false.
    decided: Verdict = CANNOT if any(map(math.isnan, estimate)) else verdict
    return Test(what, unit, *estimate, over=over, asked=asked, control=control, verdict=decided)


def _as_control(control: Control | str, bound: float) -> Control:
    return Control(control, bound) if isinstance(control, str) else control
