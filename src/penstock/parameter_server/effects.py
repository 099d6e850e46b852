"""What a state machine asks of whoever drives it: send this, read that, write those rows.

Machines do no I/O and know no clock: ``handle(sender, message, now) -> [Effect]``, ``tick(now) -> [Effect]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.parameter_server.messages import Grant, Message, Record

__all__ = [
    "Commit",
    "Compute",
    "Discard",
    "Effect",
    "End",
    "Owners",
    "Prepare",
    "Read",
    "Rejoin",
    "Send",
    "WriteRows",
]

Owners = NDArray[np.uint16]


class Effect:
    """Base of all effects."""


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Send a message to a peer, if it can be reached; otherwise it is lost."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Read(Effect):
    """Read a micro-batch and find its distinct keys; then call ``Client.batch_ready`` (or ``batch_missing``)."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Compute(Effect):
    """Rows are here: compute gradients; then call ``Client.computed``."""

    grant: Grant
    rows: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Discard(Effect):
    """Forget what was read for these micro-batches: they are done, or not this worker's any more."""

    grant: Grant
    done: bool


@dataclass(frozen=True, slots=True)
class Rejoin(Effect):
    """Forget everything and join again, under a new incarnation."""


@dataclass(frozen=True, slots=True)
class End(Effect):
    """The role is over; ``error`` says why, where the run ended before its end."""

    error: str | None


@dataclass(frozen=True, slots=True, eq=False)
class WriteRows(Effect):
    """Write rows to disk; then call ``Server.written``.

    ``rows`` are copies, by table: keys u64[n], rising, and words f32[n, width]; None says that nobody changes the
    tables any more, so that they can be read where they are. ``full`` says that these are all rows, not only those
    that changed since the last committed checkpoint; then ``removed`` has the keys whose rows went. ``counts`` are
    all rows at that moment.
    """

    checkpoint: int
    folder: str
    full: bool
    rows: Mapping[str, tuple[Keys, Floats]] | None
    removed: Mapping[str, Keys]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Prepare(Effect):
    """It is time for a checkpoint: make a folder for it; then call ``Coordinator.save``."""

    checkpoint: int
    final: bool


@dataclass(frozen=True, slots=True)
class Commit(Effect):
    """All servers have saved: make the checkpoint valid; then call ``Coordinator.committed``."""

    checkpoint: int
    folder: str
    full: bool
    final: bool
    files: list[dict[str, Any]]
    names: list[dict[str, Any]]
    record: Record
    metrics: Any
    """What ``Sink.state`` gave: the figures of what the record lists, and of nothing else."""
