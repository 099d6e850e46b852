"""Tree aggregate in processes: the same bits as in threads, and no process that is left over or waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock as ps
from penstock.errors import ConfigError, DataError, ExecutorLost, Interrupted
from penstock.train.tree import TreeAggregate, fit_tree, processes
from penstock.train.tree.fit import TreeSession
from penstock.train.tree.partition import Partial
from penstock.train.tree.pipes import Pipes
from penstock.train.tree.processes import Processes

# Groups {0, 3, 6}, {1, 4, 7}, {2, 5, 8} over two processes: sums must move. The last four have no chunks.
STRATEGY = TreeAggregate(partitions=9, executors=2, executor="processes", batch_rows=700)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The processes that a test starts, which must all be gone when it is over."""
    found: list[subprocess.Popen[bytes]] = []
    start = Processes.start

    def noted(self: Processes, work: Any) -> None:
        try:
            start(self, work)
        finally:
            found.extend(child.process for child in self._children)

    monkeypatch.setattr(Processes, "start", noted)
    yield found
    assert found and all(process.returncode is not None for process in found)


def at_iteration(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[TreeSession], None]) -> None:
    account = TreeSession.account

    def acting(self: TreeSession, partials: Sequence[Partial | None]) -> None:
        account(self, partials)
        if self.counted.iterations == number:
            act(self)

    monkeypatch.setattr(TreeSession, "account", acting)


def test_the_same_bits_as_threads(clicks: Path, new_model: Any, assert_same_model: Any, started: Any) -> None:
    threads = TreeAggregate(partitions=9, batch_rows=700)
    want = fit_tree(new_model(), str(clicks), strategy=threads, passes=2, holdout=0.1)
    got = fit_tree(new_model(), str(clicks), strategy=STRATEGY, passes=2, holdout=0.1)
    assert_same_model(got.model, want.model)
    assert got.metrics == want.metrics and got.holdout == want.holdout and got.rows == want.rows
    moved = got.figures["moved_nbytes"]
    assert moved > 0 and moved % 12 == 0
    assert {**got.figures, "moved_nbytes": 0, "executors": 0} == {**want.figures, "executors": 0}
    assert len(started) == 2 and all(process.returncode == 0 for process in started)


def test_options_of_a_format_reach_the_processes(tmp_path: Path, assert_same_model: Any, started: Any) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"{i % 2};a{i % 7};{i % 5}\n" for i in range(2000)))
    csv = ps.CsvOptions(delimiter=";", header=False, columns=("label", "c", "w"), null_values=("a3",))
    source = ps.open_source(str(path), csv=csv)
    runs = [
        fit_tree(
            ps.Linear(ps.Features(categorical=["c"], weight="w")),
            source,
            strategy=TreeAggregate(partitions=2, executors=1, executor=executor, batch_rows=64),
        )
        for executor in ("threads", "processes")
    ]
    assert_same_model(runs[0].model, runs[1].model)
    assert runs[0].metrics == runs[1].metrics and runs[0].rows == 2000


def test_interrupted_in_processes_and_resumed_in_threads(
    clicks: Path,
    tmp_path: Path,
    new_model: Any,
    assert_same_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    started: Any,
) -> None:
    threads = TreeAggregate(partitions=9, batch_rows=700)
    want = fit_tree(new_model(), str(clicks), strategy=threads)
    with monkeypatch.context() as patch:
        at_iteration(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            fit_tree(new_model(), str(clicks), strategy=STRATEGY, output=tmp_path / "m")
    got = fit_tree(new_model(), str(clicks), strategy=threads, output=tmp_path / "m", resume=True)
    assert_same_model(got.model, want.model)
    assert got.metrics == want.metrics


def test_a_killed_process_is_named(
    clicks: Path, new_model: Any, monkeypatch: pytest.MonkeyPatch, started: Any
) -> None:
    def kill(session: TreeSession) -> None:
        assert isinstance(session.executor, Processes)
        session.executor._children[1].process.kill()

    at_iteration(monkeypatch, 3, kill)
    with pytest.raises(ExecutorLost, match=r"executor 1 \(process \d+\) was ended by SIGKILL"):
        fit_tree(new_model(), str(clicks), strategy=STRATEGY)


def test_a_silent_process_is_named(
    clicks: Path, new_model: Any, monkeypatch: pytest.MonkeyPatch, started: Any
) -> None:
    def stop(session: TreeSession) -> None:
        assert isinstance(session.executor, Processes)
        child = session.executor._children[1]
        os.kill(child.process.pid, signal.SIGSTOP)
        child.pipes.silence_s = 0.2

    at_iteration(monkeypatch, 2, stop)
    monkeypatch.setattr(processes, "_END_S", 0.2)
    with pytest.raises(ExecutorLost, match=r"executor 1 \(process \d+\) has been silent for 0\.2 s"):
        fit_tree(new_model(), str(clicks), strategy=STRATEGY)


def test_errors_of_the_data_are_those_of_threads(tmp_path: Path, started: Any) -> None:
    labels = [0, 1] * 1000
    labels[1234] = 7
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"label": labels, "c": ["a"] * 2000}), path, row_group_size=500)
    strategy = TreeAggregate(partitions=2, executors=1, executor="processes")
    with pytest.raises(DataError, match=r"x\.parquet row 1234.*allowed: 0 or 1"):
        fit_tree(ps.Linear(ps.Features(categorical=["c"])), str(path), strategy=strategy)


def test_data_in_memory_is_refused(clicks: Path, new_model: Any) -> None:
    with pytest.raises(ConfigError, match="other processes can read files alone, got data in memory"):
        fit_tree(new_model(), pq.read_table(clicks), strategy=TreeAggregate(executor="processes"))


WORKER = [sys.executable, "-m", "penstock.train.tree.worker"]
# A worker that never comes to an end of what it is told.
BUSY = """
import threading
from penstock.train.tree import worker
worker._Worker.answer = lambda self, message, arrays: threading.Event().wait()
worker.ALIVE_S = 0.05
worker.main()
"""


@pytest.mark.parametrize("command", [WORKER, [sys.executable, "-c", BUSY]])
def test_a_process_does_not_outlive_its_driver(command: list[str]) -> None:
    """When a driver is killed, the system closes its ends of the pipes, and that is all that happens."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ps.__file__).parent.parent)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment)
    assert process.stdin is not None and process.stdout is not None
    pipes = Pipes(process.stdout, process.stdin)  # type: ignore[arg-type]
    if command is not WORKER:
        pipes.send("prepare")
        assert pipes.receive()[0].kind == "alive"
    pipes.close()
    assert process.wait(20) == (0 if command is WORKER else 1)


def test_an_unexpected_failure_is_told(
    clicks: Path, new_model: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], started: Any
) -> None:
    def confuse(session: TreeSession) -> None:
        assert isinstance(session.executor, Processes)
        session.executor._send(session.executor._children[0], "nonsense")

    at_iteration(monkeypatch, 1, confuse)
    strategy = TreeAggregate(partitions=2, executors=1, executor="processes")
    with pytest.raises(ExecutorLost, match=r"executor 0 \(process \d+\) failed: AttributeError: .*nonsense"):
        fit_tree(new_model(), str(clicks), strategy=strategy)
    assert "Traceback" in capfd.readouterr().err
