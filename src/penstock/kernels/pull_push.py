"""Pull and push: the rows of many keys at once, out of a table that no cache holds.

Keys are taken in blocks. The places of all rows of a block are found first, with memory asked for far ahead and
no branch on where in its cache line a row stands; then the rows are computed, in vectors where that is exact.
``kernels.rows`` says what a row is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, keep, kernel, pointer, prefetch
from penstock.kernels.optimizer import load_state, store_state, update, weight
from penstock.kernels.rows import (
    EIGHT,
    LOW6,
    NOWHERE,
    ONE,
    SIX,
    TWO,
    ZERO,
    find,
    find_or_insert,
    following,
    home,
    unpack,
)

__all__ = ["pull", "push", "weights"]

FOUR = np.uint64(4)
SEVEN = np.uint64(7)
F0 = np.float32(0)
AHEAD = 128
"""Keys whose places are asked for before they are needed, a power of two. To load them takes 3 ns a key in a table
of 400 MB, and 7 with 32."""
BLOCK = 256
"""Rows of 16 bytes that are looked up before they are computed; of wider ones fewer."""


@inlined
def mark_alone(rows: Any, at: Any) -> None:
    """``mark`` by the only thread on the table."""
    if rows.keys[at] & ONE == ZERO:
        rows.keys[at] |= ONE
        rows.changed[at >> np.uint64(7)] |= ONE << ((at >> ONE) & LOW6)


@inlined
def ask(rows: Any, keys: Any, i: Any, n: Any, starts: Any) -> None:
    """Ask for the place where the search for key i begins, if there is a key i, and note it."""
    if i < n:
        start = home(rows, keys[i])
        starts[i & (AHEAD - 1)] = start
        prefetch(rows.keys, start)


@inlined
def near(rows: Any, key: Any, start: Any) -> Any:
    """Place of the key's row if that is where most are, else some place without it.

    Of rows of 16 bytes it looks at all four of a cache line: where among them is guessed wrong too often.
    """
    at = start
    if rows.units == ONE:
        # A segment begins at a multiple of four slots, and so at a multiple of 8 in u64 units.
        line, wanted = start & ~SEVEN, key | ONE
        second = np.uint64((rows.keys[line + TWO] | ONE) == wanted)
        third = np.uint64((rows.keys[line + FOUR] | ONE) == wanted)
        fourth = np.uint64((rows.keys[line + SIX] | ONE) == wanted)
        at = line + second * TWO + third * FOUR + fourth * SIX
    return at


@inlined
def look_near(rows: Any, keys: Any, begin: Any, m: Any, n: Any, starts: Any, places: Any, far: Any) -> Any:
    """Places of those of m keys from number ``begin`` whose rows are ``near``; how many are in ``far``.

    The others get the place where their search begins, and their next line is asked for, so that all these
    searches go on side by side: one in 23 is there, and by itself each would wait for the memory. n is the number
    of all keys.
    """
    count: Any = 0
    for f in range(m):
        key, start = keys[begin + f], starts[(begin + f) & (AHEAD - 1)]
        ask(rows, keys, begin + f + AHEAD, n, starts)
        at = near(rows, key, start)
        places[f] = at
        far[count] = f
        count += np.int64((rows.keys[at] | ONE) != (key | ONE))
    for j in range(count):
        key = keys[begin + far[j]]
        segment = key >> rows.shift
        base, mask = rows.bases[segment], rows.masks[segment]
        places[far[j]] = base + (key & mask) * rows.units
        prefetch(rows.keys, base + following(key & mask, FOUR, mask) * rows.units)
    return count


@inlined
def ask_for_rest(rows: Any, places: Any, m: Any) -> None:
    """Ask for the lines of wide rows behind their first."""
    for f in range(m if rows.stride > EIGHT else 0):
        if places[f] != NOWHERE:
            for line in range(8, np.int64(rows.stride), 8):
                prefetch(rows.keys, places[f] + np.uint64(line))


@inlined
def block_of(rows: Any) -> Any:
    """Keys to look up at a time: their rows stay in the second-level cache until they are computed."""
    return max(np.int64(16), np.int64(2 * BLOCK) // np.int64(rows.stride))


@kernel
def weights(hyper: Any, words: Any, out: Any) -> None:
    """Weights ``out`` f32[n, dim] of rows outside of a table: of their words f32[n * w], as of ``list_rows``.

    SGD keeps the weight itself, so ``weights([0.5, 2]) == [[0.5], [2]]``.
    """
    flat = pointer(words)
    n, dim = out.shape
    step = np.uint64(dim)
    width = np.uint64(words.size // max(n, 1))
    for i in range(n):
        for d in range(dim):
            out[i, d] = weight(hyper, load_state(hyper, flat, np.uint64(i) * width + np.uint64(d), step))


@kernel
def pull(rows: Any, hyper: Any, keys: Any, out: Any) -> None:
    """Weights of keys, ``out`` f32[n, dim]; a key without a row has weights 0.

    With one row ``6 -> 0.5``: ``pull([6, 8]) == [[0.5], [0]]``.
    """
    table = unpack(rows)
    n, dim = keys.size, out.shape[1]
    k, o = pointer(keys), pointer(out)
    indices, numbers = np.empty(AHEAD + BLOCK, np.uint64), np.empty(BLOCK + 1, np.int64)
    starts, places, far = pointer(indices), pointer(indices[AHEAD:]), pointer(numbers)
    floats = np.empty(3 * BLOCK, np.float32)
    state, step, word = pointer(floats), np.int64(BLOCK), np.int64(1)
    block = block_of(table)
    for i in range(AHEAD):
        ask(table, k, i, n, starts)
    for begin in range(0, n, block):
        m = min(block, n - begin)
        for j in range(look_near(table, k, begin, m, n, starts, places, far)):
            places[far[j]] = find(table, k[begin + far[j]], places[far[j]])
        ask_for_rest(table, places, m)
        if dim == 1:
            for f in range(m):
                at = ZERO if places[f] == NOWHERE else places[f]
                row = load_state(hyper, table.words, np.int64(at * TWO + TWO), word)
                store_state(hyper, state, f, step, row)
            for f in range(m):
                w = weight(hyper, load_state(hyper, state, f, step))
                o[begin + f] = w if places[f] != NOWHERE else F0
        else:
            for f in range(m):
                to, at = (begin + f) * dim, places[f]
                if at == NOWHERE:
                    for d in range(dim):
                        o[to + d] = F0
                else:
                    first = np.int64(at * TWO + TWO)
                    for d in range(dim):
                        o[to + d] = weight(hyper, load_state(hyper, table.words, first + d, np.int64(dim)))
    keep(indices)
    keep(numbers)
    keep(floats)


@kernel
def push(rows: Any, hyper: Any, keys: Any, gradients: Any, start: int) -> int:
    """Apply ``gradients`` f32[n, dim] to the rows of ``keys`` from number ``start``; returns how far it came.

    Less than n says that a segment must grow. With SGD of rate 1 and no rows: ``push([6], [[2]])`` gives
    ``6 -> -2``. No other kernel may run on the table.
    """
    table = unpack(rows)
    n, dim = keys.size, gradients.shape[1]
    k, g = pointer(keys), pointer(gradients)
    indices, numbers = np.empty(AHEAD + BLOCK, np.uint64), np.empty(BLOCK + 1, np.int64)
    starts, places, far = pointer(indices), pointer(indices[AHEAD:]), pointer(numbers)
    floats = np.empty(4 * BLOCK, np.float32)
    state, w, step, word = pointer(floats), pointer(floats[3 * BLOCK :]), np.int64(BLOCK), np.int64(1)
    block = block_of(table)
    for i in range(start, start + AHEAD):
        ask(table, k, i, n, starts)
    for begin in range(start, n, block):
        m = min(block, n - begin)
        full = False
        for j in range(look_near(table, k, begin, m, n, starts, places, far)):
            f = far[j]
            places[f] = find_or_insert(table, k[begin + f], places[f])
            if places[f] == NOWHERE:
                m, full = f, True
                break
        ask_for_rest(table, places, m)
        rising, last = True, ZERO
        for f in range(m):
            rising &= last < k[begin + f]
            last = k[begin + f]
            mark_alone(table, places[f])
        if dim == 1 and rising:
            # No key is there twice, so all rows may be read before any is written, which makes vectors.
            for f in range(m):
                row = load_state(hyper, table.words, np.int64(places[f] * TWO + TWO), word)
                store_state(hyper, state, f, step, row)
            for f in range(m):
                w[f] = weight(hyper, load_state(hyper, state, f, step))
            for f in range(m):
                after = update(hyper, load_state(hyper, state, f, step), w[f], g[begin + f])
                store_state(hyper, state, f, step, after)
            for f in range(m):
                row = load_state(hyper, state, f, step)
                store_state(hyper, table.words, np.int64(places[f] * TWO + TWO), word, row)
        else:
            for f in range(m):
                first, from_ = np.int64(places[f] * TWO + TWO), (begin + f) * dim
                for d in range(dim):
                    before = load_state(hyper, table.words, first + d, np.int64(dim))
                    after = update(hyper, before, weight(hyper, before), g[from_ + d])
                    store_state(hyper, table.words, first + d, np.int64(dim), after)
        if full:
            n = begin + m
            break
    keep(indices)
    keep(numbers)
    keep(floats)
    return n  # type: ignore[no-any-return]
