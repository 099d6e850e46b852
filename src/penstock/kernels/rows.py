"""Rows in memory: open addressing in segments, with key, value and optimizer state side by side.

A row is ``stride`` u64 wide: the key, then its f32 words, so that a row of one weight and two states fills
16 bytes, and one cache line holds four. ``at`` is a row's place in u64 units; its words start at
``words[2 * at + 2]``. Bit 0 of a stored key says that the row changed since the last ``take_changed``; the
same is noted in a bitmap, so that changed rows are found without reading the others.

Allocation and growth are decided in ``penstock.table``; here a full segment only makes a kernel return early.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.compile import (
    atomic_add,
    atomic_or,
    compare_and_swap,
    inlined,
    kernel,
    pointer,
)

__all__ = [
    "NOWHERE",
    "Rows",
    "find",
    "find_or_insert",
    "following",
    "home",
    "insert",
    "list_rows",
    "mark",
    "mark_changed",
    "read_words",
    "rehash",
    "take_changed",
    "unpack",
]

ZERO = np.uint64(0)
ONE = np.uint64(1)
TWO = np.uint64(2)
THREE = np.uint64(3)
SIX = np.uint64(6)
EIGHT = np.uint64(8)
LOW6 = np.uint64(63)
NOWHERE = np.uint64(0xFFFFFFFFFFFFFFFF)


class Rows(NamedTuple):
    """A table as kernels see it. ``keys`` and ``words`` are two views of one piece of memory."""

    keys: NDArray[np.uint64]
    words: NDArray[np.float32]
    bases: NDArray[np.uint64]
    """u64[segments]: where the segment begins, in u64 units."""
    masks: NDArray[np.uint64]
    """u64[segments]: ``2 * (slots - 1)``, so that ``key & mask`` is twice the slot where the search begins."""
    used: NDArray[np.int64]
    limit: NDArray[np.int64]
    """i64[segments]: a segment with this many rows takes no more until it has grown."""
    changed: NDArray[np.uint64]
    """Bitmap of 16-byte units of ``keys``."""
    halt: NDArray[np.uint8]
    """u8[1]: set when a segment is full, so that all threads come back."""
    stride: np.uint64
    shift: np.uint64
    """A key's segment is ``key >> shift``."""


class Pointers(NamedTuple):
    """``Rows`` inside a kernel: pointers instead of arrays."""

    keys: Any
    words: Any
    bases: Any
    masks: Any
    used: Any
    limit: Any
    changed: Any
    halt: Any
    stride: Any
    units: Any
    """Of 16 bytes, in a row."""
    shift: Any


@inlined
def unpack(rows: Any) -> Any:
    """The first line of a kernel that is given ``Rows``."""
    return Pointers(
        pointer(rows.keys),
        pointer(rows.words),
        pointer(rows.bases),
        pointer(rows.masks),
        pointer(rows.used),
        pointer(rows.limit),
        pointer(rows.changed),
        pointer(rows.halt),
        rows.stride,
        rows.stride >> ONE,
        rows.shift,
    )


@inlined
def home(rows: Any, key: Any) -> Any:
    """Where the search for a key begins."""
    segment = key >> rows.shift
    return rows.bases[segment] + (key & rows.masks[segment]) * rows.units


@inlined
def mark(rows: Any, at: Any) -> None:
    """Note that the row is about to change."""
    if rows.keys[at] & ONE == ZERO:
        atomic_or(rows.keys, at, ONE)
        atomic_or(rows.changed, at >> np.uint64(7), ONE << ((at >> ONE) & LOW6))


@inlined
def following(twice: Any, probes: Any, mask: Any) -> Any:
    """Twice the slot to look at next: round the four slots of a cache line first, then on to the next line."""
    twice = (twice & ~SIX) | ((twice + TWO) & SIX)
    if probes & THREE == ZERO:
        twice = (twice + EIGHT) & mask
    return twice


@inlined
def find(rows: Any, key: Any, start: Any) -> Any:
    """Place of the key's row, or NOWHERE."""
    at = start
    found = rows.keys[at]
    if (found | ONE) != (key | ONE):
        segment = key >> rows.shift
        base, mask = rows.bases[segment], rows.masks[segment]
        twice = key & mask
        probes = ZERO
        while (found | ONE) != (key | ONE):
            if found == ZERO:
                at = NOWHERE
                break
            probes += ONE
            twice = following(twice, probes, mask)
            at = base + twice * rows.units
            found = rows.keys[at]
    return at


