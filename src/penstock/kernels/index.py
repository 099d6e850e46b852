"""Weights by key, read-only and sorted: what answers instead of a table, in memory or mapped from a file.

Slots are filled in the order of the keys, each as near as can be behind the place that its key's highest bits
name. So an index is written from sorted rows in one go, front to back; and a search that meets a larger key is
over. A key of 0 is an empty slot. Of a mapped file each page is checked against its sum when it is first touched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.compile import inlined, kernel, pointer, prefetch
from penstock.kernels.hashing import mix
from penstock.kernels.rows import NOWHERE, ONE, TWO, ZERO

__all__ = ["PAGE_WORDS", "Index", "place", "pull", "sum_pages"]

PAGE_BITS = 9
PAGE_WORDS = 1 << PAGE_BITS
"""u64 of a page that has a sum: 4 KiB, as the system's pages."""
AHEAD = 32
"""Keys whose slots are asked for before they are needed, a power of two."""

S9 = np.uint64(PAGE_BITS)
S31 = np.uint64(31)
S32 = np.uint64(32)
S33 = np.uint64(33)
DAMAGED = np.uint64(0xFFFFFFFFFFFFFFFE)
"""Instead of a place, which is smaller."""
F0 = np.float32(0)


class Index(NamedTuple):
    """An index as kernels see it."""

    slots: NDArray[np.uint64]
    """A key, then its weights as f32, in ``stride`` words; behind the last row is an empty slot."""
    homes: np.uint64
    """Slots at which a search can begin, at most 2^32."""
    stride: np.uint64
    sums: NDArray[np.uint64]
    """Of the pages; empty where none is checked."""
    seen: NDArray[np.uint8]
    """Pages whose sums were found right."""


@inlined
def home_slot(key: Any, homes: Any) -> Any:
    """Slot at which the search for a key begins: rises with the key."""
    return ((key >> S32) * homes) >> S32


@inlined
def page_sum(slots: Any, page: Any) -> Any:
    """Checksum of a page, in four lanes."""
    a, b, c, d = page + ONE, page + TWO, page + S31, page + S33
    begin = page << S9
    for n in range(np.uint64(0), np.uint64(PAGE_WORDS), np.uint64(4)):
        at = begin + np.uint64(n)
        a = mix(a ^ slots[at])
        b = mix(b ^ slots[at + ONE])
        c = mix(c ^ slots[at + TWO])
        d = mix(d ^ slots[at + np.uint64(3)])
    return mix(a ^ mix(b ^ mix(c ^ mix(d))))


@inlined
def is_sound(slots: Any, sums: Any, seen: Any, first: Any, last: Any) -> Any:
    """Whether the pages of the words first to last are as they were written."""
    sound = True
    page = first >> S9
    while page <= last >> S9:
        if seen[page] == 0:
            if page_sum(slots, page) == sums[page]:
                seen[page] = 1
            else:
                sound = False
        page += ONE
    return sound


@inlined
def search(slots: Any, sums: Any, seen: Any, checked: Any, stride: Any, homes: Any, key: Any) -> Any:
    """Where the row of a key stands, in words; NOWHERE if there is none, DAMAGED if a page is."""
    at = home_slot(key, homes) * stride
    while True:
        if checked and not is_sound(slots, sums, seen, at, at + stride - ONE):
            at = DAMAGED
            break
        found = slots[at]
        if found == key:
            break
        if found == ZERO or found > key:
            at = NOWHERE
            break
        at += stride
    return at


@kernel
def pull(base: Any, over: Any, keys: Any, out: Any) -> Any:
    """Weights ``out`` f32[n, dim] of ``keys`` u64[n]: those in ``over``, else those in ``base``, else 0.

    Returns -1, or the number of the first key at which a damaged page was met. With ``base`` of ``{6: 1, 8: 2}``
    and ``over`` of ``{8: 3}``: ``pull([6, 8, 4]) == [1, 3, 0]``.
    """
    n, dim = out.shape
    slots, words = pointer(base.slots), pointer(base.slots.view(np.float32))
    sums, seen, checked = pointer(base.sums), pointer(base.seen), base.sums.size > 0
    more, more_words = pointer(over.slots), pointer(over.slots.view(np.float32))
    more_sums, more_seen, has_more = pointer(over.sums), pointer(over.seen), over.slots.size > 0
    stride, homes, more_homes = base.stride, base.homes, over.homes
    for i in range(n):
        if i == 0:
            for j in range(min(AHEAD, n)):
                prefetch(slots, home_slot(keys[j], homes) * stride)
        if i + AHEAD < n:
            prefetch(slots, home_slot(keys[i + AHEAD], homes) * stride)
        at = NOWHERE
        if has_more:
            at = search(more, more_sums, more_seen, False, stride, more_homes, keys[i])
        if at != NOWHERE:
            for d in range(dim):
                out[i, d] = more_words[at * TWO + TWO + np.uint64(d)]
        else:
            at = search(slots, sums, seen, checked, stride, homes, keys[i])
            if at == DAMAGED:
                return i
            for d in range(dim):
                out[i, d] = words[at * TWO + TWO + np.uint64(d)] if at != NOWHERE else F0
    return -1


@kernel
def place(index: Any, end: Any, keys: Any, weights: Any) -> Any:
    """Write rows behind those that are there: ``keys`` u64[n] rising, above all before, ``weights`` f32[n, dim].

    ``end`` is the number of the first slot behind the last row, 0 at first; what is returned is the next such, or
    -1 where the keys do not rise. In an index of 4 homes ``place(0, [2, 1 << 63]) == 3``: slots 0 and 2.
    """
    slots, words = index.slots, index.slots.view(np.float32)
    n, dim = weights.shape
    for i in range(n):
        if i > 0 and keys[i] <= keys[i - 1]:
            return -1
        at = max(end, np.int64(home_slot(keys[i], index.homes)))
        word = at * np.int64(index.stride)
        slots[word] = keys[i]
        for d in range(dim):
            words[word * 2 + 2 + d] = weights[i, d]
        end = at + 1
    return end


@kernel
def sum_pages(slots: Any, begin: int, end: int, sums: Any) -> None:
    """``sums`` u64[] of the pages ``begin`` to ``end``."""
    at = pointer(slots)
    for page in range(begin, end):
        sums[page] = page_sum(at, np.uint64(page))
