"""Which rotary position pairs of a language model carry anything, and what happens when they are turned down.

Public names load on first use, so that importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from ropescope.analysis.agreement import compare as compare
    from ropescope.analysis.comparison_in_words import same_places as same_places
    from ropescope.analysis.comparison_in_words import spread_compared as spread_compared
    from ropescope.analysis.importance_in_words import importance_foretold as importance_foretold
    from ropescope.analysis.importance_shares import importance_shares as importance_shares
    from ropescope.analysis.places import localise as localise
    from ropescope.analysis.places_in_words import where_bands_live as where_bands_live
    from ropescope.base.entropy import sequence_fe as sequence_fe
    from ropescope.base.entropy import spectrum_fe as spectrum_fe
    from ropescope.base.entropy import white_noise_entropy as white_noise_entropy
    from ropescope.base.errors import CorpusError as CorpusError
    from ropescope.base.errors import InputError as InputError
    from ropescope.base.errors import MissingExtraError as MissingExtraError
    from ropescope.base.errors import ModelError as ModelError
    from ropescope.base.errors import NonFiniteError as NonFiniteError
    from ropescope.base.errors import ProbeError as ProbeError
    from ropescope.base.errors import ResultError as ResultError
    from ropescope.base.errors import RopescopeError as RopescopeError
    from ropescope.base.errors import TaskError as TaskError
    from ropescope.base.errors import UnreadableError as UnreadableError
    from ropescope.base.pair_variables import PairVariable as PairVariable
    from ropescope.base.pair_variables import register as register
    from ropescope.base.tables import Section as Section
    from ropescope.base.tables import Table as Table
    from ropescope.compression.planning import plan_keys as plan_keys
    from ropescope.compression.plans import KeyPlan as KeyPlan
    from ropescope.compression.several import frontier_plans as frontier_plans
    from ropescope.compression.thinning import thin_keys as thin_keys
    from ropescope.display.comparison import Comparison as Comparison
    from ropescope.display.comparison import comparison as comparison
    from ropescope.display.figures.curves import sweep_curves as sweep_curves
    from ropescope.display.figures.frontier import frontier_curves as frontier_curves
    from ropescope.display.figures.heads import panel as panel
    from ropescope.display.figures.importance import importance_scatter as importance_scatter
    from ropescope.display.figures.maps import overview as overview
    from ropescope.display.figures.maps import variable_map as variable_map
    from ropescope.display.figures.sets import set_predictions as set_predictions
    from ropescope.display.figures.side_by_side import side_by_side as side_by_side
    from ropescope.display.figures.spread import bands_over_wavelength as bands_over_wavelength
    from ropescope.display.figures.spread import spread_curves as spread_curves
    from ropescope.display.report.writing import report as report
    from ropescope.evaluation.claims.judging import Verdicts as Verdicts
    from ropescope.evaluation.claims.judging import claims as claims
    from ropescope.evaluation.frontier.changes import frontier_table as frontier_table
    from ropescope.evaluation.frontier.judging import frontier as frontier
    from ropescope.evaluation.frontier.timing import Timing as Timing
    from ropescope.evaluation.importance_validation import validate_importance as validate_importance
    from ropescope.evaluation.opening import load as load
    from ropescope.evaluation.perplexity import Perplexity as Perplexity
    from ropescope.evaluation.perplexity import perplexity as perplexity
    from ropescope.evaluation.set_prediction import predicted_kl as predicted_kl
    from ropescope.evaluation.set_validation import validate_sets as validate_sets
    from ropescope.evaluation.sweep.arms import Controls as Controls
    from ropescope.evaluation.sweep.changes import sweep_table as sweep_table
    from ropescope.evaluation.sweep.sweeping import sweep as sweep
    from ropescope.evaluation.tasks.evaluating import evaluate_tasks as evaluate_tasks
    from ropescope.evaluation.tasks.harness import TaskProtocol as TaskProtocol
    from ropescope.evaluation.tasks.table import tasks_table as tasks_table
    from ropescope.interventions.baking import bake as bake
    from ropescope.interventions.controls import all_but_best as all_but_best
    from ropescope.interventions.controls import lowest_importance as lowest_importance
    from ropescope.interventions.controls import lowest_norm as lowest_norm
    from ropescope.interventions.controls import matched_random as matched_random
    from ropescope.interventions.derotation import derotated as derotated
    from ropescope.interventions.masks import PairMask as PairMask
    from ropescope.interventions.selection import select as select
    from ropescope.interventions.weighting import weighted_rope as weighted_rope
    from ropescope.measurement.heads import default_heads as default_heads
    from ropescope.measurement.importance import importance as importance
    from ropescope.measurement.joining import joined as joined
    from ropescope.measurement.labelling import label_pairs as label_pairs
    from ropescope.measurement.measure import measure as measure
    from ropescope.measurement.results import save as save
    from ropescope.measurement.summary import summary_text as summary_text
    from ropescope.model.card import RotaryCard as RotaryCard
    from ropescope.model.loading import load_model as load_model
    from ropescope.model.probing import probe as probe
    from ropescope.model.windows import token_windows as token_windows
    from ropescope.run.collectives import WorkerError as WorkerError

_HOME = {
    "load_model": "model.loading",
    "token_windows": "model.windows",
    "probe": "model.probing",
    "measure": "measurement.measure",
    "save": "measurement.results",
    "load": "evaluation.opening",
    "spectrum_fe": "base.entropy",
    "select": "interventions.selection",
    "PairMask": "interventions.masks",
    "matched_random": "interventions.controls",
    "lowest_norm": "interventions.controls",
    "lowest_importance": "interventions.controls",
    "all_but_best": "interventions.controls",
    "weighted_rope": "interventions.weighting",
    "derotated": "interventions.derotation",
    "bake": "interventions.baking",
    "plan_keys": "compression.planning",
    "KeyPlan": "compression.plans",
    "thin_keys": "compression.thinning",
    "frontier_plans": "compression.several",
    "frontier": "evaluation.frontier.judging",
    "frontier_table": "evaluation.frontier.changes",
    "Timing": "evaluation.frontier.timing",
    "perplexity": "evaluation.perplexity",
    "sweep": "evaluation.sweep.sweeping",
    "evaluate_tasks": "evaluation.tasks.evaluating",
    "TaskProtocol": "evaluation.tasks.harness",
    "Controls": "evaluation.sweep.arms",
    "compare": "analysis.agreement",
    "comparison": "display.comparison",
    "Comparison": "display.comparison",
    "localise": "analysis.places",
    "sequence_fe": "base.entropy",
    "white_noise_entropy": "base.entropy",
    "importance": "measurement.importance",
    "importance_shares": "analysis.importance_shares",
    "importance_foretold": "analysis.importance_in_words",
    "validate_importance": "evaluation.importance_validation",
    "claims": "evaluation.claims.judging",
    "Verdicts": "evaluation.claims.judging",
    "predicted_kl": "evaluation.set_prediction",
    "validate_sets": "evaluation.set_validation",
    "report": "display.report.writing",
    "label_pairs": "measurement.labelling",
    "variable_map": "display.figures.maps",
    "joined": "measurement.joining",
    "register": "base.pair_variables",
    "PairVariable": "base.pair_variables",
    "RopescopeError": "base.errors",
    "InputError": "base.errors",
    "ModelError": "base.errors",
    "ProbeError": "base.errors",
    "CorpusError": "base.errors",
    "NonFiniteError": "base.errors",
    "TaskError": "base.errors",
    "ResultError": "base.errors",
    "UnreadableError": "base.errors",
    "MissingExtraError": "base.errors",
    "WorkerError": "run.collectives",
    "Table": "base.tables",
    "Section": "base.tables",
    "Perplexity": "evaluation.perplexity",
    "RotaryCard": "model.card",
    "summary_text": "measurement.summary",
    "sweep_table": "evaluation.sweep.changes",
    "tasks_table": "evaluation.tasks.table",
    "same_places": "analysis.comparison_in_words",
    "spread_compared": "analysis.comparison_in_words",
    "where_bands_live": "analysis.places_in_words",
    "default_heads": "measurement.heads",
    "panel": "display.figures.heads",
    "overview": "display.figures.maps",
    "importance_scatter": "display.figures.importance",
    "set_predictions": "display.figures.sets",
    "side_by_side": "display.figures.side_by_side",
    "spread_curves": "display.figures.spread",
    "bands_over_wavelength": "display.figures.spread",
    "sweep_curves": "display.figures.curves",
    "frontier_curves": "display.figures.frontier",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
