"""Which rotary position pairs of a language model carry anything, and what happens when they are turned down.

Public names load on first use, so that importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ropescope.analysis.agreement import compare as compare
    from ropescope.analysis.places import localise as localise
    from ropescope.base.entropy import sequence_fe as sequence_fe
    from ropescope.base.entropy import spectrum_fe as spectrum_fe
    from ropescope.base.entropy import white_noise_entropy as white_noise_entropy
    from ropescope.evaluation.perplexity import perplexity as perplexity
    from ropescope.evaluation.sweep.arms import Controls as Controls
    from ropescope.evaluation.sweep.sweeping import sweep as sweep
    from ropescope.evaluation.tasks.evaluating import evaluate_tasks as evaluate_tasks
    from ropescope.evaluation.tasks.harness import TaskProtocol as TaskProtocol
    from ropescope.interventions.baking import bake as bake
    from ropescope.interventions.masks import PairMask as PairMask
    from ropescope.interventions.selection import lowest_norm as lowest_norm
    from ropescope.interventions.selection import matched_random as matched_random
    from ropescope.interventions.selection import select as select
    from ropescope.interventions.weighting import derotated as derotated
    from ropescope.interventions.weighting import weighted_rope as weighted_rope
    from ropescope.measurement.measure import measure as measure
    from ropescope.measurement.results import load as load
    from ropescope.measurement.results import save as save
    from ropescope.model.loading import load_model as load_model
    from ropescope.model.probing import probe as probe
    from ropescope.model.windows import token_windows as token_windows

_HOME = {
    "load_model": "model.loading",
    "token_windows": "model.windows",
    "probe": "model.probing",
    "measure": "measurement.measure",
    "save": "measurement.results",
    "load": "measurement.results",
    "spectrum_fe": "base.entropy",
    "select": "interventions.selection",
    "PairMask": "interventions.masks",
    "matched_random": "interventions.selection",
    "lowest_norm": "interventions.selection",
    "weighted_rope": "interventions.weighting",
    "derotated": "interventions.weighting",
    "bake": "interventions.baking",
    "perplexity": "evaluation.perplexity",
    "sweep": "evaluation.sweep.sweeping",
    "evaluate_tasks": "evaluation.tasks.evaluating",
    "TaskProtocol": "evaluation.tasks.harness",
    "Controls": "evaluation.sweep.arms",
    "compare": "analysis.agreement",
    "localise": "analysis.places",
    "sequence_fe": "base.entropy",
    "white_noise_entropy": "base.entropy",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
