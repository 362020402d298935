"""What to call a result, a sweep or any other file where a picture, a table or a page names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ropescope.base.errors import InputError
from ropescope.base.strengths import is_weighting, strength_of
from ropescope.measurement.results import provenance, short_name, text_of

_LABEL = "label"
Content = TypeVar("Content")


def model_name(content: Any) -> str:
    """The label that a content was given, else its model without the way to it; empty where neither is known."""
    label = content.attrs.get(_LABEL)
    return str(label or short_name(provenance(content).get("model", {}).get("id")))


def labelled(content: Content, label: str) -> Content:
    """A content that pictures and pages call by this name; the given one stays as it was.

    Parameters
    ----------
    content : xarray.DataTree or xarray.Dataset
    label : str
    """
    named: Any = content.copy()  # type: ignore[attr-defined]
    named.attrs = {**named.attrs, _LABEL: label}
    return named  # type: ignore[no-any-return]


def names_of(contents: Mapping[str, Any], labels: Sequence[str] = (), *, text: bool = False) -> dict[str, str]:
    """What to call each of several files of one kind.

    Parameters
    ----------
    contents
        What the files hold, by any key, such as their own names.
    labels
        What a person calls them, one for each, or none.
    text
        Whether to name the text beside the model even where the model tells them apart.

    Returns
    -------
    dict
        The name by key: the model; where all are of one, the text, with what was done to pairs and the length of its
        windows where that is needed; of several models the text beside the model; the key where no name tells them
        apart.

    Raises
    ------
    InputError
        There are labels for some alone, or two are the same.
    """
    if labels:
        return _labels(list(contents), labels)
    models = {model_name(each) for each in contents.values()}
    parts: list[Callable[[Any], str]] = [model_name, text_of, _changed, _length]
    ways = [parts[:2], parts[:3], parts] if text or len(models) > 1 else [parts[1:2], parts[1:3], parts[1:]]
    for way in ways if text else [parts[:1], *ways]:
        names = {key: ", ".join(filter(None, (part(each) for part in way))) for key, each in contents.items()}
        if all((*models, *names.values())) and len(set(names.values())) == len(names):
            return names
    return {key: key for key in contents}


def called(contents: Mapping[str, Content], labels: Sequence[str] = ()) -> dict[str, Content]:
    """Contents by the names of :func:`names_of`; each carries the label that it was given."""
    names = names_of(contents, labels)
    return {names[key]: labelled(each, names[key]) if labels else each for key, each in contents.items()}


def check_labels(labels: Iterable[str], count: int) -> None:
    """Refuse labels for some files only."""
    given = list(labels)
    if given and len(given) != count:
        raise InputError(f"got {len(given)} labels for {count} files; give one for each file, in their order")


def _labels(keys: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    check_labels(labels, len(keys))
    if twice := [label for label in labels if list(labels).count(label) > 1]:
        raise InputError(f"got the label {twice[0]!r} twice for files of one kind; give each its own")
    return dict(zip(keys, labels, strict=True))


def _changed(content: Any) -> str:
    facts = provenance(content)
    return "" if is_weighting(facts) else strength_of(facts).done


def _length(content: Any) -> str:
    facts = provenance(content)
    length = facts.get("windows", {}).get("length") or facts.get("parameters", {}).get("length")
    return f"{length} tokens" if length else ""
