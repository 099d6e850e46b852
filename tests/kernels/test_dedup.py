"""Distinct keys against ``np.unique``, whatever the keys look like."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import dedup
from penstock.kernels.dedup import Scratch, collect, distinct


def u64(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def hashes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1 << 63, n, dtype=np.uint64) << np.uint64(1)


def collected(keys: np.ndarray, scratch: Scratch) -> tuple[list[int], list[int]] | None:
    index = np.full(len(keys), -9, np.int64)
    count = collect(keys, scratch.slots, scratch.ranks, scratch.unique, scratch.places, index)
    assert not scratch.slots.any()
    return None if count < 0 else (scratch.unique[:count].tolist(), index.tolist())


def expected(keys: np.ndarray) -> tuple[list[int], list[int]]:
    unique, index = np.unique(keys, return_inverse=True)
    return unique.tolist(), index.tolist()


def test_the_example_of_collect_in_its_docstring():
    assert collected(u64(8, 2, 8), Scratch(3)) == ([2, 8], [1, 0, 1])


def test_the_example_of_distinct_in_its_docstring():
    unique, index = distinct(u64(8, 2, 8))
    assert (unique.tolist(), index.tolist()) == ([2, 8], [1, 0, 1])
    assert (unique.dtype, index.dtype) == (np.uint64, np.int64)


def test_no_key_and_one_key():
    assert [part.tolist() for part in distinct(u64())] == [[], []]
    assert [part.tolist() for part in distinct(u64((1 << 64) - 2))] == [[(1 << 64) - 2], [0]]


def test_a_batch_of_repeated_hashes_is_collected_without_sorting():
    pool, rng = hashes(700, 0), np.random.default_rng(1)
    scratch = Scratch(2000)
    for _ in range(3):
        keys = pool[(700 * rng.random(2000) ** 3).astype(int)]
        assert collected(keys, scratch) == expected(keys)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 1000, 1365, 1366])
def test_hashes_that_are_all_distinct_are_collected_without_sorting(n):
    keys = hashes(n, n)
    assert len(np.unique(keys)) == n
    assert collected(keys, Scratch(n)) == expected(keys)


def test_dense_keys_are_collected_without_sorting():
    keys = np.random.default_rng(0).permutation(1500).astype(np.uint64) * np.uint64(2) + np.uint64(2)
    assert collected(keys, Scratch(1500)) == expected(keys)


CROWDS = {
    "far away from one": np.append(hashes(999, 0) >> np.uint64(40) << np.uint64(1), np.uint64(1 << 63)),
    "at the end": np.append(~(hashes(999, 0) >> np.uint64(40) << np.uint64(1)) - np.uint64(1), np.uint64(2)),
}


@pytest.mark.parametrize("name", CROWDS)
def test_keys_that_crowd_are_given_up_soon_and_sorted(name):
    keys, scratch = CROWDS[name], Scratch(1000)
    assert collected(keys, scratch) is None
    unique, index = distinct(keys)
    assert (unique.tolist(), index.tolist()) == expected(keys)


def test_a_key_of_0_is_no_empty_slot():
    assert [part.tolist() for part in distinct(u64(4, 0, 4, 0))] == [[0, 4], [1, 0, 1, 0]]


@settings(deadline=None, max_examples=60)
@given(
    high=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=6),
    picks=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 70)), max_size=150),
)
def test_any_keys_give_what_numpy_gives(high, picks):
    keys = u64(*((high[h % len(high)] + 2 * low) % (1 << 64) for h, low in picks))
    unique, index = distinct(keys)
    assert (unique.tolist(), index.tolist()) == expected(keys)


def test_results_stay_when_memory_is_used_again():
    first, second = hashes(500, 1), hashes(400, 2)
    unique, index = distinct(first)
    distinct(second)
    assert (unique.tolist(), index.tolist()) == expected(first)


def test_every_second_key_of_an_array_will_do():
    keys = hashes(300, 3)[::2]
    unique, index = distinct(keys)
    assert (unique.tolist(), index.tolist()) == expected(keys)


def test_memory_for_a_batch_of_unusual_size_is_not_kept(monkeypatch):
    monkeypatch.setattr(dedup, "MOST_KEPT", 50)
    distinct(hashes(50, 0))
    kept = dedup._local.scratch
    keys = hashes(5000, 1)
    assert [part.tolist() for part in distinct(keys)] == list(expected(keys))
    assert dedup._local.scratch is kept


def test_threads_do_not_share_memory():
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        pool = hashes(900, seed)
        keys = pool[np.random.default_rng(seed).integers(0, 900, 3000)]
        want = expected(keys)
        start.wait(timeout=30)
        for _ in range(100):
            unique, index = distinct(keys)
            if (unique.tolist(), index.tolist()) != want:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
