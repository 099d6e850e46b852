"""Logistic regression against a dict of rows in f64, for every optimizer and kind of batch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import penstock as ps
from penstock.batch import SparseBatch
from penstock.errors import ConfigError, DataError
from penstock.features import ColumnPlan, FeaturePlan
from penstock.models.linear import as_examples, memory_for, widest
from penstock.table import unique_keys
from penstock.train.learners import Hogwild, MiniBatches


def random_batch(
    rng: np.random.Generator,
    rows: int,
    *,
    distinct: int = 300,
    width: int | None = None,
    valued: bool = False,
    weighted: bool = False,
) -> SparseBatch:
    """Examples of 0 to 9 keys (or of ``width``); low keys are frequent, and say something of the label."""
    lengths = rng.integers(0, 10, rows) if width is None else np.full(rows, width)
    names = [np.unique((rng.random(4 * n + 30) ** 2 * distinct).astype(np.uint64)) for n in lengths]
    names = [rng.permutation(row)[:n] for row, n in zip(names, lengths, strict=True)]
    assert [len(row) for row in names] == lengths.tolist()
    flat = np.concatenate([np.empty(0, np.uint64), *names]).astype(np.uint64)
    offsets = np.cumsum([0, *lengths])
    chance = [1 / (1 + math.exp(1 - 0.4 * np.sum(row % 5 == 0))) for row in names]
    batch = SparseBatch(
        # Odd multipliers spread the keys over all segments, and keep them distinct.
        keys=(flat + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) << np.uint64(1),
        offsets=offsets,
        labels=(rng.random(rows) < chance).astype(np.float32),
        values=rng.normal(size=len(flat)).astype(np.float32) if valued else None,
        weights=rng.choice([0, 0.5, 1, 3], rows).astype(np.float32) if weighted else None,
        width=width,
    )
    batch.check()
    return batch


class SGDRow:
    def __init__(self, alpha: float, l2: float) -> None:
        self.alpha, self.l2, self.w = alpha, l2, 0.0

    def weight(self) -> float:
        return self.w

    def update(self, g: float) -> None:
        self.w -= self.alpha * (g + self.l2 * self.w)


class AdaGradRow(SGDRow):
    def __init__(self, alpha: float, initial: float, l2: float) -> None:
        super().__init__(alpha, l2)
        self.squares = initial

    def update(self, g: float) -> None:
        g += self.l2 * self.w
        self.squares += g * g
        self.w -= self.alpha * g / math.sqrt(self.squares)


class FTRLRow:
    def __init__(self, alpha: float, beta: float, l1: float, l2: float) -> None:
        self.alpha, self.beta, self.l1, self.l2 = alpha, beta, l1, l2
        self.z = self.n = 0.0

    def weight(self) -> float:
        if abs(self.z) <= self.l1:
            return 0.0
        shrunk = self.z - math.copysign(self.l1, self.z)
        return -shrunk / ((self.beta + math.sqrt(self.n)) / self.alpha + self.l2)

    def update(self, g: float) -> None:
        sigma = (math.sqrt(self.n + g * g) - math.sqrt(self.n)) / self.alpha
        self.z += g - sigma * self.weight()
        self.n += g * g


OPTIMIZERS = [
    (ps.FTRL(alpha=0.3, beta=0.5, l1=0.05, l2=0.1), FTRLRow),
    (ps.AdaGrad(alpha=0.2, initial=0.5, l2=0.01), AdaGradRow),
    (ps.SGD(alpha=0.1, l2=0.02), SGDRow),
]


def learn_in_python(batch: SparseBatch, optimizer: ps.Optimizer, row_class: type) -> tuple[list[float], dict]:
    rows: dict[int, SGDRow | FTRLRow] = {}
    out = []
    for i in range(len(batch)):
        span = range(batch.offsets[i], batch.offsets[i + 1])
        mine = [rows.setdefault(int(batch.keys[j]), row_class(**dataclasses.asdict(optimizer))) for j in span]
        values = [1.0 if batch.values is None else float(batch.values[j]) for j in span]
        margin = sum(row.weight() * value for row, value in zip(mine, values, strict=True))
        p = 1 / (1 + math.exp(-margin))
        out.append(p)
        error = (p - float(batch.labels[i])) * (1.0 if batch.weights is None else float(batch.weights[i]))
        for row, value in zip(mine, values, strict=True):
            row.update(error * value)
    return out, {key: row.weight() for key, row in rows.items()}


def checked(model: ps.Linear) -> ps.Linear:
    model.table.validate()
    return model


def all_rows(model: ps.Linear) -> dict[int, bytes]:
    """Keys and states, bit for bit."""
    found = {}
    for segment in range(model.table.segments):
        keys, words = model.table.items(segment)
        found |= {key: row.tobytes() for key, row in zip(keys.tolist(), words, strict=True)}
    return found


@pytest.mark.parametrize(("optimizer", "row_class"), OPTIMIZERS, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [None, 0, 1, 7])
def test_learning_is_that_of_the_formula(optimizer, row_class, valued, weighted, width):
    rng = np.random.default_rng(11)
    batch = random_batch(rng, 400, width=width, valued=valued, weighted=weighted)
    model = ps.Linear(optimizer=optimizer, segments=4, slots=1)
    out = np.full(len(batch), 9, np.float32)
    model.learn(batch, out)
    expected_out, expected = learn_in_python(batch, optimizer, row_class)
    np.testing.assert_allclose(out, expected_out, atol=2e-5)
    keys = np.array(sorted(expected), np.uint64)
    np.testing.assert_allclose(
        model.table.pull(keys)[:, 0], [expected[key] for key in keys.tolist()], atol=1e-4, rtol=1e-4
    )
    assert len(checked(model).table) == len(expected)
    assert model.table.take_changed().tolist() == keys.tolist()
    if width != 0:
        assert np.ptp(out) > 0.03  # it did learn something


@pytest.mark.parametrize(("optimizer", "row_class"), OPTIMIZERS, ids=lambda x: getattr(x, "name", ""))
def test_prediction_is_the_sigmoid_of_the_dot_product(optimizer, row_class):
    rng = np.random.default_rng(2)
    train, test = random_batch(rng, 300, valued=True), random_batch(rng, 200, distinct=600, valued=True)
    model = ps.Linear(optimizer=optimizer, segments=4)
    model.learn(train, np.empty(300, np.float32))
    rows = len(model.table)
    _, weights = learn_in_python(train, optimizer, row_class)
    for batch in (test, dataclasses.replace(test, values=None)):
        values = np.ones(batch.nnz) if batch.values is None else batch.values
        terms = [
            weights.get(key, 0.0) * value for key, value in zip(batch.keys.tolist(), values.tolist(), strict=True)
        ]
        margins = np.array([sum(terms[a:b]) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)])
        np.testing.assert_allclose(model.predict_batch(batch), 1 / (1 + np.exp(-margins)), atol=5e-5)
    assert len(model.table) == rows
    assert model.table.take_changed().size == rows  # predicting marks nothing
    model.predict_batch(test)
    assert model.table.take_changed().size == 0


@pytest.mark.parametrize(("optimizer", "row_class"), OPTIMIZERS, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_mini_batches_of_one_example_are_the_fused_learn_bit_for_bit(optimizer, row_class, valued, weighted):
    rng = np.random.default_rng(5)
    batch = random_batch(rng, 400, valued=valued, weighted=weighted)
    fused, pulled = (ps.Linear(optimizer=optimizer, segments=4, slots=1) for _ in range(2))
    outs = [np.full(400, 9, np.float32) for _ in range(2)]
    fused.learn(batch, outs[0])
    MiniBatches(pulled, 1).learn(batch, outs[1])
    assert outs[0].tobytes() == outs[1].tobytes()
    assert all_rows(checked(fused)) == all_rows(checked(pulled))
    assert fused.table.take_changed().tolist() == pulled.table.take_changed().tolist()


def loss_of(
    model: ps.Linear, weights: np.ndarray, index: np.ndarray, batch: SparseBatch
) -> tuple[float, np.ndarray]:
    rows = {"weights": weights.astype(np.float32).reshape(-1, 1)}
    out = np.empty(len(batch), np.float32)
    loss, grads = model.gradients(rows, {"weights": index}, batch, out)
    return loss, grads["weights"][:, 0]


@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_the_slopes_of_the_loss(valued, weighted):
    rng = np.random.default_rng(3)
    batch = random_batch(rng, 60, distinct=40, valued=valued, weighted=weighted)
    keys, index = unique_keys(batch.keys)
    model = ps.Linear()
    weights = rng.normal(size=len(keys))
    loss, grads = loss_of(model, weights, index, batch)
    values = np.ones(batch.nnz) if batch.values is None else batch.values
    margins = np.bincount(np.repeat(np.arange(60), np.diff(batch.offsets)), weights[index] * values, minlength=60)
    costs = np.log1p(np.exp(np.where(batch.labels == 1, -margins, margins)))
    assert loss == pytest.approx(float(np.sum(costs * (1 if batch.weights is None else batch.weights))), rel=1e-5)
    step = 1e-2
    for u in range(len(keys)):
        around = []
        for sign in (1, -1):
            moved = weights.copy()
            moved[u] += sign * step
            around.append(loss_of(model, moved, index, batch)[0])
        assert grads[u] == pytest.approx((around[0] - around[1]) / (2 * step), abs=3e-3)


def test_gradients_do_not_touch_the_model():
    batch = random_batch(np.random.default_rng(0), 50)
    keys, index = unique_keys(batch.keys)
    model = ps.Linear()
    loss_of(model, np.ones(len(keys)), index, batch)
    assert len(model.table) == 0


@dataclass(frozen=True, kw_only=True)
class Count(ps.Optimizer):
    """Counts how often a row was updated, whatever the gradient, and remembers the labels that it saw."""

    name: ClassVar[str] = "test-count"
    states: ClassVar[tuple[str, ...]] = ("times", "ones")

    @staticmethod
    def weight(h, state):
        return np.float32(0)

    @staticmethod
    def update(h, state, w, g):
        # The weight is 0, so p = 1/2 and g = -1/2 for label 1.
        return (state[0] + np.float32(1), state[1] + (np.float32(0.5) - g))


def numbered_batch(rows: int, width: int) -> SparseBatch:
    """Example i has ``width`` keys that no other has."""
    keys = np.arange(1, rows * width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) << np.uint64(1)
    return SparseBatch(
        keys=keys,
        offsets=np.arange(rows + 1) * width,
        labels=(np.arange(rows) % 3 == 0).astype(np.float32),
        width=width,
    )


def assert_each_example_was_learnt_once(model: ps.Linear, batch: SparseBatch) -> None:
    checked(model)
    words = np.zeros((batch.nnz, 2), np.float32)
    for segment in range(model.table.segments):
        keys, rows = model.table.items(segment)
        assert np.isin(keys, batch.keys).all()
        order = np.argsort(batch.keys)
        words[order[np.searchsorted(batch.keys, keys, sorter=order)]] = rows
    assert len(model.table) == batch.nnz
    assert (words[:, 0] == 1).all()
    np.testing.assert_array_equal(words[:, 1], np.repeat(batch.labels, batch.width))
    assert model.table.take_changed().tolist() == np.sort(batch.keys).tolist()


def test_learning_goes_on_at_the_example_where_the_table_was_full():
    batch = numbered_batch(3000, 5)
    model = ps.Linear(optimizer=Count(), segments=2, slots=1)
    out = np.full(len(batch), 9, np.float32)
    examples, memory = as_examples(batch), memory_for(batch)
    done, stops = 0, 0
    while (reached := model.learn_some(examples, memory, out, done, len(batch))) < len(batch):
        assert (out[done:reached] == 0.5).all()
        assert (out[reached:] == 9).all()
        assert model.learn_some(examples, memory, out, reached, len(batch)) == reached  # halted
        model.table.grow()
        done, stops = reached, stops + 1
    assert stops > 4
    assert (out == 0.5).all()
    assert_each_example_was_learnt_once(model, batch)


def test_only_the_examples_asked_for_are_learnt():
    batch = numbered_batch(100, 3)
    model = ps.Linear(optimizer=Count(), segments=2, slots=1)
    out = np.full(100, 9, np.float32)
    model.learn(batch, out, 20, 50)
    assert np.flatnonzero(out != 9).tolist() == list(range(20, 50))
    assert len(checked(model).table) == 90
    for begin, end in ((0, 20), (50, 100)):
        model.learn(batch, out, begin, end)
    assert_each_example_was_learnt_once(model, batch)


@pytest.mark.parametrize("threads", [2, 4])
def test_several_threads_learn_each_example_exactly_once(threads):
    batch = numbered_batch(20_000, 4)
    model = ps.Linear(optimizer=Count(), segments=16, slots=1)
    out = np.full(len(batch), 9, np.float32)
    with Hogwild(model, threads) as learner:
        for begin in range(0, len(batch), 4999):
            part = batch.slice(begin, min(begin + 4999, len(batch)))
            learner.learn(part, out[begin : begin + len(part)])
    assert (out == 0.5).all()
    assert_each_example_was_learnt_once(model, batch)


def test_more_threads_than_examples():
    batch = numbered_batch(2, 3)
    model = ps.Linear(optimizer=Count(), segments=2, slots=1)
    with Hogwild(model, 4) as learner:
        learner.learn(batch, np.empty(2, np.float32))
        learner.learn(batch.slice(0, 0), np.empty(0, np.float32))
    assert_each_example_was_learnt_once(model, batch)


def test_several_threads_that_insert_the_same_keys_make_each_row_once():
    # All threads see the same new keys at about the same time, while the table grows.
    rng = np.random.default_rng(4)
    keys = (np.arange(1, 4001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) << np.uint64(1)
    rows = np.stack([rng.permutation(keys) for _ in range(4)]).reshape(-1, 8)
    batch = SparseBatch(
        keys=rows.ravel(),
        offsets=np.arange(len(rows) + 1) * 8,
        labels=np.zeros(len(rows), np.float32),
        width=8,
    )
    batch.check()
    model = ps.Linear(optimizer=ps.SGD(alpha=1e-3), segments=4, slots=1)
    with Hogwild(model, 4) as learner:
        learner.learn(batch, np.empty(len(batch), np.float32))
    checked(model)
    assert len(model.table) == 4000
    assert model.table.take_changed().tolist() == np.sort(keys).tolist()
    # A gradient may be lost to another thread's, but no row is left out, and none is far off.
    weights = model.table.pull(keys)[:, 0]
    assert (weights < 0).all()
    assert (weights > -4 * 0.51e-3).all()


def test_threads_and_one_thread_agree_where_examples_share_nothing():
    rng = np.random.default_rng(8)
    batch = numbered_batch(3000, 4)
    batch = dataclasses.replace(batch, values=rng.normal(size=batch.nnz).astype(np.float32))
    models = [ps.Linear(segments=8, slots=1) for _ in range(2)]
    models[0].learn(batch, np.empty(3000, np.float32))
    with Hogwild(models[1], 3) as learner:
        learner.learn(batch, np.empty(3000, np.float32))
    assert all_rows(models[0]) == all_rows(checked(models[1]))


@dataclass(frozen=True, kw_only=True)
class SignSGD(ps.Optimizer):
    """The optimizer of the documentation of ``ps.Optimizer``."""

    name: ClassVar[str] = "test-sign-sgd"
    states: ClassVar[tuple[str, ...]] = ("w",)
    alpha: float = 0.01

    @staticmethod
    def weight(h, state):
        return state[0]

    @staticmethod
    def update(h, state, w, g):
        return (w - h.alpha * np.sign(g),)


def test_an_optimizer_of_one_s_own_trains():
    batch = random_batch(np.random.default_rng(6), 300)
    model = ps.Linear(optimizer=SignSGD(alpha=0.125), segments=2)
    out = np.empty(300, np.float32)
    model.learn(batch, out)
    weights: dict[int, float] = {}
    for i in range(300):
        keys = batch.keys[batch.offsets[i] : batch.offsets[i + 1]].tolist()
        p = 1 / (1 + math.exp(-sum(weights.get(key, 0.0) for key in keys)))
        assert out[i] == pytest.approx(p, abs=1e-5)
        for key in keys:
            weights[key] = weights.get(key, 0.0) - 0.125 * np.sign(p - batch.labels[i])
    keys = np.array(sorted(weights), np.uint64)
    assert checked(model).table.pull(keys)[:, 0].tolist() == [weights[key] for key in keys.tolist()]


TRAINING = pa.table(
    {
        "label": [1, 0, 1, 0] * 50,
        "site": ["good", "bad", "good", "bad"] * 50,
        "noise": [i % 7 for i in range(200)],
    }
)


def trained() -> ps.Linear:
    model = ps.Linear(optimizer=ps.FTRL(alpha=0.5))
    ps.fit(model, TRAINING, progress=False)
    return model


def test_predict_takes_frames_of_every_kind():
    model = trained()
    columns = {"site": ["good", "bad", "never seen"], "noise": [1, 2, 3]}
    table = pa.table(columns)
    expected = model.predict(table)
    assert expected.dtype == np.float32
    assert expected[0] > 0.8 > 0.2 > expected[1]
    for data in (
        table.to_batches()[0],
        pd.DataFrame(columns),
        pl.DataFrame(columns),
        pa.table({"noise": columns["noise"], "site": pa.chunked_array([["good"], ["bad", "never seen"]])}),
        pa.table({**columns, "site": pa.array(columns["site"]).dictionary_encode()}),
    ):
        assert model.predict(data).tolist() == expected.tolist()
    assert model.predict(table.slice(0, 0)).tolist() == []
    many = pa.concat_tables([table] * 3000)
    assert model.predict(many).tolist() == expected.tolist() * 3000


def test_predict_says_what_is_wrong():
    model = trained()
    with pytest.raises(DataError, match=r"^column 'noise' is not in the data; its columns are site$"):
        model.predict(pa.table({"site": ["good"]}))
    with pytest.raises(DataError, match=r"^cannot predict for a int; allowed: an Arrow table"):
        model.predict(17)
    with pytest.raises(ConfigError, match=r"^the model has not been fitted"):
        ps.Linear().predict(TRAINING)


def test_strongest_and_their_names(oracle):
    model = trained()
    names = model.name_features()
    keys = {oracle.key("site", value): f"site={value}" for value in ("good", "bad")}
    strongest = model.strongest(2)
    assert {key for key, _ in strongest} == set(keys)
    assert [names[key] for key, _ in strongest] == [keys[key] for key, _ in strongest]
    assert abs(strongest[0][1]) >= abs(strongest[1][1])
    pulled = model.table.pull(np.array([key for key, _ in strongest], np.uint64))[:, 0]
    assert [weight for _, weight in strongest] == pulled.tolist()
    assert len(model.strongest(10_000)) == len(model.table)


def test_only_the_strongest_are_named():
    model = trained()
    assert set(model.name_features(most=2).values()) == {"site=good", "site=bad"}
    assert model.name_features() == model.names  # the sample is let go


def test_a_plan_or_features_may_be_given():
    plan = FeaturePlan(label="y", columns=(ColumnPlan(name="a", kind="categorical", type=""),))
    assert ps.Linear(plan).plan is plan
    assert ps.Linear(plan).resolve(pa.table({"z": [1]})) is plan
    features = ps.Features(label="y")
    model = ps.Linear(features)
    assert model.plan is None
    assert model.resolve(pa.table({"y": [1], "a": ["x"]})).inputs == ["a"]
    assert ps.Linear().tables().keys() == {"weights"}


def test_the_widest_example_decides_the_working_memory():
    batch = random_batch(np.random.default_rng(0), 50)
    assert widest(batch) == np.diff(batch.offsets).max()
    assert widest(batch.slice(0, 0)) == 0
    assert widest(numbered_batch(3, 4)) == 4
    model = ps.Linear(optimizer=Count(), segments=2)
    for width in (2, 40, 3):  # narrower, wider, narrower
        model.learn(numbered_batch(20, width), np.empty(20, np.float32))
    model.table.validate()
