"""Mean norm of a pair's queries times that of its keys: what plain norms say of a pair's part in the logits."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ropescope.base.axes import HEAD_AXIS, KEY, LAYER, PAIR, QUERY, STREAMS
from ropescope.measurement.results import mean_over_sequences, stream_data


def norm_products(result: xr.DataTree) -> dict[str, np.ndarray]:
    """The norm product of every pair of both streams, (layer, head or kv_head, pair); NaN where there is no pair.

    It is the score of ThinK for pairs: of a query pair with the key of its group, of a key pair with the mean over the
    query heads of its group.

    References
    ----------
    Xu et al., ThinK: Thinner Key Cache by Query-Driven Pruning, ICLR 2025.
    """
    norms = {}
    for stream in STREAMS:
        mean = mean_over_sequences(stream_data(result, stream))["mean_norm"]
        norms[stream] = mean.transpose(LAYER, HEAD_AXIS[stream], PAIR).values
    products = {stream: np.full_like(norm, np.nan) for stream, norm in norms.items()}
    for query, key, of_query, of_key in zip(norms[QUERY], norms[KEY], products[QUERY], products[KEY], strict=True):
        heads, kv_heads = (int((~np.isnan(norm)).any(-1).sum()) for norm in (query, key))
        grouped = query[:heads].reshape(kv_heads, heads // kv_heads, -1)
        of_query[:heads] = (grouped * key[:kv_heads, None]).reshape(heads, -1)
        of_key[:kv_heads] = grouped.mean(1) * key[:kv_heads]
    return products
