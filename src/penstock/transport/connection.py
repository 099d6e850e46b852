"""What a connection is, whatever carries it: messages in, messages out, counted.

``tcp`` and ``memory`` have one each.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import msgspec

from penstock.errors import ConfigError

__all__ = ["Connection", "Identity", "Peer"]

NAME_LIMIT: Final = 64


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who speaks: ``role`` as in "worker", ``name`` as in "worker-3"; 1 to 64 printable characters each."""

    role: str
    name: str

    def __post_init__(self) -> None:
        check_name("role", self.role)
        check_name("name", self.name)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is at the other end, as it proved by the token, from where, and of which version of the package."""

    role: str
    name: str
    address: str
    version: str = ""

    def __str__(self) -> str:
        named = self.name if self.name.startswith(self.role) else f"{self.role} {self.name}"
        return f"{named} ({self.address})"


def check_name(what: str, value: str) -> None:
    """Refuse what would break a log line.

    Raises:
        ConfigError: empty, longer than 64 characters, or not printable.
    """
    if not (1 <= len(value) <= NAME_LIMIT and value.isprintable()):
        raise ConfigError(f"{what} {value!r:.80}: must have 1 to {NAME_LIMIT} printable characters")


class Connection(abc.ABC):
    """A two-way stream of messages. One thread may receive while any others send; a ``with`` closes it.

    ``bytes_in`` and ``bytes_out`` count messages as whole frames; ``wire_s`` the seconds in the calls that move
    them, without the wait for a frame to begin.
    """

    peer: Peer
    bytes_in: int
    bytes_out: int

    @property
    @abc.abstractmethod
    def wire_s(self) -> float:
        """Seconds spent in moving bytes, both ways together."""

    @abc.abstractmethod
    def send(self, message: msgspec.Struct, timeout_s: float) -> None:
        """Hand a message to the carrier, whole or not at all; the arrays may change once this returns.

        A timeout closes the connection, because half a frame may have left.

        Raises:
            FrameError: the message does not fit the codec; nothing was sent, and the connection goes on.
            TransportTimeout: the peer does not read.
            ConnectionClosed: it is closed.
        """

    @abc.abstractmethod
    def receive(self, timeout_s: float | None = None) -> Any:
        """Wait for the next message; with ``None`` until one is there or the connection closes.

        Raises:
            FrameError: what came is no message; the connection is closed.
            TransportTimeout: no message began in time (the connection goes on), or one did not end in time (the
                connection is closed).
            ConnectionClosed: by the peer, by ``close`` here, or by the network.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close, which also wakes whoever waits in ``send`` or ``receive``; does nothing the second time."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether it is closed on this side."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
