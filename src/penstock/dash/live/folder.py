"""Looks at a run by its folder alone, while it trains and after."""

from __future__ import annotations

import os
import time
from pathlib import Path

from penstock.dash.live.run import RunView
from penstock.dash.live.tail import Tail
from penstock.errors import ConfigError
from penstock.train.folder import RunFolder

__all__ = ["FolderSeer"]

_QUIET_S = 30.0
"""A run that says nothing for so long, and whose process is not here, is taken to be gone."""


class FolderSeer:
    """Of one folder, which need not have a run yet."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder.

        Raises:
            ConfigError: there is no such folder.
        """
        self._folder = RunFolder(path)
        if not self._folder.path.is_dir():
            raise ConfigError(f"{path}: no such folder; name the output of a run, or host:port of a coordinator")
        self.view = RunView(self._folder.path.resolve().name, self._folder.path)
        self._progress, self._cluster = Tail(self._folder.progress), Tail(self._folder.cluster)
        self._has_progress = False

    def look(self) -> None:
        """Read what is new."""
        view = self.view
        fresh, lines = self._progress.read()
        if fresh or (lines and not self._has_progress):
            # Lines of another run, or until now those of the cluster stood in for them.
            view.curve.clear()
            self._has_progress = bool(lines)
        for line in lines:
            view.take_report(line)
        fresh, lines = self._cluster.read()
        if fresh:
            view.forget_cluster()
            if not self._has_progress:
                view.curve.clear()
        for line in lines:
            view.take_cluster(line)
            if not self._has_progress:
                view.take_report(line)
        assert view.versions is not None
        view.versions.refresh()
        view.state, view.detail = self._state()

    def _state(self) -> tuple[str, str]:
        path = self._folder.path
        holder = self._holder()
        phase = (self.view.cluster.shown or {}).get("phase")
        reported_at = self.view.reported_at
        recent = reported_at is not None and time.time() - reported_at < _QUIET_S
        if holder is not None and (_is_alive(holder) or recent):
            return "running", f"process {holder}" + (
                f", cluster: {phase}" if phase not in (None, "training") else ""
            )
        if phase == "failed":
            return "failed", "the last event says why"
        if (self._folder.checkpoint / "manifest.json").exists():
            ended = "was stopped" if holder is None else f"its process {holder} is gone"
            return "stopped", f"{ended}; penstock train --resume -o {path} goes on from the checkpoint"
        if holder is not None:
            return "stopped", f"its process {holder} is gone"
        if (path / "manifest.json").exists():
            return "finished", "the model is there"
        if reported_at is not None:
            return "stopped", "without a model"
        return "waiting", "nothing has been trained here yet"

    def _holder(self) -> int | None:
        """The process that the lock file names. The lock is not tried: that could be in a run's way."""
        try:
            return int((self._folder.path / ".lock").read_text()[:32])
        except (OSError, ValueError):
            return None


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
