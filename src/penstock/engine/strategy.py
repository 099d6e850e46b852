"""``ParameterServer``: what a user says about training on many processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from penstock.engine.spec import Slowness
from penstock.errors import ConfigError
from penstock.parameter_server import ASP, Consistency
from penstock.parameter_server.routing import SERVERS_MAX
from penstock.train.online import MINIBATCH_MAX

__all__ = ["ParameterServer"]

_WORKERS_MAX = 4096
_LANES_LEAST = 4


@dataclass(frozen=True, kw_only=True)
class ParameterServer:
    """Workers pull the rows that a micro-batch touches, and push their gradients; servers hold the model.

    ``minibatch`` rows make a micro-batch, ``micro_batches`` of them a global batch, whoever computes them (Li et
    al. 2014, "Scaling Distributed Machine Learning with the Parameter Server"). Gradients are summed. ``depth``
    micro-batches are under way in a worker at once: one is computed, others are read, pulled or pushed meanwhile.
    """

    servers: int = 1
    workers: int = 2
    consistency: Consistency = field(default_factory=ASP)
    minibatch: int = 1024
    micro_batches: int | None = None
    """None: 4, or for SSP and ASP as many as workers, if that is more."""
    depth: int = 4
    window: int = 1
    """Of them, between their pull and their push: more hides more of the wire, and makes rows
    staler."""
    slow: dict[str, Slowness] = field(default_factory=dict)
    """For experiments, by name: ``{"worker-1": Slowness(factor=4)}``."""
    imports: tuple[str, ...] = ()
    """Modules that register models and optimizers of your own, in every process."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("servers", 1, SERVERS_MAX),
            ("workers", 1, _WORKERS_MAX),
            ("minibatch", 1, MINIBATCH_MAX),
            ("depth", 1, 64),
            ("window", 1, 64),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} must be {least} to {most:,}, got {value}")
        if self.micro_batches is not None and not 1 <= self.micro_batches <= _WORKERS_MAX:
            raise ConfigError(f"micro_batches must be 1 to {_WORKERS_MAX:,}, got {self.micro_batches}")

    @property
    def lanes(self) -> int:
        """Micro-batches of a global batch."""
        if self.micro_batches is not None:
            return self.micro_batches
        return _LANES_LEAST if self.consistency.together else max(_LANES_LEAST, self.workers)

    def describe(self) -> dict[str, Any]:
        """Plain values, for people."""
        return {
            "servers": self.servers,
            "workers": self.workers,
            "consistency": str(self.consistency),
            "minibatch": self.minibatch,
            "micro_batches": self.lanes,
            "depth": self.depth,
            "window": self.window,
        }
