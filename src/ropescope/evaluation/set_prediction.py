"""What turning a set of pairs down should cost by their importance, and up to where that may be trusted."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.arguments import check_share
from ropescope.base.axes import KEY, QUERY, SEQUENCE
from ropescope.base.schema import Schema
from ropescope.base.statistics import ESTIMATE
from ropescope.base.tables import Table
from ropescope.evaluation.sweep.dataset import ALPHA, SELECTION, STREAM
from ropescope.interventions.controls import matching_values
from ropescope.interventions.masks import PairMask

# A prediction is of use within this factor.
FACTOR = 2.0
VARIABLES = {
    "kl": ("KL divergence from the unchanged model", "nat/token", (SELECTION, ALPHA, SEQUENCE)),
    "nll": ("change of the negative log-likelihood", "nat/token", (SELECTION, ALPHA, SEQUENCE)),
    "predicted_kl": ("KL divergence that importance predicts", "nat/token", (SELECTION, ALPHA)),
    "ratio": ("predicted over true KL divergence", "1", (SELECTION, ALPHA, ESTIMATE)),
    "selected_pairs": ("selected pairs of all layers and heads", "1", (SELECTION, STREAM)),
}
SET_VALIDATION = Schema(
    "ropescope-set-validation",
    1,
    {name: dims for name, (_, _, dims) in VARIABLES.items()},
    what="a validation of sets",
    command="ropescope importance --validate-sets",
    again="validate again",
)


def predicted_kl(importance: xr.DataTree, mask: PairMask, alpha: float) -> float:
    r"""KL divergence that weighting the selected pairs by alpha should cost, nats per token.

    .. math:: \tfrac12 \sum_k a_k^2 F_k + \tfrac12 \sum_q (b_q^2 - a_q^2) F_q

    with F the importance (`fisher`), :math:`a = 1 - \alpha` for a key pair that is selected and else 0, :math:`a_q`
    that of the key pair of its group, and b the share of its part of the logit that a query pair loses: :math:`1 -
    \alpha` where it or its key is selected, :math:`1 - \alpha^2` where both are. Where one stream is selected that is
    :math:`\tfrac12 (1 - \alpha)^2 \sum F`; where both are, a pair is not counted for its query and again for its key.
    It is of second order, and takes different pairs, and the query heads of one group, not to interact.

    Parameters
    ----------
    importance
        What :func:`ropescope.importance` gave for the model.
    mask
        The pairs, as :func:`ropescope.weighted_rope` takes them.
    alpha
        Their weight, 0 to 1.

    Returns
    -------
    float

    Raises
    ------
    InputError
        If alpha is out of range, or the importance is of other layers, heads or pairs than the mask.

    Examples
    --------
    >>> predicted_kl(worth, rs.select(result, "spectrum-outliers"), alpha=0.5)  # doctest: +SKIP
    0.0012
    """
    check_share("alpha", alpha)
    fisher = matching_values(mask, importance, "fisher")
    lost = {stream: (1 - alpha) * chosen.values for stream, chosen in mask.streams().items()}
    total = float(np.nansum(lost[KEY] ** 2 * fisher[KEY]))
    for row in range(len(mask.layers)):
        heads, kv_heads = (int(mask.present(stream).values[row].any(-1).sum()) for stream in (QUERY, KEY))
        of_key = lost[KEY][row, :kv_heads].repeat(heads // kv_heads, axis=0)
        of_both = 1 - (1 - lost[QUERY][row, :heads]) * (1 - of_key)
        total += float(np.nansum((of_both**2 - of_key**2) * fisher[QUERY][row, :heads]))
    return total / 2


def trusted(data: xr.Dataset) -> tuple[float, int]:
    """The largest predicted KL up to which every prediction is within the factor, and how many are; NaN and 0 if none.

    What is known before anything is tried is the prediction, so it gives the order.
    """
    limit, count = np.nan, 0
    for predicted, true, _, _ in _points(data):
        if not true / FACTOR <= predicted <= true * FACTOR:
            break
        limit, count = predicted, count + 1
    return limit, count


def sets_in_words(data: xr.Dataset) -> list[str]:
    """Up to which change the importance of pairs, added up, says what :func:`ropescope.validate_sets` found."""
    points, (limit, count) = list(_points(data)), trusted(data)
    if not points:
        return ["The selections hold no pairs that the loss feels, so there is nothing to foretell."]
    least, most = points[0][0], points[-1][0]
    if count == len(points):
        return [
            f"Importance added up over pairs foretells the KL divergence of all {count} changes within a factor "
            f"{FACTOR:g}, predicted {least:.2g} to {most:.2g} nat/token; larger ones were not tried."
        ]
    beyond = f"{_place(data, *points[count][2:])}: predicted {points[count][0]:.2g}, true {points[count][1]:.2g}"
    if not count:
        return [
            f"Importance added up over pairs misses even the least change by more than a factor {FACTOR:g} ({beyond} "
            "nat/token): do not add it up over sets like these."
        ]
    return [
        f"Importance added up over pairs foretells the KL divergence within a factor {FACTOR:g} up to a predicted "
        f"{limit:.2g} nat/token, {count} of {len(points)} changes; do not trust it further. The first beyond is "
        f"{beyond}."
    ]


def sets_table(data: xr.Dataset) -> Table:
    """Predicted and true KL divergence of every selection and strength."""
    rows = []
    for selection in data[SELECTION].values:
        one = data.sel({SELECTION: selection})
        query, key = (int(one["selected_pairs"].sel({STREAM: stream})) for stream in (QUERY, KEY))
        for alpha in one[ALPHA].values[::-1]:
            at = one.sel({ALPHA: alpha})
            true, ratio = float(at["kl"].mean(SEQUENCE)), at["ratio"].values
            predicted = f"{float(at['predicted_kl']):.3g}"
            rows.append([str(selection), f"{query} + {key}", f"{alpha:g}", predicted, f"{true:.3g}", _ratio(ratio)])
    header = ["selection", "query + key pairs", "alpha", "predicted KL", "true KL", "predicted / true"]
    return Table(header, rows, "KL divergence from the unchanged model, nat/token")


def _points(data: xr.Dataset) -> list[tuple[float, float, int, int]]:
    """Predicted and true KL, and the places of selection and strength, where there is a prediction, the least first."""
    true, predicted = data["kl"].mean(SEQUENCE).values, data["predicted_kl"].values
    places = np.argwhere(predicted > 0)
    return sorted((float(predicted[s, a]), float(true[s, a]), int(s), int(a)) for s, a in places)


def _place(data: xr.Dataset, selection: int, alpha: int) -> str:
    return f"{data[SELECTION].values[selection]} at alpha {data[ALPHA].values[alpha]:g}"


def _ratio(estimate: np.ndarray) -> str:
    value, low, high = (f"{number:.2f}" for number in estimate)
    return "-" if np.isnan(estimate[0]) else value if np.isnan(estimate[1]) else f"{value} [{low}, {high}]"
