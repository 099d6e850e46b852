"""Optimizers against f64 NumPy written from their papers, and what a user may get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from penstock.errors import ConfigError
from penstock.optim import FTRL, SGD, AdaGrad, Optimizer, optimizer_from_dict, register_optimizer
from penstock.optim.base import _by_name


def ftrl_oracle(gradients: np.ndarray, alpha: float, beta: float, l1: float, l2: float) -> np.ndarray:
    """McMahan et al. 2013, algorithm 1, a coordinate a column; weights before each gradient and after."""
    z = np.zeros(gradients.shape[1])
    n = np.zeros(gradients.shape[1])
    weights = []
    for g in [*gradients, None]:
        w = np.where(np.abs(z) <= l1, 0.0, -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2))
        weights.append(w)
        if g is not None:
            sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / alpha
            z = z + g - sigma * w
            n = n + g**2
    return np.array(weights)


def adagrad_oracle(gradients: np.ndarray, alpha: float, initial: float, l2: float) -> np.ndarray:
    """Duchi, Hazan, Singer 2011: each coordinate's rate falls with the root of its sum of squares."""
    w = np.zeros(gradients.shape[1])
    squares = np.full(gradients.shape[1], initial)
    weights = [w]
    for g in gradients:
        g = g + l2 * w
        squares = squares + g**2
        w = w - alpha / np.sqrt(squares) * g
        weights.append(w)
    return np.array(weights)


def sgd_oracle(gradients: np.ndarray, alpha: float, l2: float) -> np.ndarray:
    w = np.zeros(gradients.shape[1])
    weights = [w]
    for g in gradients:
        w = w - alpha * (g + l2 * w)
        weights.append(w)
    return np.array(weights)


CASES = [
    (FTRL, ftrl_oracle, {"alpha": 0.1, "beta": 1.0, "l1": 0.0, "l2": 0.0}),
    (FTRL, ftrl_oracle, {"alpha": 0.5, "beta": 0.3, "l1": 0.7, "l2": 0.0}),
    (FTRL, ftrl_oracle, {"alpha": 0.05, "beta": 0.0, "l1": 0.2, "l2": 3.0}),
    (AdaGrad, adagrad_oracle, {"alpha": 0.1, "initial": 0.1, "l2": 0.0}),
    (AdaGrad, adagrad_oracle, {"alpha": 0.7, "initial": 2.0, "l2": 0.05}),
    (SGD, sgd_oracle, {"alpha": 0.1, "l2": 0.0}),
    (SGD, sgd_oracle, {"alpha": 0.03, "l2": 0.4}),
]


@pytest.mark.parametrize(("cls", "oracle", "hyper"), CASES, ids=lambda case: getattr(case, "name", None))
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_those_of_the_paper(new_table, cls, oracle, hyper, seed):
    rng = np.random.default_rng(seed)
    steps, rows, dim = 120, 5, 3
    # Coordinates of very different scale, some of them mostly 0.
    gradients = rng.normal(size=(steps, rows * dim)) * 10.0 ** rng.uniform(-2, 1, rows * dim)
    gradients = (gradients * (rng.random(gradients.shape) < 0.6)).astype(np.float32)
    expected = oracle(gradients.astype(np.float64), **hyper)
    table = new_table(cls(**hyper), dim=dim, segments=2)
    keys = np.arange(2, 2 + 2 * rows, 2, dtype=np.uint64)
    scale = np.abs(expected).max(axis=0)
    for step in range(steps + 1):
        got = table.pull(keys).ravel()
        np.testing.assert_array_less(np.abs(got - expected[step]), 1e-4 * scale + 1e-6)
        if step < steps:
            table.push(keys, gradients[step].reshape(rows, dim))


def test_l1_makes_weights_exactly_zero(new_table):
    table = new_table(FTRL(alpha=1.0, l1=2.0), segments=2)
    keys = np.array([2, 4, 6, 8], np.uint64)
    table.push(keys, np.array([[1.9], [2.0], [-2.0], [2.5]], np.float32))
    weights = table.pull(keys).ravel().tolist()
    assert weights[:3] == [0.0, 0.0, 0.0]
    assert weights[3] == pytest.approx(-0.5 / (1 + 2.5))
    table.push(keys[:1], np.array([[0.2]], np.float32))
    assert table.pull(keys[:1])[0, 0] == pytest.approx(-0.1 / (1 + math.sqrt(1.9**2 + 0.2**2)), rel=1e-4)