@inlined
def find_or_insert(rows: Any, key: Any, start: Any) -> Any:
    """Place of the key's row, made if there was none; NOWHERE if the segment has to grow first.

    Memory of empty slots is zero, so a new row is complete before its key stands in it.
    """
    at = start
    found = rows.keys[at]
    if (found | ONE) != (key | ONE):
        segment = key >> rows.shift
        base, mask = rows.bases[segment], rows.masks[segment]
        twice = key & mask
        probes = ZERO
        while (found | ONE) != (key | ONE):
            if found == ZERO:
                if rows.used[segment] >= rows.limit[segment]:
                    rows.halt[0] = 1
                    at = NOWHERE
                    break
                found = compare_and_swap(rows.keys, at, ZERO, key)
                if found == ZERO:
                    atomic_add(rows.used, segment, np.int64(1))
                    break
                continue
            probes += ONE
            twice = following(twice, probes, mask)
            at = base + twice * rows.units
            found = rows.keys[at]
    return at


@kernel
def insert(rows: Any, keys: Any, words: Any, start: int) -> int:
    """Set the words (f32[n, w]) of the rows of ``keys``, as ``list_rows`` gave them; returns how far it came."""
    table = unpack(rows)
    for i in range(start, keys.size):
        at = find_or_insert(table, keys[i], home(table, keys[i]))
        if at == NOWHERE:
            return i
        for w in range(words.shape[1]):
            table.words[at * TWO + TWO + np.uint64(w)] = words[i, w]
    return keys.size  # type: ignore[no-any-return]


@kernel
def mark_changed(rows: Any, keys: Any) -> int:
    """Mark the rows of ``keys`` as changed; returns how many there are."""
    table = unpack(rows)
    found = 0
    for i in range(keys.size):
        at = find(table, keys[i], home(table, keys[i]))
        if at != NOWHERE:
            mark(table, at)
            found += 1
    return found


@kernel
def read_words(rows: Any, keys: Any, words: Any) -> int:
    """Copy the words of the rows of ``keys`` into ``words`` f32[n, w], zeros where none; returns rows found.

    The inverse of ``insert``.
    """
    table = unpack(rows)
    found = 0
    for i in range(keys.size):
        at = find(table, keys[i], home(table, keys[i]))
        for w in range(words.shape[1]):
            words[i, w] = np.float32(0) if at == NOWHERE else table.words[at * TWO + TWO + np.uint64(w)]
        found += at != NOWHERE
    return found


@kernel
def list_rows(rows: Any, segment: int, keys: Any, words: Any) -> int:
    """Copy a segment's rows into ``keys`` u64[n] and ``words`` f32[n, w], in no order; returns their number."""
    table = unpack(rows)
    base = table.bases[segment]
    slots: Any = np.int64(table.masks[segment] >> ONE) + 1
    n = 0
    for slot in range(slots):
        at = base + np.uint64(slot) * table.stride
        if table.keys[at] != ZERO:
            keys[n] = table.keys[at] & ~ONE
            for w in range(words.shape[1]):
                words[n, w] = table.words[at * TWO + TWO + np.uint64(w)]
            n += 1
    return n


@kernel
def take_changed(rows: Any, segment: int, keys: Any) -> int:
    """Keys of a segment's rows that changed since this was last called for it; returns their number."""
    table = unpack(rows)
    base = table.bases[segment]
    end = base + (table.masks[segment] + TWO) * table.units
    n = 0
    for cell in range(np.int64(base >> np.uint64(7)), np.int64((end + np.uint64(127)) >> np.uint64(7))):
        if table.changed[cell] == ZERO:
            continue
        for bit in range(64):
            at = (np.uint64(cell) << np.uint64(7)) + (np.uint64(bit) << ONE)
            if table.changed[cell] >> np.uint64(bit) & ONE and at >= base and at < end:
                keys[n] = table.keys[at] & ~ONE
                table.keys[at] &= ~ONE
                table.changed[cell] &= ~(ONE << np.uint64(bit))
                n += 1
    return n


@kernel
def rehash(rows: Any, old_base: Any, old_mask: Any, segment: int) -> None:
    """Move a segment's rows from where they were to its (empty) new place, with their marks of change.

    Rows that were where their search began go first, as they came first: on skewed data these are the ones that
    are asked for most, and so they stay where they are found at once (learning is 12 % slower otherwise).
    """
    table = unpack(rows)
    base, mask = table.bases[segment], table.masks[segment]
    slots: Any = np.int64(old_mask >> ONE) + 1
    for displaced in range(2):
        for slot in range(slots):
            old = old_base + np.uint64(slot) * table.stride
            found = table.keys[old]
            if found == ZERO or (found & old_mask != np.uint64(2 * slot)) != displaced:
                continue
            twice = found & mask
            probes = ZERO
            at = base + twice * table.units
            while table.keys[at] != ZERO:
                probes += ONE
                twice = following(twice, probes, mask)
                at = base + twice * table.units
            for w in range(np.int64(table.stride)):
                table.keys[at + np.uint64(w)] = table.keys[old + np.uint64(w)]
            if found & ONE:
                table.changed[old >> np.uint64(7)] &= ~(ONE << ((old >> ONE) & LOW6))
                table.changed[at >> np.uint64(7)] |= ONE << ((at >> ONE) & LOW6)
