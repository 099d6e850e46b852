"""The role of a coordinator: lets roles join, hands out work, keeps the score, commits checkpoints and the
model."""

from __future__ import annotations

import datetime
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from penstock.engine.node import Access, Links, every, new_incarnation
from penstock.engine.reading import Reading
from penstock.engine.spec import RunSpec
from penstock.errors import Interrupted, ModelError, PenstockError
from penstock.features import FeaturePlan
from penstock.metrics import BinaryMetrics
from penstock.models import (
    CheckpointPublisher,
    build_manifest,
    commit_manifest,
    discard_version,
    new_version,
    read_manifest,
)
from penstock.parameter_server.coordinator import Coordinator, Patience
from penstock.parameter_server.effects import Commit, Effect, End, Prepare
from penstock.parameter_server.messages import Figures, Message, Record, Status, StatusQuery, StopRequest
from penstock.parameter_server.work import WorkQueue
from penstock.train.cluster_history import ClusterHistory
from penstock.train.folder import RunFolder
from penstock.train.uploads import Uploads
from penstock.transport import Identity

__all__ = ["CoordinatorSpec", "run_coordinator"]

_log: Final = logging.getLogger("penstock.engine")

TICK_S: Final = 0.05
RECORD_S: Final = 1.0
"""Between lines of the run's history."""
LAYERS_MOST: Final = 32
"""Incremental checkpoints on one complete one."""
CHANGED_MOST: Final = 0.5
"""Rows of these, as a share of those of the complete one."""
LINGER_S: Final = 2.0
"""After the end, for roles that have not heard of it yet."""
OBSERVED_S: Final = 60.0
"""The same, for those who watch: whoever started the run may be busy, or stopped, and must hear how it ended."""


@dataclass(frozen=True, kw_only=True)
class CoordinatorSpec:
    """A run, and where its roles may join."""

    run: RunSpec
    access: Access
    listen: str = "127.0.0.1:0"
    name: str = "coordinator"
    resume_with: str | None = None
    """Command that goes on from a checkpoint, for messages."""
    on_listening: Callable[[str], None] = lambda address: None
    """Called with the address, once roles may join."""
    why_stop: Callable[[], str | None] = lambda: None
    """Looked at now and then: why to write a checkpoint and end, if that is wanted."""


def run_coordinator(spec: CoordinatorSpec) -> None:
    """Coordinate a run until it is over.

    Raises:
        PenstockError: it failed; the message says why, and which checkpoint to resume from.
        Interrupted: it was stopped, after the checkpoint was written.
    """
    _CoordinatorRole(spec).run()


class _Score:
    """Progressive metrics, of micro-batches that are done."""

    def __init__(self, metrics: BinaryMetrics, rows: int) -> None:
        self.metrics = metrics
        self.rows = rows

    def add(self, figures: Figures) -> None:
        """Each micro-batch comes here once."""
        self.rows += figures.rows
        self.metrics.merge_taken(figures.scored, figures.loss, figures.bins, figures.sums)

    def state(self) -> dict[str, Any]:
        """A copy, as a checkpoint has it."""
        return {"rows": self.rows, "metrics": self.metrics.to_state()}


