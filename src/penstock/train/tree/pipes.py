"""Messages with arrays over a pair of pipes to a process of this machine: a header by msgspec, then raw arrays.

No pickle, and no sockets: whoever can write into the pipe is the process at its other end.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["Message", "Pipes", "Silence", "pack", "unpack"]

_PREFIX = struct.Struct("<4sI")
_MAGIC = b"pst1"
_DTYPES = ("uint64", "float32")
_HEADER_MAX_NBYTES = 1 << 26
_ARRAYS_MAX_NBYTES = 1 << 40

Array = NDArray[Any]


class Message(msgspec.Struct, kw_only=True):
    """What one end tells the other."""

    kind: str
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    """Plain JSON values."""
    shapes: list[tuple[str, list[int]]] = msgspec.field(default_factory=list)
    """dtype and shape of each array that follows."""


class Silence(Exception):
    """The other end has sent nothing for the time that was given."""


class Pipes:
    """One end. Several threads may send; one receives."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, *, silence_s: float | None = None) -> None:
        """Both unbuffered. Wait for the other end for ``silence_s`` seconds at most; None for ever, or until it is
        gone."""
        self.silence_s = silence_s
        self._reader, self._writer = reader, writer
        self._sending = threading.Lock()
        if silence_s is not None:
            os.set_blocking(writer.fileno(), False)

    def send(self, kind: str, body: Mapping[str, Any] | None = None, arrays: Sequence[Array] = ()) -> None:
        """Write a whole message.

        Raises:
            BrokenPipeError: the other end is gone.
            Silence: it reads nothing.
        """
        arrays = [np.ascontiguousarray(array) for array in arrays]
        shapes = [(array.dtype.name, list(array.shape)) for array in arrays]
        header = msgspec.msgpack.encode(Message(kind=kind, body=dict(body or {}), shapes=shapes))
        with self._sending:
            self._write(_PREFIX.pack(_MAGIC, len(header)) + header)
            for array in arrays:
                if array.size:
                    self._write(array.reshape(-1).view(np.uint8).data)

    def receive(self) -> tuple[Message, list[Array]]:
        """The next message.

        Raises:
            EOFError: the other end is gone.
            Silence: nothing came.
            ValueError: what came is no message.
        """
        prefix = bytearray(_PREFIX.size)
        self._read(prefix)
        magic, nbytes = _PREFIX.unpack(prefix)
        if magic != _MAGIC or nbytes > _HEADER_MAX_NBYTES:
            raise ValueError(f"not a message: {bytes(prefix)!r}")
        header = bytearray(nbytes)
        self._read(header)
        message = msgspec.msgpack.decode(header, type=Message)
        arrays = []
        for dtype, shape in message.shapes:
            if dtype not in _DTYPES or not 1 <= len(shape) <= 2 or min(shape) < 0:
                raise ValueError(f"not an array of a message: {dtype} {shape}")
            if int(np.prod(shape, dtype=object)) * 8 > _ARRAYS_MAX_NBYTES:
                raise ValueError(f"array too large for a message: {dtype} {shape}")
            array = np.empty(shape, dtype)
            if array.size:
                self._read(array.reshape(-1).view(np.uint8).data)
            arrays.append(array)
        return message, arrays

    def close(self) -> None:
        """Close both."""
        self._writer.close()
        self._reader.close()

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        while view:
            count = self._writer.write(view)
            # None from a pipe that is full, which only an end with a deadline gets.
            if count is None:
                self._wait(self._writer, select.POLLOUT)
            view = view[count or 0 :]

    def _read(self, into: Any) -> None:
        view = memoryview(into)
        while view:
            if self.silence_s is not None:
                self._wait(self._reader, select.POLLIN)
            count = self._reader.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            view = view[count:]

    def _wait(self, file: BinaryIO, event: int) -> None:
        assert self.silence_s is not None
        poll = select.poll()
        poll.register(file, event)
        if not poll.poll(self.silence_s * 1000):
            raise Silence


def pack(parts: Mapping[int, Mapping[str, Sequence[Array]] | None]) -> tuple[list[Any], list[Array]]:
    """Arrays by partition and table as (what they are, the arrays), for a message."""
    layout: list[Any] = []
    arrays: list[Array] = []
    for number, tables in parts.items():
        layout.append([number, None if tables is None else [[name, len(found)] for name, found in tables.items()]])
        for found in (tables or {}).values():
            arrays += found
    return layout, arrays


def unpack(layout: Sequence[Any], arrays: Sequence[Array]) -> dict[int, dict[str, list[Array]] | None]:
    """The inverse of ``pack``."""
    found: dict[int, dict[str, list[Array]] | None] = {}
    left = iter(arrays)
    for number, tables in layout:
        found[number] = (
            None if tables is None else {name: [next(left) for _ in range(count)] for name, count in tables}
        )
    return found
