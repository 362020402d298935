"""Which cells a sweep is made of: every arm of every selection at every strength, equal cells under one name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xarray as xr

from ropescope.base.errors import InputError
from ropescope.evaluation.sweep.dataset import LOWEST_IMPORTANCE, LOWEST_NORM, RANDOM, SELECTION
from ropescope.interventions.controls import lowest_importance, lowest_norm, matched_random
from ropescope.interventions.masks import PairMask

ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, eq=False)
class Controls:
    """What a selection is compared with: as many other pairs of every head.

    Parameters
    ----------
    seeds
        One arm of random pairs each, ``random-<seed>``.
    result
        A measurement of the model; its pairs of lowest mean norm make the arm ``lowest-norm``. None leaves it out.
    alphas
        Strengths of the control arms, among those of the sweep; None is all of them.
    importance
        Importance of the model; its pairs of lowest importance make the arm ``lowest-importance``. None leaves it out.

    Examples
    --------
    >>> rs.sweep(model, windows, {"bands": mask}, controls=Controls(seeds=(0, 1), result=result))  # doctest: +SKIP
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    result: xr.DataTree | None = None
    alphas: tuple[float, ...] | None = None
    importance: xr.DataTree | None = None


THREE_SEEDS = Controls()
NO_CONTROLS = Controls(seeds=())


@dataclass(frozen=True, eq=False)
class Grid:
    """Every arm of every selection, and the strengths of the selections and of the controls."""

    arms: dict[str, dict[str, PairMask]]
    alphas: tuple[float, ...]
    control_alphas: tuple[float, ...]

    def masks(self) -> list[PairMask]:
        return [arms[SELECTION] for arms in self.arms.values()]

    def cells(self) -> dict[tuple[str, str, float], str]:
        """The name of the cell at every (selection, arm, alpha) asked for, the baseline first."""
        return {
            (selection, arm, alpha): cell_name(mask, alpha)
            for alpha in sorted(self.alphas, reverse=True)
            for selection, arms in self.arms.items()
            for arm, mask in arms.items()
            if arm == SELECTION or alpha == 1 or alpha in self.control_alphas
        }


def planned(selections: Mapping[str, PairMask], alphas: Iterable[float], controls: Controls) -> Grid:
    """Lay out a sweep.

    Raises
    ------
    InputError
        If there is no selection, or strengths are missing or outside 0 to 1.
    """
    if not selections:
        raise InputError("got no selections; give at least one mask by name, as in {'bands': mask}")
    check_masks(selections)
    if wrong := [seed for seed in controls.seeds if not isinstance(seed, int) or seed < 0]:
        raise InputError(f"controls got seed {wrong[0]!r}; seeds are integers from 0")
    strengths = checked_alphas(alphas, "alphas")
    of_controls = strengths if controls.alphas is None else checked_alphas(controls.alphas, "alphas of the controls")
    if extra := sorted({*of_controls} - {*strengths, 1.0}):
        raise InputError(f"controls have alphas {extra} that the selections lack; give them among {list(strengths)}")
    arms = {name: _arms(mask, controls) for name, mask in selections.items()}
    return Grid(arms, tuple(sorted({*strengths, 1.0})), of_controls)


def check_masks(masks: Mapping[str, PairMask]) -> None:
    """Raise InputError unless these are masks by name."""
    for name, mask in masks.items():
        if not isinstance(mask, PairMask) or not isinstance(name, str) or not name:
            raise InputError(f"selection {name!r} is a {type(mask).__name__}; give PairMasks by name")


def checked_alphas(alphas: Iterable[float], name: str) -> tuple[float, ...]:
    try:
        values = tuple(float(alpha) for alpha in alphas)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} got {alphas!r}; give numbers from 0 to 1") from error
    wrong = [value for value in values if not 0 <= value <= 1]
    if wrong or not values:
        raise InputError(f"{name} got {wrong[0] if wrong else 'none'}; give at least one, each a number from 0 to 1")
    return values


def _arms(mask: PairMask, controls: Controls) -> dict[str, PairMask]:
    arms = {SELECTION: mask} | {f"{RANDOM}{seed}": matched_random(mask, seed) for seed in controls.seeds}
    if controls.result is not None:
        arms[LOWEST_NORM] = lowest_norm(mask, controls.result)
    if controls.importance is not None:
        arms[LOWEST_IMPORTANCE] = lowest_importance(mask, controls.importance)
    return arms


def cell_name(mask: PairMask, alpha: float) -> str:
    """Equal for cells that must be equal."""
    if alpha == 1 or not any(array.any() for array in mask.streams().values()):
        return "baseline"
    return f"{mask.digest()[:32]}-{alpha!r}"
