"""Counts in plain words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Give a number with its noun.

    Examples
    --------
    >>> counted(1, "window"), counted(8, "window")
    ('1 window', '8 windows')
    """
    return f"{number} {noun if number == 1 else noun + 's'}"
