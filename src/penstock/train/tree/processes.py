"""Partitions in processes of this machine, each of which reads its part of the files by itself.

A process ends when its pipe does, so none outlives the run, however that ends; one that dies or goes silent ends
the run with an error that names it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock import errors
from penstock.data import Source
from penstock.data.describe import describe
from penstock.errors import ExecutorLost, PenstockError
from penstock.train.tree.executors import Wanted
from penstock.train.tree.partition import Gradient, Partial, Rows, Work
from penstock.train.tree.pipes import Array, Message, Pipes, Silence, pack, unpack

__all__ = ["Processes"]

SILENCE_S = 30.0
"""A process that works says so every second."""
_END_S = 5.0


class _Child:
    """One process and the partitions that live there."""

    def __init__(self, number: int, partitions: list[int]) -> None:
        self.number, self.partitions = number, partitions
        environment = dict(os.environ)
        # The same code as here, wherever it was imported from.
        root = str(Path(errors.__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.train.tree.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            # Ctrl-C is for the driver, which ends the others.
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.pipes = Pipes(self.process.stdout, self.process.stdin, silence_s=SILENCE_S)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"executor {self.number} (process {self.process.pid})"

    def lost(self) -> ExecutorLost:
        """The error that says how it ended."""
        try:
            status = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return ExecutorLost(f"{self} closed its pipe while it was needed")
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        return ExecutorLost(f"{self} {how} while it was needed; its last words, if any, are on standard error")

    def end(self) -> None:
        """Let it end, or else end it."""
        with contextlib.suppress(OSError):
            self.pipes.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Processes:
    """An ``Executor`` of ``executors`` processes; partition p lives in process ``p % executors``."""

    def __init__(self, executors: int, source: Source) -> None:
        """``source`` as the user named it.

        Raises:
            ConfigError: it is not made of files.
        """
        self.moved_nbytes = 0
        self._executors = executors
        self._source = describe(source)
        self._children: list[_Child] = []
        self._home: list[_Child] = []

    def start(self, work: Work) -> None:
        """Start the processes, and make every partition there."""
        for number in range(self._executors):
            partitions = list(range(number, work.partitions, self._executors))
            try:
                self._children.append(_Child(number, partitions))
            except OSError as error:
                raise ExecutorLost(f"executor {number} cannot be started: {error.strerror}") from error
        self._home = [self._children[number % self._executors] for number in range(work.partitions)]
        spec = {
            "source": self._source,
            "model": work.shell.to_spec(),
            "partitions": work.partitions,
            "batch_rows": work.batch_rows,
            "holdout": asdict(work.holdout) if work.holdout is not None else None,
        }
        self._ask_all("start", lambda child: {**spec, "numbers": child.partitions})

    def begin(self, positions: Sequence[tuple[int, int]]) -> None:
        """Begin a pass, each partition at its position."""
        self._ask_all("begin", lambda child: {"positions": [positions[p] for p in child.partitions]})

    def prepare(self) -> None:
        """Let every partition read its next batch; does not wait for it."""
        for child in self._children:
            self._send(child, "prepare")

    def keys(self) -> list[Wanted | None]:
        """Wait until the batches are there."""
        found: list[Wanted | None] = [None] * len(self._home)
        for child in self._children:
            message, arrays = self._reply(child)
            for number, tables in unpack(message.body["parts"], arrays).items():
                found[number] = None if tables is None else {name: keys for name, (keys,) in tables.items()}
        return found

    def map(self, weights: Sequence[Rows | None], *, observe: bool) -> list[Partial | None]:
        """Compute every batch's gradient; it stays where it is."""
        for child in self._children:
            rows = {number: weights[number] for number in child.partitions}
            layout, arrays = pack(
                {n: None if r is None else {name: [table] for name, table in r.items()} for n, r in rows.items()}
            )
            self._send(child, "map", {"parts": layout, "observe": observe}, arrays)
        found: list[Partial | None] = [None] * len(weights)
        for child in self._children:
            message, arrays = self._reply(child)
            left = iter(arrays)
            for number, said in message.body["partials"]:
                if said is None:
                    continue
                predicted, labels = next(left), next(left)
                found[number] = Partial(
                    loss=said["loss"],
                    rows=said["rows"],
                    position=(said["position"][0], said["position"][1]),
                    work=said["work"],
                    predicted=predicted,
                    labels=labels,
                    weights=next(left) if said["weighted"] else None,
                )
        return found

    def combine(self, groups: Sequence[Sequence[int]]) -> None:
        """Add up each group's gradients in its order; its first member then has the sum."""
        abroad = [
            number for group in groups for number in group[1:] if self._home[number] is not self._home[group[0]]
        ]
        moved = self._take(abroad)
        self.moved_nbytes += sum(
            array.nbytes for part in moved.values() for pair in part.values() for array in pair
        )
        for child in self._children:
            mine = [group for group in groups if self._home[group[0]] is child]
            given = {n: moved[n] for group in mine for n in group if n in moved}
            layout, arrays = pack(given)
            self._send(child, "combine", {"groups": [list(group) for group in mine], "parts": layout}, arrays)
        for child in self._children:
            self._reply(child)

    def collect(self, partitions: Iterable[int]) -> list[Gradient]:
        """The gradients of these, without those that have none."""
        numbers = list(partitions)
        found = self._take(numbers)
        return [found[number] for number in numbers if number in found]

    def close(self) -> None:
        """Stop everything."""
        for child in self._children:
            # All at once, before any is waited for.
            with contextlib.suppress(OSError):
                child.process.stdin.close()  # type: ignore[union-attr]
        for child in self._children:
            child.end()
        self._children = []

    def _take(self, numbers: Sequence[int]) -> dict[int, Gradient]:
        """The gradients of these partitions, for those that have one."""
        asked = [child for child in self._children if any(self._home[number] is child for number in numbers)]
        for child in asked:
            self._send(child, "give", {"numbers": [n for n in numbers if self._home[n] is child]})
        found: dict[int, Gradient] = {}
        for child in asked:
            message, arrays = self._reply(child)
            for number, tables in unpack(message.body["parts"], arrays).items():
                if tables is not None:
                    found[number] = {name: (keys, grads) for name, (keys, grads) in tables.items()}
        return found

    def _ask_all(self, kind: str, body: Any) -> None:
        for child in self._children:
            self._send(child, kind, body(child))
        for child in self._children:
            self._reply(child)

    def _send(
        self, child: _Child, kind: str, body: Mapping[str, Any] | None = None, arrays: Sequence[Array] = ()
    ) -> None:
        try:
            child.pipes.send(kind, body, arrays)
        except BrokenPipeError:
            raise child.lost() from None
        except Silence:
            raise self._silent(child) from None

    def _reply(self, child: _Child) -> tuple[Message, list[Array]]:
        while True:
            try:
                message, arrays = child.pipes.receive()
            except EOFError:
                raise child.lost() from None
            except Silence:
                raise self._silent(child) from None
            if message.kind == "error":
                raise _as_error(child, message.body)
            if message.kind != "alive":
                return message, arrays
            # While this one works on, another may have died.
            for other in self._children:
                if other.process.poll() is not None:
                    raise other.lost()

    def _silent(self, child: _Child) -> ExecutorLost:
        return ExecutorLost(f"{child} has been silent for {child.pipes.silence_s:g} s while it was needed")


def _as_error(child: _Child, body: Mapping[str, Any]) -> PenstockError:
    """What the process raised, as if it had been raised here."""
    kind = getattr(errors, body["type"], None)
    if isinstance(kind, type) and issubclass(kind, PenstockError) and kind is not errors.RowError:
        return kind(body["message"])
    return ExecutorLost(f"{child} failed: {body['type']}: {body['message']}; its traceback is on standard error")
