"""Asking a coordinator how its run stands, or to stop it: for progress bars, ``penstock cluster status``,
engines."""

from __future__ import annotations

import itertools
import secrets
from types import TracebackType
from typing import Any

from penstock.engine.node import Access
from penstock.errors import TransportError
from penstock.parameter_server.messages import Status, StatusQuery, StopRequest
from penstock.transport import Identity

__all__ = ["Observer"]


class Observer:
    """A connection to a coordinator; a context."""

    def __init__(self, access: Access, address: str, *, name: str | None = None, timeout_s: float = 5.0) -> None:
        """Connect.

        Raises:
            TransportError: it cannot be reached, or refuses.
        """
        self._timeout_s = timeout_s
        # Answers go by name: two observers must not have one.
        name = name if name is not None else f"observer-{secrets.token_hex(4)}"
        self._connection = access.connect(address, Identity(role="observer", name=name), timeout_s)
        self._ids = itertools.count(1)

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def status(self) -> dict[str, Any]:
        """How the run stands; see ``Coordinator.status``.

        Raises:
            TransportError: no answer in time.
        """
        id_ = next(self._ids)
        self._connection.send(StatusQuery(id=id_), self._timeout_s)
        while True:
            answer = self._connection.receive(self._timeout_s)
            if isinstance(answer, Status) and answer.id == id_:
                return answer.status
            if not isinstance(answer, Status):
                raise TransportError(f"{self._connection.peer}: got {type(answer).__name__} instead of Status")

    def stop(self, reason: str) -> None:
        """Have the run write a checkpoint, and end."""
        self._connection.send(StopRequest(id=next(self._ids), reason=reason), self._timeout_s)
