"""Row kernels on small hand-made tables, against a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import pull_push
from penstock.kernels import rows as kernels
from penstock.kernels.rows import Rows
from penstock.optim import FTRL, SGD, AdaGrad

PLUS = SGD(alpha=1.0)  # a gradient of -g adds g exactly
TWO_SEGMENTS = np.uint64(63)


def make_rows(*, log2_slots: int = 6, stride: int = 2, limit: int = 48) -> Rows:
    """Two segments, the second right behind the first."""
    slots = 1 << log2_slots
    keys = np.zeros(2 * slots * stride, np.uint64)
    return Rows(
        keys=keys,
        words=keys.view(np.float32),
        bases=np.array([0, slots * stride], np.uint64),
        masks=np.full(2, 2 * (slots - 1), np.uint64),
        used=np.zeros(2, np.int64),
        limit=np.full(2, limit),
        changed=np.zeros(-(-keys.size // 128), np.uint64),
        halt=np.zeros(1, np.uint8),
        stride=np.uint64(stride),
        shift=TWO_SEGMENTS,
    )


def u64(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def push(rows: Rows, keys: np.ndarray, gradients: list[list[float]], start: int = 0) -> int:
    return pull_push.push(rows, PLUS.hyper(), keys, np.array(gradients, np.float32), start)


def pull(rows: Rows, keys: np.ndarray, dim: int = 1) -> list[list[float]]:
    out = np.full((len(keys), dim), 9, np.float32)
    pull_push.pull(rows, PLUS.hyper(), keys, out)
    return out.tolist()


def in_segment(segment: int, slot: int, nth: int = 0, log2_slots: int = 6) -> int:
    """The nth key whose search begins at this slot of this segment."""
    return segment << 63 | (nth + 1) << 40 | slot << 1


def stored(rows: Rows) -> dict[int, list[float]]:
    found = {}
    for segment in range(2):
        keys = np.zeros(rows.used[segment], np.uint64)
        words = np.zeros((len(keys), 2 * int(rows.stride) - 2), np.float32)
        assert kernels.list_rows(rows, segment, keys, words) == len(keys)
        assert (keys >> rows.shift == segment).all()
        found |= dict(zip(keys.tolist(), words.tolist(), strict=True))
    return found


def taken(rows: Rows) -> list[int]:
    found = []
    for segment in range(2):
        keys = np.zeros(64, np.uint64)
        found += keys[: kernels.take_changed(rows, segment, keys)].tolist()
    return sorted(found)


def test_the_examples_of_pull_and_push_in_their_docstrings():
    rows = make_rows()
    assert push(rows, u64(6), [[-0.5]]) == 1
    assert pull(rows, u64(6, 8)) == [[0.5], [0.0]]
    rows = make_rows()
    assert push(rows, u64(6), [[2]]) == 1
    assert pull(rows, u64(6)) == [[-2]]


def test_a_key_in_a_batch_twice_is_pushed_twice_in_the_tiny_case():
    rows = make_rows()
    push(rows, u64(6, 6, 2), [[1], [2], [5]])
    assert pull(rows, u64(2, 6)) == [[-5], [-3]]
    assert rows.used.tolist() == [2, 0]


def test_push_begins_at_start_in_the_tiny_case():
    rows = make_rows()
    assert push(rows, u64(2, 4, 6), [[1], [2], [3]], start=2) == 3
    assert sorted(stored(rows)) == [6]


def test_insert_list_and_read_are_inverse_in_the_tiny_case():
    rows = make_rows()
    keys, words = u64(2, 1 << 63 | 4), np.array([[1, 2], [3, 4]], np.float32)
    assert kernels.insert(rows, keys, words, 0) == 2
    assert stored(rows) == {2: [1, 2], 1 << 63 | 4: [3, 4]}
    out = np.full((3, 2), 9, np.float32)
    assert kernels.read_words(rows, u64(4, 1 << 63 | 4, 2), out) == 2
    assert out.tolist() == [[0, 0], [3, 4], [1, 2]]


def test_changed_rows_are_taken_once_in_the_tiny_case():
    rows = make_rows()
    push(rows, u64(2, 1 << 63 | 4, 6), [[1], [2], [3]])
    assert taken(rows) == [2, 6, 1 << 63 | 4]
    assert taken(rows) == []
    push(rows, u64(6), [[1]])
    assert taken(rows) == [6]
    assert pull(rows, u64(6)) == [[-4]]  # the mark is no part of the key
    assert not (rows.keys[::2] & np.uint64(1)).any()


def test_inserted_rows_count_as_unchanged_in_the_tiny_case():
    rows = make_rows()
    kernels.insert(rows, u64(2), np.ones((1, 2), np.float32), 0)
    assert taken(rows) == []


@pytest.mark.parametrize("slot", [0, 1, 3, 60, 63])
def test_keys_that_begin_at_one_slot_all_find_a_place_within_their_segment(slot):
    rows = make_rows(limit=64)
    keys = u64(*(in_segment(0, slot, nth) for nth in range(48)))
    assert push(rows, keys, [[-i] for i in range(48)]) == 48
    assert pull(rows, keys) == [[i] for i in range(48)]
    assert pull(rows, u64(in_segment(0, slot, 48), in_segment(1, slot, 0))) == [[0], [0]]
    assert rows.used.tolist() == [48, 0]
    assert not rows.keys[128:].any()  # the second segment is untouched


def test_the_four_slots_of_a_cache_line_come_first():
    rows = make_rows()
    keys = u64(*(in_segment(0, 6, nth) for nth in range(5)))
    push(rows, keys, [[1]] * 5)
    slots = {int(key): at // 2 for at, key in enumerate(rows.keys & ~np.uint64(1)) if at % 2 == 0 and key}
    assert [slots[int(key)] for key in keys] == [6, 7, 4, 5, 10]


def test_a_full_segment_stops_the_kernel_until_it_has_grown():
    rows = make_rows(limit=3)
    keys = u64(*(in_segment(0, 0, nth) for nth in range(4)), in_segment(1, 0))
    gradients = [[1]] * 5
    assert push(rows, keys, gradients) == 3
    assert rows.halt.tolist() == [1]
    assert rows.used.tolist() == [3, 0]
    assert pull(rows, keys) == [[-1], [-1], [-1], [0], [0]]
    rows.limit[0] = 4
    assert push(rows, keys, gradients, start=3) == 5
    assert pull(rows, keys) == [[-1]] * 5


def test_a_key_with_a_row_can_be_pushed_to_a_full_segment():
    rows = make_rows(limit=2)
    push(rows, u64(2, 4), [[1], [1]])
    assert push(rows, u64(2, 4, 2), [[1], [1], [1]]) == 3
    assert rows.halt.tolist() == [0]
    assert kernels.insert(rows, u64(2, 6), np.ones((2, 2), np.float32), 0) == 1
    assert rows.halt.tolist() == [1]


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_rows_of_every_width_keep_to_themselves(dim):
    stride = (2 + dim + 3) // 4 * 2
    rows = make_rows(stride=stride)
    keys = u64(*(in_segment(s, slot) for s in (0, 1) for slot in range(0, 64, 3)))
    gradients = np.arange(len(keys) * dim, dtype=np.float32).reshape(-1, dim)
    assert push(rows, keys, gradients.tolist()) == len(keys)
    assert pull(rows, keys, dim) == (-gradients).tolist()
    changed = u64(keys[0], keys[-1])
    assert taken(rows) == sorted(keys.tolist())
    push(rows, changed, np.ones((2, dim)).tolist())
    assert taken(rows) == sorted(changed.tolist())


def test_states_of_a_row_stand_dim_words_apart():
    ftrl, dim = FTRL(alpha=0.5, beta=1.0), 3
    rows = make_rows(stride=4)
    gradient = np.array([[1, -2, 3]], np.float32)
    pull_push.push(rows, ftrl.hyper(), u64(6), gradient, 0)
    # z is the gradient while the weight is 0; n is its square.
    assert stored(rows) == {6: [1, -2, 3, 1, 4, 9]}
    out = np.zeros((1, dim), np.float32)
    pull_push.pull(rows, ftrl.hyper(), u64(6), out)
    np.testing.assert_allclose(out, [[-1 / 4, 2 / 6, -3 / 8]], rtol=1e-6)


def move_to_larger(rows: Rows, segment: int) -> Rows:
    """The same rows with one segment at a new place of twice the slots, behind all that was there."""
    size, base, mask = rows.keys.size, rows.bases[segment], rows.masks[segment]
    keys = np.zeros(size + int(rows.stride) * (int(mask) + 2), np.uint64)
    keys[:size] = rows.keys
    changed = np.zeros(-(-keys.size // 128), np.uint64)
    changed[: rows.changed.size] = rows.changed
    bases, masks = rows.bases.copy(), rows.masks.copy()
    bases[segment], masks[segment] = size, 2 * (int(mask) + 1)
    grown = rows._replace(keys=keys, words=keys.view(np.float32), changed=changed, bases=bases, masks=masks)
    kernels.rehash(grown, base, mask, segment)
    return grown


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_rehash_moves_rows_with_their_marks(stride):
    rows = make_rows(stride=stride)
    width = 2 * stride - 2
    keys = u64(*(in_segment(s, slot, nth) for s in (0, 1) for slot in (0, 5, 63) for nth in range(5)))
    words = np.arange(len(keys) * width, dtype=np.float32).reshape(-1, width)
    kernels.insert(rows, keys, words, 0)
    changed = keys[::3].copy()
    push(rows, changed, np.zeros((len(changed), 1)).tolist())
    expected = stored(rows)
    grown = move_to_larger(rows, 0)
    assert stored(grown) == expected
    out = np.zeros_like(words)
    assert kernels.read_words(grown, keys, out) == len(keys)
    # Marks of the old place are gone, since other rows may come to lie there.
    assert not grown.changed[: stride // 2].any()
    assert taken(grown) == sorted(changed.tolist())
    assert not grown.changed.any()


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_weights_of_rows_outside_of_a_table(n, dim):
    words = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    out = np.full((n, dim), 9, np.float32)
    pull_push.weights(PLUS.hyper(), words.reshape(-1), out)
    np.testing.assert_array_equal(out, words)
    z, counts = words, np.abs(words)
    pull_push.weights(FTRL(alpha=0.5, beta=2.0).hyper(), np.concatenate([z, counts], axis=1).reshape(-1), out)
    np.testing.assert_allclose(out, -z * 0.5 / (2 + np.sqrt(counts)), rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["push", "take", "move"]),
            st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.integers(-4, 4)), max_size=12),
        ),
        max_size=8,
    )
)
def test_any_sequence_leaves_what_a_dict_would_hold(steps):
    rows, model, changed = make_rows(limit=63), {}, set()
    for what, items in steps:
        if what == "push":
            keys = u64(*(n << 1 | int(high) << 63 for n, high, _ in items))
            assert push(rows, keys, np.array([[g] for *_, g in items]).reshape(-1, 1)) == len(keys)
            for key, (*_, g) in zip(keys.tolist(), items, strict=True):
                model[key] = model.get(key, 0) - g
                changed.add(key)
        elif what == "take":
            assert taken(rows) == sorted(changed)
            changed.clear()
        else:
            rows = move_to_larger(rows, len(items) % 2)
        assert rows.used.sum() == len(model)
        assert {key: words[0] for key, words in stored(rows).items()} == model
    assert taken(rows) == sorted(changed)


@pytest.mark.parametrize("order", ["rising", "mixed"])
@pytest.mark.parametrize(("dim", "stride"), [(1, 2), (1, 4), (3, 4), (8, 10), (40, 42)])
def test_many_keys_are_looked_up_side_by_side(dim, stride, order):
    rng = np.random.default_rng(dim)
    rows = make_rows(log2_slots=10, stride=stride, limit=1000)
    # Few homes for many keys, so that many rows lie behind the line where their search begins.
    pool = np.array(
        [in_segment(s, slot, nth, 10) for s in (0, 1) for slot in range(0, 1024, 8) for nth in range(7)]
    )
    pool = pool.astype(np.uint64)
    model: dict[int, np.ndarray] = {}
    for step in range(4):
        keys = rng.choice(pool, 1100, replace=order == "mixed")
        if order == "rising":
            keys.sort()
        gradients = rng.integers(-4, 4, (len(keys), dim)).astype(np.float32)
        start = 100 * step
        assert push(rows, keys, gradients.tolist(), start) == len(keys)
        for key, gradient in zip(keys[start:].tolist(), gradients[start:], strict=True):
            model[key] = model.get(key, 0) - gradient
    assert {key: words[:dim] for key, words in stored(rows).items()} == {k: v.tolist() for k, v in model.items()}
    assert rows.used.sum() == len(model)
    zeros = np.zeros(dim)
    assert pull(rows, pool, dim) == [model.get(key, zeros).tolist() for key in pool.tolist()]


def test_a_segment_that_is_full_in_the_middle_of_many_keys_stops_there():
    rows = make_rows(log2_slots=10, limit=300)
    rows.limit[1] = 1000
    keys = np.sort(
        u64(*(in_segment(0, slot, 0, 10) for slot in range(1000)), *(2**63 + 2 * n for n in range(1, 50)))
    )
    done = push(rows, keys, [[1]] * len(keys))
    assert done == 300
    assert pull(rows, keys) == [[-1]] * done + [[0]] * (len(keys) - done)
    known = keys[:done]
    assert push(rows, np.concatenate([known, keys[done:]]), [[1]] * len(keys)) == done
    assert pull(rows, known) == [[-2]] * done
    rows.limit[0] = 1010
    assert push(rows, keys, [[1]] * len(keys), start=done) == len(keys)
    assert pull(rows, keys) == [[-2]] * done + [[-1]] * (len(keys) - done)


@pytest.mark.parametrize(
    "optimizer", [FTRL(alpha=0.3, l1=0.1, l2=0.2), AdaGrad(), SGD(l2=0.1)], ids=lambda o: o.name
)
def test_the_order_of_distinct_keys_makes_no_difference_in_any_bit(optimizer):
    rng = np.random.default_rng(4)
    pool = u64(*(in_segment(s, slot, nth, 10) for s in (0, 1) for slot in range(0, 1024, 5) for nth in range(2)))
    one, two = (make_rows(log2_slots=10, limit=1000) for _ in range(2))
    for _ in range(5):
        keys = np.sort(rng.choice(pool, 700, replace=False))
        gradients = rng.normal(size=(700, 1)).astype(np.float32)
        mixed = rng.permutation(700)
        pull_push.push(one, optimizer.hyper(), keys, gradients, 0)
        pull_push.push(two, optimizer.hyper(), keys[mixed], gradients[mixed], 0)
    assert stored(one) == stored(two)
    out = [np.zeros((len(pool), 1), np.float32) for _ in range(2)]
    pull_push.pull(one, optimizer.hyper(), pool, out[0])
    for i in range(len(pool)):
        pull_push.pull(two, optimizer.hyper(), pool[i : i + 1], out[1][i : i + 1])
    assert out[0].tobytes() == out[1].tobytes()
