"""What has been measured of one model, found by what each file says it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ropescope.analysis.comparability import differences
from ropescope.analysis.comparison_in_words import one_text
from ropescope.base.errors import InputError
from ropescope.base.facts import other_model, other_weights
from ropescope.base.strengths import is_weighting
from ropescope.evaluation.claims.behaviour_dataset import BEHAVIOUR
from ropescope.evaluation.importance_validation import VALIDATION
from ropescope.evaluation.sweep.dataset import SWEEP
from ropescope.evaluation.tasks.dataset import TASKS
from ropescope.measurement.results import IMPORTANCE, SCHEMA, provenance, window_length

if TYPE_CHECKING:
    import xarray as xr

Kept = TypeVar("Kept")
Named = tuple[str, "xr.DataTree"]


@dataclass(frozen=True)
class Evidence:
    """Measurements by name, the first being of the model that is judged, and what else was measured of it.

    Parameters
    ----------
    measurements
        Of :func:`ropescope.measure`; those beside the first are compared with it, and may be of other models.
    importance, validations, sweeps, tasks, looks
        Of the model that is judged; the last are of :func:`behaviour`.
    """

    measurements: Mapping[str, xr.DataTree] = field(default_factory=dict)
    importance: tuple[xr.DataTree, ...] = ()
    validations: tuple[xr.Dataset, ...] = ()
    sweeps: tuple[xr.Dataset, ...] = ()
    tasks: tuple[xr.Dataset, ...] = ()
    looks: tuple[xr.Dataset, ...] = ()

    @property
    def measured(self) -> xr.DataTree | None:
        """The measurement that is judged."""
        return next(iter(self.measurements.values()), None)

    @property
    def worth(self) -> xr.DataTree | None:
        """The importance that is judged: that of most windows."""
        return max(self.importance, key=lambda each: each["query"].sizes["sequence"], default=None)

    @property
    def behaviour(self) -> xr.Dataset | None:
        """The look at the model that is judged by: that of most windows."""
        return max(self.looks, key=lambda each: each.sizes["sequence"], default=None)

    @property
    def model(self) -> str:
        """What the model is called, as a command would name it."""
        return next((str(facts["id"]) for facts in self._models() if facts.get("id")), "MODEL")

    def other_text(self) -> Named | None:
        """A measurement of the same weights on another text, of the same length if there is one."""
        return self._other(lambda first, other: not one_text(first, other), same_length=True)

    def other_length(self) -> Named | None:
        """A measurement of the same weights on windows of another length, of the same text if there is one."""
        return self._other(lambda first, other: window_length(first) != window_length(other), same_length=False)

    def other_model(self) -> Named | None:
        """A measurement of other weights whose pairs do not match those of the first, or else of other weights."""
        first = self.measured
        others = (
            [] if first is None else [item for item in self.measurements.items() if not same_weights(first, item[1])]
        )
        return max(others, key=lambda item: bool(first is not None and differences(first, item[1])), default=None)

    @property
    def weighted_sweeps(self) -> list[xr.Dataset]:
        """Sweeps that turned pairs down, and did not take their rotation away or change them otherwise."""
        return [data for data in self.sweeps if is_weighting(SWEEP.provenance(data))]

    @property
    def weighted_tasks(self) -> list[xr.Dataset]:
        """Scores of tasks with pairs turned down, and not changed otherwise."""
        return [data for data in self.tasks if is_weighting(TASKS.provenance(data))]

    def _other(self, differs: Callable[[xr.DataTree, xr.DataTree], bool], same_length: bool) -> Named | None:
        first = self.measured
        if first is None:
            return None
        found = [
            item
            for item in self.measurements.items()
            if item[1] is not first and same_weights(first, item[1]) and differs(first, item[1])
        ]

        def otherwise_alike(item: Named) -> bool:
            return window_length(item[1]) == window_length(first) if same_length else one_text(first, item[1])

        return max(found, key=otherwise_alike, default=None)

    def _models(self) -> list[Mapping[str, Any]]:
        trees = [*self.measurements.values(), *self.importance]
        datasets = [*self.validations, *self.sweeps, *self.tasks, *self.looks]
        return [*map(model_of, trees), *map(model_of, datasets)]


def gathered(contents: Mapping[str, Any]) -> Evidence:
    """Sort what was measured by what it says it is.

    Parameters
    ----------
    contents
        Trees and datasets by name; what is of the judged model stands first.

    Raises
    ------
    InputError
        There is nothing, something is of no known kind, or a sweep, tasks or importance are of another model than the
        first measurement.
    """
    if not contents:
        raise InputError("claims got nothing to judge by; give at least one file of 'ropescope measure'")
    kinds: dict[str, dict[str, Any]] = {name: {} for name in _KINDS}
    for name, each in contents.items():
        schema = getattr(each, "attrs", {}).get("schema")
        if schema not in kinds:
            raise InputError(
                f"claims got {name!r}, which is of no kind that claims are judged by; give files of measure, "
                "importance, sweep, tasks or claims --model"
            )
        kinds[schema][name] = each
    evidence = Evidence(kinds[SCHEMA], *(tuple(kinds[name].values()) for name in _KINDS[1:]))
    _check_one_model(evidence, contents)
    return evidence


def model_of(each: xr.DataTree | xr.Dataset) -> Mapping[str, Any]:
    """What a file says of the model that it is of."""
    found: Mapping[str, Any] = provenance(each).get("model", {})  # type: ignore[arg-type]
    return found


_KINDS = (SCHEMA, IMPORTANCE, VALIDATION.name, SWEEP.name, TASKS.name, BEHAVIOUR.name)


def same_weights(first: Any, other: Any) -> bool:
    """Whether two files are of one model's weights, as far as they say."""
    return not other_weights(other_model(model_of(first), model_of(other)))


def _check_one_model(evidence: Evidence, contents: Mapping[str, Any]) -> None:
    first = evidence.measured if evidence.measured is not None else next(iter(contents.values()))
    for name, each in contents.items():
        if each.attrs["schema"] != SCHEMA and not same_weights(first, each):
            raise InputError(
                f"{name} is of another model ({model_of(each).get('id')}) than the one judged "
                f"({model_of(first).get('id')}); judge each model by its own files"
            )
