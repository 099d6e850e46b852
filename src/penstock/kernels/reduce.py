"""Functions over all rows of segments: norms, rows that are too small to keep, decay.

They run where the rows are, so that nothing is moved. Rows are taken in the order of their slots, which is fixed
by what was done to the table; two tables with the same rows may differ in the last bits of a sum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, kernel, pointer
from penstock.kernels.optimizer import load_state, scale, store_state, weight
from penstock.kernels.rows import LOW6, NOWHERE, ONE, TWO, ZERO, find, home, mark, unpack

__all__ = ["add_norms", "contains", "decay", "remove_small", "row_norms"]

F0 = np.float32(0)


@inlined
def slots_of(table: Any, segment: Any) -> Any:
    """Number of a segment's slots."""
    return np.int64(table.masks[segment] >> ONE) + 1


@kernel
def add_norms(rows: Any, hyper: Any, dim: int, begin: int, end: int, out: Any) -> None:
    """Add to ``out`` f64[4] of segments ``begin`` to ``end``: rows, weights that are not 0, sum of |w|, sum of w².

    Sums are f64, each segment's by itself first. With the rows ``2 -> -3`` and ``6 -> 0``: ``[2, 1, 3, 9]``.
    """
    table = unpack(rows)
    for segment in range(begin, end):
        l1, l2 = 0.0, 0.0
        for slot in range(slots_of(table, segment)):
            at = table.bases[segment] + np.uint64(slot) * table.stride
            if table.keys[at] == ZERO:
                continue
            out[0] += 1
            for d in range(dim):
                w = weight(hyper, load_state(hyper, table.words, np.int64(at * TWO + TWO) + d, np.int64(dim)))
                out[1] += w != F0
                l1 += abs(np.float64(w))
                l2 += np.float64(w) * np.float64(w)
        out[2] += l1
        out[3] += l2


@kernel
def row_norms(rows: Any, hyper: Any, dim: int, segment: int, keys: Any, norms: Any) -> int:
    """A segment's keys u64[n] and the Euclidean norms f64[n] of their weights, in no order; returns their number.

    With the rows ``2 -> -3`` and ``6 -> 0``: 2, ``keys == [2, 6]``, ``norms == [3, 0]``.
    """
    table = unpack(rows)
    n = 0
    for slot in range(slots_of(table, segment)):
        at = table.bases[segment] + np.uint64(slot) * table.stride
        if table.keys[at] == ZERO:
            continue
        total = 0.0
        for d in range(dim):
            w = weight(hyper, load_state(hyper, table.words, np.int64(at * TWO + TWO) + d, np.int64(dim)))
            total += np.float64(w) * np.float64(w)
        keys[n], norms[n] = table.keys[at] & ~ONE, math.sqrt(total)
        n += 1
    return n


@kernel
def remove_small(rows: Any, hyper: Any, dim: int, segment: int, threshold: Any, keys: Any) -> int:
    """Clear a segment's rows whose weights are all at most ``threshold`` in absolute value, and list their keys.

    Returns how many there were. Until the segment is rehashed, other rows may not be found. With the rows
    ``2 -> -3`` and ``6 -> 0`` and a threshold of 0: 1, ``keys == [6]``.
    """
    table = unpack(rows)
    n = 0
    for slot in range(slots_of(table, segment)):
        at = table.bases[segment] + np.uint64(slot) * table.stride
        if table.keys[at] == ZERO:
            continue
        small = True
        for d in range(dim):
            w = weight(hyper, load_state(hyper, table.words, np.int64(at * TWO + TWO) + d, np.int64(dim)))
            small &= abs(w) <= threshold
        if small:
            keys[n] = table.keys[at] & ~ONE
            n += 1
            table.changed[at >> np.uint64(7)] &= ~(ONE << ((at >> ONE) & LOW6))
            for unit in range(np.int64(table.stride)):
                table.keys[at + np.uint64(unit)] = ZERO
    table.used[segment] -= n
    return n


@kernel
def decay(rows: Any, hyper: Any, dim: int, begin: int, end: int, factor: Any) -> None:
    """Scale the weights of all rows of segments ``begin`` to ``end``, by the optimizer's ``scale``; mark them.

    With SGD, the row ``2 -> -3`` and a factor of 0.5: ``2 -> -1.5``.
    """
    table = unpack(rows)
    for segment in range(begin, end):
        for slot in range(slots_of(table, segment)):
            at = table.bases[segment] + np.uint64(slot) * table.stride
            if table.keys[at] == ZERO:
                continue
            mark(table, at)
            for d in range(dim):
                place = np.int64(at * TWO + TWO) + d
                state = load_state(hyper, table.words, place, np.int64(dim))
                store_state(hyper, table.words, place, np.int64(dim), scale(hyper, state, factor))


@kernel
def contains(rows: Any, keys: Any, out: Any) -> None:
    """Whether each of ``keys`` has a row, into ``out`` bool[n]."""
    table = unpack(rows)
    k = pointer(keys)
    for i in range(keys.size):
        out[i] = find(table, k[i], home(table, k[i])) != NOWHERE
