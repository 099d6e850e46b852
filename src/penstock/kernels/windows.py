"""Moments in order by key, each with the totals up to it: what windows over events are looked up in.

A key has *runs*: the moments at which its events were added, and for each length of window those at which they
expire. Run r of a key is ``moments[r, s + 1 : s + 1 + n]``, rising, with ``s = start[key]``, ``n = length[key]``;
``totals[c, :, s + i]`` is what the first i events of a run come to, for column c = r F + f of F that are summed:
how many have a value, and the sum of the values in three parts of 43 bits, the highest signed. Slots are handed
out in blocks of a power of two; a key without events has none (``start`` -1).
"""

from __future__ import annotations

from typing import Any

from penstock.kernels.compile import inlined, kernel

__all__ = ["BITS", "LEVELS", "STATE", "add", "expire", "look_up"]

BITS = 43
"""Of the lower parts of a sum."""
LEVELS = 48
STATE = 2 + LEVELS
"""Length of ``state`` i64: slots handed out, events held, and for each size of block the first that is free (-1
for none), which has the place of the next in ``moments[0]``."""
_MASK = (1 << BITS) - 1


@inlined
def _allocate(level: Any, moments: Any, state: Any) -> Any:
    """Where a block of 2^level slots begins; -1 where there is no room."""
    block: Any = state[2 + level]
    if block >= 0:
        state[2 + level] = moments[0, block]
    elif state[0] + (1 << level) <= moments.shape[1]:
        block = state[0]
        state[0] += 1 << level
    return block


@inlined
def _free(block: Any, level: Any, moments: Any, state: Any) -> None:
    moments[0, block] = state[2 + level]
    state[2 + level] = block


@inlined
def _move(old: Any, new: Any, slots: Any, moments: Any, totals: Any) -> None:
    for r in range(moments.shape[0]):
        for j in range(slots):
            moments[r, new + j] = moments[r, old + j]
    for c in range(totals.shape[0]):
        for part in range(4):
            for j in range(slots):
                totals[c, part, new + j] = totals[c, part, old + j]


@kernel
def add(ids: Any, times: Any, known: Any, values: Any, overs: Any, keys: Any, runs: Any, state: Any) -> int:
    """Add events to their keys; returns how many were, fewer than there are where there is no room for the next.

    Args: ``ids`` of keys, ``times`` of the events, from when on they are ``known``, all i64[n]; ``values`` i64[F,
    4, n] as in ``totals``; lengths of windows ``overs`` i64[R - 1], rising; ``keys`` is (start, length, level),
    i64[K] each, where a block has 2^level slots; ``runs`` is (moments i64[R, N], totals i64[R F, 4, N]). Of events
    at 5, 3 and 9, known at once, and windows of 10, a key then has the runs [3, 5, 9] and [13, 15, 19].
    """
    start, length, level = keys
    moments, totals = runs
    columns = values.shape[0]
    for i in range(ids.size):
        key = ids[i]
        size: Any = length[key]
        if start[key] < 0 or size + 1 == 1 << level[key]:
            wanted = 1 if start[key] < 0 else level[key] + 1
            block: Any = _allocate(wanted, moments, state)
            if block < 0:
                return i
            if start[key] < 0:
                totals[:, :, block] = 0
            else:
                _move(start[key], block, size + 1, moments, totals)
                _free(start[key], level[key], moments, state)
            start[key] = block
            level[key] = wanted
        first = start[key]
        for r in range(moments.shape[0]):
            moment = known[i] if r == 0 else max(known[i], times[i] + overs[r - 1])
            j: Any = first + size
            while j > first and moments[r, j] > moment:
                moments[r, j + 1] = moments[r, j]
                j -= 1
            moments[r, j + 1] = moment
            for f in range(columns):
                c = r * columns + f
                for slot in range(first + size, j - 1, -1):
                    low = totals[c, 1, slot] + values[f, 1, i]
                    mid = totals[c, 2, slot] + values[f, 2, i] + (low >> BITS)
                    totals[c, 0, slot + 1] = totals[c, 0, slot] + values[f, 0, i]
                    totals[c, 1, slot + 1] = low & _MASK
                    totals[c, 2, slot + 1] = mid & _MASK
                    totals[c, 3, slot + 1] = totals[c, 3, slot] + values[f, 3, i] + (mid >> BITS)
        length[key] = size + 1
        state[1] += 1
    events: int = ids.size
    return events


@kernel
def expire(before: Any, begin: Any, keys: Any, runs: Any, state: Any, gone: Any) -> int:
    """Let go of what has expired by ``before``, of as many keys from ``begin`` on as ``gone`` i64 has room for.

    Returns how many keys have no event any more, which go to ``gone``. Where the longest window of n events has
    ended, n moments at least of each run lie before, so the first n of each go, and no difference of totals
    changes: of the runs [3, 5, 9] and [13, 15, 19], 14 leaves [5, 9] and [15, 19].
    """
    start, length, level = keys
    moments, totals = runs
    last = moments.shape[0] - 1
    found = 0
    for key in range(begin, min(begin + gone.size, start.size)):
        first, size = start[key], length[key]
        count = 0
        while count < size and moments[last, first + 1 + count] <= before:
            count += 1
        if count == 0:
            continue
        state[1] -= count
        length[key] = size - count
        if count == size:
            _free(first, level[key], moments, state)
            start[key] = -1
            gone[found] = key
            found += 1
            continue
        _move(first + count, first, size + 1 - count, moments, totals)
        # A key that has cooled gives its room back.
        smaller: Any = level[key]
        while smaller > 1 and 4 * (size + 1 - count) <= 1 << smaller:
            smaller -= 1
        block = _allocate(smaller, moments, state) if smaller < level[key] else -1
        if block >= 0:
            _move(first, block, size + 1 - count, moments, totals)
            _free(first, level[key], moments, state)
            start[key] = block
            level[key] = smaller
    return found


@kernel
def look_up(key: Any, at: Any, specs: Any, keys: Any, runs: Any, out: Any) -> int:
    """What is in a key's windows at a moment, into ``out`` i64[S, 4]; ``specs`` i64[S, 2] are (run, column).

    Returns how many events the key has; for none ``out`` is left alone. Of column -1 ``out`` has the number of
    events; else, as in ``totals``, how many have a value, and the parts of their sum, where the lower ones may be
    below 0. Of the runs [3, 5, 9] and [13, 15, 19] there are 2 events at 14: three have begun, and one has ended.
    """
    start, length, _ = keys
    moments, totals = runs
    columns = totals.shape[0] // moments.shape[0]
    first, size = start[key], length[key]
    if size == 0:
        return 0
    begun: Any = 0
    for s in range(-1, specs.shape[0]):
        run = specs[s, 0] if s >= 0 else 0
        low: Any = 0
        high: Any = size
        while low < high:
            middle = (low + high) // 2
            if moments[run, first + 1 + middle] <= at:
                low = middle + 1
            else:
                high = middle
        if s < 0:
            begun = low
        elif specs[s, 1] < 0:
            out[s, 0] = begun - low
        else:
            added, expired = specs[s, 1], run * columns + specs[s, 1]
            for part in range(4):
                out[s, part] = totals[added, part, first + begun] - totals[expired, part, first + low]
    events: int = size
    return events
