"""L-BFGS: the optimum that scikit-learn finds, and what it refuses."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import penstock as ps
from penstock.errors import ConfigError, Interrupted
from penstock.features import Encoder
from penstock.train.tree import TreeAggregate, fit_tree
from penstock.train.tree.fit import TreeSession
from penstock.train.tree.partition import Partial


def data(rows: int = 3000) -> pa.Table:
    rng = np.random.default_rng(7)
    c, x = rng.integers(0, 12, rows), rng.normal(size=rows)
    margin = np.sin(c) + 0.7 * x - 0.4
    label = (rng.random(rows) < 1 / (1 + np.exp(-margin))).astype(np.int64)
    return pa.table({"label": label, "c": c, "x": x, "w": rng.integers(0, 3, rows)})


FEATURES = ps.Features(numeric=[ps.Numeric(name="x", how="raw")], categorical=["c"], weight="w")


def test_it_finds_scikit_learn_s_optimum() -> None:
    pytest.importorskip("scipy")
    linear_model = pytest.importorskip("sklearn.linear_model")
    table = data()
    model = ps.Linear(FEATURES, optimizer=ps.SGD(l2=2.0))
    run = fit_tree(model, table, strategy=TreeAggregate(solver="lbfgs", partitions=3))
    batch = Encoder(model.plan).encode(table.combine_chunks().to_batches()[0])  # type: ignore[arg-type]
    keys, index = np.unique(batch.keys, return_inverse=True)
    matrix = np.zeros((len(batch), len(keys)))
    matrix[np.repeat(np.arange(len(batch)), np.diff(batch.offsets)), index] = batch.values
    peer = linear_model.LogisticRegression(C=1 / 2.0, fit_intercept=False, tol=1e-8, max_iter=1000)
    peer.fit(matrix, batch.labels, sample_weight=batch.weights)
    np.testing.assert_allclose(model.table.pull(keys)[:, 0], peer.coef_[0], atol=1e-3)
    assert len(keys) == len(model.table) == 14
    assert run.rows == 3000 and run.figures["iterations"] > 3


def test_it_goes_on_from_the_model_s_weights() -> None:
    pytest.importorskip("scipy")
    model = ps.Linear(FEATURES, optimizer=ps.AdaGrad(l2=2.0))
    strategy = TreeAggregate(solver="lbfgs", partitions=2)
    first = fit_tree(model, data(), strategy=strategy)
    again = fit_tree(model, data(), strategy=strategy)
    assert again.figures["iterations"] < first.figures["iterations"]
    assert again.metrics.logloss < first.metrics.logloss - 0.05


def test_iterations_are_a_bound() -> None:
    pytest.importorskip("scipy")
    model = ps.Linear(FEATURES, optimizer=ps.SGD())
    run = fit_tree(model, data(), strategy=TreeAggregate(solver="lbfgs", partitions=2, iterations=1))
    assert run.figures["iterations"] <= 20


def test_interrupted_it_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")

    def pressed(self: TreeSession, partials: Sequence[Partial | None]) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TreeSession, "account", pressed)
    model = ps.Linear(FEATURES, optimizer=ps.SGD())
    with pytest.raises(Interrupted, match="nothing was saved, as this solver cannot be resumed"):
        fit_tree(model, data(), strategy=TreeAggregate(solver="lbfgs"), output=tmp_path / "m")


@pytest.mark.parametrize(
    ("optimizer", "more", "message"),
    [
        (ps.FTRL(), {}, "optimizer ftrl keeps z, n instead of weights"),
        (ps.FTRL(l1=0.5), {}, "optimizer ftrl has l1 0.5, allowed: 0"),
        (ps.SGD(), {"passes": 2}, "passes must be 1, got 2; give TreeAggregate iterations"),
        (ps.SGD(), {"resume": True, "output": "x"}, "cannot be resumed"),
    ],
)
def test_what_it_refuses(optimizer: ps.Optimizer, more: dict[str, Any], message: str) -> None:
    pytest.importorskip("scipy")
    with pytest.raises(ConfigError, match=message):
        fit_tree(ps.Linear(FEATURES, optimizer=optimizer), data(), strategy=TreeAggregate(solver="lbfgs"), **more)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match=r"pip install 'penstock-ml\[lbfgs\]'"):
        fit_tree(ps.Linear(FEATURES, optimizer=ps.SGD()), data(), strategy=TreeAggregate(solver="lbfgs"))
