"""The same job under several strategies, one after the other: what ``penstock compare`` measures."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.dash import Comparison, JobSummary, Machine, Point, Trial, WorkerFigures
from penstock.engine import ParameterServer
from penstock.engine.spec import Slowness
from penstock.errors import ConfigError, Interrupted, PenstockError
from penstock.job.dispatch import Strategy
from penstock.job.job import Job
from penstock.models import Model
from penstock.parameter_server import parse_consistency
from penstock.train import Online, Run
from penstock.train.stream import available_cores
from penstock.train.tree import TreeAggregate
from penstock.version import __version__

__all__ = ["compare", "parse_straggler", "strategies_of"]

_MINIBATCH = 1024


def strategies_of(
    names: Sequence[str],
    *,
    servers: int,
    workers: int,
    minibatch: int | None = None,
    slow: Mapping[str, Slowness] | None = None,
    **others: Any,
) -> dict[str, Strategy]:
    """Strategies by what the user calls them: ``bsp``, ``ssp:4``, ``asp``, ``tree``, ``online``.

    ``others`` are more settings of ``ParameterServer``.

    Raises:
        ConfigError: no such strategy, or none at all, or one twice.
    """
    for name in slow or {}:
        if name != "*" and name not in {f"worker-{number}" for number in range(workers)}:
            raise ConfigError(f"straggler {name}: there are {workers} workers, worker-0 to worker-{workers - 1}")
    rows = minibatch if minibatch is not None else _MINIBATCH
    found: dict[str, Strategy] = {}
    for name in names:
        key = name.strip().lower()
        if key in found:
            raise ConfigError(f"strategy {name!r} is named twice")
        if key == "online":
            found[key] = Online(minibatch=minibatch)
        elif key == "tree":
            found[key] = TreeAggregate(
                partitions=workers, batch_rows=rows, executor="processes", executors=workers
            )
        else:
            try:
                consistency = parse_consistency(key)
            except ConfigError as error:
                raise ConfigError(f"{error}; also tree and online can be compared") from error
            found[str(consistency)] = ParameterServer(
                servers=servers,
                workers=workers,
                consistency=consistency,
                minibatch=rows,
                slow=dict(slow or {}),
                **others,
            )
    if not found:
        raise ConfigError("nothing to compare: name strategies, such as bsp, ssp:4, asp, tree, online")
    return found


def parse_straggler(text: str) -> dict[str, Slowness]:
    """``1=4x``: worker-1's steps take four times as long. ``1=80ms``: at least so long.

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"(\d+)=(\d+(?:\.\d+)?)(x|ms)", text.strip())
    if match is None or float(match[2]) <= 0 or (match[3] == "x" and float(match[2]) < 1):
        raise ConfigError(f"straggler {text!r} must be a worker's number, = and 4x or 80ms, such as 1=4x")
    how = Slowness(factor=float(match[2])) if match[3] == "x" else Slowness(step_s=float(match[2]) / 1000)
    return {f"worker-{int(match[1])}": how}


