"""``fit`` on many processes: what is sent out, how it is watched, and what comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.data import Source, open_source
from penstock.data.describe import describe
from penstock.engine.local import LocalProcesses
from penstock.engine.spec import RunSpec
from penstock.engine.strategy import ParameterServer
from penstock.errors import ConfigError, Interrupted
from penstock.metrics import BinaryMetrics, Scores
from penstock.models import Model, load_model, read_manifest
from penstock.models.manifest import commit_manifest
from penstock.train import Holdout, Run
from penstock.train.folder import RunFolder
from penstock.train.progress import JsonLines, Report, Reporter, reporter_for
from penstock.train.scoring import evaluate_stream
from penstock.train.session import SAMPLE_ROWS, as_holdout, open_data
from penstock.train.stream import EncodedStream, read_for

__all__ = ["Prepared", "fit_cluster", "prepare"]


def fit_cluster(
    model: Model,
    data: Any,
    *,
    strategy: ParameterServer,
    engine: LocalProcesses | None = None,
    passes: int = 1,
    holdout: Holdout | float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    progress: bool | None = None,
    readers: int | None = None,
    job: dict[str, Any] | None = None,
) -> Run:
    """Train ``model`` on ``data`` with a parameter server; arguments as ``train.online.fit`` has them.

    Data in memory is written to a file first. On return the model holds the rows, in this process.

    Raises:
        PenstockError: the run failed; the message names who, and the checkpoint to resume from.
        Interrupted: Ctrl-C, after a checkpoint was written.
    """
    engine = engine if engine is not None else LocalProcesses()
    with prepare(
        model,
        data,
        strategy=strategy,
        passes=passes,
        holdout=holdout,
        output=output,
        resume=resume,
        checkpoint_every_s=checkpoint_every_s,
        readers=readers,
        job=job,
    ) as prepared:
        folder = prepared.folder
        watcher = _Watcher(folder, reporter_for(progress))
        with watcher, engine.start(prepared.run, workers=strategy.workers) as cluster:
            status = cluster.watch(watcher.see, watcher.why_stop)
        if status["phase"] == "stopped":
            raise Interrupted(
                f"stopped by {watcher.why_stop()} after {status['rows']:,} rows; the checkpoint is in "
                f"{folder.checkpoint}; go on with: penstock train --resume -o {folder.path}"
            )
        held = prepared.finish()
    return Run(
        model=model,
        metrics=watcher.metrics.scores(),
        holdout=held,
        rows=status["rows"],
        seconds=status["seconds"],
        history=watcher.history,
        figures=_figures(status),
    )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that is ready to be coordinated; ``finish`` takes what it left in the folder."""

    run: RunSpec
    model: Model
    source: Source
    folder: RunFolder
    holdout: Holdout | None
    readers: int | None

    def finish(self) -> Scores | None:
        """Load the trained rows into the model, and evaluate on the hold-out, if there is one."""
        self.model.adopt(load_model(self.folder.path))
        held = _evaluate(self.model, self.source, self.holdout, self.readers)
        _finish(self.model, self.folder, held)
        return held


@contextlib.contextmanager
def prepare(
    model: Model,
    data: Any,
    *,
    strategy: ParameterServer,
    passes: int = 1,
    holdout: Holdout | float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    readers: int | None = None,
    gather_s: float = 60.0,
    job: dict[str, Any] | None = None,
) -> Iterator[Prepared]:
    """Resolve the features, and hold the run's folder while in the context; see ``fit_cluster``."""
    holdout = as_holdout(holdout)
    with contextlib.ExitStack() as stack:
        if output is None:
            output = stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-"))
        source = open_data(data, passes=passes, holdout=holdout, resume=resume, output=output)
        source = _as_files(source, Path(output))
        folder = stack.enter_context(RunFolder(output))
        sample = source.sample(SAMPLE_ROWS)
        model.resolve(sample)
        model.keep_sample(sample)
        run = RunSpec(
            model=model.to_spec(),
            data=_described(source),
            passes=passes,
            minibatch=strategy.minibatch,
            micro_batches=strategy.lanes,
            consistency=str(strategy.consistency),
            depth=strategy.depth,
            window=strategy.window,
            servers=strategy.servers,
            holdout=dataclasses.asdict(holdout) if holdout is not None else None,
            output=str(Path(output).absolute()),
            checkpoint_every_s=checkpoint_every_s,
            gather_s=gather_s,
            resume=resume,
            imports=list(strategy.imports),
            slow=dict(strategy.slow),
            job=job,
        )
        if not resume:
            folder.begin()
        yield Prepared(run=run, model=model, source=source, folder=folder, holdout=holdout, readers=readers)


