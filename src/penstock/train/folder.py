"""The folder of a run: one writer at a time, a checkpoint while it is unfinished, the model when it is done.

model/manifest.json, v000001/   the model, once the run has ended; or as it was last published
model/versions/                 manifests of versions that were published before
model/checkpoint/               the same format, and where the run stood; gone when the run has ended
model/progress.jsonl            what it reported
model/cluster.jsonl             how the cluster stood, of a run of the parameter server
model/.lock                     held while a run writes here
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from penstock.errors import ConfigError, FolderBusy, ModelError, StorageError
from penstock.kill import kill_point
from penstock.models import Model, Publisher, load_model, read_manifest, save_model
from penstock.models.commit import check_not_foreign
from penstock.train.publishing import Publish
from penstock.train.uploads import Uploads

__all__ = ["RunFolder"]


class RunFolder:
    """Locks the folder while entered; the lock goes with the process, however that ends."""

    def __init__(self, path: str | Path, publish: Publish = Publish()) -> None:  # noqa: B008 - frozen
        """Name the folder, and which versions it keeps; nothing is touched yet.

        Raises:
            ConfigError: the path is a URL, or an existing file.
        """
        if "://" in str(path):
            raise ConfigError(f"{path}: a run's folder must be on a local disk; copy the model from there")
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{path}: is a file; the output must be a folder, new or of an earlier run")
        self._lock: int | None = None
        self._publish = publish
        self._publisher: Publisher | None = None
        self._uploads: Uploads | None = None

    @property
    def progress(self) -> Path:
        """File of JSON lines."""
        return self.path / "progress.jsonl"

    @property
    def cluster(self) -> Path:
        """File of JSON lines, of a run of the parameter server."""
        return self.path / "cluster.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / "checkpoint"

    def __enter__(self) -> RunFolder:
        check_not_foreign(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(lock, 32)
            os.close(lock)
            raise _busy(self.path, holder) from error
        # Who holds the lock is for messages alone: a disk that is full of all but that is no reason to stop.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._uploads is not None:
            self._uploads.stop()  # whoever goes on here must not be overtaken by it
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def _check_free(self) -> None:
        """No other run holds the folder.

        Raises:
            FolderBusy: one does.
        """
        if self._lock is None and self.path.is_dir():
            with contextlib.suppress(FileNotFoundError), (self.path / ".lock").open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise _busy(self.path, lock.read(32)) from error

    def begin(self) -> None:
        """Forget what an earlier run reported; its checkpoint stays until there is a newer one, or the model."""
        self.progress.unlink(missing_ok=True)
        self.cluster.unlink(missing_ok=True)

    def save_checkpoint(self, model: Model, progress: dict[str, Any]) -> None:
        """Replace the checkpoint, at once."""
        save_model(model, self.checkpoint, progress=progress)

    def read_checkpoint(self) -> dict[str, Any]:
        """Where the interrupted run stood.

        Raises:
            ModelError: there is no checkpoint, or it is damaged.
        """
        if not (self.checkpoint / "manifest.json").exists():
            self._check_free()
            ended = (self.path / "manifest.json").exists()
            done = ": its run has ended, or was killed before there was one" if ended else ""
            raise ModelError(f"{self.path}: nothing to resume, there is no checkpoint{done}")
        progress = read_manifest(self.checkpoint).get("progress")
        parts = (
            [progress.get(name) for name in ("settings", "state", "metrics")] if isinstance(progress, dict) else []
        )
        if not isinstance(progress, dict) or not all(isinstance(part, dict) for part in parts):
            raise ModelError(f"{self.checkpoint}/manifest.json: damaged: it does not say where the run stood")
        return progress

    def load_checkpoint(self) -> Model:
        """The model as the interrupted run left it."""
        return load_model(self.checkpoint)

    @staticmethod
    def take_over(path: str | Path, publish: Publish = Publish(), *, patience_s: float = 60.0) -> RunFolder:  # noqa: B008
        """The folder, entered; a run that holds it is asked to stop (SIGTERM), and waited for.

        Raises:
            FolderBusy: it did not stop in time, or is not one of this machine's processes.
        """
        folder = RunFolder(path, publish)
        deadline_s = time.monotonic() + patience_s
        asked = False
        while True:
            try:
                return folder.__enter__()
            except FolderBusy:
                if time.monotonic() >= deadline_s:
                    raise
            if not asked:
                asked = True
                holder = (folder.path / ".lock").read_text().strip()
                with contextlib.suppress(ValueError, OSError):
                    os.kill(int(holder), signal.SIGTERM)
            time.sleep(0.05)

    def publish(self, model: Model, recent: pa.Table | None = None) -> dict[str, Any]:
        """Write the model as it is now, for whoever serves it; the run goes on. See ``Publisher.publish``."""
        if self._publisher is None:
            self._publisher = Publisher(self.path, self._publish.keep)
        manifest = self._publisher.publish(model, recent)
        self._upload(manifest)
        return manifest

    def copy(self, manifest: dict[str, Any]) -> None:
        """Have the run's last version where versions are copied to, if they are.

        Raises:
            StorageError: it could not be copied; it is in the folder.
        """
        self._upload(manifest)
        if self._uploads is not None:
            self._uploads.close()

    def _upload(self, manifest: dict[str, Any]) -> None:
        if self._publish.to is not None:
            self._uploads = self._uploads or Uploads(self.path, self._publish.to)
            self._uploads.put(manifest)

    def finish(self, model: Model) -> None:
        """Write the model, then forget the checkpoint."""
        manifest = save_model(model, self.path)
        kill_point(f"{self.path}: model written, checkpoint not forgotten")
        self.copy(manifest)
        self.forget_checkpoint()

    def forget_checkpoint(self) -> None:
        """The run has ended, and its model is there."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)


def _busy(path: Path, holder: bytes) -> FolderBusy:
    process = holder.decode(errors="replace").strip() or "unknown"
    return FolderBusy(f"{path}: another run writes here (process {process}); wait for it, or name another folder")
