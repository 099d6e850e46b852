"""Looking up weights, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.kernels.index import Index, place, pull

NO_SUMS, NO_SEEN = np.empty(0, np.uint64), np.empty(0, np.uint8)


def index_of(rows: dict[int, list[float]], homes: int, dim: int = 1) -> Index:
    stride = 1 + (dim + 1) // 2
    slots = np.zeros((homes + len(rows) + 1) * stride, np.uint64)
    index = Index(slots, np.uint64(homes), np.uint64(stride), NO_SUMS, NO_SEEN)
    keys = np.array(sorted(rows), np.uint64)
    weights = np.array([rows[key] for key in sorted(rows)], np.float32).reshape(len(rows), dim)
    assert place(index, 0, keys, weights) <= homes + len(rows)
    return index


def u64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


EMPTY = index_of({}, 1)


def test_the_examples_in_the_docstrings():
    out = np.empty((3, 1), np.float32)
    assert pull(index_of({6: [1], 8: [2]}, 4), index_of({8: [3]}, 2), u64(6, 8, 4), out) == -1
    assert out[:, 0].tolist() == [1, 3, 0]
    index = index_of({}, 4)
    index = index._replace(slots=np.zeros(14, np.uint64))
    assert place(index, 0, u64(2, 1 << 63), np.ones((2, 1), np.float32)) == 3
    assert index.slots.tolist()[::2] == [2, 0, 1 << 63, 0, 0, 0, 0]


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("homes", [1, 7, 64, 1000])
def test_each_key_is_found_with_its_weights_and_no_other_is(dim: int, homes: int):
    draw = np.random.default_rng(homes + dim)
    keys = np.unique(draw.integers(1, 1 << 63, 200, dtype=np.uint64) * np.uint64(2))
    rows = {int(key): draw.normal(size=dim).tolist() for key in keys}
    over = {int(key): draw.normal(size=dim).tolist() for key in [*keys[::7], 4, (1 << 64) - 2]}
    asked = u64(*keys.tolist(), *(keys + np.uint64(2)).tolist(), 2, 4, (1 << 64) - 2)
    for above in ({}, over):
        out = np.full((len(asked), dim), np.nan, np.float32)
        assert pull(index_of(rows, homes, dim), index_of(above, 16, dim) if above else EMPTY, asked, out) == -1
        expected = [above.get(key, rows.get(key, [0.0] * dim)) for key in asked.tolist()]
        np.testing.assert_array_equal(out, np.array(expected, np.float32))


def test_keys_that_do_not_rise_are_told():
    index = index_of({}, 8)
    assert place(index, 0, u64(4, 4), np.ones((2, 1), np.float32)) == -1
