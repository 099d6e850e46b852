"""All roles as processes of this machine: started, watched, and gone when the run is, however that ends.

Each child holds the reading end of a pipe whose writing end is here: when this process goes, even by ``kill -9``,
the pipe ends, and so do they.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import msgspec

from penstock.engine.node import Access
from penstock.engine.observer import Observer
from penstock.engine.role import RoleSpec
from penstock.engine.spec import RunSpec
from penstock.errors import ConfigError, InputError, PenstockError, TransportError
from penstock.transport import new_token

__all__ = ["Cluster", "LocalProcesses", "read_access"]

START_S: Final = 60.0
END_S: Final = 10.0
POLL_S: Final = 0.2
RESTARTS_MOST: Final = 3


ACCESS: Final = "cluster.json"
"""File in a run's folder, for its owner alone, by which other commands find the cluster while it runs."""


def read_access(run: str | Path) -> tuple[Access, str]:
    """Access to the cluster that trains into a folder, and its coordinator's address.

    Raises:
        ConfigError: none runs there.
    """
    path = Path(run) / ACCESS
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        return Access(cluster=known["cluster"], token=known["token"].encode()), known["address"]
    except (OSError, KeyError, msgspec.DecodeError) as error:
        raise ConfigError(f"{run}: no cluster of this machine trains into this folder; or name --join") from error


@dataclass(frozen=True, kw_only=True)
class LocalProcesses:
    """Roles as processes on this machine, on loopback, with a token of their own.

    A worker that dies is started again, up to ``restarts`` times in all; a dead server or coordinator ends the
    run.
    """

    restarts: int = RESTARTS_MOST

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise ConfigError(f"restarts must be >= 0, got {self.restarts}")

    def start(self, run: RunSpec, *, workers: int) -> Cluster:
        """Start all roles; use it as a context."""
        return Cluster(run, workers=workers, restarts=self.restarts)


