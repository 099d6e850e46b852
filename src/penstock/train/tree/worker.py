"""The process at the other end of ``Processes``: hosts some partitions, and does what it is told.

``python -m penstock.train.tree.worker`` speaks on its standard input and output, and ends when the former does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.data.describe import open_described
from penstock.errors import PenstockError
from penstock.features import Encoder
from penstock.models import model_from_spec
from penstock.train.holdout import Holdout
from penstock.train.stream import read_for
from penstock.train.tree.executors import Hosted
from penstock.train.tree.partition import Partial, Work, rehearse
from penstock.train.tree.pipes import Array, Message, Pipes, pack, unpack

__all__ = ["main"]

ALIVE_S = 1.0


class _Worker:
    """Answers each message with one, errors included."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._hosted: Hosted | None = None

    def answer(self, message: Message, arrays: list[Array]) -> None:
        """Do what is asked, and say so."""
        try:
            body, out = getattr(self, f"_{message.kind}")(message.body, arrays)
        except PenstockError as error:
            self._pipes.send("error", {"type": type(error).__name__, "message": str(error)})
        except Exception as error:
            traceback.print_exc()
            said = " ".join(str(error).split())
            self._pipes.send("error", {"type": type(error).__name__, "message": said})
        else:
            self._pipes.send("done", body, out)

    def close(self) -> None:
        """Stop reading."""
        if self._hosted is not None:
            self._hosted.close()

    @property
    def _home(self) -> Hosted:
        assert self._hosted is not None
        return self._hosted

    def _start(self, body: Mapping[str, Any], _: list[Array]) -> Any:
        shell = model_from_spec(body["model"])
        assert shell.plan is not None
        source = read_for(open_described(body["source"]), shell.plan)
        work = Work(
            source=source,
            shell=shell,
            partitions=body["partitions"],
            batch_rows=body["batch_rows"],
            holdout=msgspec.convert(body["holdout"], Holdout | None),
        )
        self._hosted = Hosted(work, body["numbers"])
        for records in source.sample(8).select(Encoder(shell.plan).columns).combine_chunks().to_batches()[:1]:
            rehearse(shell, records)
        return {}, []

    def _begin(self, body: Mapping[str, Any], _: list[Array]) -> Any:
        for partition, (chunk, row) in zip(self._home.partitions.values(), body["positions"], strict=True):
            partition.begin((chunk, row))
        return {}, []

    def _prepare(self, _: Mapping[str, Any], __: list[Array]) -> Any:
        parts: dict[int, Any] = {}
        for number, partition in self._home.partitions.items():
            keys = partition.prepare()
            parts[number] = None if keys is None else {name: [table] for name, table in keys.items()}
        layout, out = pack(parts)
        return {"parts": layout}, out

    def _map(self, body: Mapping[str, Any], arrays: list[Array]) -> Any:
        said, out = [], []
        for number, tables in unpack(body["parts"], arrays).items():
            rows = None if tables is None else {name: table for name, (table,) in tables.items()}
            partial = self._home.compute(number, rows, body["observe"])
            said.append([number, None if partial is None else _in_words(partial)])
            if partial is not None:
                out += [partial.predicted, partial.labels]
                out += [] if partial.weights is None else [partial.weights]
        return {"partials": said}, out

    def _combine(self, body: Mapping[str, Any], arrays: list[Array]) -> Any:
        for number, tables in unpack(body["parts"], arrays).items():
            assert tables is not None
            self._home.gradients[number] = {name: (keys, grads) for name, (keys, grads) in tables.items()}
        for group in body["groups"]:
            self._home.add_up(group)
        return {}, []

    def _give(self, body: Mapping[str, Any], _: list[Array]) -> Any:
        parts: dict[int, Mapping[str, Sequence[Array]] | None] = {}
        for number in body["numbers"]:
            gradient = self._home.gradients.get(number)
            parts[number] = None if gradient is None else {name: list(pair) for name, pair in gradient.items()}
        layout, out = pack(parts)
        return {"parts": layout}, out


def _in_words(partial: Partial) -> dict[str, Any]:
    return {
        "loss": partial.loss,
        "rows": partial.rows,
        "position": partial.position,
        "work": partial.work,
        "weighted": partial.weights is not None,
    }


def _say_alive(pipes: Pipes, busy: threading.Event) -> None:
    """Tell the driver that a long answer is on its way; without a driver, end."""
    while True:
        busy.wait()
        threading.Event().wait(ALIVE_S)
        if busy.is_set():
            try:
                pipes.send("alive")
            except OSError:
                os._exit(1)


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever else is printed must not come between messages.
    reader, writer = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    pipes = Pipes(reader, writer)
    busy = threading.Event()
    threading.Thread(target=_say_alive, args=(pipes, busy), daemon=True).start()
    worker = _Worker(pipes)
    try:
        while True:
            message, arrays = pipes.receive()
            busy.set()
            worker.answer(message, arrays)
            busy.clear()
    except (EOFError, BrokenPipeError):
        # Standard output is closed as well: nothing of this is anybody's concern any more.
        sys.stderr.flush()
    finally:
        worker.close()


if __name__ == "__main__":
    main()
