"""A small table of text, for a terminal, for Markdown and for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from ropescope.base.errors import InputError, did_you_mean

FORMATS = ("text", "markdown", "csv")

Format = Literal["text", "markdown", "csv"]


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row.

    Parameters
    ----------
    header
        Names of the columns.
    rows
        Entries, as many in each row as the header has.
    title
        What the table shows; may be empty.
    words
        Whether the entries are sentences, which a page sets to the left and breaks, or numbers.

    Examples
    --------
    >>> print(Table(["pair", "norm"], [["0", "1.5"], ["12", "0.25"]]).text())
    pair  norm
    0      1.5
    12    0.25
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: bool = False

    def text(self) -> str:
        """Align the columns for a terminal, the first to the left, under the title if there is one.

        Returns
        -------
        str

        Examples
        --------
        >>> print(Table(["pair", "norm"], [["0", "1.5"]], "Norms").text())
        Norms
        pair  norm
        0      1.5
        """
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = (
            "  ".join([first.ljust(widths[0]), *(entry.rjust(w) for entry, w in zip(rest, widths[1:], strict=True))])
            for first, *rest in (self.header, *self.rows)
        )
        return "\n".join([*([self.title] if self.title else []), *(line.rstrip() for line in lines)])

    def markdown(self) -> str:
        """Write a Markdown table, under the title in bold if there is one.

        Returns
        -------
        str

        Examples
        --------
        >>> print(Table(["pair", "norm"], [["0", "1.5"]]).markdown())
        | pair | norm |
        | --- | ---: |
        | 0 | 1.5 |
        """
        rule = ["---", *("---" if self.words else "---:" for _ in self.header[1:])]
        lines = [f"| {' | '.join(_entry(entry) for entry in entries)} |" for entries in (self.header, rule, *self.rows)]
        return "\n".join([*([f"**{self.title}**", ""] if self.title else []), *lines])

    def _repr_html_(self) -> str:
        rows = [f"<tr>{''.join(f'<th>{escape(entry)}</th>' for entry in self.header)}</tr>"]
        rows += [f"<tr>{''.join(f'<td>{escape(entry)}</td>' for entry in row)}</tr>" for row in self.rows]
        return f"<table><caption>{escape(self.title)}</caption>{''.join(rows)}</table>"


@dataclass(frozen=True)
class Section:
    """Findings under one heading: what they say in words, then the numbers.

    Parameters
    ----------
    title
        What was asked.
    paragraphs
        The answer in plain sentences.
    tables
        The numbers behind it.

    Examples
    --------
    >>> print(Section("Is it so?", ("It is.",)).text())
    Is it so?
    =========
    <BLANKLINE>
    It is.
    """

    title: str
    paragraphs: tuple[str, ...]
    tables: tuple[Table, ...] = ()

    def text(self) -> str:
        """Write it for a terminal: the title underlined, paragraphs and tables with a blank line between.

        Returns
        -------
        str

        Examples
        --------
        >>> print(Section("Is it so?", ("It is.",)).text())
        Is it so?
        =========
        <BLANKLINE>
        It is.
        """
        parts = (f"{self.title}\n{'=' * len(self.title)}", *self.paragraphs, *(table.text() for table in self.tables))
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """Write it as Markdown under a second-level heading.

        Returns
        -------
        str

        Examples
        --------
        >>> print(Section("Is it so?", ("It is.",)).markdown())
        ## Is it so?
        <BLANKLINE>
        It is.
        """
        parts = (f"## {self.title}", *self.paragraphs, *(table.markdown() for table in self.tables))
        return "\n\n".join(parts)


def in_format(format: Format, table: Callable[[], Table], csv: Callable[[], str]) -> str:
    """A table for a terminal, for Markdown or as separated values, whichever is asked for.

    Raises
    ------
    InputError
        If the format is another.
    """
    if format not in FORMATS:
        raise InputError(f"got format {format!r}: {did_you_mean(format, FORMATS)}")
    if format == "csv":
        return csv()
    return table().markdown() if format == "markdown" else table().text()


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _entry(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def preformatted(content: object) -> str:
    """The text of an object as HTML that keeps its lines."""
    return f"<pre>{escape(str(content))}</pre>"
