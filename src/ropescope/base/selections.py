"""The selections that have a name, once: what each compares with what, and what text, table and page call it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

from ropescope.base.counting import counted
from ropescope.base.pair_variables import ENTROPIES, pair_variables

Comparison = Literal["<", ">", "=="]
_HOLDS = {"<": operator.lt, ">": operator.gt, "==": operator.eq}
VARIABLE_LABELS = {name: pair_variables()[name].label for name in ENTROPIES}
SCALES = {name: scale for name in ENTROPIES if (scale := pair_variables()[name].scale) is not None}


@dataclass(frozen=True)
class Selection:
    """Pairs whose value of one variable lies on one side of a threshold.

    Parameters
    ----------
    name
        What commands, masks and files call it.
    variable, comparison, threshold
        The rule; a value that is not defined satisfies it never.
    key
        One word for it in the links of a page.
    label
        Heading of a row or column that counts its pairs.
    plural
        Its pairs in a sentence.
    words
        What the norms of its pairs are like.
    """

    name: str
    variable: str
    comparison: Comparison
    threshold: float
    key: str
    label: str
    plural: str
    words: str

    @property
    def expression(self) -> str:
        """The rule as :func:`ropescope.select` reads it."""
        return f"{self.variable} {self.comparison} {self.threshold:g}"

    @property
    def rule(self) -> str:
        """The rule as a reader reads it, such as "SpectrumFE < 0.2"."""
        return f"{self.variable_label} {self.comparison} {self.threshold:g}"

    @property
    def variable_label(self) -> str:
        """The variable as a reader knows it."""
        return pair_variables()[self.variable].label

    def counted(self, number: int) -> str:
        """So many of its pairs, as "1 silent pair"."""
        return counted(number, self.plural.removesuffix("s"))

    def holds(self, values: Any) -> Any:
        """Where the rule is satisfied, for an array of the variable; false where it is NaN."""
        return _HOLDS[self.comparison](values, self.threshold)


# Section 4 and figure 3 of the paper.
BANDS = Selection("bands", "spectrum_fe", "<", 0.2, "band", "bands", "bands", "steady norms")
OUTLIERS = Selection(
    "spectrum-outliers", "spectrum_fe", ">", 0.4, "outlier", "outliers", "spectrum outliers", "restless norms"
)
PERIODIC = Selection(
    "periodic", "sequence_fe", "<", 0.6, "periodic", "periodic", "periodic pairs", "norms of few periods"
)
PAPER = {selection.name: selection for selection in (BANDS, OUTLIERS, PERIODIC)}
# Fewer pairs of a selection say nothing of others like them.
LEAST_PAIRS = 20
# Ours: exactly zero whatever the text, which says nothing about the rotation.
SILENT = Selection("silent", "mean_norm", "==", 0.0, "silent", "silent", "silent pairs", "norm always 0")
# Table 1 of the paper turns down what section 4 found redundant.
NAMED = {
    **{name: selection.expression for name, selection in PAPER.items()},
    "table1": f"{OUTLIERS.expression} or {PERIODIC.expression}",
    SILENT.name: SILENT.expression,
    # Silent or flat: what has no value satisfies no comparison, and so stands in no other selection.
    "undefined": "not defined",
}
