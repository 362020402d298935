"""What decided the numbers of a file or journal, compared with what decides those of a run: by name, what differs.

Facts are compared exactly, but for two kinds. What a thing is called (a model's id, a tokenizer's, when a run was
begun) decides nothing and is passed over. What another machine rounds otherwise is compared within a tolerance: a
model's frequencies, and its behaviour, a sample of what it computes, within one that its dtype sets.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ropescope.base.errors import ResultError
from ropescope.base.files import check_target

_BEHAVIOUR, _FREQUENCIES, _DTYPE = "behaviour", "frequencies", "dtype"
_NAMES = ("created", "model.id", "windows.tokenizer", "include_path")
# Only where both are known: a model in a folder has the commit that it was fetched at, but nobody wrote it down.
_IF_KNOWN = ("model.revision",)
# Relative to the root mean square. In 30 layers other kernels stray 6e-6 in float32 (200 times that in TF32) and 0.1 in
# bfloat16, the most at the end; an expert may be chosen otherwise.
_TOLERANCE = {"bfloat16": 0.25, "float16": 0.06}
_FINE = 0.02
# Devices differ in the last bits of a power; bfloat16 frequencies in the third digit.
_POWER = 1e-5
_SHOWN = 40
_MOST = 4
_MISSING = object()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Every fact that differs, as "parameters.hop_length 16 against 8", what was found first; nothing if none does.

    Parameters
    ----------
    found, wanted
        Facts in values that JSON can hold. One that only one of them holds differs.

    Examples
    --------
    >>> differences({"model": {"id": "a", "dtype": "float32"}}, {"model": {"id": "b", "dtype": "float16"}})
    ['model.dtype "float32" against "float16"']
    """
    return list(_differing(found, json.loads(json.dumps(wanted)), ""))


def other_model(measured: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """What makes a model another one than was measured, however each was run: weights, config, frequencies, adapters.

    Parameters
    ----------
    measured, model
        What `model_identity` or `model_provenance` of `ropescope.model.identity` gave. What either lacks, as files
        from before these facts were kept do, is not compared.

    Returns
    -------
    list of str
        As :func:`differences`; dtype, attention implementation, hooks and open interventions may differ. Frequencies
        that follow the length are not compared: they are what the last pass made them.
    """
    names = ["fingerprint", "config", "adapters"]
    if measured.get(_DTYPE) == model.get(_DTYPE):
        # Another dtype rounds the frequencies, too.
        follow_length = {"dynamic", "longrope"} & set(_rope_types(measured.get("config")))
        names += ["checksum"] if follow_length else ["checksum", _FREQUENCIES]
    known = [name for name in names if name in measured and name in model]
    return differences({name: measured[name] for name in known}, {name: model[name] for name in known})


def other_weights(differing: list[str]) -> bool:
    """Whether weights are among what differs."""
    return any(line.startswith(("fingerprint", "checksum")) for line in differing)


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of packages, whose own changes may change numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def finished(
    target: Path, facts: Mapping[str, Any], read: Callable[[Path], Mapping[str, Any]], overwrite: bool
) -> bool:
    """Whether a file holds what a run would give and is kept; one that holds anything else is in the way.

    Parameters
    ----------
    target
        The output, which need not exist.
    facts
        All that decides what the output holds.
    read
        Gives the facts of a file; raises ResultError, KeyError or ValueError if it has none.
    overwrite
        Whether to work anew and replace whatever is there.

    Raises
    ------
    ResultError
        If the file must stay and holds something else; the message names what differs.
    """
    if not target.exists():
        return False
    found = None
    # Also before it is replaced: a file that cannot be read just now is left as it is.
    with suppress(ResultError, KeyError, ValueError):
        found = read(target)
    if overwrite:
        return False
    if found is None:
        check_target(target, overwrite=False)
    elif differing := differences(found, facts):
        raise ResultError(
            f"cannot write {target}: it exists and holds another run (other {listed(differing)}); allow overwriting or "
            "choose another name"
        )
    return True


def _rope_types(config: Any) -> Iterator[str]:
    for name, value in config.items() if isinstance(config, Mapping) else ():
        if name == "rope_type":
            yield value
        yield from _rope_types(value)


def listed(differing: list[str]) -> str:
    """The first few differences as part of a sentence."""
    more = len(differing) - _MOST
    return ", ".join([*differing[:_MOST], *([f"and {more} more"] if more > 0 else [])])


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> Iterator[str]:
    exact = sorted({*found, *wanted} - {_BEHAVIOUR})
    named = [line for name in exact for line in _fact(found, wanted, name, f"{prefix}{name}")]
    yield from named
    # Where something else differs, the behaviour is only its consequence.
    if _BEHAVIOUR in {*found, *wanted} and not named:
        yield from _strays(found, wanted, f"{prefix}{_BEHAVIOUR}")


def _fact(found: Mapping[str, Any], wanted: Mapping[str, Any], name: str, path: str) -> Iterator[str]:
    theirs, ours = found.get(name, _MISSING), wanted.get(name, _MISSING)
    if path.endswith(_NAMES) or (path.endswith(_IF_KNOWN) and None in (theirs, ours)):
        return
    if isinstance(theirs, dict) and isinstance(ours, dict):
        yield from _differing(theirs, ours, f"{path}.")
    elif not (_near(theirs, ours) if _FREQUENCIES in path.split(".") else theirs == ours):
        values = [_shown(value) for value in (theirs, ours)]
        yield path if None in values else f"{path} {values[0]} against {values[1]}"


def _near(theirs: Any, ours: Any) -> bool:
    """Whether lists of numbers, however nested, agree but for their rounding."""
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(_near, theirs, ours))
    numbers = isinstance(theirs, float) and isinstance(ours, float)
    return math.isclose(theirs, ours, rel_tol=_POWER) if numbers else theirs == ours


def _shown(value: Any) -> str | None:
    """A value as it is put in a sentence; None if it is too long for one."""
    if value is _MISSING:
        return "unknown"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else None


def _strays(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> Iterator[str]:
    """The first place, in the order in which the model comes to it, where it does not do what it did."""
    theirs, ours = (facts.get(_BEHAVIOUR) for facts in (found, wanted))
    if not isinstance(theirs, dict) or not isinstance(ours, dict) or list(theirs) != list(ours):
        yield path
        return
    tolerance = _TOLERANCE.get(wanted.get(_DTYPE, ""), _FINE)
    stray = next((place for place, figures in ours.items() if not _close(theirs[place], figures, tolerance)), None)
    if stray is not None:
        yield f"{path} from {stray} on"


def _close(theirs: list[float | None], ours: list[float | None], tolerance: float) -> bool:
    """Whether figures agree, all of them of the size of the first, a root mean square; None stands for not finite."""
    if None in (*theirs, *ours) or len(theirs) != len(ours):
        return theirs == ours
    size = max(abs(theirs[0] or 0.0), abs(ours[0] or 0.0))
    return all(abs((a or 0.0) - (b or 0.0)) <= tolerance * size for a, b in zip(theirs, ours, strict=True))
