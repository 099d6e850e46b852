"""Training by tree aggregate in threads: against a plain oracle, bit for bit, and interrupted and resumed."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock as ps
from penstock.errors import ConfigError, DataError, Interrupted, ModelError
from penstock.features import Encoder
from penstock.metrics import BinaryMetrics
from penstock.train.tree import TreeAggregate, fit_tree
from penstock.train.tree.executors import Threads
from penstock.train.tree.fit import TreeSession
from penstock.train.tree.partition import Partial, Rows

Sums = dict[int, np.float32]


def oracle(
    model: ps.Linear, path: Path, partitions: int, depth: int, batch_rows: int
) -> tuple[ps.Linear, BinaryMetrics]:
    """One pass, by dictionaries: the batches of each partition in turn, sums in the order of Spark's tree."""
    source = ps.open_source(str(path))
    plan = model.resolve(source.sample(16_384))
    encoder = Encoder(plan)
    queues: list[list[Any]] = [[] for _ in range(partitions)]
    for chunk in source.chunks():
        queues[chunk.index % partitions] += list(chunk.batches(encoder.columns, batch_rows))
    metrics = BinaryMetrics()
    for iteration in range(max(map(len, queues))):
        sums: list[Sums | None] = []
        for queue in queues:
            if iteration >= len(queue):
                sums.append(None)
                continue
            batch = encoder.encode(queue[iteration])
            keys, index = np.unique(batch.keys, return_inverse=True)
            out = np.empty(len(batch), np.float32)
            rows = {"weights": model.table.pull(keys)}
            _, grads = model.gradients(rows, {"weights": index.astype(np.int64)}, batch, out)
            metrics.update(out, batch.labels, batch.weights)
            sums.append(dict(zip(keys.tolist(), grads["weights"][:, 0], strict=True)))
        total = tree_sum(sums, depth)
        keys = np.array(sorted(total), np.uint64)
        model.table.push(keys, np.array([[total[key]] for key in keys.tolist()], np.float32))
    return model, metrics


def tree_sum(sums: list[Sums | None], depth: int) -> Sums:
    scale = max(math.ceil(len(sums) ** (1 / depth) - 1e-9), 2)
    while len(sums) > scale + math.ceil(len(sums) / scale):
        fewer = len(sums) // scale
        sums = [fold(sums[first::fewer]) for first in range(fewer)]
    total = fold(sums)
    assert total is not None
    return total


def fold(sums: Sequence[Sums | None]) -> Sums | None:
    total: Sums | None = None
    for part in sums:
        if total is None or part is None:
            total = dict(part) if total is None and part is not None else total
            continue
        for key, value in part.items():
            total[key] = np.float32(total[key] + value) if key in total else value
    return total


@pytest.mark.parametrize(
    ("partitions", "depth", "batch_rows"),
    [(1, 2, 1000), (2, 1, 1000), (5, 2, 700), (5, 3, 4096), (8, 2, 4096), (8, 3, 1000)],
)
def test_it_is_the_oracle_bit_for_bit(
    clicks: Path, new_model: Any, assert_same_model: Any, partitions: int, depth: int, batch_rows: int
) -> None:
    want, metrics = oracle(new_model(), clicks, partitions, depth, batch_rows)
    strategy = TreeAggregate(partitions=partitions, depth=depth, batch_rows=batch_rows)
    run = fit_tree(new_model(), str(clicks), strategy=strategy)
    assert_same_model(run.model, want)
    assert run.metrics == metrics.scores() and run.rows == 20_000
    run.model.table.validate()


def test_the_tree_s_order_matters_and_is_kept(tmp_path: Path, rows_of: Any) -> None:
    """Twelve partitions of one row, all with the same keys: sums in f32 differ by their order."""
    rng = np.random.default_rng(3)
    names = [f"x{i}" for i in range(8)]
    table = pa.table({"label": rng.integers(0, 2, 12), **{name: rng.normal(size=12) for name in names}})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=1)
    spec = ps.Features(numeric=[ps.Numeric(name=name, how="raw") for name in names], bias=False)
    found = set()
    for depth in (1, 2):
        want, _ = oracle(ps.Linear(spec, optimizer=ps.SGD(alpha=1.0)), path, 12, depth, 1)
        strategy = TreeAggregate(partitions=12, depth=depth, batch_rows=1)
        got = fit_tree(ps.Linear(spec, optimizer=ps.SGD(alpha=1.0)), str(path), strategy=strategy).model
        assert rows_of(got)[1].tobytes() == rows_of(want)[1].tobytes()
        found.add(rows_of(got)[1].tobytes())
    assert len(found) == 2


@pytest.mark.parametrize("executors", [1, 3, 5])
def test_the_number_of_threads_does_not_matter(
    clicks: Path, new_model: Any, assert_same_model: Any, executors: int
) -> None:
    runs = [
        fit_tree(new_model(), str(clicks), strategy=TreeAggregate(partitions=5, executors=n), passes=2)
        for n in (2, executors)
    ]
    assert_same_model(runs[0].model, runs[1].model)
    assert runs[0].metrics == runs[1].metrics and runs[0].rows == runs[1].rows == 40_000


