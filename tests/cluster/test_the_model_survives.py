"""Servers and coordinators that are killed, disks that are full, runs that are stopped: what there was can be
gone on from, and the end is that of a run without any of this."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import Counting
from harness import Processes, Threads, alive, wait_for
from oracle import assert_counted, assert_same, bsp, rows_of

import penstock as ps
from penstock.engine.spec import Slowness
from penstock.errors import Interrupted, ModelError, PenstockError
from penstock.models import load_model
from penstock.parameter_server import ASP, BSP, Consistency

FEATURES = ps.Features(label="clicked", ignore=["time"])
SLOW = {"*": Slowness(step_s=0.02)}


def linear() -> ps.Linear:
    return ps.Linear(FEATURES, segments=64)


def strategy(consistency: Consistency, **options: Any) -> ps.ParameterServer:
    given = {"servers": 2, "workers": 2, "minibatch": 256, "micro_batches": 4, "slow": SLOW}
    return ps.ParameterServer(consistency=consistency, **given | {"imports": ("counting",)} | options)


@pytest.fixture(scope="module")
def undisturbed(clicks: Path) -> Any:
    """Rows after two passes by BSP."""
    model, source = linear(), ps.open_source(str(clicks))
    model.resolve(source.sample(16_384))
    return bsp(model, source, minibatch=256, lanes=4, passes=2)


def after_checkpoint(act: Callable[[Any], None], number: int = 2) -> Callable[..., None]:
    """A hook: once the checkpoint is there."""
    done: list[bool] = []

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if not done and (status["checkpoint"] or 0) >= number:
            done.append(True)
            act(cluster)

    return hook


def kill(name: str) -> Callable[[Any], None]:
    return lambda cluster: os.kill(cluster.pids[name], signal.SIGKILL)


@pytest.mark.parametrize(("victim", "servers", "workers"), [("server-1", 3, 1), ("coordinator", 1, 2)])
def test_bsp_ends_the_same_after_a_death(
    processes: Callable[..., Processes],
    threads: Callable[..., Threads],
    clicks: Path,
    tmp_path: Path,
    undisturbed: Any,
    victim: str,
    servers: int,
    workers: int,
) -> None:
    """Gone on with in another number of servers and workers."""
    advice = rf"; go on from the checkpoint with: penstock train --resume -o {re.escape(str(tmp_path))}/run$"
    with pytest.raises(PenstockError, match=rf"^(the )?{victim} was ended by SIGKILL.*{advice}"):
        ps.fit(
            linear(),
            str(clicks),
            strategy=strategy(BSP()),
            engine=processes(hook=after_checkpoint(kill(victim))),
            passes=2,
            output=tmp_path / "run",
            checkpoint_every_s=0.2,
        )
    assert not (tmp_path / "run" / "manifest.json").exists()
    with pytest.raises(ModelError, match="its run has not ended"):
        load_model(tmp_path / "run")
    model = linear()
    run = ps.fit(
        model,
        str(clicks),
        strategy=strategy(BSP(), servers=servers, workers=workers, slow={}),
        engine=threads(),
        passes=2,
        output=tmp_path / "run",
        resume=True,
    )
    assert_same(rows_of(model), undisturbed)
    assert (run.rows, run.metrics.rows) == (48_000, 24_000)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_asp_counts_right_after_a_death(
    processes: Callable[..., Processes], threads: Callable[..., Threads], clicks: Path, tmp_path: Path
) -> None:
    """Twice: the second life dies too, and is of another number of servers."""
    output = tmp_path / "run"

    def fit(model: Counting, engine: Any, servers: int, resume: bool) -> ps.Run:
        return ps.fit(
            model,
            str(clicks),
            strategy=strategy(ASP(), servers=servers),
            engine=engine,
            passes=2,
            output=output,
            checkpoint_every_s=0.15,
            resume=resume,
        )

    for servers, resume in ((2, False), (3, True)):
        with pytest.raises(PenstockError, match=r"server-0 was ended by SIGKILL"):
            fit(
                Counting(FEATURES, segments=64),
                processes(hook=after_checkpoint(kill("server-0"))),
                servers,
                resume,
            )
    model = Counting(FEATURES, segments=64)
    run = fit(model, threads(), 1, True)
    assert_counted(model, ps.open_source(str(clicks)), passes=2)
    assert (run.rows, run.metrics.rows) == (48_000, 24_000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
def test_a_disk_that_is_full_for_a_while(
    processes: Callable[..., Processes], clicks: Path, tmp_path: Path
) -> None:
    """Checkpoints fail, training goes on, and the earlier checkpoint stays whole."""
    manifests: list[bytes] = []

    def limit(cluster: Any, nbytes: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.prlimit(cluster.pids["server-0"], resource.RLIMIT_FSIZE, (nbytes, hard))

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        checkpoint = tmp_path / "run" / "checkpoint"
        failed = [text for _, text in status["events"] if text.startswith("checkpoint failed")]
        if not manifests and status["checkpoint"]:
            limit(cluster, 100)
            manifests.append((checkpoint / "manifest.json").read_bytes())
        elif len(manifests) == 1 and len(failed) >= 2:
            manifests.append((checkpoint / "manifest.json").read_bytes())
            assert rows_of(load_model(checkpoint))
            limit(cluster, resource.RLIM_INFINITY)

    engine, model = processes(hook=hook), Counting(FEATURES, segments=64)
    # Compiled kernels are kept on disk too: those that a server first needs when the disk is full are so now.
    table = Counting(FEATURES, segments=64).tables()["counts"]
    table.push(np.array([2], np.uint64), np.ones((1, 1), np.float32))
    table.touch(table.copy_changed()[0])
    ps.fit(
        model,
        str(clicks),
        strategy=strategy(ASP()),
        engine=engine,
        passes=3,
        output=tmp_path / "run",
        checkpoint_every_s=0.2,
    )
    assert_counted(model, ps.open_source(str(clicks)), passes=3)
    # The one that was under way when the disk filled up may have been written.
    numbers = [json.loads(manifest)["progress"]["state"]["rows"] for manifest in manifests]
    assert len(numbers) == 2 and numbers[1] < 72_000
    failed = [event for event in engine.events if event.startswith("checkpoint failed")]
    assert all(re.search(r"server-0: .*/checkpoint/v\d+.*: cannot write", event) for event in failed), failed
    assert engine.last["checkpoint"] > 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
def test_a_disk_that_is_full_at_the_end(
    processes: Callable[..., Processes],
    threads: Callable[..., Threads],
    clicks: Path,
    tmp_path: Path,
    undisturbed: Any,
) -> None:
    def limit(cluster: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.prlimit(cluster.pids["server-1"], resource.RLIMIT_FSIZE, (100, hard))

    def fit(model: ps.Linear, engine: Any, **options: Any) -> ps.Run:
        return ps.fit(model, str(clicks), engine=engine, passes=2, output=tmp_path / "run", **options)

    with pytest.raises(PenstockError) as caught:
        fit(
            linear(),
            processes(hook=after_checkpoint(limit, 1)),
            strategy=strategy(BSP()),
            checkpoint_every_s=0.3,
        )
    message = str(caught.value)
    assert re.match(
        r"the model could not be saved: server-1: .*/v\d+: cannot .* too large; go on from the", message
    )
    assert not (tmp_path / "run" / "manifest.json").exists()
    model = linear()
    fit(model, threads(), strategy=strategy(BSP(), slow={}), resume=True)
    assert_same(rows_of(model), undisturbed)


@pytest.mark.parametrize("damage", ["missing", "altered", "manifest"])
def test_a_checkpoint_that_is_damaged(
    threads: Callable[..., Threads], clicks: Path, tmp_path: Path, damage: str
) -> None:
    def stop(cluster: Any, status: dict[str, Any]) -> None:
        if status["rows"] >= 4000 and not asked:
            asked.append(True)
            from penstock.engine.observer import Observer

            with Observer(cluster.access, cluster.address, name="somebody") as observer:
                observer.stop("a test")

    asked: list[bool] = []

    def fit(engine: Any, resume: bool, passes: int = 1) -> ps.Run:
        return ps.fit(
            Counting(FEATURES, segments=64),
            str(clicks),
            strategy=strategy(ASP()),
            engine=engine,
            passes=passes,
            output=tmp_path / "run",
            resume=resume,
        )

    with pytest.raises(Interrupted, match=r"^stopped by a test after [\d,]+ rows; the checkpoint is"):
        fit(threads(hook=stop), False)
    with pytest.raises(ModelError, match="cannot resume: passes was 1, is now 2"):
        fit(threads(), True, passes=2)
    checkpoint = tmp_path / "run" / "checkpoint"
    file = next(checkpoint.glob("v*/counts-s1*.parquet"))
    if damage == "missing":
        file.unlink()
    elif damage == "altered":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        (checkpoint / "manifest.json").write_text("{")
    name = "manifest.json" if damage == "manifest" else file.name
    with pytest.raises(PenstockError, match=re.escape(name)):
        fit(threads(), True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_command_that_is_stopped(
    roles: Any, clicks: Path, tmp_path: Path, undisturbed: Any, number: int
) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'[data]\ntrain = "{clicks}"\n[features]\nlabel = "clicked"\nignore = ["time"]\n'
        '[train]\nconsistency = "bsp"\nservers = 2\nworkers = 2\nminibatch = 256\nmicro_batches = 4\npasses = 2\n'
        '[output]\npath = "run"\n'
    )
    train = roles("train", job, "--passes", 12)
    train.says(r"\n +\d+\.\d +[\d,]+")
    children = Path(f"/proc/{train.process.pid}/task/{train.process.pid}/children").read_text().split()
    train.signal(number)
    assert train.ends(20) == 130
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    (error,) = train.errors
    assert re.fullmatch(
        rf"penstock: stopped by {by} after [\d,]+ rows; the checkpoint is in run/checkpoint; "
        r"go on with: penstock train --resume -o run",
        error,
    )
    assert len(children) == 5 and not [pid for pid in children if alive(int(pid))]
    if number == signal.SIGTERM:
        return
    resumed = roles("train", "--resume", "-o", "run", "--servers", 1, "--quiet")
    assert resumed.ends() == 0, resumed.err
    alone = linear()
    source = ps.open_source(str(clicks))
    alone.resolve(source.sample(16_384))
    found = load_model(tmp_path / "run")
    expected = ps.Linear(found.plan, segments=found.segments)
    rows = bsp(expected, source, minibatch=256, lanes=4, passes=12)
    assert_same(rows_of(found), rows)


def test_stopped_before_it_began(roles: Any, clicks: Path, tmp_path: Path) -> None:
    train = roles("train", clicks, "--label", "clicked", "--servers", 1, "--workers", 1, "-o", "run")
    wait_for("roles start", lambda: (tmp_path / "run" / "logs" / "worker-0.log").exists())
    train.signal(signal.SIGINT)
    assert train.ends(20) == 130
    assert train.errors == ["penstock: stopped by Ctrl-C before a row was learnt; no checkpoint was written"]