def test_more_l1_leaves_fewer_weights(new_table):
    rng = np.random.default_rng(0)
    keys = np.arange(2, 402, 2, dtype=np.uint64)
    steps = [rng.normal(size=(200, 1)).astype(np.float32) for _ in range(20)]
    left = []
    for l1 in (0.0, 1.0, 4.0, 100.0):
        table = new_table(FTRL(l1=l1), segments=2)
        for gradients in steps:
            table.push(keys, gradients)
        left.append(np.count_nonzero(table.pull(keys)))
    assert left == sorted(left, reverse=True)
    assert left[0] == 200
    assert 0 < left[2] < left[1] < 200
    assert left[3] == 0


def test_a_new_row_weighs_0_under_every_optimizer(new_table):
    for optimizer in (FTRL(beta=0.0), AdaGrad(), SGD()):
        table = new_table(optimizer, segments=2)
        key = np.array([2], np.uint64)
        table.push(key, np.zeros((1, 1), np.float32))
        assert table.pull(key).tolist() == [[0.0]]
        assert len(table) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FTRL(alpha=0), "optimizer ftrl: alpha must be a finite number > 0, got 0"),
        (lambda: FTRL(alpha=-0.1), "optimizer ftrl: alpha must be a finite number > 0, got -0.1"),
        (lambda: FTRL(beta=-1), "optimizer ftrl: beta must be a finite number >= 0, got -1"),
        (lambda: FTRL(l1=math.nan), "optimizer ftrl: l1 must be a finite number >= 0, got nan"),
        (lambda: FTRL(l2=math.inf), "optimizer ftrl: l2 must be a finite number >= 0, got inf"),
        (lambda: FTRL(alpha="0.1"), "optimizer ftrl: alpha must be a finite number > 0, got '0.1'"),
        (lambda: AdaGrad(initial=0.0), "optimizer adagrad: initial must be a finite number > 0, got 0.0"),
        (lambda: AdaGrad(alpha=True), "optimizer adagrad: alpha must be a finite number > 0, got True"),
        (lambda: SGD(alpha=None), "optimizer sgd: alpha must be a finite number > 0, got None"),
        (lambda: SGD(l2=-1e-9), "optimizer sgd: l2 must be a finite number >= 0, got -1e-09"),
        (
            lambda: optimizer_from_dict({"name": "adam"}),
            "optimizer 'adam' is not known; allowed: adagrad, ftrl, sgd",
        ),
        (
            lambda: optimizer_from_dict({"alpha": 0.1}),
            "optimizer None is not known; allowed: adagrad, ftrl, sgd",
        ),
        (
            lambda: optimizer_from_dict({"name": "ftrl", "lr": 0.1}),
            "optimizer ftrl: unknown hyperparameter 'lr'; allowed: alpha, beta, l1, l2",
        ),
        (
            lambda: optimizer_from_dict({"name": "sgd", "alpha": -1}),
            "optimizer sgd: alpha must be a finite number > 0, got -1",
        ),
    ],
)
def test_what_is_wrong_is_said(monkeypatch, make, message):
    for name in set(_by_name) - {"ftrl", "adagrad", "sgd"}:
        monkeypatch.delitem(_by_name, name)
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("optimizer", [FTRL(alpha=0.3, l1=2), AdaGrad(initial=7.0), SGD(l2=0.5)])
def test_a_dict_describes_an_optimizer(optimizer):
    described = optimizer.to_dict()
    assert described["name"] == optimizer.name
    assert optimizer_from_dict(described) == optimizer
    assert optimizer_from_dict({"name": optimizer.name}) == type(optimizer)()


def test_hyperparameters_are_keyword_only_and_frozen():
    with pytest.raises(TypeError):
        FTRL(0.1)
    with pytest.raises(AttributeError):
        FTRL().alpha = 0.2