@dataclass(slots=True)
class _Child:
    role: str
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Cluster:
    """Processes of one run. Entering starts them, leaving ends them."""

    def __init__(self, run: RunSpec, *, workers: int, restarts: int) -> None:
        self.run = run
        self.address = ""
        """Of the coordinator."""
        self._n_workers, self._restarts = workers, restarts
        token = new_token()
        self._cluster = f"local-{secrets.token_hex(4)}"
        self.access = Access(cluster=self._cluster, token=token)
        self._logs = Path(run.output) / "logs"
        self._children: dict[str, _Child] = {}
        self._observer: Observer | None = None
        self.restarted = 0
        self._committed = False
        """Whether this run has a checkpoint."""

    def __enter__(self) -> Cluster:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            coordinator = self._launch("coordinator", "coordinator")
            for number in range(self.run.servers):
                self._launch("server", f"server-{number}")
            for number in range(self._n_workers):
                self._launch("worker", f"worker-{number}")
            self._tell(coordinator, self.run.to_dict())
            # The others import what they need meanwhile; they are told where to go once that is known.
            self.address = self._address_of(coordinator)
            for child in self._children.values():
                if child is not coordinator:
                    self._tell(child)
            self._observer = Observer(self.access, self.address, name="starter")
            self._write_access()
        except BaseException:
            self.close(kill=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kill=error is not None)

    @property
    def pids(self) -> dict[str, int]:
        """Of the roles by name."""
        return {name: child.process.pid for name, child in self._children.items()}

    def watch(self, on_status: Callable[[dict[str, Any]], None], stop: Callable[[], str | None]) -> dict[str, Any]:
        """Until the run is over; returns its last status.

        ``stop`` says why to stop, if it should.

        Raises:
            PenstockError: the run failed; the message says why.
        """
        asked = False
        while True:
            reason = stop()
            if reason is not None and not asked and self._observer is not None:
                self._observer.stop(reason)
                asked = True
            status = self._status()
            self._committed = status["checkpoint"] is not None
            on_status(status)
            if status["phase"] in ("done", "stopped"):
                return status
            if status["phase"] == "failed":
                raise PenstockError(self._why_failed(status))
            self._look_after_children()
            time.sleep(POLL_S)

    def close(self, *, kill: bool = False) -> None:
        """End all roles, by force where they do not end by themselves."""
        if self._observer is not None:
            self._observer.__exit__(None, None, None)
            self._observer = None
        with contextlib.suppress(OSError):
            (Path(self.run.output) / ACCESS).unlink(missing_ok=True)
        deadline = time.monotonic() + (0.0 if kill else END_S)
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children.values():
            if child.process.poll() is None:
                child.process.kill()
            child.process.wait()
            _close_pipes(child)

    def _write_access(self) -> None:
        """Let other commands of this user find the cluster."""
        known = {"address": self.address, "cluster": self._cluster, "token": self.access.token.decode()}
        path = Path(self.run.output) / ACCESS
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(known))

    def _launch(self, role: str, name: str) -> _Child:
        """Start a process; it waits to be told what it is."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock.engine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if role == "coordinator" else output,
                stderr=output,
                # Ctrl-C on the terminal is for this process, which asks them to stop.
                start_new_session=True,
            )
        child = self._children[name] = _Child(role, name, process, log)
        return child

    def _tell(self, child: _Child, run: dict[str, Any] | None = None) -> None:
        spec = RoleSpec(
            role=child.role,
            name=child.name,
            cluster=self._cluster,
            token=self.access.token.decode(),
            join=self.address,
            run=run,
        )
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.write(msgspec.json.encode(spec) + b"\n")
            child.process.stdin.flush()

    def _address_of(self, child: _Child) -> str:
        assert child.process.stdout is not None
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        stdout: IO[bytes] = child.process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=START_S)
        except queue.Empty as error:
            raise PenstockError(
                f"the coordinator did not start within {START_S:.0f} s; see {child.log}"
            ) from error
        if not line:
            # What the user gave is wrong more often than not; then the exit status is that of such errors.
            wrong_input = child.process.wait(END_S) == InputError.exit_status
            kind = InputError if wrong_input else PenstockError
            raise kind(_last_words(child) or f"the coordinator did not start; see {child.log}")
        return str(json.loads(line)["address"])

    def _status(self) -> dict[str, Any]:
        assert self._observer is not None
        try:
            return self._observer.status()
        except TransportError as error:
            child = self._children["coordinator"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(1.0)
            how = _how_it_ended(child) or f"does not answer ({error})"
            raise PenstockError(self._with_advice(f"the coordinator {how}")) from error

    def _look_after_children(self) -> None:
        for name, child in list(self._children.items()):
            how = _how_it_ended(child)
            if how is None or child.role != "worker" or child.process.returncode == 0:
                continue
            if self.restarted < self._restarts:
                self.restarted += 1
                _close_pipes(child)
                self._tell(self._launch("worker", name))
            elif all(_how_it_ended(c) for c in self._children.values() if c.role == "worker"):
                raise PenstockError(self._with_advice(f"no worker is left: {name} {how}"))

    def _why_failed(self, status: dict[str, Any]) -> str:
        error = status["events"][-1][1] if status["events"] else "the run failed"
        for name, child in self._children.items():
            if child.role == "server" and name in error:
                how = _how_it_ended(child)
                if how is not None:
                    error = f"{name} {how} ({error})"
        return self._with_advice(error)

    def _with_advice(self, error: str) -> str:
        if self.run.resume or self._committed:
            return f"{error}; go on from the checkpoint with: penstock train --resume -o {self.run.output}"
        return f"{error}; there was no checkpoint yet"


def _close_pipes(child: _Child) -> None:
    for pipe in (child.process.stdin, child.process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _how_it_ended(child: _Child) -> str | None:
    status = child.process.poll()
    if status is None:
        return None
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"
    return f"ended with status {status}: {_last_words(child) or f'see {child.log}'}"


def _last_words(child: _Child) -> str:
    with contextlib.suppress(OSError):
        lines = child.log.read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith("penstock: ")]
        if lines:
            return (said or lines)[-1].removeprefix("penstock: ")
    return ""