def test_one_partition_is_learning_in_mini_batches(clicks: Path, new_model: Any, assert_same_model: Any) -> None:
    tree = ps.fit(new_model(), str(clicks), strategy=ps.TreeAggregate(partitions=1, batch_rows=512))
    online = ps.fit(new_model(), str(clicks), strategy=ps.Online(minibatch=512))
    assert_same_model(tree.model, online.model)
    # Losses are summed by batches of other sizes.
    assert tree.metrics.auc == online.metrics.auc
    assert tree.metrics.logloss == pytest.approx(online.metrics.logloss, rel=1e-12)


def test_a_hold_out_is_not_learnt(clicks: Path, new_model: Any) -> None:
    run = fit_tree(new_model(), str(clicks), strategy=TreeAggregate(partitions=2, batch_rows=1000), holdout=0.25)
    assert run.holdout is not None and run.holdout.rows + run.rows == 20_000
    assert 4700 < run.holdout.rows < 5300 and run.holdout.auc > 0.6
    times = pq.read_table(clicks, columns=["time"]).column("time").to_numpy()
    by_time = ps.Holdout(after=str(times[15_000]))
    run = fit_tree(new_model(), str(clicks), strategy=TreeAggregate(partitions=3), holdout=by_time)
    assert run.metrics.rows == int((times < times[15_000]).sum())


def test_a_partition_without_chunks_has_no_part(clicks: Path, new_model: Any) -> None:
    run = fit_tree(new_model(), pq.read_table(clicks), strategy=TreeAggregate(partitions=4))
    assert run.rows == 20_000 and run.figures["iterations"] == 5


def test_full_batch_is_plain_gradient_descent() -> None:
    table = pa.table({"label": [0, 1, 1, 0, 1], "c": ["a", "b", "a", "b", "b"], "w": [1.0, 2.0, 0.5, 1.0, 0.0]})
    spec = ps.Features(categorical=["c"], weight="w", bias=False)
    model = ps.Linear(spec, optimizer=ps.SGD(alpha=0.5))
    strategy = TreeAggregate(partitions=2, batch_rows=None)
    run = fit_tree(model, table, strategy=strategy, passes=30)
    weights = np.zeros(2)
    rows = [(0, 0, 1.0), (1, 1, 2.0), (0, 1, 0.5), (1, 0, 1.0)]
    for _ in range(30):
        gradient = np.zeros(2)
        for c, label, weight in rows:
            gradient[c] += weight * (1 / (1 + math.exp(-weights[c])) - label)
        weights -= 0.5 * gradient
    got = run.model.predict(pa.table({"c": ["a", "b"], "label": [0, 0], "w": [1.0, 1.0]}))
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-weights)), rtol=1e-5)
    assert run.figures["iterations"] == 30 and run.rows == 150 and run.metrics.rows == 5


def test_full_batches_are_concatenated_over_chunks(clicks: Path, new_model: Any) -> None:
    model = new_model(ps.SGD(alpha=1e-4))
    run = fit_tree(model, str(clicks), strategy=TreeAggregate(partitions=2, batch_rows=None), passes=2)
    assert run.rows == 40_000 and run.figures["iterations"] == 2
    assert run.metrics.logloss == pytest.approx(math.log(2), rel=1e-6)
    assert run.history[-1].done == 1.0
    other = new_model(ps.SGD(alpha=1e-4))
    fit_tree(other, pq.read_table(clicks), strategy=TreeAggregate(partitions=1, batch_rows=None), passes=2)
    keys, _ = model.table.items(0)
    np.testing.assert_allclose(model.table.pull(keys), other.table.pull(keys), rtol=1e-3, atol=1e-7)


