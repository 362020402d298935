"""Arrays packed for a page: few bytes, no threshold decision lost, undone by templates/scripts/decode.js."""

from __future__ import annotations

import base64
import gzip

import numpy as np

STEPS = 200
CODES_PER_STEP = 327
UNDEFINED, ABSENT = 65534, 65535
DECADES = 10.0
BYTE_TOP, BYTE_MISSING = 254, 255


def encode_entropies(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    r"""Pack entropies into 16 bits so that no comparison with a threshold changes.

    Thresholds are the multiples of 1/200. Each has a code of its own, and the open interval up to the next is cut into
    326 equal slots with one code each: an entropy lies below, on or above a threshold exactly where its code does.

    Parameters
    ----------
    values : array, 0 to 1
        Entropies, NaN where undefined.
    present : boolean array, same shape
        Whether the model has the pair.

    Returns
    -------
    uint16 array, same shape
        Decoding to the middle of the slot is wrong by at most 1 / (2 · 200 · 326) < 8e-6. 65534 stands for undefined,
        65535 for a pair that the model does not have.

    Examples
    --------
    >>> encode_entropies(np.array([0.0, 0.2, np.nan]), np.array([True, True, False])).tolist()
    [0, 13080, 65535]
    """
    grid = np.arange(STEPS + 1) / STEPS
    known = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0.0, 1.0)
    step = np.searchsorted(grid, known, side="right") - 1
    excess = known - grid[step]
    slot = np.clip(np.floor(excess * STEPS * (CODES_PER_STEP - 1)), 0, CODES_PER_STEP - 2)
    codes = CODES_PER_STEP * step + np.where(excess > 0, 1 + slot, 0).astype(np.int64)
    return np.where(~present, ABSENT, np.where(np.isnan(values), UNDEFINED, codes)).astype(np.uint16)


def encode_log_power(values: np.ndarray) -> np.ndarray:
    """Pack shares of power into 8 bits on a logarithmic scale of ten decades.

    Parameters
    ----------
    values : array, 0 to 1
        NaN where there is no spectrum.

    Returns
    -------
    uint8 array, same shape
        0 is 1e-10 and below, 254 is 1; wrong by at most 5 per cent of the value in between. 255 stands for NaN.
    """
    with np.errstate(divide="ignore"):
        decades = np.log10(np.asarray(values, dtype=np.float64))
    codes = np.round((np.clip(decades, -DECADES, 0.0) / DECADES + 1) * BYTE_TOP)
    return _bytes(codes)


def encode_norms(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack the norms of each head into 8 bits against the head's own upper end.

    Parameters
    ----------
    values : array (kept, pair, position)
        NaN where the layer has fewer pairs.

    Returns
    -------
    limits : float32 array (kept)
        The 99.5 per cent quantile of each head, so that a few first tokens do not hide the rest.
    codes : uint8 array (kept, pair, position)
        254 is the limit and above; 255 stands for NaN.
    """
    finite = [head[np.isfinite(head)] for head in values]
    limits = np.array([np.quantile(head, 0.995) if head.size else 0.0 for head in finite], dtype=np.float32)
    scale = np.where(limits > 0, limits, 1.0)[:, None, None]
    return limits, _bytes(np.round(np.clip(values / scale, 0.0, 1.0) * BYTE_TOP))


def packed(*arrays: np.ndarray) -> str:
    """Put arrays one after the other, little-endian, compressed, as base64 text."""
    content = b"".join(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays)
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")


def _bytes(codes: np.ndarray) -> np.ndarray:
    packed_codes: np.ndarray = np.where(np.isnan(codes), BYTE_MISSING, codes).astype(np.uint8)
    return packed_codes