class _CoordinatorRole:
    def __init__(self, spec: CoordinatorSpec) -> None:
        self._spec, self._run = spec, spec.run
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Prepare | Commit | End] = queue.SimpleQueue()
        self._links = Links(spec.access, Identity(role="coordinator", name=spec.name), self._take)
        self._links.on_lost = self._lost
        self._root = Path(self._run.output) / "checkpoint"
        self._layers: dict[str, list[dict[str, Any]]] = {}
        """Of the committed checkpoint, by table."""
        self._unfinished: tuple[Path, int] | None = None
        """Folder and version that are being written."""
        publish = self._run.publish
        output = Path(self._run.output)
        self._publisher = CheckpointPublisher(output, publish.keep) if publish.every_s is not None else None
        self._published = -math.inf
        self._uploads = Uploads(output, publish.to) if self._publisher and publish.to is not None else None
        self._seconds_before = 0.0
        self._rows_before = 0
        record, metrics = None, BinaryMetrics()
        self._run.load_imports()
        self._source = self._run.open()
        if self._run.resume:
            record, metrics = self._resume()
        self._score = _Score(metrics, self._rows_before)
        self._history = ClusterHistory(RunFolder(self._run.output).cluster, metrics)
        self._recording, self._recorded_end = threading.Lock(), False
        consistency = self._run.how
        self._machine = Coordinator(
            spec=self._run.to_dict(),
            n_servers=self._run.servers,
            segments=self._run.segments,
            consistency=consistency,
            queue=WorkQueue(
                Reading.lengths(self._source, self._run.minibatch),
                passes=self._run.passes,
                lanes=self._run.micro_batches,
                bound=consistency.bound,
                record=record,
            ),
            sink=self._score,
            routing=new_incarnation(),
            checkpoint_every_s=_least(self._run.checkpoint_every_s, publish.every_s),
            patience=Patience(gather_s=self._run.gather_s),
            now=time.monotonic(),
        )
        self._machine.rows = self._rows_before

    def run(self) -> None:
        listener = self._spec.access.listen(self._spec.listen, Identity(role="coordinator", name=self._spec.name))
        try:
            listener.serve(self._links.serve)
            self._spec.on_listening(listener.address)
            with every(TICK_S, self._tick, "ticks"), every(RECORD_S, self._record, "history"):
                self._work()
        finally:
            self._links.close()
            listener.close()
            if self._uploads is not None:
                self._uploads.stop()  # whoever started the run copies its last version

    def _record(self) -> None:
        """Write to the run's folder how the cluster stands."""
        with self._recording:
            with self._lock:
                if self._machine.over and self._recorded_end:
                    return
                self._recorded_end = self._machine.over
                status = self._machine.status(time.monotonic()) | self._standing()
                metrics = self._score.metrics.copy()
            self._history.add(status, metrics)

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            if isinstance(task, End):
                self._record()
                # Whoever asks in this moment hears how it ended; all others go by themselves.
                self._links.wait_until_alone(LINGER_S, OBSERVED_S)
                self._discard_unfinished()
                if self._machine.phase == "stopped":
                    raise Interrupted(self._with_advice(task.error or "stopped"))
                if task.error is not None:
                    raise PenstockError(self._with_advice(task.error))
                return
            if isinstance(task, Prepare):
                self._prepare(task)
            else:
                self._commit(task)

    def _take(self, sender: str, message: Message) -> None:
        if isinstance(message, StatusQuery):
            with self._lock:
                status = self._machine.status(time.monotonic()) | self._extra_status()
            self._links.send(sender, Status(id=message.id, status=status))
            return
        with self._lock:
            effects = self._machine.handle(sender, message, time.monotonic())
        self._do(effects)

    def _lost(self, sender: str) -> None:
        with self._lock:
            effects = self._machine.disconnected(sender, time.monotonic())
        self._do(effects)

    def _tick(self) -> None:
        reason = self._spec.why_stop()
        with self._lock:
            now = time.monotonic()
            effects = self._machine.tick(now)
            if reason is not None:
                effects += self._machine.handle("coordinator", StopRequest(id=0, reason=reason), now)
        self._do(effects)

    def _do(self, effects: list[Effect]) -> None:
        for effect in self._links.send_all(effects):
            if isinstance(effect, Prepare | Commit | End):
                self._tasks.put(effect)

    # Checkpoints and the model.

    def _prepare(self, task: Prepare) -> None:
        # What a failed one took as changed or removed may be known to nobody now.
        failed = self._unfinished is not None
        self._discard_unfinished()
        root = Path(self._run.output) if task.final else self._root
        try:
            version, folder = new_version(root)
            self._unfinished = root, version
        except PenstockError as error:
            with self._lock:
                effects = self._machine.not_prepared(task.checkpoint, str(error), time.monotonic())
            self._do(effects)
            return
        many = any(_is_much(layers) for layers in self._layers.values())
        full = task.final or not self._layers or many or failed
        with self._lock:
            effects = self._machine.save(task.checkpoint, str(folder), full=full, now=time.monotonic())
        self._do(effects)

    def _commit(self, commit: Commit) -> None:
        folder = Path(commit.folder)
        root, version = folder.parent, int(folder.name[1:])
        tables = self._run.model["tables"]
        new = {name: _layer([files[name] for files in commit.files]) for name in tables}
        layers = {name: [*([] if commit.full else self._layers[name]), layer] for name, layer in new.items()}
        rows = {name: sum(files[name]["rows"] for files in commit.files) for name in tables}
        error = None
        try:
            manifest = build_manifest(
                self._run.model,
                version=version,
                layers=layers,
                rows=rows,
                metadata=self._metadata(),
                progress=None if commit.final else self._progress(commit),
            )
            commit_manifest(root, manifest)
            if not commit.final and commit.metrics["rows"]:
                self._publish(manifest)
        except PenstockError as failure:
            error = str(failure)
        if error is None:
            self._unfinished = None
            self._layers = self._layers if commit.final else layers
        with self._lock:
            effects = self._machine.committed(commit.checkpoint, error, time.monotonic())
        self._do(effects)

    def _publish(self, manifest: dict[str, Any]) -> None:
        """Let those who serve have it. If they cannot, the run goes on, and the next one may succeed."""
        every_s, now = self._run.publish_every_s, time.monotonic()
        if self._publisher is None or every_s is None or now < self._published + every_s - TICK_S:
            return
        self._published = now
        try:
            published = self._publisher.publish(self._root, manifest)
            if self._uploads is not None:
                self._uploads.put(published)
        except PenstockError as error:
            _log.warning("no version was published: %s", error)

    def _discard_unfinished(self) -> None:
        """Remove what a failed checkpoint wrote; by now no server writes there any more, or it is of no use."""
        if self._unfinished is not None:
            discard_version(*self._unfinished)
            self._unfinished = None

    def _progress(self, commit: Commit) -> dict[str, Any]:
        return {
            "settings": self.settings(),
            "state": {"rows": commit.metrics["rows"], "seconds": self._seconds()},
            "metrics": commit.metrics["metrics"],
            "job": self._run.job,
            "run": self._run.to_dict(),
            "position": {"record": msgspec.to_builtins(commit.record, str_keys=True), "names": commit.names},
        }

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share; servers, workers and depth may be others."""
        run = self._run
        return {
            "passes": run.passes,
            "strategy": {
                "parameter_server": run.consistency,
                "minibatch": run.minibatch,
                "micro_batches": run.micro_batches,
            },
            "holdout": run.holdout,
            "files": run.files,
            "size": self._source.size,
        }

    def _resume(self) -> tuple[Record, BinaryMetrics]:
        where = self._root / "manifest.json"
        manifest = read_manifest(self._root)
        progress: dict[str, Any] = manifest.get("progress") or {}
        try:
            for name, value in self.settings().items():
                was = progress["settings"].get(name)
                if was != msgspec.to_builtins(value):
                    raise ModelError(f"{self._run.output}: cannot resume: {name} was {was!r}, is now {value!r}")
            record = msgspec.convert(progress["position"]["record"], Record, strict=False)
            self._rows_before = int(progress["state"]["rows"])
            self._seconds_before = float(progress["state"]["seconds"])
            metrics = BinaryMetrics.from_state(progress["metrics"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{where}: damaged: it does not say where the run stood") from error
        self._check_model(manifest)
        self._layers = {
            name: table.get("layers") or [{"files": table["files"], "removed": []}]
            for name, table in manifest["tables"].items()
        }
        return record, metrics

    def _check_model(self, manifest: dict[str, Any]) -> None:
        """The checkpoint's rows are of this model: of the same kind, optimizer, features and tables."""
        run = self._run.model
        tables = {
            name: {k: table[k] for k in ("dim", "segments")} | {"optimizer": table.get("optimizer")}
            for name, table in manifest["tables"].items()
        }
        now = {
            name: {k: table[k] for k in ("dim", "segments")}
            | {"optimizer": table["optimizer"] if table["optimizer"] != run["optimizer"] else None}
            for name, table in run["tables"].items()
        }
        for name, was, is_ in (
            ("model", manifest["model"]["kind"], run["kind"]),
            ("model settings", manifest["model"].get("settings", {}), run.get("settings", {})),
            ("optimizer", manifest["optimizer"], run["optimizer"]),
            ("tables", tables, now),
        ):
            if was != is_:
                raise ModelError(f"{self._run.output}: cannot resume: {name} was {was!r}, is now {is_!r}")
        if FeaturePlan.from_dict(manifest["features"]) != self._run.plan:
            raise ModelError(f"{self._run.output}: cannot resume: features differ from those before")

    def _metadata(self) -> dict[str, Any]:
        run = self._run
        return {
            "metrics": {"progressive": self._score.metrics.scores().to_json(), "holdout": None},
            "lineage": {
                "files": run.files,
                "rows": self._machine.rows,
                "seconds": round(self._seconds(), 3),
                "settings": {k: v for k, v in self.settings().items() if k not in ("files", "size")},
                "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        }

    def _seconds(self) -> float:
        return self._seconds_before + self._machine.seconds(time.monotonic())

    def _extra_status(self) -> dict[str, Any]:
        return {"metrics": self._score.metrics.to_state(), **self._standing()}

    def _standing(self) -> dict[str, Any]:
        welcome = self._machine.welcome
        owners = welcome.owners.tolist() if welcome is not None else []
        return {"output": self._run.output, "owners": owners, "seconds_before": self._seconds_before}

    def _with_advice(self, error: str) -> str:
        if self._layers:
            command = self._spec.resume_with or f"penstock train --resume -o {self._run.output}"
            return f"{error}; go on from the checkpoint with: {command}"
        return f"{error}; there was no checkpoint yet"


def _least(*seconds: float | None) -> float | None:
    """The least that is given."""
    return min((each for each in seconds if each is not None), default=None)


def _is_much(layers: list[dict[str, Any]]) -> bool:
    """Whether a table's layers are so many, or so large, that the next is complete again."""
    rows = [sum(entry["rows"] or 0 for entry in layer["files"]) for layer in layers]
    return len(layers) > LAYERS_MOST or sum(rows[1:]) > CHANGED_MOST * rows[0]


def _layer(files: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "files": [entry for part in files for entry in part["files"]],
        "removed": [entry for part in files for entry in part.get("removed", [])],
    }
