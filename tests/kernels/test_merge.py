"""Sums of sparse gradients against a dict, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.merge import add_rows, merge_values, sum_sorted

Part = tuple[np.ndarray, np.ndarray]


def u64(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def f32(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def sum_oracle(parts: list[Part]) -> dict[int, np.ndarray]:
    """Key by key, in the order of the parts; a key's first row is taken as it is."""
    sums: dict[int, np.ndarray] = {}
    for keys, grads in parts:
        for key, row in zip(keys.tolist(), grads, strict=True):
            sums[key] = sums[key] + row if key in sums else row
    return dict(sorted(sums.items()))


def assert_equals_oracle(parts: list[Part]) -> None:
    keys, sums = sum_sorted(parts)
    expected = sum_oracle(parts)
    assert (keys.dtype, sums.dtype) == (np.uint64, np.float32)
    assert keys.tolist() == list(expected)
    rows = np.array(list(expected.values()), np.float32).reshape(len(keys), parts[0][1].shape[1])
    assert sums.tobytes() == rows.tobytes()


def test_the_example_of_merge_values_in_its_docstring():
    keys, values = np.zeros(4, np.uint64), np.zeros(4, np.float32)
    assert merge_values(u64(2, 6), f32(1, 2), u64(6, 8), f32(3, 4), keys, values) == 3
    assert (keys.tolist(), values.tolist()) == ([2, 6, 8, 0], [1, 5, 4, 0])


def test_the_example_of_add_rows_in_its_docstring():
    sums = f32([1, 1], [1, 1])
    add_rows(f32([3, 1]), np.array([1]), sums)
    assert sums.tolist() == [[1, 1], [4, 2]]


def test_the_example_of_sum_sorted_in_its_docstring():
    keys, sums = sum_sorted([(u64(2, 6), f32([1], [2])), (u64(6), f32([3]))])
    assert (keys.tolist(), sums.tolist()) == ([2, 6], [[1], [5]])


@pytest.mark.parametrize("dim", [1, 2])
def test_order_of_addition_is_that_of_the_list(dim):
    # 2^24 + 1 is no f32, so the order shows: (2^24 + 1) + 1 is 2^24, (1 + 1) + 2^24 is 2^24 + 2.
    big, one = (u64(2), np.full((1, dim), 2.0**24, np.float32)), (u64(2), np.ones((1, dim), np.float32))
    assert sum_sorted([big, one, one])[1].tolist() == [[2.0**24] * dim]
    assert sum_sorted([one, one, big])[1].tolist() == [[2.0**24 + 2] * dim]


@pytest.mark.parametrize("dim", [1, 2])
def test_a_part_without_the_key_leaves_even_minus_0_and_nan(dim):
    odd = np.repeat(f32([-0.0], [np.inf], [np.nan], [1e-45]), dim, axis=1)
    keys, others = u64(2, 6, 10, 14), u64(4, 8, 12, 16)
    assert_equals_oracle([(keys, odd), (others, np.ones_like(odd))])
    assert_equals_oracle([(others, np.ones_like(odd)), (keys, odd), (others, odd)])


def test_one_part_is_returned_as_it_is():
    part = (u64(2), f32([1]))
    assert sum_sorted([part])[1] is part[1]


def test_no_part_is_refused():
    with pytest.raises(ValueError, match=r"^sum_sorted needs at least one part, got none$"):
        sum_sorted([])


@settings(deadline=None, max_examples=80)
@given(
    dim=st.sampled_from([1, 2, 8]),
    drawn=st.lists(st.sets(st.integers(1, 30), max_size=20), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_parts_are_summed_in_their_order(dim, drawn, seed):
    rng = np.random.default_rng(seed)
    parts = []
    for numbers in drawn:
        keys = np.array(sorted(n << 59 for n in numbers), np.uint64)
        scale = 10.0 ** rng.integers(-6, 6, (len(keys), 1))
        parts.append((keys, (rng.normal(size=(len(keys), dim)) * scale).astype(np.float32)))
    copies = [(keys.copy(), grads.copy()) for keys, grads in parts]
    assert_equals_oracle(parts)
    for part, copy in zip(parts, copies, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(part, copy, strict=True))  # inputs are only read
