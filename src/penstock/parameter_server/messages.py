"""Every message of the protocol, typed. Arrays are fields like any other; how they travel is the transport's.

Who sends what::

    server, worker → coordinator   Join, Heartbeat, Failure    answered by   Welcome, Beat, Stop
    worker → coordinator           Report, Leave                             Work, Nudge, Expelled
    worker → server                Pull, Push                                Rows, Held, Ack, Refused
    coordinator → server           Save, Committed                           Ready, SaveAccepted, Saved
    anybody → server               Call                                      Result, Refused
    observer → coordinator         StatusQuery, StopRequest                  Status

Any of them may be lost, doubled or come late; each request is safe to send again. A role joins again until it is
welcome, and then sends heartbeats (``member``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys

__all__ = [
    "MESSAGES",
    "Ack",
    "BatchName",
    "Beat",
    "Call",
    "Committed",
    "Expelled",
    "Failure",
    "Figures",
    "Grant",
    "Heartbeat",
    "Held",
    "Join",
    "LaneStart",
    "Leave",
    "Message",
    "Nudge",
    "Part",
    "Pull",
    "Push",
    "Ready",
    "Record",
    "Refused",
    "Report",
    "Result",
    "Rows",
    "Save",
    "SaveAccepted",
    "Saved",
    "Status",
    "StatusQuery",
    "Stop",
    "StopRequest",
    "Welcome",
    "Work",
]


class BatchName(NamedTuple):
    """Names a micro-batch, and so the push of its gradients, by the data that it came from.

    ``chunk`` counts over all passes: chunk c of pass p, of C chunks, is ``p * C + c``.
    """

    chunk: int
    batch: int


class Message(msgspec.Struct, kw_only=True, tag=True):
    """Base of all messages."""


class Value(msgspec.Struct, kw_only=True):
    """Base of parts of messages."""


class Grant(Value):
    """A micro-batch to learn; ``clock`` is its place in ``lane``, and its global batch."""

    name: BatchName
    lane: int
    clock: int
    final: bool
    """Whether no chunk follows this one in its lane."""


class LaneStart(Value):
    """Where a lane stands: clocks before ``clock`` are done, of the later ones those of ``beyond``."""

    clock: int
    beyond: list[int]
    end: int | None
    """The clock after the lane's last micro-batch, where that is known."""


class Record(Value):
    """Which micro-batches are learnt: where a run stands, in a checkpoint."""

    finished: list[tuple[int, int]]
    """Runs of chunks, first and last."""
    partial: dict[int, list[int]]
    """Of other chunks, the batches."""
    lengths: dict[int, int]
    """Batches of chunks, where it was known."""
    lanes: int
    """Of the run; a clock means nothing in another number of lanes."""


class Part(Value):
    """Gradients f32[n, dim] for a table's keys u64[n], rising."""

    keys: Keys
    gradients: Floats


class Figures(Value):
    """Of a micro-batch: what is added to the run's metrics."""

    rows: int
    scored: int
    """Of them, rows of the first pass: of these are the sums below."""
    loss: float
    bins: NDArray[np.int64]
    sums: NDArray[np.float64]


class Join(Message):
    """Wants to take part. ``incarnation`` tells a role that came back from the one that went."""

    role: str
    name: str
    incarnation: int
    address: str


class Welcome(Message):
    """Takes part; ``spec`` says what the run is, ``owners`` u16[segments] which of ``servers`` has a segment."""

    name: str
    incarnation: int
    spec: dict[str, Any]
    routing: int
    servers: list[str]
    addresses: list[str]
    owners: NDArray[np.uint16]
    lanes: list[LaneStart]


class Ready(Message):
    """A server has loaded its rows; said again with each heartbeat, since it may be lost."""

    incarnation: int


class Heartbeat(Message):
    """Is alive; ``figures`` are for people."""

    incarnation: int
    figures: dict[str, Any]


class Beat(Message):
    """The coordinator is alive; ``silent`` has who is not, and for how many seconds."""

    silent: dict[str, float]


class Failure(Message):
    """Cannot go on, and nobody could with this data and these settings."""

    incarnation: int
    error: str


class Leave(Message):
    """A worker takes no part any more: what it holds goes to others. ``error`` says why, if something is wrong."""

    incarnation: int
    error: str | None


