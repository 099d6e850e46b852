"""Runs of moments by key against sorted lists and sums in plain Python, whatever the sizes of blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.windows import BITS, STATE, add, expire, look_up

Held = list[tuple[int, int, int]]


class Kept:
    """Arrays of a few keys, one column that is summed, and their oracle: time, known and value of each event."""

    def __init__(self, overs: list[int], keys: int, slots: int) -> None:
        self.overs = np.array(overs, np.int64)
        self.keys = (np.full(keys, -1), np.zeros(keys, np.int64), np.zeros(keys, np.int64))
        runs = 1 + len(overs)
        self.runs = (np.zeros((runs, slots), np.int64), np.zeros((runs, 4, slots), np.int64))
        self.state = np.array([0, 0, *[-1] * (STATE - 2)])
        self.held: dict[int, Held] = {key: [] for key in range(keys)}

    def add(self, events: list[tuple[int, int, int, int]]) -> None:
        ids, times, known = (np.array([event[n] for event in events], np.int64) for n in range(3))
        values = np.array([parts(event[3]) for event in events], np.int64).T.reshape(1, 4, -1).copy()
        done = 0
        while True:
            done += add(
                ids[done:], times[done:], known[done:], values[:, :, done:].copy(), self.overs, *self.arrays
            )
            if done == len(events):
                break
            self.runs = tuple(np.concatenate([array, np.zeros_like(array)], axis=-1) for array in self.runs)
        for key, *event in events:
            self.held[key].append(tuple(event))

    @property
    def arrays(self) -> tuple[object, object, object]:
        return self.keys, self.runs, self.state

    def run(self, key: int, run: int) -> list[int]:
        first, size = self.keys[0][key], self.keys[1][key]
        return self.runs[0][run, first + 1 : first + 1 + size].tolist()

    def moments(self, key: int, run: int) -> list[int]:
        over = 0 if run == 0 else int(self.overs[run - 1])
        return sorted(known if run == 0 else max(known, time + over) for time, known, _ in self.held[key])

    def check(self, at: int) -> None:
        for key, events in self.held.items():
            out = np.full((2 * len(self.overs), 4), -7)
            specs = np.array([(1 + n, column) for n in range(len(self.overs)) for column in (-1, 0)])
            assert look_up(key, at, specs, self.keys, self.runs, out) == self.keys[1][key]
            for n, over in enumerate(self.overs.tolist()):
                inside = [value for time, known, value in events if known <= at < max(known, time + over)]
                if self.keys[1][key]:
                    count, low, middle, high = out[2 * n + 1].tolist()
                    assert (out[2 * n, 0], count) == (len(inside), len(inside))
                    assert low + (middle << BITS) + (high << 2 * BITS) == sum(inside)
                else:
                    assert inside == []


def parts(value: int) -> list[int]:
    mask = (1 << BITS) - 1
    return [1, value & mask, value >> BITS & mask, value >> 2 * BITS]


def test_the_examples_in_the_docstrings() -> None:
    kept = Kept([10], 1, 16)
    kept.add([(0, 5, 5, 1), (0, 3, 3, 1), (0, 9, 9, 1)])
    assert (kept.run(0, 0), kept.run(0, 1)) == ([3, 5, 9], [13, 15, 19])
    out = np.zeros((1, 4), np.int64)
    assert look_up(0, 14, np.array([(1, -1)]), kept.keys, kept.runs, out) == 3
    assert out[0, 0] == 2
    assert expire(14, 0, *kept.arrays, np.zeros(1, np.int64)) == 0
    assert (kept.run(0, 0), kept.run(0, 1)) == ([5, 9], [15, 19])


event = st.tuples(
    st.integers(0, 2),
    st.integers(0, 40),
    st.integers(0, 9),
    st.sampled_from([0, 1, -1, 10**37, -(10**37), 1 << BITS]),
).map(lambda e: (e[0], e[1], e[1] + e[2], e[3]))


@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(st.lists(event, max_size=20), st.integers(0, 60)), max_size=6),
    slots=st.sampled_from([2, 64]),
)
def test_equal_to_lists(parts: list[tuple[list[tuple[int, int, int, int]], int]], slots: int) -> None:
    kept, before = Kept([12, 30], 3, slots), -1
    for events, forget in parts:
        kept.add([e for e in events if e[1] + 30 > max(e[2], before)])
        before = max(before, forget)
        gone = np.full(2, -1)
        for begin in (0, 2):
            count = expire(before, begin, *kept.arrays, gone)
            assert all(kept.keys[0][key] == -1 for key in gone[:count])
        for key, held in kept.held.items():
            left = sum(time + 30 > before for time, _, _ in held)
            assert kept.keys[1][key] == left
            for run in range(3):
                # Which of those that lie before went is all the same.
                found, expected = kept.run(key, run), kept.moments(key, run)[len(held) - left :]
                assert [max(m, before) for m in found] == [max(m, before) for m in expected]
        assert kept.state[1] == sum(kept.keys[1])
        for at in (before, before + 7, 45):
            if at >= before:
                kept.check(at)


def test_a_key_that_cools_gives_its_room_back() -> None:
    kept = Kept([10], 2, 4096)
    kept.add([(0, n, n, 1) for n in range(1000)])
    assert kept.keys[2][0] == 10
    expire(1007, 0, *kept.arrays, np.zeros(2, np.int64))
    assert (kept.keys[1][0], kept.keys[2][0]) == (2, 3)
    handed_out = kept.state[0]
    kept.add([(1, n, n, 1) for n in range(500)])
    assert kept.keys[2][1] == 9
    expire(2000, 0, *kept.arrays, np.zeros(2, np.int64))
    kept.held = {0: [], 1: []}
    kept.add([(1, n, n, 1) for n in range(5000, 6000)])
    assert kept.state[0] <= handed_out + 1024
    kept.check(6005)