def test_kernels_get_f32_hyperparameters_of_the_class_of_the_row_functions():
    hyper = FTRL(alpha=0.3, beta=1, l1=2, l2=3).hyper()
    assert hyper._asdict() == {"alpha": np.float32(0.3), "beta": 1, "l1": 2, "l2": 3}
    assert {type(value) for value in hyper} == {np.float32}
    assert type(hyper) is type(FTRL().hyper())
    assert type(hyper) is not type(AdaGrad().hyper())
    assert type(hyper).__name__.startswith("Hyper_ftrl_")


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer):
    """Three states: weight, velocity, and the number of gradients seen."""

    name: ClassVar[str] = "test-momentum"
    states: ClassVar[tuple[str, ...]] = ("w", "v", "t")
    alpha: float = 0.1
    keep: float = 0.9

    @staticmethod
    def weight(h, state):
        return state[0]

    @staticmethod
    def update(h, state, w, g):
        v = h.keep * state[1] + g
        return (w - h.alpha * v, v, state[2] + np.float32(1))


@pytest.fixture
def register() -> Iterator[Callable[[type], type]]:
    """``register_optimizer``, for one test."""
    before = dict(_by_name)
    yield register_optimizer
    _by_name.clear()
    _by_name.update(before)


def test_an_optimizer_of_one_s_own(new_table, register):
    assert register(Momentum) is Momentum
    assert optimizer_from_dict({"name": "test-momentum", "keep": 0.5}) == Momentum(keep=0.5)
    dim, rng = 2, np.random.default_rng(0)
    table = new_table(Momentum(alpha=0.25, keep=0.5), dim=dim, segments=2)
    keys = np.array([2, 4], np.uint64)
    w, v = np.zeros((2, dim)), np.zeros((2, dim))
    for _ in range(10):
        g = rng.normal(size=(2, dim)).astype(np.float32)
        table.push(keys, g)
        v = 0.5 * v + g
        w = w - 0.25 * v
    np.testing.assert_allclose(table.pull(keys), w, rtol=1e-5, atol=1e-6)
    words = table.items(0)[1]
    np.testing.assert_allclose(words, np.hstack([w, v, np.full((2, dim), 10)]), rtol=1e-5, atol=1e-6)
    assert table.arrow_schema().names == ["key", "weight", "v", "t"]


def test_registering_again_after_an_edit_replaces(register):
    register(Momentum)
    before = type(Momentum().hyper())

    @staticmethod
    def update(h, state, w, g):
        return (w, state[1], state[2])

    edited = dataclass(frozen=True, kw_only=True)(
        type("Momentum", (Momentum,), {"update": update, "__module__": __name__, "__qualname__": "Momentum"})
    )
    assert register_optimizer(edited) is edited
    assert isinstance(optimizer_from_dict({"name": "test-momentum"}), edited)
    assert type(edited().hyper()).__name__ != before.__name__


def test_a_name_belongs_to_one_optimizer(register):
    register(Momentum)

    @dataclass(frozen=True, kw_only=True)
    class Thief(Momentum):
        pass

    with pytest.raises(ConfigError, match=r"^optimizer 'test-momentum' is already registered by .*\.Momentum$"):
        register_optimizer(Thief)
    assert _by_name["test-momentum"] is Momentum


@pytest.mark.parametrize("states", [(), ("a", "b", "c", "d")])
def test_the_number_of_states_is_checked(states):
    bad = type("Bad", (Momentum,), {"name": "test-bad", "states": states})
    with pytest.raises(ConfigError, match=r"^optimizer test-bad: states must be 1 to 3 names, got \("):
        register_optimizer(bad)
    assert "test-bad" not in _by_name


@pytest.mark.parametrize("name", [None, "", 17, "two words", "a/b", "17"])
def test_the_name_is_checked(name):
    bad = type("Bad", (Momentum,), {"name": name})
    with pytest.raises(ConfigError, match=r"^Bad.name must be a word of letters, digits and '-', got "):
        register_optimizer(bad)
