"""BSP gives the rows of one process, bit for bit, however many take part, of whatever data and model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from harness import Processes, Threads
from oracle import assert_same, bsp, micro_batches, rows_of
from toy_model import Toy

import penstock as ps
from penstock.models import load_model
from penstock.parameter_server import BSP

FEATURES = ps.Features(label="clicked", ignore=["time"])
MINIBATCH = 256


def linear() -> ps.Linear:
    return ps.Linear(FEATURES, optimizer=ps.FTRL(alpha=0.1, l1=0.1), segments=64)


def strategy(**options: Any) -> ps.ParameterServer:
    return ps.ParameterServer(**{"consistency": BSP(), "minibatch": MINIBATCH} | options)


@pytest.fixture(scope="module")
def of_four(clicks: Path) -> Any:
    """Rows after one pass of global batches of four micro-batches."""
    model = linear()
    source = ps.open_source(str(clicks))
    model.resolve(source.sample(16_384))
    return bsp(model, source, minibatch=MINIBATCH, lanes=4)


@pytest.mark.parametrize(("servers", "workers"), [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (3, 3)])
def test_rows_do_not_depend_on_how_many_take_part(
    threads: Callable[..., Threads], clicks: Path, tmp_path: Path, of_four: Any, servers: int, workers: int
) -> None:
    model = linear()
    run = ps.fit(
        model,
        str(clicks),
        strategy=strategy(servers=servers, workers=workers, micro_batches=4),
        engine=threads(),
        output=tmp_path / "run",
    )
    assert run.rows == run.metrics.rows == 24_000
    assert_same(rows_of(model), of_four)
    assert_same(rows_of(load_model(tmp_path / "run")), of_four)


@pytest.mark.parametrize(("servers", "workers"), [(2, 1), (1, 3), (3, 2)])
def test_single_micro_batches_are_the_mini_batches_of_one_process(
    threads: Callable[..., Threads], clicks: Path, servers: int, workers: int
) -> None:
    alone, together = linear(), linear()
    one = ps.fit(alone, str(clicks), strategy=ps.Online(minibatch=MINIBATCH), passes=2)
    many = ps.fit(
        together,
        str(clicks),
        strategy=strategy(servers=servers, workers=workers, micro_batches=1, depth=3),
        engine=threads(),
        passes=2,
    )
    assert_same(rows_of(together), rows_of(alone))
    assert (many.rows, many.metrics.rows) == (one.rows, one.metrics.rows) == (48_000, 24_000)
    assert many.metrics.logloss == pytest.approx(one.metrics.logloss, rel=1e-9)
    assert many.metrics.auc == pytest.approx(one.metrics.auc, rel=1e-9)


def test_real_processes_give_the_same_rows(
    processes: Callable[..., Processes], clicks: Path, tmp_path: Path, of_four: Any
) -> None:
    engine, model = processes(), linear()
    ps.fit(
        model,
        str(clicks),
        strategy=strategy(servers=2, workers=2, micro_batches=4),
        engine=engine,
        output=tmp_path / "run",
        progress=False,
    )
    assert_same(rows_of(model), of_four)
    assert len(engine.pids) == 5 and len(engine.addresses) == 3
    assert sorted(path.name for path in tmp_path.joinpath("run").iterdir()) == [
        ".lock",
        "cluster.jsonl",
        "logs",
        "manifest.json",
        "progress.jsonl",
        "v000001",
    ]
    # All that was reported adds up to the whole.
    assert sum(report.recent.rows for report in ps_reports(tmp_path / "run")) == 24_000


def ps_reports(folder: Path) -> list[Any]:
    import json
    from types import SimpleNamespace

    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    return [SimpleNamespace(recent=SimpleNamespace(**line["recent"])) for line in lines]


def test_with_a_hold_out_and_several_passes(threads: Callable[..., Threads], clicks: Path) -> None:
    holdout = ps.Holdout(fraction=0.2)
    model, expected = linear(), linear()
    source = ps.open_source(str(clicks))
    run = ps.fit(
        model,
        source,
        strategy=strategy(servers=2, workers=2, micro_batches=3),
        engine=threads(),
        passes=3,
        holdout=holdout,
    )
    expected.resolve(source.sample(16_384))
    rows = bsp(expected, source, minibatch=MINIBATCH, lanes=3, passes=3, holdout=holdout)
    assert_same(rows_of(model), rows)
    kept = sum(len(b) for chunk in micro_batches(expected, source, MINIBATCH, holdout) for b in chunk)
    assert run.holdout is not None and run.holdout.rows == 24_000 - kept
    assert run.rows == 3 * kept and run.metrics.rows == kept


def csv_files(clicks: Path, folder: Path) -> list[str]:
    table = pq.read_table(clicks)
    cuts = [0, 3000, 3001, 9000, 15_500, 24_000]
    for number, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        pa.csv.write_csv(table.slice(begin, end - begin), folder / f"part-{number}.csv")
    return [str(folder / f"part-{number}.csv") for number in range(len(cuts) - 1)]


def libsvm_files(folder: Path) -> list[str]:
    random = np.random.default_rng(3)
    files = []
    for number, rows in enumerate((700, 1, 1300, 250)):
        lines = []
        for _ in range(rows):
            keys = np.unique(random.integers(1, 500, random.integers(0, 12)))
            cells = " ".join(f"{key}:{random.normal():.3f}" for key in keys)
            lines.append(f"{random.integers(0, 2)} {cells}".rstrip())
        files.append(folder / f"part-{number}.svm")
        files[-1].write_text("\n".join(lines) + "\n")
    return [str(file) for file in files]


@pytest.mark.parametrize("kind", ["csv", "libsvm"])
def test_lengths_that_only_reading_tells(
    threads: Callable[..., Threads], clicks: Path, tmp_path: Path, kind: str
) -> None:
    files = csv_files(clicks, tmp_path) if kind == "csv" else libsvm_files(tmp_path)

    def make() -> ps.Linear:
        features = FEATURES if kind == "csv" else ps.Features()
        return ps.Linear(features, optimizer=ps.AdaGrad(alpha=0.1), segments=16)

    model, expected = make(), make()
    source = ps.open_source(files)
    run = ps.fit(
        model,
        source,
        strategy=strategy(servers=2, workers=3, micro_batches=3, minibatch=100),
        engine=threads(),
        passes=2,
    )
    expected.resolve(source.sample(16_384))
    assert_same(rows_of(model), bsp(expected, source, minibatch=100, lanes=3, passes=2))
    assert run.rows == (48_000 if kind == "csv" else 4502)


@pytest.mark.parametrize(("servers", "workers"), [(1, 2), (3, 3)])
def test_global_batches_are_those_of_one_process_by_tree_aggregate(
    threads: Callable[..., Threads], clicks: Path, servers: int, workers: int
) -> None:
    """Chunks are dealt to partitions as they are to lanes, and sums are taken in the same order."""
    alone, together = linear(), linear()
    tree = ps.TreeAggregate(partitions=4, depth=1, batch_rows=MINIBATCH, executor="threads")
    ps.fit(alone, str(clicks), strategy=tree)
    ps.fit(together, str(clicks), strategy=strategy(servers=servers, workers=workers), engine=threads())
    assert_same(rows_of(together), rows_of(alone))


@pytest.mark.parametrize("lanes", [1, 3])
def test_tables_of_several_dimensions_and_dense_parts(
    threads: Callable[..., Threads], clicks: Path, lanes: int
) -> None:
    table = pq.read_table(clicks).slice(0, 4000)

    def make() -> Toy:
        return Toy(FEATURES, segments=16, dense_optimizer=ps.SGD(alpha=0.02))

    model, expected = make(), make()
    # In memory: other processes read it from a file.
    run = ps.fit(
        model,
        table,
        strategy=strategy(servers=2, workers=2, micro_batches=lanes, minibatch=200, imports=("toy_model",)),
        engine=threads(),
        passes=2,
    )
    assert run.rows == 8000
    if lanes == 1:
        ps.fit(expected, table, strategy=ps.Online(minibatch=200), passes=2)
        assert_same(rows_of(model), rows_of(expected))
    else:
        source = ps.open_source(table)
        expected.resolve(source.sample(16_384))
        assert_same(rows_of(model), bsp(expected, source, minibatch=200, lanes=lanes, passes=2))


@pytest.mark.parametrize(
    ("rows", "minibatch", "lanes", "workers"), [(1, 256, 4, 2), (24_000, 256, 40, 2), (500, 300, 2, 4)]
)
def test_next_to_nothing_to_do(
    threads: Callable[..., Threads], clicks: Path, rows: int, minibatch: int, lanes: int, workers: int
) -> None:
    """One row; more lanes than chunks; more workers than micro-batches."""
    table = pq.read_table(clicks).slice(0, rows)
    source: Any = str(clicks) if rows == 24_000 else table
    model, expected = linear(), linear()
    run = ps.fit(
        model,
        source,
        strategy=strategy(servers=2, workers=workers, micro_batches=lanes, minibatch=minibatch),
        engine=threads(),
    )
    assert run.rows == rows
    opened = ps.open_source(source)
    expected.resolve(opened.sample(16_384))
    assert_same(rows_of(model), bsp(expected, opened, minibatch=minibatch, lanes=lanes))
