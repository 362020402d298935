"""Every claim judged by what was measured, and the verdicts as text, Markdown, JSON and a section."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ropescope.base.errors import InputError, did_you_mean
from ropescope.base.files import named
from ropescope.base.tables import Section, Table, preformatted
from ropescope.evaluation.claims.evidence import gathered, same_weights
from ropescope.evaluation.claims.findings import CANNOT, FAILS, HOLDS, VERDICTS, Claim, Finding, Test, written
from ropescope.evaluation.claims.table import CLAIMS
from ropescope.evaluation.opening import load
from ropescope.measurement.results import SCHEMA, short_name

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedModel

    from ropescope.base.axes import TokenIds

FORMATS = ("text", "markdown", "json")
Format = Literal["text", "markdown", "json"]
_WIDTH = 100
HOW_TO_READ = (
    "An effect holds where its whole 95 % interval lies beyond what is asked, and fails where it lies on the other "
    "side. That something does not matter holds where the whole interval lies inside a margin, never because no "
    "effect was found. Between the two it cannot be said. Intervals over layers speak of layers like these, "
    "intervals over windows of other windows of the same text; neither speaks of other models."
)


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What the evidence says of every claim.

    Parameters
    ----------
    model
        The model that is judged.
    findings
        Each claim with what was found of it, in the order of the claims.

    Examples
    --------
    >>> verdicts = rs.claims(["qwen3.nc", "qwen3-sweep.nc"])  # doctest: +SKIP
    >>> print(verdicts.summary())  # doctest: +SKIP
    """

    model: str
    findings: tuple[tuple[Claim, Finding], ...]

    def __getitem__(self, key: str) -> Finding:
        """What was found of one claim."""
        return {claim.key: found for claim, found in self.findings}[key]

    def summary(self) -> str:
        """Write one paragraph: how many claims hold, fail and cannot be said, and which.

        Returns
        -------
        str

        Examples
        --------
        >>> verdicts.summary()  # doctest: +SKIP
        """
        names = {
            verdict: [_name(claim) for claim, found in self.findings if found.verdict == verdict]
            for verdict in VERDICTS
        }
        held, failed, unsaid = (len(names[verdict]) for verdict in VERDICTS)
        counted = f"{held} hold, {failed} fail, and {unsaid} cannot be said from what was given"
        listed = [
            f"{verdict.capitalize()}: {', '.join(names[verdict])}." for verdict in (HOLDS, FAILS) if names[verdict]
        ]
        return " ".join([f"Of {len(self.findings)} claims on {short_name(self.model)}, {counted}.", *listed])

    def text(self) -> str:
        """Write them for a terminal, a paragraph for each claim.

        Returns
        -------
        str

        Examples
        --------
        >>> print(verdicts.text())  # doctest: +SKIP
        """
        blocks = ["\n".join(_block(*item)) for item in self.findings]
        return "\n\n".join([_folded(self.summary()), *blocks, _folded(HOW_TO_READ)])

    def markdown(self) -> str:
        """Write them as Markdown under a second-level heading.

        Returns
        -------
        str

        Examples
        --------
        >>> Path("claims.md").write_text(verdicts.markdown())  # doctest: +SKIP
        """
        return self.section().markdown()

    def json(self) -> str:
        """Write them as JSON: numbers in full, null where there is none.

        Returns
        -------
        str

        Examples
        --------
        >>> json.loads(verdicts.json())["claims"][0]["verdict"]  # doctest: +SKIP
        """
        content = {"model": self.model, "claims": [_plain(*item) for item in self.findings]}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def section(self, name: str = "") -> Section:
        """Give them as a section of a page.

        Parameters
        ----------
        name
            What tells several models apart in the title.

        Returns
        -------
        Section
            The summary and how to read it; tables of all numbers, of what cannot be said, and of the sources.

        Examples
        --------
        >>> verdicts.section().title  # doctest: +SKIP
        'What is claimed, and what this model says'
        """
        title = "What is claimed, and what this model says" + (f": {name}" if name else "")
        return Section(title, (self.summary(), HOW_TO_READ), (self._table(), *self._open(), self._sources()))

    def _table(self) -> Table:
        header = ["claim", "verdict", "measured", "number, 95 % interval", "asked", "held against", "source"]
        rows = [row for item in self.findings for row in _rows(*item)]
        return Table(header, rows, "Claims and the numbers that they stand or fall with", words=True)

    def _sources(self) -> Table:
        sources = dict.fromkeys(claim.source for claim, _ in self.findings)
        rows = [[source.short, source.authors, source.title, source.venue, source.url] for source in sources]
        return Table(["source", "authors", "title", "where", "address"], rows, "Sources", words=True)

    def _open(self) -> Iterator[Table]:
        rows = [[claim.key, found.reason, found.settles] for claim, found in self.findings if found.verdict == CANNOT]
        if rows:
            yield Table(
                ["claim", "why it cannot be said", "what would settle it"], rows, "What cannot be said", words=True
            )

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return preformatted(self)


