"""``fit`` on many processes: what is sent out, how it is watched, and what comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
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
from penstock.models import Model, commit_manifest, load_model, read_manifest, write_names
from penstock.train import Holdout, Publish, Run
from penstock.train.folder import RunFolder
from penstock.train.progress import JsonLines, Report, Reporter, reporter_for
from penstock.train.scoring import evaluate_holdout
from penstock.train.session import SAMPLE_ROWS, as_holdout, open_data
from penstock.train.signals import StopSignals
from penstock.train.stream import read_for

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
    publish: Publish = Publish(),  # noqa: B008 - frozen
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
        publish=publish,
        readers=readers,
        job=job,
    ) as prepared:
        folder = prepared.folder
        watcher = _Watcher(folder, reporter_for(progress))
        with watcher, engine.start(prepared.run, workers=strategy.workers) as cluster:
            status = cluster.watch(watcher.see, watcher.why_stop)
        if status["phase"] == "stopped":
            raise Interrupted(_stopped(watcher.why_stop() or _asked(status), status["rows"], folder))
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
        held = None
        if self.holdout is not None:
            source = read_for(self.source, self.run.plan)
            held = evaluate_holdout(self.model, source, self.holdout, readers=self.readers).scores()
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
    publish: Publish = Publish(),  # noqa: B008 - frozen
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
        folder = stack.enter_context(RunFolder(output, publish))
        lanes = strategy.lanes
        if resume and strategy.micro_batches is None:
            # Another number of workers may go on, with the lanes that there were.
            before = folder.read_checkpoint()["settings"].get("strategy")
            lanes = before.get("micro_batches", lanes) if isinstance(before, dict) else lanes
        sample = source.sample(SAMPLE_ROWS)
        model.resolve(sample)
        model.keep_sample(sample)
        if model.rows and not resume:
            raise ConfigError(
                f"the model has {model.rows:,} rows already: the parameter server begins with a new one; give "
                "another model, or go on with Online"
            )
        run = RunSpec(
            model=model.to_spec(),
            data=_described(source),
            passes=passes,
            minibatch=strategy.minibatch,
            micro_batches=lanes,
            consistency=str(strategy.consistency),
            depth=strategy.depth,
            window=strategy.window,
            servers=strategy.servers,
            holdout=dataclasses.asdict(holdout) if holdout is not None else None,
            output=str(Path(output).absolute()),
            checkpoint_every_s=checkpoint_every_s,
            publish_every_s=publish.every_s,
            publish_to=publish.to,
            keep_versions=publish.keep.newest,
            keep_for_s=publish.keep.for_s,
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


def _asked(status: dict[str, Any]) -> str:
    """Who stopped it, where that was not this process: the last events say."""
    return str(status["stopped_by"] or "somebody")


def _stopped(by: str, rows: int, folder: RunFolder) -> str:
    if not (folder.checkpoint / "manifest.json").exists():
        return f"stopped by {by} before a row was learnt; no checkpoint was written"
    return (
        f"stopped by {by} after {rows:,} rows; the checkpoint is in {folder.checkpoint}; "
        f"go on with: penstock train --resume -o {folder.path}"
    )


def _finish(model: Model, folder: RunFolder, held: Scores | None) -> None:
    """Add to the model on disk what only this process knows, and forget the checkpoint."""
    manifest = read_manifest(folder.path)
    manifest["names"] = write_names(model.name_features(), folder.path / f"v{manifest['version']:06d}")
    if held is not None:
        manifest["metrics"]["holdout"] = held.to_json()
    commit_manifest(folder.path, manifest)
    model.metadata = {name: manifest[name] for name in ("metrics", "lineage") if name in manifest}
    folder.copy(manifest)
    folder.forget_checkpoint()


def _figures(status: dict[str, Any]) -> dict[str, Any]:
    """What is known of each role at the end."""
    return {name: status[name] for name in ("servers", "workers", "events")}


HISTORY_MOST = 4_000
"""Points of a curve."""


class _Watcher:
    """Turns what the coordinator says into reports; notices Ctrl-C."""

    def __init__(self, folder: RunFolder, shown: Reporter | None) -> None:
        self.history: list[Report] = []
        self.metrics = BinaryMetrics()
        self._before = BinaryMetrics()
        self._reporters: list[Reporter] = [JsonLines(folder.progress), *([shown] if shown else [])]
        self._stack = contextlib.ExitStack()
        self._every_s = self._next_s = 0.0
        self._told: dict[int, tuple[float, BinaryMetrics]] = {}
        """Of each reporter: when it was last told, and what."""
        self._signals = StopSignals()

    def __enter__(self) -> _Watcher:
        for reporter in self._reporters:
            self._stack.enter_context(reporter)
        self._stack.enter_context(self._signals)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def see(self, status: dict[str, Any]) -> None:
        """Report."""
        self.metrics = BinaryMetrics.from_state(status["metrics"])
        if not status["rows"]:
            return
        over = status["phase"] in ("done", "stopped")
        now_s = time.monotonic()
        if over or now_s >= self._next_s:
            self.history.append(self._report(status, self._before))
            self._before, self._next_s = self.metrics, now_s + self._every_s
            if len(self.history) >= HISTORY_MOST:
                # A run of days: half as many points, and half as often from now on.
                del self.history[1::2]
                self._every_s = 2 * max(self._every_s, 0.2)
        for reporter in self._reporters:
            told_s, then = self._told.get(id(reporter), (0.0, BinaryMetrics()))
            if over or now_s - told_s >= reporter.interval_s:
                self._told[id(reporter)] = now_s, self.metrics
                reporter.report(self._report(status, then))

    def _report(self, status: dict[str, Any], then: BinaryMetrics) -> Report:
        servers = status["servers"]
        return Report(
            # Rows are of all sittings of a run that was resumed, and so is the time.
            seconds=status.get("seconds_before", 0.0) + status["seconds"],
            rows=status["rows"],
            done=status["done"],
            scores=self.metrics.scores(),
            recent=self.metrics.since(then).scores(),
            features=sum(sum(server.get("rows", {}).values()) for server in servers),
            table_nbytes=sum(server.get("table_nbytes", 0) for server in servers),
            memory_nbytes=sum(server.get("memory_nbytes", 0) for server in servers),
        )

    def why_stop(self) -> str | None:
        """Who asked to stop, if anybody did."""
        return self._signals.by
