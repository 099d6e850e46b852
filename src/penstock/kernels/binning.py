"""Predicted probabilities into a histogram fine enough for AUC, and their log loss, in one pass.

A bin is read from the bits of the f32 itself (exponent and leading 8 bits of the fraction), as in an HDR
histogram: no logarithm is taken for it, and a probability has the same bin on every machine. Bins are narrow
near 0 and near 1 alike: 1/512 to 1/192 of a logit. What a histogram says is in ``metrics``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, kernel

__all__ = ["BINS", "CLIP", "MIDDLE", "accumulate", "bin_of", "take"]

FRACTION_BITS = 8
OCTAVES = 25
MIDDLE = OCTAVES << FRACTION_BITS
"""The bin of p = 0.5 alone: bins of smaller p stand before it, of larger p after it."""
BINS = 2 * MIDDLE + 1
"""Number of bins. The first takes all p below 2^-26, a logit of -18, the last all within that of 1."""
CLIP = 2.0**-23
"""Log loss takes p as no nearer to 0 or 1 than the epsilon of f32, as scikit-learn does for f32."""

LEAST_PRODUCT = 2.0**-900
"""Above it a product of likelihoods may be multiplied by CLIP once more and is still a normal f64."""

FRACTION_SHIFT = np.int32(23 - FRACTION_BITS)
LOWEST = np.int64((126 - OCTAVES) << FRACTION_BITS)
F0 = np.float32(0)
F1 = np.float32(1)
F_HALF = np.float32(0.5)
F_INF = np.float32(np.inf)


@inlined
def bin_of(p: Any) -> Any:
    """Bin of a probability, f32 in [0, 1]; ``bin_of(0.5) == MIDDLE``, ``bin_of(0.25) == MIDDLE - 256``.

    Rises with p; ``bin_of(p) + bin_of(1 - p) == BINS - 1`` where 1 - p is exact.
    """
    nearer = min(p, F1 - p)
    # As a signed number the bits of -0.0 are below all others, so it falls into the first bin.
    place = max(np.int64(np.float32(nearer).view(np.int32) >> FRACTION_SHIFT) - LOWEST, np.int64(0))
    return place if p < F_HALF else np.int64(2 * MIDDLE) - place


@inlined
def first_bad(probabilities: Any, labels: Any, weights: Any) -> Any:
    """First row whose probability, label or weight is not allowed, or -1; ``p=[0.5, nan] -> 1``."""
    fine = True
    for i in range(labels.size):
        p, y = probabilities[i], labels[i]
        fine &= (p >= F0) & (p <= F1) & ((y == F0) | (y == F1))
    if weights is not None:
        for i in range(labels.size):
            fine &= (weights[i] >= F0) & (weights[i] < F_INF)
    if fine:
        return -1
    for i in range(labels.size):
        p, y = probabilities[i], labels[i]
        if not ((p >= F0) & (p <= F1) & ((y == F0) | (y == F1))):
            return i
        if weights is not None and not ((weights[i] >= F0) & (weights[i] < F_INF)):
            return i
    return -1


@kernel
def accumulate(bins: Any, probabilities: Any, labels: Any, weights: Any) -> tuple[int, float]:
    """Add B rows to ``bins`` f64[BINS, 3]; returns (-1, the rows' weighted log loss), or (bad row, 0).

    The three columns are the weight of label 0, the weight of label 1, and the weighted sum of
    probabilities. ``weights`` f32[B] may be None, for all ones. A row is bad where its probability is not in
    [0, 1], its label neither 0 nor 1, or its weight negative or not finite; then nothing is added. With
    ``p=[0.5, 0.5], y=[1, 0], w=[2, 4]``: ``bins[MIDDLE] == [4, 2, 3]``, log loss ``6 log 2``.
    """
    bad = first_bad(probabilities, labels, weights)
    if bad >= 0:
        return bad, 0.0
    loss = 0.0
    w, product = 1.0, 1.0
    for i in range(labels.size):
        weight = 1.0
        if weights is not None:
            weight = np.float64(weights[i])
        # A logarithm costs more than all else here, so rows of equal weight share one.
        if weight != w or product < LEAST_PRODUCT:
            loss -= w * math.log(product)
            w, product = weight, 1.0
        p = probabilities[i]
        wide = np.float64(p)
        clicked = labels[i] == F1
        # In f64 the difference is exact for every f32 above CLIP.
        product *= min(max(wide if clicked else 1.0 - wide, CLIP), 1.0 - CLIP)
        at = np.uint64(bin_of(p))
        bins[at, np.uint64(clicked)] += w
        bins[at, np.uint64(2)] += w * wide
    return -1, loss - w * math.log(product)


@kernel
def take(histogram: Any, bins: Any, sums: Any) -> int:
    """Move the bins of ``histogram`` f64[BINS, 3] that are not all 0 to ``bins`` i64[n] and ``sums`` f64[n, 3].

    Returns how many there are. After ``take([[0, 0, 0], [1, 0, 0.5]])``: 1, with bins ``[1]``, sums ``[[1, 0,
    0.5]]``.
    """
    n = 0
    for b in range(histogram.shape[0]):
        x, y, z = histogram[b, 0], histogram[b, 1], histogram[b, 2]
        if x != 0.0 or y != 0.0 or z != 0.0:
            bins[n] = b
            sums[n, 0], sums[n, 1], sums[n, 2] = x, y, z
            histogram[b, 0] = histogram[b, 1] = histogram[b, 2] = 0.0
            n += 1
    return n