class Stop(Message):
    """The run is over; ``error`` says why, where it ended before its end."""

    error: str | None


class Report(Message):
    """A worker's turn: what it has done, how much it wants. Answered by ``Work`` of the same number, once."""

    incarnation: int
    number: int
    done: list[BatchName]
    lengths: dict[int, int]
    """Batches of chunks whose end it has read."""
    want: int
    below: int | None
    """Where it waits with all it has: a clock, below which it takes more."""
    figures: list[Figures | None]
    """Of each that is done."""
    waits: dict[str, float]
    """Seconds so far, by what for."""


class Work(Message):
    """Answer to a report."""

    number: int
    grants: list[Grant]
    finished: bool
    """Whether nothing is left to be done, for anybody."""


class Nudge(Message):
    """There may be work: report now rather than later."""


class Expelled(Message):
    """Was silent for too long, its work is with others: forget everything and join again."""

    incarnation: int


class Pull(Message):
    """Rows for keys u64[n], rising, of each table, as of the clock that ``clock`` must see (None: as they are)."""

    id: int
    clock: int | None
    routing: int
    tables: dict[str, Keys]


class Rows(Message):
    """Answer to a pull: f32[n, dim]; ``version`` counts the updates that this server had applied."""

    id: int
    version: int
    tables: dict[str, Floats]


class Held(Message):
    """The pull waits for a clock that is not complete, in these lanes."""

    id: int
    clock: int
    lanes: list[int]


class Push(Message):
    """Gradients of a micro-batch, all of them that belong to one server; applied once for each name."""

    id: int
    name: BatchName
    lane: int | None
    """None: not of the run's data. It is applied at once, and counts for no clock."""
    clock: int
    ends: bool
    """Whether the lane ends with it."""
    version: int
    """Of the rows that the gradients were computed from."""
    routing: int
    tables: dict[str, Part]
    pulled: int | None = None
    """The pull whose keys these are: parts have none then. Where the server has forgotten it, the push is lost."""


class Ack(Message):
    """A push is applied (or, under BSP, will be with its clock), now or before."""

    id: int


class Refused(Message):
    """A request that cannot be served: what, where, got, allowed."""

    id: int
    error: str
    fatal: bool
    """Whether it would be refused again; if not, routing has changed, and one must join again."""


class Save(Message):
    """Write rows to ``folder``: at once, or under BSP when clocks below ``clock`` are applied."""

    checkpoint: int
    folder: str
    full: bool
    """All rows, or those that changed since the last committed checkpoint."""
    final: bool
    """Whether training is over, so that rows stay as they are."""
    clock: int | None


class SaveAccepted(Message):
    """The save will happen."""

    checkpoint: int
    incarnation: int


class Saved(Message):
    """Rows are on disk: for each table its files; ``names`` are applied in them. Or ``error``."""

    checkpoint: int
    incarnation: int
    files: dict[str, Any]
    names: list[dict[str, Any]]
    error: str | None


class Committed(Message):
    """The checkpoint is valid from now on, and lists what is in ``record``; or, with None, it never will be."""

    checkpoint: int
    record: Record | None


class Call(Message):
    """Run a registered function over the rows of this server."""

    id: int
    function: str
    table: str
    arguments: dict[str, Any]


class Result(Message):
    """What the function gave: plain values, and arrays."""

    id: int
    value: dict[str, Any]
    keys: Keys
    floats: NDArray[np.float64]


class StatusQuery(Message):
    """How does the cluster stand?"""

    id: int


class Status(Message):
    """Plain values; see ``Coordinator.status``."""

    id: int
    status: dict[str, Any]


class StopRequest(Message):
    """Write a checkpoint and end the run."""

    id: int
    reason: str


MESSAGES: tuple[type[Message], ...] = (
    Ack,
    Beat,
    Call,
    Committed,
    Expelled,
    Failure,
    Heartbeat,
    Held,
    Join,
    Leave,
    Nudge,
    Pull,
    Push,
    Ready,
    Refused,
    Report,
    Result,
    Rows,
    Save,
    SaveAccepted,
    Saved,
    Status,
    StatusQuery,
    Stop,
    StopRequest,
    Welcome,
    Work,
)
