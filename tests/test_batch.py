"""The data contract: what ``SparseBatch.check`` lets through and what it does not."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.batch import SparseBatch


def good(**changes) -> SparseBatch:
    """Three examples: keys {2, 4}, {} and {4}."""
    fields = {
        "keys": np.array([4, 2, 4], np.uint64),
        "offsets": np.array([0, 2, 2, 3]),
        "labels": np.array([1, 0, 1], np.float32),
        "values": np.array([0.5, -1, 0], np.float32),
        "weights": np.array([1, 0, 2], np.float32),
    }
    return SparseBatch(**{**fields, **changes})


def test_a_good_batch_is_let_through():
    good().check()
    good(values=None, weights=None).check()
    assert (len(good()), good().nnz) == (3, 3)


def test_empty_batches_are_good():
    none = SparseBatch(keys=np.empty(0, np.uint64), offsets=np.zeros(1, np.int64), labels=np.empty(0, np.float32))
    none.check()
    assert (len(none), none.nnz) == (0, 0)
    dataclasses.replace(none, offsets=np.zeros(3, np.int64), labels=np.zeros(2, np.float32), width=0).check()


def test_the_same_key_may_stand_in_several_examples():
    good(keys=np.array([2, 4, 2], np.uint64)).check()


BROKEN = {
    "keys of another type": ({"keys": np.array([4, 2, 4])}, "keys must be a contiguous uint64[3], got int64[3]"),
    "keys with a stride": (
        {"keys": np.array([4, 0, 2, 0, 4, 0], np.uint64)[::2]},
        "keys must be a contiguous uint64[3], got uint64[3]",
    ),
    "two-dimensional keys": (
        {"keys": np.array([[4], [2], [4]], np.uint64)},
        "keys must be a contiguous uint64[3], got uint64[3, 1]",
    ),
    "an odd key": ({"keys": np.array([5, 2, 4], np.uint64)}, "keys must be even and not 0"),
    "key 0": ({"keys": np.array([4, 0, 4], np.uint64)}, "keys must be even and not 0"),
    "a key twice in an example": ({"keys": np.array([4, 4, 4], np.uint64)}, "a key stands twice in one example"),
    "offsets of another type": (
        {"offsets": np.array([0, 2, 2, 3], np.int32)},
        "offsets must be a contiguous int64[4], got int32[4]",
    ),
    "too few offsets": ({"offsets": np.array([0, 2, 3])}, "offsets must be a contiguous int64[4], got int64[3]"),
    "offsets from 1": ({"offsets": np.array([1, 2, 2, 3])}, "offsets must rise from 0 to nnz = 3, got [1 2 2 3]"),
    "offsets that end early": (
        {"offsets": np.array([0, 2, 2, 2])},
        "offsets must rise from 0 to nnz = 3, got [0 2 2 2]",
    ),
    "offsets that fall": (
        {"offsets": np.array([0, 3, 2, 3])},
        "offsets must rise from 0 to nnz = 3, got [0 3 2 3]",
    ),
    "labels of another type": (
        {"labels": np.array([1.0, 0, 1])},
        "labels must be a contiguous float32[3], got float64[3]",
    ),
    "a label 2": ({"labels": np.array([1, 2, 1], np.float32)}, "labels must be 0 or 1, got [1. 2.]"),
    "a label nan": ({"labels": np.array([1, np.nan, 1], np.float32)}, "labels must be 0 or 1, got [ 1. nan]"),
    "labels -1 and 1": ({"labels": np.array([1, -1, 1], np.float32)}, "labels must be 0 or 1, got [-1.  1.]"),
    "too few values": (
        {"values": np.zeros(2, np.float32)},
        "values must be a contiguous float32[3], got float32[2]",
    ),
    "values of another type": ({"values": np.zeros(3)}, "values must be a contiguous float32[3], got float64[3]"),
    "a value nan": ({"values": np.array([0, np.nan, 0], np.float32)}, "values must be finite"),
    "a value inf": ({"values": np.array([0, np.inf, 0], np.float32)}, "values must be finite"),
    "too many weights": (
        {"weights": np.ones(4, np.float32)},
        "weights must be a contiguous float32[3], got float32[4]",
    ),
    "a weight below 0": ({"weights": np.array([0, -1, 0], np.float32)}, "weights must be finite and >= 0"),
    "a weight nan": ({"weights": np.array([0, np.nan, 0], np.float32)}, "weights must be finite and >= 0"),
    "a weight inf": ({"weights": np.array([0, np.inf, 0], np.float32)}, "weights must be finite and >= 0"),
    "a width that is not theirs": ({"width": 1}, "width 1 but examples have [0 1 2] keys"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_each_broken_invariant_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        good(**changes).check()


@settings(deadline=None, max_examples=60)
@given(
    examples=st.lists(st.sets(st.integers(1, 9), max_size=4), max_size=8),
    cut=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    valued=st.booleans(),
    weighted=st.booleans(),
)
def test_a_slice_is_a_good_batch_of_those_examples(examples, cut, valued, weighted):
    keys = [2 * key for example in examples for key in sorted(example)]
    B, nnz = len(examples), len(keys)
    batch = SparseBatch(
        keys=np.array(keys, np.uint64),
        offsets=np.cumsum([0, *map(len, examples)]),
        labels=np.arange(B, dtype=np.float32) % 2,
        values=np.arange(nnz, dtype=np.float32) if valued else None,
        weights=np.arange(B, dtype=np.float32) if weighted else None,
    )
    batch.check()
    begin, end = sorted(min(at, B) for at in cut)
    part = batch.slice(begin, end)
    part.check()
    assert len(part) == end - begin
    for i in range(end - begin):
        mine, whole = slice(*part.offsets[i : i + 2]), slice(*batch.offsets[begin + i : begin + i + 2])
        assert part.keys[mine].tolist() == batch.keys[whole].tolist()
        assert part.labels[i] == batch.labels[begin + i]
        if valued:
            assert part.values[mine].tolist() == batch.values[whole].tolist()
        if weighted:
            assert part.weights[i] == batch.weights[begin + i]
    assert (part.values is None, part.weights is None) == (not valued, not weighted)
    if len(part.keys):
        assert np.shares_memory(part.keys, batch.keys)


def test_a_slice_keeps_the_width():
    batch = SparseBatch(
        keys=np.array([2, 4, 6, 8], np.uint64),
        offsets=np.array([0, 2, 4]),
        labels=np.zeros(2, np.float32),
        width=2,
    )
    batch.check()
    assert batch.slice(1, 2).width == 2
    batch.slice(1, 2).check()
