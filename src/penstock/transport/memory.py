"""Two connections that are each other's peer, inside one process: for tests, and for roles that share one.

Messages go through the codec as on a wire, so arrays are copied and types are checked.
"""

from __future__ import annotations

import collections
import threading
from typing import Any, Final

import msgspec

from penstock.errors import ConnectionClosed, FrameError, TransportTimeout
from penstock.transport.connection import Connection, Identity, Peer
from penstock.transport.frames import Codec
from penstock.version import __version__

__all__ = ["MemoryConnection", "memory_pair"]

_FRAMES: Final = 64


class _Lane:
    """Frames on their way in one direction; at most ``capacity`` of them, as a socket's buffers are finite too."""

    def __init__(self, changed: threading.Condition, capacity: int) -> None:
        self.changed = changed
        self.capacity = capacity
        self.frames: collections.deque[bytes] = collections.deque()


class MemoryConnection(Connection):
    """One end; ``memory_pair`` makes both."""

    def __init__(self, peer: Peer, codec: Codec, outgoing: _Lane, incoming: _Lane) -> None:
        self.peer = peer
        self.bytes_in = 0
        self.bytes_out = 0
        self.other: MemoryConnection
        self._codec = codec
        self._out = outgoing
        self._in = incoming
        self._changed = outgoing.changed
        self._closed = False

    @property
    def wire_s(self) -> float:
        """Nothing: there is no wire."""
        return 0.0

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._closed

    def send(self, message: msgspec.Struct, timeout_s: float) -> None:
        """Put a copy of the message into the other end's queue; see ``Connection``."""
        frame = b"".join(self._codec.encode(message))
        with self._changed:
            there_is_room = self._changed.wait_for(
                lambda: self._closed or self.other._closed or len(self._out.frames) < self._out.capacity, timeout_s
            )
            self._check_open()
            if self.other._closed:
                raise ConnectionClosed(f"{self.peer}: closed the connection")
            if not there_is_room:
                self._close()
                raise TransportTimeout(
                    f"{self.peer}: did not take {type(message).__name__} of {len(frame):,} bytes "
                    f"within {timeout_s:g} s"
                )
            self._out.frames.append(frame)
            self.bytes_out += len(frame)
            self._changed.notify_all()

    def receive(self, timeout_s: float | None = None) -> Any:
        """Take the next message; see ``Connection``."""
        with self._changed:
            in_time = self._changed.wait_for(
                lambda: self._closed or self.other._closed or bool(self._in.frames), timeout_s
            )
            self._check_open()
            if not in_time:
                raise TransportTimeout(f"{self.peer}: sent no whole message within {timeout_s:g} s")
            if not self._in.frames:
                raise ConnectionClosed(f"{self.peer}: closed the connection")
            frame = self._in.frames.popleft()
            self.bytes_in += len(frame)
            self._changed.notify_all()
        try:
            return self._codec.decode(frame)
        except FrameError as error:
            self.close()
            raise FrameError(f"{self.peer}: {error}") from error

    def close(self) -> None:
        """Close; what was sent before may still be received by the other end."""
        with self._changed:
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosed(f"{self.peer}: the connection was closed on this side")


def memory_pair(
    codec: Codec, left: Identity, right: Identity, *, capacity: int = _FRAMES
) -> tuple[MemoryConnection, MemoryConnection]:
    """Return the connection that ``left`` holds, whose peer is ``right``, and the one that ``right`` holds."""
    changed = threading.Condition()
    there, back = _Lane(changed, capacity), _Lane(changed, capacity)

    def peer(of: Identity) -> Peer:
        return Peer(role=of.role, name=of.name, address="memory:0", version=__version__)

    first = MemoryConnection(peer(right), codec, there, back)
    second = MemoryConnection(peer(left), codec, back, there)
    first.other, second.other = second, first
    return first, second
