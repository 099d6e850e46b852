"""Functions over a table's rows, against all rows pulled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from penstock.errors import ConfigError
from penstock.optim import FTRL, SGD, AdaGrad, Optimizer
from penstock.table import Norms, Table

OPTIMIZERS = [FTRL(alpha=0.5, l1=0.4), AdaGrad(alpha=0.5), SGD(alpha=0.5)]
by_optimizer_and_dim = pytest.mark.parametrize(
    ("optimizer", "dim"),
    [(optimizer, dim) for optimizer in OPTIMIZERS for dim in (1, 8)],
    ids=lambda value: getattr(value, "name", value),
)


def u64(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def filled(new_table, optimizer: Optimizer, dim: int, n: int = 1500) -> tuple[Table, np.ndarray]:
    """Rows of which some have weights of exactly 0, and their keys, rising."""
    rng = np.random.default_rng(dim)
    keys = np.unique(rng.integers(1, 1 << 63, n, dtype=np.uint64)) << np.uint64(1)
    gradients = rng.normal(size=(len(keys), dim)).astype(np.float32)
    gradients[::3] = 0
    gradients[1::5, : dim // 2] = 0
    table = new_table(optimizer, dim=dim, segments=8, slots=1)
    table.push(keys, gradients)
    return table, keys


def words_of(table: Table) -> dict[int, list[float]]:
    return {
        key: words
        for segment in range(table.segments)
        for key, words in zip(*(part.tolist() for part in table.items(segment)), strict=True)
    }


@by_optimizer_and_dim
def test_norms_are_those_of_all_weights(new_table, optimizer, dim):
    table, keys = filled(new_table, optimizer, dim)
    w = table.pull(keys).astype(np.float64)
    norms = table.norms()
    assert (norms.rows, norms.nonzero) == (len(keys), np.count_nonzero(w))
    assert 0 < norms.nonzero < w.size
    assert norms.l1 == pytest.approx(np.abs(w).sum(), rel=1e-12)
    assert norms.l2_squared == pytest.approx((w**2).sum(), rel=1e-12)
    assert table.norms() == norms


def test_norms_of_parts_add_up(new_table):
    assert new_table(SGD(), segments=2).norms() == Norms(rows=0, nonzero=0, l1=0.0, l2_squared=0.0)
    table = new_table(SGD(alpha=1.0), segments=2, slots=1)
    table.push(u64(2, 6), np.array([[3], [0]], np.float32))
    assert table.norms() == Norms(rows=2, nonzero=1, l1=3.0, l2_squared=9.0)
    assert table.norms() + table.norms() == Norms(rows=4, nonzero=2, l1=6.0, l2_squared=18.0)


@by_optimizer_and_dim
@pytest.mark.parametrize("k", [0, 1, 40, 10_000])
def test_top_rows_are_those_of_largest_norm(new_table, optimizer, dim, k):
    table, keys = filled(new_table, optimizer, dim)
    lengths = np.sqrt((table.pull(keys).astype(np.float64) ** 2).sum(axis=1))
    expected = np.lexsort((keys, -lengths))[:k]
    got, norms = table.top(k)
    assert got.tolist() == keys[expected].tolist()
    np.testing.assert_allclose(norms, lengths[expected], rtol=1e-14)


def test_equal_norms_come_in_the_order_of_their_keys(new_table):
    table = new_table(SGD(alpha=1.0), segments=4, slots=1)
    keys = u64(*(n << 58 for n in range(1, 60)))
    table.push(keys, np.where(np.arange(59) % 2, 1, -1).astype(np.float32).reshape(-1, 1))
    assert table.top(20)[0].tolist() == keys[:20].tolist()


@by_optimizer_and_dim
@pytest.mark.parametrize("threshold", [0.0, 0.12])
def test_prune_removes_the_small_and_leaves_the_others_as_they_were(new_table, optimizer, dim, threshold):
    table, keys = filled(new_table, optimizer, dim)
    table.take_changed()
    rng = np.random.default_rng(9)
    touched = np.sort(rng.choice(keys, 300, replace=False))
    table.push(touched, np.zeros((300, dim), np.float32))
    small = (np.abs(table.pull(keys)) <= np.float32(threshold)).all(axis=1)
    assert 0 < small.sum() < len(keys)
    before = words_of(table)
    assert table.prune(threshold) == small.sum()
    table.validate()
    assert words_of(table) == {key: before[key] for key in keys[~small].tolist()}
    assert len(table) == len(keys) - small.sum()
    assert not table.pull(keys[small]).any()
    assert table.prune(threshold) == 0
    assert table.take_removed().tolist() == keys[small].tolist()
    assert table.take_removed().tolist() == []
    assert table.take_changed().tolist() == np.setdiff1d(touched, keys[small]).tolist()
    # The memory of what was removed serves new rows, which begin from nothing and count as changed.
    table.push(keys[small], np.ones((small.sum(), dim), np.float32))
    fresh = new_table(optimizer, dim=dim)
    fresh.push(keys[small], np.ones((small.sum(), dim), np.float32))
    np.testing.assert_array_equal(table.pull(keys[small]), fresh.pull(keys[small]))
    assert table.take_changed().tolist() == keys[small].tolist()


def test_a_removed_key_that_came_back_is_not_reported_as_removed(new_table):
    table = new_table(SGD(alpha=1.0), segments=2, slots=1)
    table.push(u64(2, 4, 6), np.array([[0], [0], [1]], np.float32))
    assert table.prune() == 2
    table.push(u64(4), np.ones((1, 1), np.float32))
    assert table.take_removed().tolist() == [2]


def test_a_key_that_is_removed_twice_is_reported_once(new_table):
    table = new_table(SGD(alpha=1.0), segments=2, slots=1)
    for _ in range(2):
        table.push(u64(2), np.zeros((1, 1), np.float32))
        assert table.prune() == 1
    assert table.take_removed().tolist() == [2]


def test_a_table_gives_memory_back_when_most_rows_go_and_can_grow_again(new_table):
    table = new_table(SGD(alpha=1.0), segments=2, slots=1)
    keys = np.arange(1, 20_001, dtype=np.uint64) << np.uint64(49)
    gradients = np.zeros((len(keys), 1), np.float32)
    gradients[::50] = 1
    table.push(keys, gradients)
    slots = table.slots
    assert table.prune() == 19_600
    assert table.slots <= slots // 16
    table.validate()
    table.push(keys, gradients)
    assert len(table) == 20_000


@by_optimizer_and_dim
def test_decay_scales_all_weights_and_marks_all_rows(new_table, optimizer, dim):
    if optimizer.name == "ftrl":
        optimizer = FTRL(alpha=0.5)  # exact without l1 only
    table, keys = filled(new_table, optimizer, dim)
    table.take_changed()
    before, words = table.pull(keys), words_of(table)
    table.decay(0.5)  # halves exactly
    np.testing.assert_array_equal(table.pull(keys), before / 2)
    after = words_of(table)
    # The states besides the first stay.
    assert [after[key][dim:] for key in after] == [words[key][dim:] for key in after]
    assert table.take_changed().tolist() == keys.tolist()
    table.decay(0.0)
    assert not table.pull(keys).any()


def test_decay_of_ftrl_with_l1_ends_at_0(new_table):
    table = new_table(FTRL(alpha=0.5, l1=0.4), segments=2, slots=1)
    table.push(u64(2, 6), np.array([[0.5], [3]], np.float32))
    before = table.pull(u64(2, 6))[:, 0]
    table.decay(0.5)
    after = table.pull(u64(2, 6))[:, 0]
    assert before[0] < 0 == after[0]
    assert before[1] / 2 < after[1] < 0


@dataclass(frozen=True, kw_only=True)
class Momentless(Optimizer):
    name: ClassVar[str] = "test-momentless"
    states: ClassVar[tuple[str, ...]] = ("z",)

    @staticmethod
    def weight(h, state):
        return -state[0]

    @staticmethod
    def update(h, state, w, g):
        return (state[0] + g,)


def test_an_optimizer_without_scale_cannot_decay(new_table):
    with pytest.raises(ConfigError, match=r"^optimizer test-momentless cannot decay: it has no function scale$"):
        new_table(Momentless(), segments=2).decay(0.5)


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan"), float("inf")])
def test_factors_of_decay_are_checked(new_table, factor):
    with pytest.raises(ConfigError, match=r"^the factor of decay must be a number from 0 to 1, got "):
        new_table(SGD(), segments=2).decay(factor)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_thresholds_of_prune_are_checked(new_table, threshold):
    with pytest.raises(ConfigError, match=r"^the threshold of prune must be a finite number >= 0, got "):
        new_table(SGD(), segments=2).prune(threshold)
