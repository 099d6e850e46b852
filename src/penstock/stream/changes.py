"""One example for each row of the primary stream: several results become one, and two versions are compared."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["changed", "one_each"]


def one_each(results: pa.Table, keys: list[str]) -> tuple[pa.Table, int]:
    """The first of the rows of equal keys, which are neighbours; and how many had others that differ from it.

    First is the least, column by column, with null last: of several clicks, the earliest.
    """
    if results.num_rows < 2:
        return results, 0
    same = np.ones(results.num_rows - 1, bool)
    for key in keys:
        values = np.asarray(results[key])
        same &= values[1:] == values[:-1]
    if not same.any():
        return results, 0
    begins = np.concatenate([[True], ~same])
    groups = np.cumsum(begins) - 1
    crowded = np.zeros(groups[-1] + 1, bool)
    crowded[groups[1:][same]] = True
    several = np.flatnonzero(crowded[groups])
    part = results.take(pa.array(several))
    ranks = [_rank(part[name]) for name in part.column_names]
    order = np.lexsort([*reversed(ranks), groups[several]])
    ordered = groups[several][order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    kept = several[order[first]]
    differing = np.zeros(len(several), bool)
    for rank in ranks:
        values = rank[order]
        differing[1:] |= (values[1:] != values[:-1]) & ~first[1:]
    ambiguous = len(np.unique(ordered[differing]))
    alone = np.flatnonzero(~crowded[groups])
    taken = np.concatenate([alone, kept])
    return results.take(pa.array(taken[np.argsort(groups[taken], kind="stable")])), ambiguous


def changed(old: pa.Table, new: pa.Table, columns: list[str]) -> NDArray[np.bool_]:
    """Which rows differ in these columns; both tables have as many rows. Null equals null, nan equals nan."""
    found = np.zeros(old.num_rows, bool)
    for name in columns:
        found |= _differs(old[name], new[name])
    return found


def _differs(a: pa.ChunkedArray, b: pa.ChunkedArray) -> NDArray[np.bool_]:
    if pa.types.is_nested(a.type):
        pairs = zip(a.to_pylist(), b.to_pylist(), strict=True)
        return np.array([repr(x) != repr(y) for x, y in pairs], bool)
    one_null = pc.xor(pc.is_null(a), pc.is_null(b))
    unequal = pc.fill_null(pc.not_equal(a, b), False)
    if pa.types.is_floating(a.type):
        both_nan = pc.fill_null(pc.and_(pc.is_nan(a), pc.is_nan(b)), False)
        unequal = pc.and_not(unequal, both_nan)
    return np.asarray(pc.or_(one_null, unequal))


def _rank(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    if pa.types.is_nested(column.type):
        column = pa.chunked_array(
            [pa.array([None if v is None else repr(v) for v in column.to_pylist()], pa.string())]
        )
    return np.asarray(pc.rank(column, sort_keys="ascending", tiebreaker="dense"))