def _as_files(source: Source, folder: Path) -> Source:
    """Other processes read files: data in memory becomes one."""
    if source.files:
        return source
    if not source.repeatable:
        raise ConfigError("many processes cannot read one iterator; write it to files, or give a table")
    chunks = source.chunks()
    path = folder / "data.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, source.schema) as writer:
        for chunk in chunks:
            for batch in chunk.batches(source.schema.names, 1 << 16):
                writer.write_batch(batch.cast(source.schema))
    return open_source(str(path))


def _described(source: Source) -> dict[str, Any]:
    """By absolute paths, as other processes may work in other folders."""
    spec = describe(source)
    files = [file if "://" in file else str(Path(file).absolute()) for file in spec["files"]]
    return {**spec, "files": files}


def _evaluate(model: Model, source: Source, holdout: Holdout | None, readers: int | None) -> Scores | None:
    if holdout is None or model.plan is None:
        return None
    _, held_out = holdout.split(model.plan)
    stream = EncodedStream(
        read_for(source, model.plan),
        model.plan,
        keep=held_out,
        readers=readers,
        extra_columns=holdout.columns(model.plan),
    )
    return evaluate_stream(model, stream).scores()


def _finish(model: Model, folder: RunFolder, held: Scores | None) -> None:
    """Add to the model on disk what only this process knows, and forget the checkpoint."""
    manifest = read_manifest(folder.path)
    if held is not None:
        manifest["metrics"]["holdout"] = held.to_json()
        commit_manifest(folder.path, manifest)
    model.metadata = {name: manifest[name] for name in ("metrics", "lineage") if name in manifest}
    folder.forget_checkpoint()


def _figures(status: dict[str, Any]) -> dict[str, Any]:
    """What is known of each role at the end."""
    return {name: status[name] for name in ("servers", "workers", "events")}


class _Watcher:
    """Turns what the coordinator says into reports; notices Ctrl-C."""

    def __init__(self, folder: RunFolder, shown: Reporter | None) -> None:
        self.history: list[Report] = []
        self.metrics = BinaryMetrics()
        self._before = BinaryMetrics()
        self._reporters: list[Reporter] = [JsonLines(folder.progress), *([shown] if shown else [])]
        self._stack = contextlib.ExitStack()
        self._told: dict[int, float] = {}
        """When each reporter was last told."""
        self._stop_by: str | None = None

    def __enter__(self) -> _Watcher:
        for reporter in self._reporters:
            self._stack.enter_context(reporter)
        self._stack.enter_context(self._signals())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def see(self, status: dict[str, Any]) -> None:
        """Report."""
        self.metrics = BinaryMetrics.from_state(status["metrics"])
        servers = status["servers"]
        if not status["rows"]:
            return
        over = status["phase"] in ("done", "stopped")
        now_s = time.monotonic()
        due = [r for r in self._reporters if over or now_s - self._told.get(id(r), 0.0) >= r.interval_s]
        report = Report(
            seconds=status["seconds"],
            rows=status["rows"],
            done=status["done"],
            scores=self.metrics.scores(),
            recent=self.metrics.since(self._before).scores(),
            features=sum(sum(server.get("rows", {}).values()) for server in servers),
            table_nbytes=sum(server.get("table_nbytes", 0) for server in servers),
            memory_nbytes=sum(server.get("memory_nbytes", 0) for server in servers),
        )
        self._before = self.metrics
        self.history.append(report)
        for reporter in due:
            self._told[id(reporter)] = now_s
            reporter.report(report)

    def why_stop(self) -> str | None:
        """Who asked to stop, if anybody did."""
        return self._stop_by

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A first signal asks the cluster to stop; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def notice(number: int, frame: Any) -> None:
            self._stop_by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, notice)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
