"""Which pushes are applied, by name: what makes every example count once.

A server keeps one history for each group of segments that saw the same pushes: one in all, until rows of several
servers are loaded from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from penstock.errors import ModelError
from penstock.parameter_server.messages import BatchName, Record

__all__ = ["History", "from_runs", "to_runs"]


class History:
    """A set of names; a finished chunk has all of its names, also those that nobody has asked for yet."""

    __slots__ = ("_finished", "_partial")

    def __init__(self) -> None:
        self._finished: set[int] = set()
        self._partial: dict[int, set[int]] = {}

    def __contains__(self, name: BatchName) -> bool:
        if name.chunk in self._finished:
            return True
        batches = self._partial.get(name.chunk)
        return batches is not None and name.batch in batches

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return self._finished == other._finished and self._partial == other._partial

    __hash__ = None  # type: ignore[assignment]

    def add(self, name: BatchName) -> None:
        """The push of this name is applied."""
        self._partial.setdefault(name.chunk, set()).add(name.batch)

    def condense(self, record: Record) -> None:
        """Forget the single names of chunks that a committed checkpoint lists as finished."""
        for chunk in from_runs(record.finished):
            self._finished.add(chunk)
            self._partial.pop(chunk, None)

    def learnt(self, record: Record) -> None:
        """All that the record lists is applied here."""
        self.condense(record)
        for chunk, batches in record.partial.items():
            if chunk not in self._finished:
                self._partial.setdefault(chunk, set()).update(batches)

    def to_state(self) -> dict[str, Any]:
        """Plain values."""
        partial = {
            str(chunk): [list(run) for run in to_runs(batches)] for chunk, batches in sorted(self._partial.items())
        }
        return {"finished": [list(run) for run in to_runs(self._finished)], "partial": partial}

    @staticmethod
    def from_state(state: dict[str, Any]) -> History:
        """The inverse of ``to_state``.

        Raises:
            ModelError: it is not what ``to_state`` gives.
        """
        try:
            read = msgspec.convert(state, _State, strict=False)
        except msgspec.ValidationError as error:
            raise ModelError(f"names applied: {error}") from None
        history = History()
        history._finished = set(from_runs(read.finished))
        history._partial = {chunk: set(from_runs(runs)) for chunk, runs in read.partial.items()}
        return history

    def validate(self) -> None:
        """Check that no chunk is noted twice."""
        assert not self._finished & self._partial.keys()
        assert all(self._partial.values())


class _State(msgspec.Struct):
    finished: list[tuple[int, int]]
    partial: dict[int, list[tuple[int, int]]]


def to_runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """``{1, 2, 3, 7} -> [(1, 3), (7, 7)]``."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def from_runs(runs: Iterable[tuple[int, int]]) -> list[int]:
    """The inverse of ``to_runs``."""
    return [number for first, last in runs for number in range(first, last + 1)]
