"""Workers that are killed, stopped, cut off or told to go: the run ends well, and each row is learnt once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting import Counting
from harness import Processes, Threads, alive, wait_for
from oracle import assert_counted, assert_same, bsp, rows_of

import penstock as ps
from penstock.engine.node import Links
from penstock.engine.observer import Observer
from penstock.engine.spec import Slowness
from penstock.errors import Interrupted, PenstockError
from penstock.parameter_server import ASP, BSP, SSP, Consistency

FEATURES = ps.Features(label="clicked", ignore=["time"])
SLOW = {"*": Slowness(step_s=0.02)}
"""96 micro-batches then take two workers one second, in which there is time to do harm."""


def strategy(consistency: Consistency, **options: Any) -> ps.ParameterServer:
    given = {"servers": 2, "workers": 2, "minibatch": 256, "imports": ("counting",), "slow": SLOW} | options
    return ps.ParameterServer(consistency=consistency, **given)


def kill_once(name: str, number: int = signal.SIGKILL, after: int = 3000) -> Callable[..., None]:
    """A hook: a signal to a role, once so many rows are learnt."""
    done: list[int] = []

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if not done and status["rows"] >= after:
            done.append(cluster.pids[name])
            os.kill(done[0], number)

    return hook


@pytest.mark.parametrize("consistency", [ASP(), SSP(2)], ids=str)
def test_killed_while_it_learns(
    processes: Callable[..., Processes], clicks: Path, tmp_path: Path, consistency: Consistency
) -> None:
    engine, model = processes(hook=kill_once("worker-1")), Counting(FEATURES, segments=64)
    run = ps.fit(
        model, str(clicks), strategy=strategy(consistency), engine=engine, passes=2, output=tmp_path / "run"
    )
    assert_counted(model, ps.open_source(str(clicks)), passes=2)
    assert run.rows == 48_000 and run.metrics.rows == 24_000
    assert any("worker-1 is out" in event for event in engine.events)
    assert len(engine.pids) == 6


def test_bsp_gives_the_same_rows_though_its_only_worker_was_killed(
    processes: Callable[..., Processes], clicks: Path
) -> None:
    def make() -> ps.Linear:
        return ps.Linear(FEATURES, segments=64)

    engine, model, expected = processes(hook=kill_once("worker-0")), make(), make()
    run = ps.fit(model, str(clicks), strategy=strategy(BSP(), workers=1, micro_batches=3, depth=3), engine=engine)
    source = ps.open_source(str(clicks))
    expected.resolve(source.sample(16_384))
    assert_same(rows_of(model), bsp(expected, source, minibatch=256, lanes=3))
    assert run.metrics.rows == 24_000


def test_stopped_for_longer_than_it_may_be_silent(processes: Callable[..., Processes], clicks: Path) -> None:
    """It comes back with work that others have done by then."""
    stop = kill_once("worker-1", signal.SIGSTOP)
    went_on: list[bool] = []

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        stop(cluster, status)
        out = any("worker-1 is out" in text for _, text in status["events"])
        if out and not went_on:
            went_on.append(True)
            os.kill(cluster.pids["worker-1"], signal.SIGCONT)

    engine, model = processes(hook=hook), Counting(FEATURES, segments=64)
    slow = {"*": Slowness(step_s=0.15)}
    run = ps.fit(model, str(clicks), strategy=strategy(ASP(), slow=slow), engine=engine)
    assert went_on and run.rows == 24_000
    assert_counted(model, ps.open_source(str(clicks)))
    # It was let in again.
    joined = [event for event in engine.events if event == "worker-1 joined"]
    assert len(joined) == 2 and len(engine.pids) == 5


def test_more_die_than_are_started_again(
    processes: Callable[..., Processes], clicks: Path, tmp_path: Path
) -> None:
    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if status["phase"] == "training":
            for name in ("worker-0", "worker-1"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(cluster.pids[name], signal.SIGKILL)

    engine = processes(hook=hook, restarts=1)
    with pytest.raises(PenstockError, match=r"^no worker is left: worker-\d was ended by SIGKILL; there was no"):
        ps.fit(
            Counting(FEATURES, segments=64),
            str(clicks),
            strategy=strategy(ASP()),
            engine=engine,
            output=tmp_path / "run",
        )
    assert len(engine.pids) == 6
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_connections_that_break(
    threads: Callable[..., Threads], clicks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between all pairs, again and again, at any moment."""
    made: list[Links] = []
    init = Links.__init__

    def remember(self: Links, *arguments: Any) -> None:
        init(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Links, "__init__", remember)
    broken: list[int] = []

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if status["rows"] >= 3000 * (len(broken) + 1) and len(broken) < 12:
            peers = ("server-0", "server-1", "coordinator", "worker-0", "worker-1")
            for links in made:
                links.drop(peers[len(broken) % len(peers)])
            broken.append(status["rows"])

    model = Counting(FEATURES, segments=64)
    slow = {"*": Slowness(step_s=0.005)}
    run = ps.fit(model, str(clicks), strategy=strategy(SSP(1), slow=slow), engine=threads(hook=hook), passes=2)
    assert len(broken) == 12 and run.rows == 48_000
    assert_counted(model, ps.open_source(str(clicks)), passes=2)


