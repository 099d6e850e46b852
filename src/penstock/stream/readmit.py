"""Events that a pipeline did not count, taken back in: a step records that they count from then on."""

from __future__ import annotations

import pyarrow.compute as pc

from penstock.errors import DataError
from penstock.log import Log, Step
from penstock.log.times import now_us

__all__ = ["readmit"]


def readmit(log: Log, stream: str, *, reason: str, pipeline: str | None = None) -> tuple[int, Step | None]:
    """Let quarantined events of a stream count, in a step of their own; how many are new, and the step.

    Pipelines give examples of them, of kind ``late``, or correct what they change.

    Raises:
        DataError: there is no such stream.
    """
    if not log.has(stream):
        log.stream(stream)
    table = log.quarantine(stream).read(reason)
    table = table.filter(pc.is_valid(table["seq"]))
    if pipeline is not None:
        table = table.filter(pc.equal(table["pipeline"], pipeline))
    known = {seq for step in log.progress.steps() for seq in step.readmitted.get(stream, ())}
    new = sorted(set(table["seq"].to_pylist()) - known)
    if not new:
        return 0, None
    if len(new) > _MOST:
        raise DataError(f"stream {stream}: {len(new):,} events at once, allowed: {_MOST:,}; name a pipeline")
    return len(new), log.step(tick_us=now_us(), readmit={stream: new})


_MOST = 1_000_000
