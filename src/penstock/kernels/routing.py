"""Keys by server: which of a batch's keys go where, and whether a server may take the keys that it was sent."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.compile import kernel

__all__ = ["first_bad_key", "gather_keys", "gather_rows", "scatter_rows", "split"]


@kernel
def split(keys: Any, owners: Any, shift: Any, order: Any, bounds: Any) -> None:
    """Places of keys u64[n], grouped by server, rising in each group: ``order`` i32[n] from ``bounds[s]`` on.

    ``owners`` u16[segments] are server numbers, a key's segment is ``key >> shift``; ``bounds`` i64[servers + 1]
    are zeros before. With two servers that own half of the hash space each: ``split([2, 1 << 63, 4])`` gives order
    ``[0, 2, 1]``, bounds ``[0, 2, 3]``.
    """
    for i in range(keys.size):
        bounds[np.int64(owners[keys[i] >> shift]) + 1] += 1
    for s in range(1, bounds.size):
        bounds[s] += bounds[s - 1]
    places = bounds[:-1].copy()
    for i in range(keys.size):
        server = np.int64(owners[keys[i] >> shift])
        order[places[server]] = i
        places[server] += 1


@kernel
def first_bad_key(keys: Any, owners: Any, server: Any, shift: Any) -> int:
    """First place of a key that is odd, 0, not above the one before, or of another server; -1 if there is none.

    With one server: ``first_bad_key([2, 4, 4]) == 2``, ``first_bad_key([0]) == 0``.
    """
    before = np.uint64(0)
    for i in range(keys.size):
        key = keys[i]
        if key & np.uint64(1) != np.uint64(0) or key <= before or owners[key >> shift] != server:
            return i
        before = key
    return -1


@kernel
def gather_keys(keys: Any, places: Any, out: Any) -> None:
    """``out`` u64[n] gets ``keys[places]``: with places ``[2, 0]``, ``[2, 4, 6]`` gives ``[6, 2]``."""
    for i in range(places.size):
        out[i] = keys[places[i]]


@kernel
def gather_rows(rows: Any, places: Any, out: Any) -> None:
    """``out`` f32[n, dim] gets ``rows[places]``."""
    for i in range(places.size):
        for d in range(rows.shape[1]):
            out[i, d] = rows[places[i], d]


@kernel
def scatter_rows(rows: Any, places: Any, out: Any) -> None:
    """``out[places]`` gets ``rows`` f32[n, dim]; the inverse of ``gather_rows``."""
    for i in range(places.size):
        for d in range(rows.shape[1]):
            out[places[i], d] = rows[i, d]
