"""Steps: the one order and the one clock of a log.

A step records how far each stream had come (its end, a position) and a tick of a clock. Whatever depends on what
was known when (watermarks, sealed windows, corrections) is a pure function of the steps and of the events; so it
is the same for whoever computes it, whenever. Steps are taken by whoever reads the log live, one after the other;
between two of them nothing is known to have happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from penstock.errors import DataError, StorageError
from penstock.log.delta import Conflict
from penstock.log.ledger import Ledger
from penstock.log.times import TIMESTAMP

__all__ = ["Progress", "Step"]

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("tick", TIMESTAMP),
        ("stream", pa.string()),
        ("end", pa.int64()),
        ("version", pa.int64()),
        ("readmitted", pa.list_(pa.int64())),
    ]
)
_TRANSACTION = "penstock.step"
_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What was known at a tick."""

    number: int
    """From 0."""
    tick_us: int
    """Never before the tick of an earlier step."""
    ends: Mapping[str, int]
    """By stream: events 0 to end - 1 are known."""
    versions: Mapping[str, int]
    """By stream: the version of its table, for lineage."""
    readmitted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By stream: positions of events that were quarantined, and are to count from now on."""


class Progress:
    """The log's steps; keeps those that it has read. Not for several threads at once."""

    def __init__(self, uri: str) -> None:
        """Name the table; nothing is touched."""
        self._ledger = Ledger(uri, _SCHEMA, ordered_by="step")
        self._steps: list[Step] = []

    def steps(self) -> Sequence[Step]:
        """All steps so far, read anew where there are more."""
        self._load()
        return self._steps

    def _load(self) -> None:
        last = self._steps[-1].number if self._steps else -1
        if self._ledger.number(_TRANSACTION) == last:
            return
        by_step: dict[int, list[dict[str, object]]] = {}
        for row in self._ledger.read(above=last).to_pylist():
            by_step.setdefault(row["step"], []).append(row)
        for number in sorted(by_step):
            if number != len(self._steps):
                raise DataError(f"{self._ledger.uri}: step {len(self._steps)} is missing, the next is {number}")
            self._steps.append(_step(number, by_step[number]))

    def take(
        self,
        tick_us: int,
        look: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]],
        *,
        readmit: Mapping[str, Sequence[int]] | None = None,
        unchanged: bool = True,
    ) -> Step:
        """Record a step of what ``look`` says (ends and versions by stream), and return it.

        Where others took a step in between, look again. With ``unchanged`` False no step is taken that would
        have the ends of the last one; then that is returned.

        Raises:
            StorageError: it cannot be written.
        """
        for _ in range(_TRIES):
            self._load()
            ends, versions = look()
            last = self._steps[-1] if self._steps else None
            if last is not None:
                ends = {**last.ends, **{name: max(end, last.ends.get(name, 0)) for name, end in ends.items()}}
                tick_us = max(tick_us, last.tick_us)
                if not unchanged and not readmit and ends == dict(last.ends):
                    return last
            number = last.number + 1 if last is not None else 0
            rows = [
                {
                    "step": number,
                    "tick": tick_us,
                    "stream": name,
                    "end": end,
                    "version": versions.get(name, -1),
                    "readmitted": sorted(readmit.get(name, ())) if readmit else [],
                }
                for name, end in sorted(ends.items())
            ]
            try:
                self._ledger.append_at(rows, {_TRANSACTION: number})
            except Conflict:
                continue
            self._load()
            return self._steps[number]
        raise StorageError(f"{self._ledger.uri}: others took {_TRIES} steps in between; try again")


def _step(number: int, rows: Sequence[Mapping[str, object]]) -> Step:
    tick = rows[0]["tick"]
    return Step(
        number=number,
        tick_us=round(tick.timestamp() * 1_000_000),  # type: ignore[attr-defined]
        ends={str(row["stream"]): int(row["end"]) for row in rows},  # type: ignore[call-overload]
        versions={str(row["stream"]): int(row["version"]) for row in rows},  # type: ignore[call-overload]
        readmitted={str(row["stream"]): tuple(row["readmitted"]) for row in rows if row["readmitted"]},  # type: ignore[arg-type]
    )
