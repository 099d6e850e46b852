"""Sums of sparse gradients: rising distinct keys with a row of f32 each.

What is summed, and in which order, is the caller's list and nothing else, so that a sum is the same bit for bit
wherever and whenever it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.batch import Floats, Keys
from penstock.kernels.compile import kernel, pointer
from penstock.kernels.dedup import distinct

__all__ = ["add_rows", "merge_values", "sum_sorted"]

ZERO = np.uint32(0)
ONE = np.uint32(1)
SIGN = np.uint32(31)
NOTHING = np.float32(-0.0)
"""Added to any number it leaves that as it is, down to the sign of a zero, which +0 does not."""


@kernel
def merge_values(keys: Any, values: Any, keys2: Any, values2: Any, out_keys: Any, out_values: Any) -> int:
    """Sum of two sets of (rising distinct key, f32) into arrays with room for both; returns how many there are.

    ``merge_values([2, 6], [1, 2], [6, 8], [3, 4])`` is 3, with ``[2, 6, 8], [1, 5, 4]``.
    """
    a, b, out = pointer(keys), pointer(keys2), pointer(out_keys)
    x, y, z = pointer(values), pointer(values2), pointer(out_values)
    i: Any = 0
    j: Any = 0
    n = 0
    while i < keys.size and j < keys2.size:
        # No branch, as nobody can guess which key is less: 2 ns a key instead of 5. What is not there becomes -0
        # by its bits; written as a choice between two numbers it is compiled to a branch.
        from_a, from_b = np.uint32(a[i] <= b[j]), np.uint32(b[j] <= a[i])
        out[n] = min(a[i], b[j])
        first = (np.float32(x[i]).view(np.uint32) & (ZERO - from_a)) | ((ONE - from_a) << SIGN)
        second = (np.float32(y[j]).view(np.uint32) & (ZERO - from_b)) | ((ONE - from_b) << SIGN)
        z[n] = np.uint32(first).view(np.float32) + np.uint32(second).view(np.float32)
        i += np.int64(from_a)
        j += np.int64(from_b)
        n += 1
    while i < keys.size:
        out[n], z[n] = a[i], x[i]
        i += 1
        n += 1
    while j < keys2.size:
        out[n], z[n] = b[j], y[j]
        j += 1
        n += 1
    return n


@kernel
def add_rows(rows: Any, places: Any, sums: Any) -> None:
    """Add ``rows`` f32[n, dim] to ``sums`` f32[U, dim] at ``places`` i64[n], in order.

    ``add_rows([[3, 1]], [1], sums)`` adds ``[3, 1]`` to ``sums[1]``.
    """
    dim = rows.shape[1]
    for i in range(places.size):
        place = places[i]
        for d in range(dim):
            sums[place, d] += rows[i, d]


def sum_sorted(parts: Sequence[tuple[Keys, Floats]]) -> tuple[Keys, Floats]:
    """Sum over parts of (rising distinct keys u64[n], gradients f32[n, dim]): union of keys u64[U], f32[U, dim].

    The sum of a key is ((part 0 + part 1) + part 2) ..., in f32; a part without the key adds nothing. One part
    alone is returned as it is, uncopied. ``sum_sorted([([2, 6], [[1], [2]]), ([6], [[3]])])`` is
    ``[2, 6], [[1], [5]]``. All arrays are contiguous.

    Raises:
        ValueError: no parts, so that nothing says what ``dim`` is.
    """
    if not parts:
        raise ValueError("sum_sorted needs at least one part, got none")
    keys, grads = parts[0]
    if len(parts) == 1:
        return keys, grads
    if grads.shape[1] == 1:
        return _fold_values(parts)
    # A fold would copy rows for each part; places are found once instead.
    keys, places = distinct(np.concatenate([part_keys for part_keys, _ in parts]))
    sums = np.full((len(keys), grads.shape[1]), NOTHING)
    begin = 0
    for part_keys, rows in parts:
        add_rows(rows, places[begin : begin + len(part_keys)], sums)
        begin += len(part_keys)
    return keys, sums


def _fold_values(parts: Sequence[tuple[Keys, Floats]]) -> tuple[Keys, Floats]:
    room = sum(len(part_keys) for part_keys, _ in parts)
    # Two pairs of arrays in turn: what one merge writes, the next reads.
    spare = [(np.empty(room, np.uint64), np.empty(room, np.float32)) for _ in range(min(2, len(parts) - 1))]
    keys, values = parts[0][0], parts[0][1].reshape(-1)
    for number, (more, more_values) in enumerate(parts[1:]):
        out_keys, out_values = spare[number % 2]
        n = merge_values(keys, values, more, more_values.reshape(-1), out_keys, out_values)
        keys, values = out_keys[:n], out_values[:n]
    return keys, values.reshape(-1, 1)
