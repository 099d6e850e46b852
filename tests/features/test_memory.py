"""Arrays that are used again: one piece of memory a name, never shared between names, and never too small."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.memory import Memory


def test_what_is_asked_for_again_lies_where_it_lay() -> None:
    memory = Memory()
    first = memory.array("keys", (1000,), np.uint64)
    first[:] = 7
    again = memory.array("keys", (1000,), np.uint64)
    assert again.ctypes.data == first.ctypes.data
    assert (again == 7).all()
    # Smaller, of another type, or a little larger: no new memory.
    for shape, dtype in (((3,), np.uint64), ((10, 100), np.float32), ((1100,), np.int64), ((0, 5), np.float64)):
        assert memory.array("keys", shape, dtype).ctypes.data == first.ctypes.data


def test_more_than_there_is_gets_new_memory_and_leaves_the_old_alone() -> None:
    memory = Memory()
    first = memory.array("keys", (10,), np.int64)
    first[:] = 1
    second = memory.array("keys", (1000,), np.int64)
    second[:] = 2
    assert not np.shares_memory(first, second) and (first == 1).all()
    assert memory.array("keys", (10,), np.int64).ctypes.data == second.ctypes.data


def test_names_and_memories_share_nothing() -> None:
    one, other = Memory(), Memory()
    arrays = [memory.array(name, (64,), np.uint8) for memory in (one, other) for name in ("keys", "values")]
    for i, array in enumerate(arrays):
        array[:] = i
    assert [set(array.tolist()) for array in arrays] == [{0}, {1}, {2}, {3}]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.lists(st.integers(0, 40), min_size=1, max_size=2),
            st.sampled_from([np.uint8, np.bool_, np.int32, np.float32, np.uint64, np.float64]),
        ),
        max_size=20,
    )
)
def test_arrays_of_different_names_hold_what_was_written_to_them(asked):
    memory = Memory()
    newest: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, (name, shape, dtype) in enumerate(asked):
        array = memory.array(name, tuple(shape), dtype)
        assert (array.shape, array.dtype) == (tuple(shape), dtype)
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % array.itemsize == 0
        array[:] = i % 2 if dtype == np.bool_ else i
        newest[name] = (array, array.copy())
        for array, want in newest.values():
            np.testing.assert_array_equal(array, want)
