"""Tables against a dict of rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.errors import ConfigError, InputError
from penstock.optim import FTRL, SGD, AdaGrad
from penstock.table import SEGMENTS, Table, unique_keys

PLUS = SGD(alpha=1.0)


def some_keys(n: int, seed: int = 0) -> np.ndarray:
    keys = np.unique(np.random.default_rng(seed).integers(1, 1 << 63, n + 10, dtype=np.uint64)) << np.uint64(1)
    return np.random.default_rng(seed).permutation(keys)[:n]


def all_rows(table: Table) -> dict[int, list[float]]:
    rows = {}
    for segment in range(table.segments):
        keys, words = table.items(segment)
        assert (np.diff(keys.view(np.int64) if not len(keys) else keys.astype(object)) > 0).all()
        rows |= dict(zip(keys.tolist(), words.tolist(), strict=True))
    return rows


class TableMachine(RuleBasedStateMachine):
    """Weights are small integers under SGD of rate 1, so the dict can be compared exactly."""

    keys = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 150)), max_size=60)

    @initialize(dim=st.sampled_from([1, 2, 3, 8, 64]), segments=st.sampled_from([2, 4]))
    def begin(self, dim, segments):
        self.table = Table(PLUS, dim=dim, segments=segments, slots=1)
        self.dim = dim
        self.model: dict[int, np.ndarray] = {}
        self.changed: set[int] = set()

    def to_keys(self, drawn) -> np.ndarray:
        # In a segment of 64 slots the multiples of 64 have one home, so searches are long.
        return np.array([high << 62 | (n if n % 3 else 64 * n) << 1 for high, n in drawn], np.uint64)

    def numbers(self, n: int) -> np.ndarray:
        return np.arange(n * self.dim, dtype=np.float32).reshape(n, self.dim) % 7 - 3

    @rule(drawn=keys)
    def push(self, drawn):
        keys, gradients = self.to_keys(drawn), self.numbers(len(drawn))
        self.table.push(keys, gradients)
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            self.model[key] = self.model.get(key, 0) - gradient
            self.changed.add(key)

    @rule(drawn=keys)
    def insert(self, drawn):
        keys, words = self.to_keys(drawn), self.numbers(len(drawn))
        self.table.insert(keys, words)
        self.model |= zip(keys.tolist(), words, strict=True)

    @rule(drawn=keys)
    def pull(self, drawn):
        keys = self.to_keys(drawn)
        zeros = np.zeros(self.dim)
        expected = [self.model.get(key, zeros).tolist() for key in keys.tolist()]
        assert self.table.pull(keys).tolist() == expected

    @rule()
    def take_changed(self):
        assert self.table.take_changed().tolist() == sorted(self.changed)
        self.changed.clear()

    @rule(segment=st.integers(0, 1))
    def grow(self, segment):
        self.table.rows.limit[segment] = self.table.rows.used[segment]
        slots = self.table.slots
        self.table.grow()
        assert self.table.slots > slots

    @invariant()
    def rows_are_those_of_the_dict(self):
        if hasattr(self, "table"):
            assert len(self.table) == len(self.model)
            assert all_rows(self.table) == {key: words.tolist() for key, words in self.model.items()}

    def teardown(self):
        if hasattr(self, "table"):
            self.table.validate()
            assert self.table.take_changed().tolist() == sorted(self.changed)


TestTable = TableMachine.TestCase
TestTable.settings = settings(deadline=None, max_examples=40, stateful_step_count=12)


@pytest.mark.parametrize("dim", [1, 3, 8, 64])
@pytest.mark.parametrize("optimizer", [SGD(alpha=0.5), AdaGrad(), FTRL(alpha=0.5)], ids=lambda o: o.name)
def test_rows_survive_growth_whatever_their_width(new_table, optimizer, dim):
    small = new_table(optimizer, dim=dim, segments=4, slots=1)
    large = new_table(optimizer, dim=dim, segments=4, slots=8192)
    keys = some_keys(2000, dim)
    gradients = np.random.default_rng(1).normal(size=(2000, dim)).astype(np.float32)
    slots = small.slots
    for table in (small, large):
        table.push(keys, gradients)
        table.push(keys[:500], gradients[500:1000])
    assert small.slots > 8 * slots
    assert large.slots == 8192
    assert all_rows(small) == all_rows(large)
    np.testing.assert_array_equal(small.pull(keys), large.pull(keys))
    assert small.pull(keys).any(axis=1).all()
    for table in (small, large):
        assert table.take_changed().tolist() == sorted(keys.tolist())
        assert len(table.take_changed()) == 0


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8])
def test_only_what_was_pushed_since_the_last_call_is_taken(new_table, dim):
    table = new_table(FTRL(), dim=dim, segments=8, slots=1)
    keys, rng = some_keys(3000, 7), np.random.default_rng(dim)
    known = 0
    for _ in range(8):
        known += 300
        touched = rng.choice(keys[:known], 40, replace=False)
        table.insert(keys[known - 300 : known], np.ones((300, table.width), np.float32))
        table.push(touched, np.zeros((40, dim), np.float32))
        assert table.take_changed().tolist() == sorted(touched.tolist())
    assert len(table.take_changed()) == 0


def test_keys_of_one_segment_make_that_segment_grow_alone(new_table):
    table = new_table(PLUS, segments=16, slots=16 * 64)
    keys = np.uint64(5) << np.uint64(60) | np.arange(1, 3001, dtype=np.uint64) << np.uint64(1)
    table.push(keys, np.ones((3000, 1), np.float32))
    sizes = [int(mask) // 2 + 1 for mask in table.rows.masks]
    assert [size for s, size in enumerate(sizes) if s != 5] == [64] * 15
    assert sizes[5] in (4096, 8192)
    assert table.items(5)[0].tolist() == sorted(keys.tolist())


def test_each_key_is_in_the_segment_of_its_highest_bits(new_table):
    table = new_table(PLUS, segments=16, slots=64)
    keys = np.arange(16, dtype=np.uint64) << np.uint64(60) | np.uint64(2)
    table.push(keys, np.ones((16, 1), np.float32))
    assert [table.items(segment)[0].tolist() for segment in range(16)] == [[key] for key in keys.tolist()]


# Segments under 2048 slots grow by four, so a table of few rows may have more slots for each.
@pytest.mark.parametrize(("segments", "most_slots_a_row"), [(SEGMENTS, 6), (32, 4)])
def test_memory_stays_in_proportion_to_the_rows(new_table, segments, most_slots_a_row):
    table = new_table(FTRL(), segments=segments)
    keys = some_keys(300_000)
    gradients = np.ones((len(keys), 1), np.float32)
    for begin in range(0, len(keys), 10_000):
        table.push(keys[begin : begin + 10_000], gradients[begin : begin + 10_000])
        if begin >= 100_000:
            assert table.slots <= most_slots_a_row * len(table)
    assert len(table) == 300_000
    assert table.slots <= 4 * len(table)
    assert table.nbytes == table.slots * 16
    # What is mapped, the holes left behind by growing included, is at most twice what rows have.
    mapped = table._arena._next * table._arena.unit
    assert table.nbytes <= mapped <= 2 * table.nbytes


def test_segments_do_not_all_grow_at_once(new_table):
    table = new_table(PLUS, segments=64, slots=64 * 64)
    keys = some_keys(64 * 64)
    grown = []
    for begin in range(0, len(keys), 256):
        before = table.slots
        table.push(keys[begin : begin + 256], np.ones((256, 1), np.float32))
        grown.append((table.slots - before) // 64)
    assert max(grown) < 40


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("optimizer", [SGD(alpha=0.5), AdaGrad(), FTRL(alpha=0.5)], ids=lambda o: o.name)
def test_arrow_batches_make_the_same_rows_in_a_table_of_another_size(new_table, optimizer, dim):
    table = new_table(optimizer, dim=dim, segments=4, slots=1)
    keys = some_keys(500)
    table.push(keys, np.random.default_rng(1).normal(size=(500, dim)).astype(np.float32))
    batches = [table.to_arrow(segment) for segment in range(4)]
    names = [name for name in optimizer.states if name != "w"]
    assert table.arrow_schema().names == ["key", "weight", *names]
    assert all(batch.schema == table.arrow_schema() for batch in batches)
    got = pa.Table.from_batches(batches)
    stored = got.column("key").to_numpy()
    assert (np.diff(stored) > 0).all()  # over the segments, too
    weights = np.array(got.column("weight").to_pylist(), np.float32).reshape(-1, dim)
    np.testing.assert_array_equal(weights, table.pull(stored))
    other = new_table(optimizer, dim=dim, segments=32, slots=1 << 12)
    # Rows of any segments, in one batch that begins within its buffers.
    merged = got.combine_chunks().to_batches()[0]
    other.insert_arrow(merged.slice(0, 100))
    other.insert_arrow(merged.slice(100))
    assert all_rows(other) == all_rows(table)
    np.testing.assert_array_equal(other.pull(keys), table.pull(keys))
    assert len(other.take_changed()) == 0


def test_an_inserted_row_goes_on_as_the_row_that_it_was(new_table):
    one, two = new_table(FTRL(), dim=2, segments=2), new_table(FTRL(), dim=2, segments=8)
    keys, rng = some_keys(50), np.random.default_rng(2)
    one.push(keys, rng.normal(size=(50, 2)).astype(np.float32))
    for segment in range(2):
        two.insert(*one.items(segment))
    more = rng.normal(size=(50, 2)).astype(np.float32)
    one.push(keys, more)
    two.push(keys, more)
    assert all_rows(one) == all_rows(two)


def test_rows_are_read_by_key_in_the_order_asked(new_table):
    table, rng = new_table(AdaGrad(), dim=2, segments=2), np.random.default_rng(2)
    keys, absent = np.split(rng.permutation(some_keys(60)), [50])
    table.push(keys, rng.normal(size=(50, 2)).astype(np.float32))
    asked = rng.permutation(np.concatenate([keys, absent]))
    words, found = table.read(asked)
    rows = {key: row for s in range(2) for key, row in zip(*(a.tolist() for a in table.items(s)), strict=True)}
    assert words.tolist() == [rows.get(key, [0.0] * 4) for key in asked.tolist()]
    assert found == 50


def test_a_new_table_is_empty(new_table):
    table = new_table(FTRL(), dim=3)
    assert len(table) == 0
    assert len(table.take_changed()) == 0
    assert table.pull(some_keys(3)).tolist() == [[0.0] * 3] * 3
    assert len(table) == 0  # pulling makes no row
    assert table.to_arrow(0).num_rows == 0
    table.push(np.empty(0, np.uint64), np.empty((0, 3), np.float32))
    assert len(table) == 0


@pytest.mark.parametrize(
    ("slots", "expected"), [(1, 128), (128, 128), (129, 256), (1 << 12, 1 << 12), (5000, 8192)]
)
def test_slots_are_made_for_as_many_as_asked(new_table, slots, expected):
    assert new_table(PLUS, segments=2, slots=slots).slots == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"segments": 3}, "segments must be a power of two >= 2, got 3"),
        ({"segments": 1}, "segments must be a power of two >= 2, got 1"),
        ({"segments": 0}, "segments must be a power of two >= 2, got 0"),
        ({"dim": 0}, "dim and slots must be >= 1, got dim 0, slots 65536"),
        ({"slots": 0}, "dim and slots must be >= 1, got dim 1, slots 0"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ConfigError, match=f"^{message}$") as caught:
        Table(PLUS, **sizes)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("break_it", ["used", "lost", "twice", "overlap"])
def test_validate_notices(break_it):
    table = Table(PLUS, segments=2, slots=1)
    table.push(np.array([2, 4, 130], np.uint64), np.ones((3, 1), np.float32))
    table.validate()
    at = int(np.flatnonzero(table.rows.keys[:128] & ~np.uint64(1) == 4)[0])
    if break_it == "used":
        table.rows.used[0] = 4
    elif break_it == "lost":  # 4 moves to where nobody looks for it
        table.rows.keys[at + 40] = table.rows.keys[at]
        table.rows.keys[at] = 0
        table.rows.words[2 * (at + 40) + 2] = -1
    elif break_it == "twice":
        table.rows.keys[at] = 2
    else:
        table.rows.bases[1] = table.rows.bases[0]
    with pytest.raises((AssertionError, IndexError)):
        table.validate()


def test_unique_keys_and_the_place_of_each():
    keys = np.array([8, 2, 8, 1 << 63, 2], np.uint64)
    unique, index = unique_keys(keys)
    assert unique.tolist() == [2, 8, 1 << 63]
    assert index.tolist() == [1, 0, 1, 2, 0]
    assert index.dtype == np.int64
    assert math.prod(unique_keys(keys[:0])[0].shape) == 0
