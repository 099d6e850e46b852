"""How a server or a worker takes part, as a state machine: joins until it is welcome, and says that it is alive.

Whoever drives a role hands every message of the coordinator to ``handle`` here; once ``welcome`` is there, also to
the role's own machine. A coordinator that falls silent ends the role.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.parameter_server.effects import Effect, End, Rejoin, Send
from penstock.parameter_server.messages import Expelled, Heartbeat, Join, Message, Ready, Stop, Welcome

__all__ = ["Manners", "Member"]


@dataclass(frozen=True, kw_only=True)
class Manners:
    """Seconds."""

    retry_s: float = 1.0
    """Joins again after this."""
    beat_s: float = 0.5
    """Between heartbeats."""
    silence_s: float = 5.0
    """A coordinator that says nothing for so long is gone."""
    join_s: float = 60.0
    """The same, while it has not let us in: it may wait for others."""


class Member:
    """One life of a role: ``incarnation`` is drawn at random for each, below 2^31."""

    def __init__(
        self,
        *,
        role: str,
        name: str,
        incarnation: int,
        address: str = "",
        manners: Manners | None = None,
        now: float = 0.0,
    ) -> None:
        self.welcome: Welcome | None = None
        """What the run is, once known."""
        self.incarnation = incarnation
        self._join = Join(role=role, name=name, incarnation=incarnation, address=address)
        self._manners = manners if manners is not None else Manners()
        self._ready = False
        self._heard = self._ticked = self._sent = now
        self._over = False

    def start(self, now: float) -> list[Effect]:
        """Ask to take part."""
        self._sent = now
        return [Send("coordinator", self._join)]

    def handle(self, message: Message, now: float) -> list[Effect]:
        """Take a message of the coordinator."""
        self._heard = now
        if self.welcome is not None or self._over:
            return []
        match message:
            case Welcome() if message.incarnation == self.incarnation:
                self.welcome = message
            case Expelled() if message.incarnation == self.incarnation:
                self._over = True
                return [Rejoin()]
            case Stop():
                self._over = True
                return [End(message.error)]
        return []

    def validate(self) -> None:
        """Check that the state fits together."""
        assert not self._ready or self.welcome is not None, "ready before it was let in"
        assert self.welcome is None or self.welcome.incarnation == self.incarnation

    def ready(self, now: float) -> list[Effect]:
        """A server's rows are loaded."""
        self._ready = True
        return [Send("coordinator", Ready(incarnation=self.incarnation))]

    def beat(self, figures: dict[str, Any], now: float) -> list[Effect]:
        """A heartbeat at once: ``figures`` that nothing will change any more."""
        if self.welcome is None or self._over:
            return []
        self._sent = now
        return [Send("coordinator", Heartbeat(incarnation=self.incarnation, figures=figures))]

    def beats(self, now: float) -> bool:
        """Whether the next ``tick`` sends a heartbeat, for which figures are wanted."""
        return self.welcome is not None and not self._over and now - self._sent >= self._manners.beat_s

    def tick(self, figures: dict[str, Any], now: float) -> list[Effect]:
        """Call every tenth of a second or so, also while rows are loaded; ``figures`` are for people."""
        if self._over:
            return []
        if now - self._ticked >= self._manners.retry_s:
            self._heard = now  # this process was stopped for a while: what it did not hear says nothing of others
        self._ticked = now
        silent = now - self._heard
        if silent >= (self._manners.join_s if self.welcome is None else self._manners.silence_s):
            self._over = True
            return [End(f"{self._join.name}: the coordinator was silent for {silent:.1f} s")]
        if now - self._sent < (self._manners.retry_s if self.welcome is None else self._manners.beat_s):
            return []
        if self.welcome is None:
            self._sent = now
            return [Send("coordinator", self._join)]
        effects = self.beat(figures, now)
        return [*effects, *self.ready(now)] if self._ready else effects
