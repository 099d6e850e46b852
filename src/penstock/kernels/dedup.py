"""The distinct keys of a batch, rising, and for each key its place among them.

Keys are hashes, so a hash table whose slot is the key's distance from the smallest, divided, has them nearly in
order: keys that repeat meet there, and one walk over the table finds the distinct ones with few to put right.
Keys that crowd (anybody may make such) are sorted by NumPy instead.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Keys
from penstock.kernels.compile import kernel, pointer, prefetch

__all__ = ["TAIL", "Scratch", "collect", "distinct"]

ZERO = np.uint64(0)
ONE = np.uint64(1)
SLOTS = 3
"""Times as many slots as keys at most, and half of that at least: distances are divided by a power of two."""
TAIL = 64
"""Slots behind the last one where a search may begin."""
AHEAD = 16
STEPS = 4
"""Steps of all searches for each key, above which keys are said to crowd; hashes that are all distinct take 1."""

MOST_KEPT = 1 << 21
"""Keys of a batch; the memory for larger ones is not kept. 48 bytes a key."""
_MOST_KEYS = (1 << 31) // SLOTS - TAIL

_local = threading.local()


class Scratch:
    """Working memory of ``collect`` for batches of up to ``size`` keys; for one thread at a time."""

    def __init__(self, size: int) -> None:
        self.slots = np.zeros(SLOTS * size + TAIL, np.uint64)
        self.ranks = np.empty(SLOTS * size + TAIL, np.int32)
        self.unique = np.empty(size + 1, np.uint64)
        self.places = np.empty(size + 1, np.int32)


@kernel
def collect(keys: Any, slots: Any, ranks: Any, unique: Any, places: Any, index: Any) -> int:
    """Distinct keys of ``keys`` u64[n], n > 0, rising, into ``unique``; places among them into ``index`` i64[n].

    Returns how many there are, or -1 where keys crowd or one is 0. The other arrays are those of a ``Scratch``
    for n keys or more; ``slots`` are zeros before and after. ``collect([8, 2, 8])`` is 2, with ``unique ==
    [2, 8, ...]`` and ``index == [1, 0, 1]``.
    """
    n = keys.size
    least, most = keys[0], keys[0]
    for i in range(n):
        least = min(least, keys[i])
        most = max(most, keys[i])
    if least == ZERO:
        return -1
    shift = ZERO
    while (most - least) >> shift >= np.uint64(SLOTS * n):
        shift += ONE
    end: Any = np.int64((most - least) >> shift) + TAIL + 1
    k, s, r, u = pointer(keys), pointer(slots), pointer(ranks), pointer(unique)
    p, x = pointer(places), pointer(index)
    steps = 0
    for i in range(n):
        prefetch(s, np.int64((k[min(i + AHEAD, n - 1)] - least) >> shift))
        key = k[i]
        slot: Any = np.int64((key - least) >> shift)
        found = s[slot]
        if found != key and found != ZERO:
            while found != key and found != ZERO and slot < end - 1:
                slot += 1
                steps += 1
                found = s[slot]
            if (found != key and found != ZERO) or steps > STEPS * n + TAIL:
                slots[:end] = ZERO
                return -1
        # Written where it stands already, too: that costs less than to guess wrong whether it does.
        s[slot] = key
        x[i] = slot
    count = 0
    for number in range(end):
        key = s[number]
        s[number] = ZERO
        # An empty slot is written as well, and overwritten by the next.
        u[count], p[count] = key, number
        count += key != ZERO
    for i in range(1, count):
        key = u[i]
        if key < u[i - 1]:
            place, j = p[i], i
            while j > 0 and u[j - 1] > key:
                u[j], p[j] = u[j - 1], p[j - 1]
                j -= 1
            u[j], p[j] = key, place
    for i in range(count):
        r[p[i]] = i
    for i in range(n):
        x[i] = r[x[i]]
    return count


def distinct(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """Distinct keys u64[U] of ``keys`` u64[n], rising, and index i64[n] of each key's place among them.

    ``distinct([8, 2, 8])`` is ``[2, 8], [1, 0, 1]``. Working memory is kept for each thread.
    """
    n = len(keys)
    if 0 < n <= _MOST_KEYS:
        scratch = _scratch_for(n)
        index = np.empty(n, np.int64)
        count = collect(
            np.ascontiguousarray(keys), scratch.slots, scratch.ranks, scratch.unique, scratch.places, index
        )
        if count >= 0:
            return scratch.unique[:count].copy(), index
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, inverse.astype(np.int64, copy=False)


def _scratch_for(n: int) -> Scratch:
    if n > MOST_KEPT:
        return Scratch(n)
    scratch: Scratch | None = getattr(_local, "scratch", None)
    if scratch is None or len(scratch.unique) <= n:
        # A power of two, so that batches of rising size do not each make it anew.
        scratch = _local.scratch = Scratch(1 << (n - 1).bit_length())
    return scratch