def compare(
    job: Job,
    strategies: Mapping[str, Strategy],
    *,
    straggler: str | None = None,
    progress: bool | None = None,
    on_trial: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Train once under each strategy, from nothing each time; a strategy that fails does not stop the others.

    Models are thrown away. ``on_trial`` is called with each strategy's name before it begins.
    """
    source = job.data.open()
    trials, model = [], job.model()
    for name, strategy in strategies.items():
        on_trial(name)
        model = job.model()
        try:
            with tempfile.TemporaryDirectory(prefix="penstock-compare-") as folder:
                trial_job = dataclasses.replace(job, output=dataclasses.replace(job.output, path=folder))
                run = trial_job.run(model, source, strategy=strategy, progress=progress)
            trials.append(_trial(name, strategy, run))
        except Interrupted:
            raise
        except PenstockError as error:
            trials.append(Trial(name=name, description=_describe(strategy), error=str(error)))
    size = source.size if source.unit == "rows" else None
    optimizer = dict(job.optimizer)
    kind = optimizer.pop("name")
    numbers = ", ".join(f"{setting} {value:g}" for setting, value in optimizer.items())
    return Comparison(
        job=JobSummary(
            files=tuple(source.files),
            rows=size,
            features=_features(model),
            optimizer=f"{kind} ({numbers})" if numbers else str(kind),
        ),
        machine=Machine(cores=available_cores(), python=platform.python_version(), penstock=__version__),
        when=datetime.datetime.now(datetime.UTC),
        trials=tuple(trials),
        straggler=straggler,
    )


def _features(model: Model) -> str:
    if model.plan is None:
        return ""
    columns = f"{len(model.plan.inputs)} columns"
    return f"{columns}, {model.rows:,} keys" if model.rows else columns


def _trial(name: str, strategy: Strategy, run: Run) -> Trial:
    figures: Mapping[str, Any] = run.figures
    servers, workers = figures.get("servers", ()), figures.get("workers", ())
    curve = tuple(
        Point(
            seconds=report.seconds,
            rows=report.rows,
            logloss=report.scores.logloss,
            recent_logloss=report.recent.logloss,
            auc=report.scores.auc,
        )
        for report in run.history
    )
    many = isinstance(strategy, ParameterServer)
    moved = {k: v for k, v in figures.items() if k.endswith("_nbytes") and isinstance(v, int)}
    return Trial(
        name=name,
        description=_describe(strategy),
        rows=run.rows,
        seconds=run.seconds,
        minibatch=_minibatch(strategy),
        servers=strategy.servers if isinstance(strategy, ParameterServer) else 0,
        workers=strategy.workers if isinstance(strategy, ParameterServer) else figures.get("executors", 1),
        curve=curve,
        scores=run.metrics.to_json(),
        holdout=run.holdout.to_json() if run.holdout is not None else None,
        by_worker=tuple(_worker(worker, run.seconds) for worker in workers),
        # Every server sees each micro-batch once; the first stands for all.
        staleness={int(at): n for at, n in servers[0].get("staleness", {}).items()} if servers else {},
        bytes_in=sum(server.get("bytes_in", 0) for server in servers) if many else _back(moved),
        bytes_out=sum(server.get("bytes_out", 0) for server in servers) if many else _out(moved),
        events=tuple((max(0.0, at), text) for at, text in figures.get("events", ())),
    )


def _back(moved: Mapping[str, int]) -> int:
    return sum(nbytes for name, nbytes in moved.items() if "back" in name or name == "moved_nbytes")


def _out(moved: Mapping[str, int]) -> int:
    return sum(nbytes for name, nbytes in moved.items() if "out" in name)


def _worker(worker: Mapping[str, Any], seconds: float) -> WorkerFigures:
    busy_s = min(worker.get("busy_s", 0.0), seconds)
    return WorkerFigures(
        name=worker["name"],
        rows=worker.get("rows", 0),
        batches=worker.get("done", 0),
        busy_s=busy_s,
        idle_s=max(0.0, seconds - busy_s),
        stolen=worker.get("stolen", 0),
        waits_s=dict(worker.get("waits", {})),
    )


def _minibatch(strategy: Strategy) -> int:
    if isinstance(strategy, TreeAggregate):
        return (strategy.batch_rows or 0) * (strategy.partitions or 1)
    return strategy.minibatch or 1


def _many(n: int, what: str) -> str:
    return f"1 {what}" if n == 1 else f"{n} {what}s"


def _describe(strategy: Strategy) -> str:
    if isinstance(strategy, ParameterServer):
        return (
            f"parameter server, {_many(strategy.servers, 'server')}, {_many(strategy.workers, 'worker')}, "
            f"micro-batches of {strategy.minibatch:,} rows, {strategy.lanes} to a global batch"
        )
    if isinstance(strategy, TreeAggregate):
        return f"tree aggregate of depth {strategy.depth}, {strategy.partitions} partitions"
    batch = f"mini-batches of {strategy.minibatch:,} rows" if strategy.minibatch else "example by example"
    return f"one process, {batch}"