def test_join_late_and_leave_early(threads: Callable[..., Threads], clicks: Path) -> None:
    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if status["rows"] >= 3000 and "late" not in cluster._threads:
            cluster.add_worker("late")
        if status["rows"] >= 12_000:
            cluster.leaving |= {"worker-0", "worker-1"}

    engine, model = threads(hook=hook), Counting(FEATURES, segments=64)
    run = ps.fit(model, str(clicks), strategy=strategy(ASP()), engine=engine, passes=2)
    assert_counted(model, ps.open_source(str(clicks)), passes=2)
    events = [text for _, text in engine.last["events"]]
    assert any(event.startswith("worker-0 is out (left)") for event in events)
    assert [worker["name"] for worker in engine.last["workers"]] == ["late"]
    assert run.rows == 48_000 and not engine.errors


@pytest.mark.parametrize("where", ["keys", "gradients"])
def test_a_mistake_in_a_model_of_the_users(processes: Callable[..., Processes], clicks: Path, where: str) -> None:
    """It ends the run at once, and is told with its place; nobody waits."""
    engine = processes()
    pattern = {"keys": r"KeyError: .*a mistake of", "gradients": r"clicks-0.*: ZeroDivisionError: a mistake of"}
    with pytest.raises(PenstockError, match=pattern[where]):
        ps.fit(
            Counting(FEATURES, segments=64, fail_with=where),
            str(clicks),
            strategy=strategy(ASP(), servers=1, workers=1),
            engine=engine,
        )


def test_two_clusters_at_once(processes: Callable[..., Processes], clicks: Path, tmp_path: Path) -> None:
    """The one is started in the middle of the other."""
    inner = Counting(FEATURES, segments=64)

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if status["rows"] >= 2000 and not inner.rows:
            ps.fit(
                inner,
                str(clicks),
                strategy=strategy(BSP(), servers=1, workers=1),
                engine=processes(),
                output=tmp_path / "inner",
            )

    outer = Counting(FEATURES, segments=64)
    slow = {"*": Slowness(step_s=0.05)}
    ps.fit(
        outer,
        str(clicks),
        strategy=strategy(ASP(), slow=slow),
        engine=processes(hook=hook),
        output=tmp_path / "outer",
    )
    for model in (inner, outer):
        assert_counted(model, ps.open_source(str(clicks)))


def test_all_go_when_their_starter_is_killed(roles: Any, clicks: Path, tmp_path: Path) -> None:
    train = roles(
        "train", clicks, "--label", "clicked", "--servers", 2, "--workers", 2, "--passes", 1000, "-o", "run"
    )
    wait_for("training", lambda: (tmp_path / "run" / "progress.jsonl").exists())
    children = _children(train.process.pid)
    assert len(children) == 5
    train.signal(signal.SIGKILL)
    assert train.ends() == -signal.SIGKILL
    wait_for("all gone", lambda: not [pid for pid in children if alive(pid)], 10)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("this system does not list a process's children")
    return [int(child) for child in listed.read_text().split()]


def test_a_run_that_ends_while_a_worker_makes_ready(
    threads: Callable[..., Threads], clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stays until its own thread has come to an end: otherwise the process would be aborted."""
    making, may_end = threading.Event(), threading.Event()
    stayed: list[bool] = []

    def warm_up(work: Any) -> None:
        making.set()
        assert may_end.wait(60.0)

    def look(engine: Threads) -> None:
        # The coordinator waits a moment for its roles to go, so that a worker that can has gone by then.
        engine._threads["coordinator"].join()
        stayed.append(engine._threads["worker-0"].is_alive())
        may_end.set()

    def hook(engine: Threads, status: dict[str, Any]) -> None:
        if making.is_set() and not looking:
            looking.append(threading.Thread(target=look, args=(engine,)))
            looking[0].start()
            with Observer(engine.access, engine.address) as observer:
                observer.stop("the test")

    looking: list[threading.Thread] = []
    monkeypatch.setattr("penstock.engine.worker._Work._warm_up", warm_up)
    with pytest.raises(Interrupted):
        ps.fit(
            Counting(FEATURES, segments=64),
            str(clicks),
            strategy=strategy(ASP(), servers=1, workers=1),
            engine=threads(hook=hook),
            output=tmp_path / "run",
        )
    looking[0].join()
    assert stayed == [True]
    assert not [t.name for t in threading.enumerate() if t.name in ("making ready", "reader")]