def claims(
    contents: Mapping[str, Any] | Sequence[str | Path] | str | Path,
    *,
    only: Iterable[str] = (),
    model: PreTrainedModel | None = None,
    windows: TokenIds | None = None,
    context: int | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    group: ProcessGroup | None = None,
    progress: bool = False,
) -> Verdicts:
    """Test what has been said of rotary pairs by what was measured of a model.

    Parameters
    ----------
    contents
        Measurements, importance with its validation, sweeps and scores of tasks, by name, each as it is in memory or
        as a file; or files alone. The first measurement is of the model that is judged; others are compared with it,
        and may be of other models.
    only
        Keys of the claims to test; none is all of them.
    model, windows
        The model that is judged and token ids, (sequence, position), five windows or more of at least 64 tokens: what
        it attends to is looked at, and it is run without some pairs, for the claims on what pairs do. None tests only
        by what was measured already.
    context
        Tokens that the model was trained on at once; None is what its configuration says.
    path, overwrite
        NetCDF file for what is looked at, resumed and kept as :func:`ropescope.sweep` does; it can stand among the
        contents another time.
    group, progress
        As in :func:`ropescope.sweep`.

    Returns
    -------
    Verdicts
        For every claim its source, the numbers with 95 % intervals and controls, and whether it holds, fails or
        cannot be said, then with what would settle it.

    Raises
    ------
    InputError
        There is nothing, something of no known kind or of another model than the first measurement, an unknown key,
        or a model without a measurement or windows.
    ResultError
        A file cannot be read.

    Examples
    --------
    >>> verdicts = claims(["qwen3.nc", "qwen3-c4.nc", "qwen3-sweep.nc"])  # doctest: +SKIP
    >>> verdicts["bands-are-essential"].verdict  # doctest: +SKIP
    'holds'
    """
    chosen = chosen_claims(only)
    if isinstance(contents, str | Path):
        contents = [contents]
    given = contents if isinstance(contents, Mapping) else named([Path(each) for each in contents])
    loaded = {name: load(each) if isinstance(each, str | Path) else each for name, each in given.items()}
    evidence = gathered(loaded)
    if model is not None:
        if windows is None or evidence.measured is None:
            raise InputError("got a model to look at; give windows, and a measurement of it among the contents")
        from ropescope.evaluation.claims.behaviour import behaviour

        kept = {"path": path, "overwrite": overwrite, "group": group, "progress": progress}
        look = behaviour(model, windows, evidence.measured, context=context, **kept)  # type: ignore[arg-type]
        evidence = replace(evidence, looks=(look,))
    return Verdicts(evidence.model, tuple((claim, claim.judge(evidence)) for claim in chosen))


def claims_by_model(contents: Mapping[str, Any]) -> dict[str, Verdicts]:
    """The claims on every model that was measured, each by what is of it, the other measurements beside.

    Parameters
    ----------
    contents
        As in :func:`claims`, of several models, in memory.

    Returns
    -------
    dict of Verdicts
        By the name of each model's first measurement.
    """
    measured = {name: each for name, each in contents.items() if each.attrs.get("schema") == SCHEMA}
    verdicts: dict[str, Verdicts] = {}
    judged: list[Any] = []
    for name, first in measured.items():
        if any(same_weights(first, other) for other in judged):
            continue
        judged.append(first)
        own = {label: each for label, each in contents.items() if label in measured or same_weights(first, each)}
        verdicts[name] = claims({name: first} | own)
    return verdicts


def chosen_claims(only: Iterable[str] = ()) -> tuple[Claim, ...]:
    """The claims of these keys, all if there are none.

    Raises
    ------
    InputError
        A key is unknown.
    """
    known = {claim.key: claim for claim in CLAIMS}
    keys = list(only)
    if unknown := [key for key in keys if key not in known]:
        raise InputError(f"got claim {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
    return tuple(claim for key, claim in known.items() if not keys or key in keys)


def _name(claim: Claim) -> str:
    return claim.key.replace("-", " ")


def _block(claim: Claim, found: Finding) -> list[str]:
    lines = [f"{found.verdict.upper():<15} {claim.key}"]
    lines += _folded(claim.statement, "  ").splitlines()
    lines += [
        line
        for test in found.tests
        for line in _folded(f"{test.verdict}: {test.sentence()}.", "  - ", "    ").splitlines()
    ]
    if found.verdict == CANNOT or not found.tests:
        lines += _folded(found.reason, "  ").splitlines()
    elif remark := found.reason.partition(". ")[2]:
        lines += _folded(remark, "  ").splitlines()
    if found.settles:
        lines += [f"  to settle it: {found.settles}"]
    return [*lines, f"  {claim.source.short}, {claim.place}"]


def _folded(text: str, first: str = "", following: str | None = None) -> str:
    after = first if following is None else following
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=after, break_on_hyphens=False)


def _rows(claim: Claim, found: Finding) -> Iterator[list[str]]:
    """A row for every number; claim and source stand in the first."""
    named, source = [claim.statement, found.verdict], f"{claim.source.short}, {claim.place}"
    if not found.tests:
        yield [*named, *["-"] * 4, source]
    for number, test in enumerate(found.tests):
        first = number == 0
        yield [*(named if first else ("", "")), *_numbers(test), source if first else ""]


def _numbers(test: Test) -> list[str]:
    unit = f" {test.unit}" if test.unit else ""
    interval = "no interval" if math.isnan(test.low) else f"{written(test.low)} to {written(test.high)}"
    number = f"{written(test.value)}{unit} ({interval})"
    return [f"{test.what}, over {test.over}", number, test.asked, test.against()]


def _plain(claim: Claim, found: Finding) -> dict[str, Any]:
    return {
        "key": claim.key,
        "statement": claim.statement,
        "source": {**asdict(claim.source), "place": claim.place},
        "needs": claim.needs,
        "verdict": found.verdict,
        "reason": found.reason,
        "settles": found.settles or None,
        "tests": [_without_nan(asdict(test)) for test in found.tests],
    }


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nan(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }
