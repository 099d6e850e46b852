"""Whether numbers that came over a wire may be learnt: NaN and infinity would stay in a row for ever."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.compile import kernel, pointer

__all__ = ["all_finite", "first_not_finite"]

BLOCK = 4096
MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
"""Bits of f32 infinity; without their sign, NaNs are above it and all else is below."""


@kernel
def first_not_finite(values: Any) -> int:
    """Number of the first NaN or infinity of ``values``, contiguous f32 of any shape, or -1.

    The number counts all items, so that of an array f32[n, dim] the row is ``number // dim``.
    ``first_not_finite([1, nan, inf]) == 1``.
    """
    bits = values.reshape(-1).view(np.int32)
    at = pointer(bits)
    for begin in range(0, bits.size, BLOCK):
        end = min(begin + BLOCK, bits.size)
        # No way out in here, and no wider integer, which makes it vectors.
        largest = np.int32(0)
        for i in range(begin, end):
            largest = np.int32(max(largest, np.int32(at[i] & MAGNITUDE)))
        if largest >= INFINITY:
            for i in range(begin, end):
                if bits[i] & MAGNITUDE >= INFINITY:
                    return i
    return -1


def all_finite(values: Any) -> bool:
    """Whether no item of ``values``, contiguous f32 of any shape, is NaN or infinite; ``all_finite([])``."""
    return first_not_finite(values) < 0