def test_partitions_are_sent_the_rows_of_their_own_keys_alone(
    clicks: Path, new_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, held = [], []
    map_ = Threads.map

    def noted(self: Threads, weights: Sequence[Rows | None], *, observe: bool) -> list[Partial | None]:
        for number, partition in self._home.partitions.items():
            rows = weights[number]
            if rows is not None and partition.ready is not None:
                assert len(rows["weights"]) == len(np.unique(partition.ready.batch.keys))
                sent.append(len(rows["weights"]))
            held.append((len(partition.model.table), partition.model.table.slots))
        return map_(self, weights, observe=observe)

    monkeypatch.setattr(Threads, "map", noted)
    run = fit_tree(new_model(), str(clicks), strategy=TreeAggregate(partitions=2, batch_rows=256))
    assert max(sent) < 256 * 9 < len(run.model.table)
    assert set(held) == {(0, 128)}
    figures = run.figures
    assert figures["weights_out_nbytes"] == 4 * sum(sent) and figures["keys_back_nbytes"] == 8 * sum(sent)
    assert len(run.model.table) * 12 < figures["gradients_back_nbytes"] <= 12 * sum(sent)
    assert figures["predictions_back_nbytes"] == 8 * 20_000 and figures["moved_nbytes"] == 0


def interrupt_at(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    account = TreeSession.account

    def interrupted(self: TreeSession, partials: Sequence[Partial | None]) -> None:
        account(self, partials)
        if self.state.rows >= rows:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TreeSession, "account", interrupted)


@pytest.mark.parametrize(("rows", "batch_rows"), [(1, 900), (20_000, 900), (20_001, 900), (1, None)])
def test_interrupted_and_resumed_it_ends_with_the_same_bytes(
    clicks: Path,
    tmp_path: Path,
    new_model: Any,
    assert_same_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    batch_rows: int | None,
) -> None:
    strategy = TreeAggregate(partitions=3, batch_rows=batch_rows)
    want = fit_tree(new_model(), str(clicks), strategy=strategy, passes=2)
    with monkeypatch.context() as patch:
        interrupt_at(patch, rows)
        with pytest.raises(Interrupted, match=r"Ctrl-C.*checkpoint"):
            fit_tree(new_model(), str(clicks), strategy=strategy, passes=2, output=tmp_path / "m")
    # Neither where partitions run, nor how many cores there are now, is of the run.
    now = TreeAggregate(executors=1, batch_rows=batch_rows)
    got = fit_tree(new_model(), str(clicks), strategy=now, passes=2, output=tmp_path / "m", resume=True)
    assert_same_model(got.model, want.model)
    assert got.metrics == want.metrics and got.rows == want.rows
    assert_same_model(ps.load(tmp_path / "m"), want.model)


def test_another_strategy_does_not_resume(
    clicks: Path, tmp_path: Path, new_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5000)
        with pytest.raises(Interrupted):
            fit_tree(new_model(), str(clicks), strategy=TreeAggregate(partitions=2), output=tmp_path / "m")
    with pytest.raises(ModelError, match=r"cannot resume: strategy was .*'depth': 2.*is now .*'depth': 3"):
        fit_tree(new_model(), str(clicks), strategy=TreeAggregate(depth=3), output=tmp_path / "m", resume=True)
    with pytest.raises(ModelError, match="cannot resume: strategy was"):
        ps.fit(new_model(), str(clicks), output=tmp_path / "m", resume=True)


def test_an_online_run_does_not_resume_as_a_tree(
    clicks: Path, tmp_path: Path, new_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.train.learners import ByExample

    learn = ByExample.learn

    def pressed(self: ByExample, batch: Any, out: Any) -> None:
        learn(self, batch, out)
        if len(batch) > 8:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ByExample, "learn", pressed)
        with pytest.raises(Interrupted):
            ps.fit(new_model(), str(clicks), output=tmp_path / "m")
    with pytest.raises(ModelError, match="the run before was not by tree aggregate"):
        fit_tree(new_model(), str(clicks), output=tmp_path / "m", resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth must be >= 1, got 0"),
        ({"partitions": 0}, "partitions must be >= 1, got 0"),
        ({"executors": 0}, "executors must be >= 1, got 0"),
        ({"iterations": 0}, "iterations must be >= 1, got 0"),
        ({"batch_rows": 0}, "batch_rows must be 1 to 65,536 or None, got 0"),
        ({"batch_rows": 70_000}, "batch_rows must be 1 to 65,536 or None, got 70000"),
        ({"executor": "spark"}, "executor: got 'spark', allowed: threads, processes"),
        ({"solver": "sag"}, "solver: got 'sag', allowed: optimizer, lbfgs"),
    ],
)
def test_strategies_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TreeAggregate(**settings)


def test_an_iterator_is_refused(clicks: Path, new_model: Any) -> None:
    batches = iter(pq.read_table(clicks).to_batches())
    with pytest.raises(ConfigError, match="each partition reads the data, got an iterator"):
        fit_tree(new_model(), batches)


def test_a_bad_row_is_said_where_it_stands() -> None:
    labels = [0, 1] * 50_000
    labels[70_000] = 7
    table = pa.table({"label": labels, "c": ["a"] * 100_000})
    with pytest.raises(DataError, match=r"table row 70000.*allowed: 0 or 1"):
        fit_tree(ps.Linear(ps.Features(categorical=["c"])), table, strategy=TreeAggregate(partitions=2))


def test_divergence_is_noticed() -> None:
    table = pa.table({"label": [0, 1] * 30, "x": [float(i) for i in range(60)]})
    model = ps.Linear(ps.Features(numeric=[ps.Numeric(name="x", how="raw")]), optimizer=ps.SGD(alpha=1.0, l2=3.0))
    with pytest.raises(DataError, match="training diverged near table row 0"):
        fit_tree(model, table, passes=200)


def test_no_rows_left_to_learn_is_an_error(clicks: Path, new_model: Any) -> None:
    with pytest.raises(DataError, match="no rows to learn from"):
        fit_tree(new_model(), str(clicks), holdout=ps.Holdout(after="2000-01-01"))
