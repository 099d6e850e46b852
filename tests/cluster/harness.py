"""Engines that tests can put faults into, background commands, and what remains when all is over: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.engine.coordinator import CoordinatorSpec, run_coordinator
from penstock.engine.local import Cluster
from penstock.engine.node import Access
from penstock.engine.observer import Observer
from penstock.engine.server import ServerSpec, run_server
from penstock.engine.spec import RunSpec
from penstock.engine.worker import WorkerSpec, run_worker
from penstock.errors import PenstockError, TransportError

DEADLINE_S = 60.0

Hook = Callable[[Any, dict[str, Any]], None]
"""Called with the cluster and each status."""


def wait_for(what: str, look: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """What ``look`` returns, once it is true."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {deadline_s} s in vain: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def listens(address: str) -> bool:
    """Whether somebody takes connections there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 1.0):
            return True
    except OSError:
        return False


def check_folder(folder: Path) -> None:
    """Nothing is left in a run's folder that is there only during a run."""
    left = [path.name for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == "cluster.json"]
    assert not left
    for root in (folder, folder / "checkpoint"):
        if (root / "manifest.json").exists():
            manifest = json.loads((root / "manifest.json").read_text())
            kept = [json.loads(path.read_text()) for path in root.glob("versions/v*.json")]
            tables = [table for each in (manifest, *kept) for table in each["tables"].values()]
            layers = [layer for table in tables for layer in table.get("layers", [table])]
            used = {f["path"].split("/")[0] for layer in layers for f in layer["files"]}
            there = {path.name for path in root.glob("v[0-9]*")}
            assert there <= used | {f"v{manifest['version']:06d}"}, "a folder that no manifest names"


class _Watched(Cluster):
    """Tells the test of each status, and remembers all that it started."""

    def __init__(self, engine: Processes, run: RunSpec, workers: int) -> None:
        super().__init__(run, workers=workers, restarts=engine.restarts)
        self._engine = engine

    def _launch(self, role: str, name: str) -> Any:
        child = super()._launch(role, name)
        self._engine.pids.add(child.process.pid)
        return child

    def watch(self, on_status: Any, stop: Any) -> dict[str, Any]:
        def see(status: dict[str, Any]) -> None:
            on_status(status)
            self._engine.addresses |= {self.address, *(server["address"] for server in status["servers"])}
            if status["phase"] not in ("done", "failed", "stopped"):
                self._engine.hook(self, status)
            self._engine.last = status

        return super().watch(see, lambda: stop() or self._engine.stop_by)

    def close(self, *, kill: bool = False) -> None:
        super().close(kill=kill)
        self._engine.folder = Path(self.run.output)


class Processes:
    """``LocalProcesses`` with a hook."""

    def __init__(self, hook: Hook | None = None, restarts: int = 3) -> None:
        self.hook: Hook = hook or (lambda cluster, status: None)
        self.restarts = restarts
        self.pids: set[int] = set()
        self.addresses: set[str] = set()
        self.folder: Path | None = None
        self.last: dict[str, Any] = {}
        self.stop_by: str | None = None
        """Set it to have the run stop."""

    def start(self, run: RunSpec, *, workers: int) -> Cluster:
        return _Watched(self, run, workers)

    @property
    def events(self) -> list[str]:
        return [text for _, text in self.last["events"]]

    def check_gone(self) -> None:
        assert not [pid for pid in self.pids if alive(pid)]
        assert not [address for address in self.addresses if listens(address)]
        if self.folder is not None and self.folder.exists():
            check_folder(self.folder)


