"""The logistic regression kernels against formulas in f64; whole models are in tests/models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penstock.kernels import linear
from penstock.kernels.linear import Examples
from penstock.optim import FTRL, SGD, AdaGrad
from penstock.table import Table

NO_FLOATS = np.empty(0, np.float32)


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def examples(
    keys: list[list[int]],
    labels: list[float],
    values: list[list[float]] | None = None,
    weights: list[float] | None = None,
) -> Examples:
    return Examples(
        np.array([k for row in keys for k in row], np.uint64),
        NO_FLOATS if values is None else f32(*(v for row in values for v in row)),
        np.cumsum([0, *map(len, keys)]),
        f32(*labels),
        NO_FLOATS if weights is None else f32(*weights),
    )


def learn(table: Table, batch: Examples, begin: int = 0, width: int = 4) -> tuple[int, list[float]]:
    out = np.full(batch.labels.size, 9, np.float32)
    end = batch.labels.size
    done = linear.learn(table.rows, table.hyper, batch, begin, end, linear.scratch(width), out)
    return done, out.tolist()


def predict(table: Table, batch: Examples, width: int = 4) -> list[float]:
    out = np.full(batch.labels.size, 9, np.float32)
    linear.predict(table.rows, table.hyper, batch, linear.scratch(width), out)
    return out.tolist()


def small(new_table, optimizer) -> Table:
    return new_table(optimizer, segments=2, slots=64)


def test_the_example_of_learn_in_its_docstring(new_table):
    table = small(new_table, SGD(alpha=1.0))
    assert learn(table, examples([[6]], [1])) == (1, [0.5])
    assert table.pull(np.array([6], np.uint64)).tolist() == [[0.5]]


def test_the_example_of_predict_in_its_docstring(new_table):
    table = small(new_table, SGD(alpha=1.0))
    table.insert(np.array([6], np.uint64), np.zeros((1, 1), np.float32))
    assert predict(table, examples([[6]], [0])) == [0.5]
    assert len(table) == 1


def test_the_example_of_gradients_in_its_docstring():
    out, grads = f32(9), np.zeros((1, 1), np.float32)
    batch = examples([[6]], [1])
    loss = linear.gradients(f32(0).reshape(1, 1), np.array([0]), batch, linear.scratch(1), out, grads)
    assert (out.tolist(), grads.tolist()) == ([0.5], [[-0.5]])
    assert loss == pytest.approx(math.log(2))


def test_values_and_weights_of_a_tiny_batch(new_table):
    table = small(new_table, SGD(alpha=1.0))
    batch = examples([[2, 4], [4], []], [1, 0, 1], values=[[1, -2], [3], []], weights=[2, 0.5, 1])
    done, out = learn(table, batch)
    # First: p = 1/2, gradient -1/2 times weight 2. Second: margin 3 * -2.
    p = 1 / (1 + math.exp(6))
    assert done == 3
    assert out == pytest.approx([0.5, p, 0.5])
    weights = table.pull(np.array([2, 4], np.uint64)).ravel().tolist()
    assert weights == pytest.approx([1.0, -2.0 - p * 0.5 * 3])
    assert predict(table, batch)[0] == pytest.approx(1 / (1 + math.exp(-(weights[0] - 2 * weights[1]))))


def test_keys_without_a_row_count_nothing_in_a_tiny_prediction(new_table):
    table = small(new_table, SGD())
    table.insert(np.array([2, 8], np.uint64), np.array([[1], [-3]], np.float32))
    out = predict(table, examples([[2, 4], [6], [8, 2], []], [0, 0, 0, 0]))
    assert out == pytest.approx([1 / (1 + math.exp(-1)), 0.5, 1 / (1 + math.exp(2)), 0.5])
    assert len(table) == 2


@pytest.mark.parametrize("n", range(10))
def test_every_term_of_a_sum_counts_once(new_table, n):
    # Powers of two are exact in any order; widths on both sides of the four lanes.
    table = small(new_table, SGD())
    keys = np.arange(2, 2 + 2 * n, 2, dtype=np.uint64)
    weights = f32(*(2.0**-k for k in range(n)))
    table.insert(keys, weights.reshape(-1, 1))
    margin = float(weights.sum())
    batch = examples([keys.tolist()], [1])
    assert predict(table, batch, width=max(n, 1)) == pytest.approx([1 / (1 + math.exp(-margin))], rel=1e-6)
    out, grads = f32(9), np.zeros((n, 1), np.float32)
    loss = linear.gradients(weights.reshape(-1, 1), np.arange(n), batch, linear.scratch(max(n, 1)), out, grads)
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-6)
    assert learn(table, batch, width=max(n, 1))[1] == out.tolist()


@pytest.mark.parametrize("margin", [-1000.0, -90.0, 90.0, 1000.0])
def test_saturated_margins_give_0_or_1_and_a_finite_loss(new_table, margin):
    table = small(new_table, SGD(alpha=1.0))
    table.insert(np.array([2], np.uint64), f32(margin).reshape(1, 1))
    for label in (0, 1):
        batch = examples([[2]], [label])
        assert predict(table, batch) == pytest.approx([float(margin > 0)], abs=1e-30)
        out, grads = f32(9), np.zeros((1, 1), np.float32)
        loss = linear.gradients(f32(margin).reshape(1, 1), np.array([0]), batch, linear.scratch(1), out, grads)
        wrong = (margin > 0) != (label == 1)
        assert loss == pytest.approx(abs(margin) if wrong else 0, abs=1e-30)
        assert abs(grads[0, 0]) == pytest.approx(float(wrong), abs=1e-30)


def test_gradients_sum_over_the_examples_of_a_tiny_batch():
    pulled = f32(0.5, -1, 2).reshape(-1, 1)
    batch = examples([[2, 4], [4, 6], [2]], [1, 0, 0], values=[[1, 2], [1, -1], [3]], weights=[1, 2, 3])
    index = np.array([0, 1, 1, 2, 0])
    out, grads = f32(9, 9, 9), np.zeros((3, 1), np.float32)
    loss = linear.gradients(pulled, index, batch, linear.scratch(2), out, grads)
    p = [1 / (1 + math.exp(-m)) for m in (0.5 - 2, -1 - 2, 1.5)]
    error = [p[0] - 1, 2 * p[1], 3 * p[2]]
    assert out.tolist() == pytest.approx(p, rel=1e-6)
    assert grads.ravel().tolist() == pytest.approx([error[0] + 3 * error[2], 2 * error[0] + error[1], -error[1]])
    assert loss == pytest.approx(-math.log(p[0]) - 2 * math.log(1 - p[1]) - 3 * math.log(1 - p[2]), rel=1e-6)


def test_learn_comes_back_where_a_segment_is_full(new_table):
    table = small(new_table, SGD(alpha=1.0))
    table.rows.limit[:] = 3
    batch = examples([[2], [4, 6], [2, 8, 10], [12]], [1, 1, 1, 1])
    done, out = learn(table, batch)
    assert done == 2
    assert out[2:] == [9, 9]
    assert table.rows.halt.tolist() == [1]
    # Nothing of the third example was learnt: not even the key that has a row.
    assert table.pull(np.array([2, 4, 6, 8], np.uint64)).ravel().tolist() == [0.5, 0.5, 0.5, 0]
    # Another thread that is told to halt comes back before it touches anything.
    assert learn(table, examples([[2]], [1])) == (0, [9])
    table.rows.limit[:] = 48
    table.rows.halt[0] = 0
    done, out = learn(table, batch, begin=2)
    assert done == 4
    assert out[:2] == [9, 9]
    assert out[2] == pytest.approx(1 / (1 + math.exp(-0.5)))


@pytest.mark.parametrize("optimizer", [SGD(), AdaGrad(), FTRL()])
def test_memory_for_wider_examples_changes_nothing(new_table, optimizer):
    rng = np.random.default_rng(1)
    keys = [(2 * rng.choice(30, size=n, replace=False) + 2).tolist() for n in rng.integers(0, 6, 40)]
    batch = examples(keys, rng.integers(0, 2, 40).tolist())
    outs = []
    for width in (5, 64):
        table = new_table(optimizer, segments=2, slots=256)
        outs.append((learn(table, batch, width=width), table.items(0)[1].tolist()))
        assert predict(table, batch, 5) == predict(table, batch, 64)
    assert outs[0] == outs[1]


def test_an_empty_range_learns_nothing(new_table):
    table = small(new_table, SGD())
    batch = examples([[2], [4]], [1, 1])
    assert learn(table, batch, begin=2) == (2, [9, 9])
    assert learn(table, examples([], [])) == (0, [])
    assert predict(table, examples([], [])) == []
    assert len(table) == 0