class Threads:
    """The same roles as threads of this process: nothing to start, so that many runs take little time."""

    def __init__(self, hook: Hook | None = None) -> None:
        self.hook: Hook = hook or (lambda cluster, status: None)
        self.run: RunSpec | None = None
        self.access = Access(cluster="threads", token=b"0123456789abcdef")
        self.address = ""
        self.last: dict[str, Any] = {}
        self.errors: dict[str, PenstockError] = {}
        self.leaving: set[str] = set()
        """Workers that are to leave."""
        self._threads: dict[str, threading.Thread] = {}
        self._servers = 0
        self._workers = 0

    def start(self, run: RunSpec, *, workers: int) -> Threads:
        self.run, self._workers = run, workers
        return self

    def __enter__(self) -> Threads:
        assert self.run is not None
        heard = threading.Event()

        def say(address: str) -> None:
            self.address = address
            heard.set()

        spec = CoordinatorSpec(run=self.run, access=self.access, on_listening=say)
        self._begin("coordinator", lambda: run_coordinator(spec))
        wait_for("the coordinator listens", lambda: heard.is_set() or self.errors)
        if self.errors:
            raise self.errors["coordinator"]
        for number in range(self.run.servers):
            self._begin_server(f"server-{number}")
        for number in range(self._workers):
            self.add_worker(f"worker-{number}")
        return self

    def __exit__(self, *error: object) -> None:
        self._join()

    def watch(self, on_status: Any, stop: Any) -> dict[str, Any]:
        with Observer(self.access, self.address) as observer:
            while True:
                self.last = status = observer.status()
                on_status(status)
                if status["phase"] in ("done", "stopped"):
                    return status
                if status["phase"] == "failed":
                    raise PenstockError(status["events"][-1][1])
                self.hook(self, status)
                time.sleep(0.01)

    def add_worker(self, name: str) -> None:
        def why_leave() -> str | None:
            return "the test" if name in self.leaving else None

        spec = WorkerSpec(join=self.address, access=self.access, name=name, why_leave=why_leave)
        self._begin(name, lambda: run_worker(spec))

    def check_gone(self) -> None:
        self._join()
        assert not self.address or not listens(self.address)

    def _begin_server(self, name: str) -> None:
        spec = ServerSpec(join=self.address, access=self.access, name=name)
        self._begin(name, lambda: run_server(spec))

    def _begin(self, name: str, role: Callable[[], None]) -> None:
        def run() -> None:
            try:
                role()
            except PenstockError as error:
                self.errors[name] = error

        self._threads[name] = threading.Thread(target=run, name=name)
        self._threads[name].start()

    def _join(self) -> None:
        for thread in self._threads.values():
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


class Command:
    """A ``penstock`` command in the background."""

    def __init__(self, process: subprocess.Popen[str], out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def errors(self) -> list[str]:
        """Lines that are ours to the user, not of the log."""
        return [line for line in self.err.splitlines() if line.startswith("penstock: ")]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit status; nobody waits longer than that for it."""
        return self.process.wait(deadline_s)

    def says(self, pattern: str) -> re.Match[str]:
        """Wait for some output, or something of its log."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.out) or re.search(pattern, self.err)
            assert found or self.process.poll() is None, f"ended without {pattern!r}: {self.err}"
            return found

        match = wait_for(pattern, look)
        assert isinstance(match, re.Match)
        return match


class Commands:
    """Starts them; ``close`` wants them all to have ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Command] = []

    def __call__(self, *arguments: object, env: dict[str, str] | None = None) -> Command:
        number = len(self._made)
        out, err = self._folder / f"command-{number}.out", self._folder / f"command-{number}.err"
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock.cli.main", *map(str, arguments)],
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=self._folder,
                env={**os.environ, "COLUMNS": "80", **(env or {})},
            )
        self._made.append(Command(process, out, err))
        return self._made[-1]

    def close(self) -> None:
        left = [command for command in self._made if command.process.poll() is None]
        for command in left:
            command.process.kill()
            command.process.wait()
        assert not [command.process.args for command in left]


def status_of(access: Access, address: str) -> dict[str, Any] | None:
    """How a cluster stands, None where it cannot be asked."""
    try:
        with Observer(access, address) as observer:
            return observer.status()
    except TransportError:
        return None
