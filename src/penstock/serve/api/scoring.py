"""Bodies to scores: rows and tensors in JSON, whole or in slices, and Arrow tables in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from penstock.serve.api.arrow import TableLimits, read_table, write_table
from penstock.serve.api.inference import InferRequest, read_infer, rows_asked, tensor_slices
from penstock.serve.api.limits import ServeLimits
from penstock.serve.api.slices import (
    SLICE_NBYTES,
    SLICE_ROWS,
    Turns,
    cut,
    explain_slices,
    read_json,
    score_slices,
    slices_of,
    warm_up,
)
from penstock.serve.batching import Batcher, Rows, Scored
from penstock.serve.scorer import Contribution, Scorer
from penstock.transport.http import Refused

__all__ = ["Scoring"]

_ALLOWED = "allowed: a row (an object of columns) or a list of rows"


class Scoring:
    """Of one server. A request is scored by one version of a model, even if there is a newer one meanwhile."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits, self._turns, self._tables = limits, Turns(), 0
        warm_up()

    async def rows(self, batcher: Batcher, body: bytes, most: int) -> tuple[Scored, list[list[Contribution]]]:
        """Scores of a body's rows, and of each row the strongest ``most`` features, if that is not 0.

        Raises:
            InputError: the body is no JSON, or a row cannot be scored.
            Refused: there are no rows, or more or larger ones than allowed.
        """
        if len(body) <= SLICE_NBYTES:
            rows = _rows(body)
            self._check(len(rows), explained=bool(most))
            if len(rows) <= SLICE_ROWS:
                scored = await batcher.score(rows)
                return scored, await self._explain(scored, scored.rows, most) if most else []
            slices = slices_of(rows)
        else:
            slices = await self._cut(body, explained=bool(most))
        kept: list[Any] | None = [] if most else None
        scored = await self._in_slices(batcher.scorer, slices, kept)
        return scored, await self._explain(scored, kept, most) if kept else []

    async def tensors(self, batcher: Batcher, body: bytes) -> tuple[InferRequest, Scored]:
        """Scores of the rows that a body has as tensors.

        Raises:
            BadTensors: the body is none of the protocol.
            BadRow: a row cannot be scored.
            Refused: there are no rows, or more than allowed, or too many bytes.
        """
        if len(body) > self._limits.tensors_nbytes:
            raise Refused(413, f"tensors have at most {self._limits.tensors_nbytes:,} bytes; rows may have more")
        asked = read_infer(body)
        self._check(rows_asked(asked))
        slices = await self._turns.take(tensor_slices(asked))
        if len(slices) == 1:
            return asked, await batcher.score(slices[0])
        return asked, await self._in_slices(batcher.scorer, iter(slices), None)

    async def table(self, name: str, scorer: Scorer, body: bytes) -> tuple[int, bytes]:
        """How many rows an Arrow table has, and the table of their scores.

        Raises:
            InputError: a column is missing, has another type, or a value is not allowed.
            Refused: the body is no table, or it is too large, or there are too many at the moment.
        """
        if self._tables >= self._limits.tables:
            raise Refused(429, "too many tables are scored at the moment; try again", retry_after="1")
        self._tables += 1
        try:
            return await asyncio.to_thread(self._score_table, name, scorer, body)
        finally:
            self._tables -= 1

    def _score_table(self, name: str, scorer: Scorer, body: bytes) -> tuple[int, bytes]:
        limits = TableLimits(nbytes=self._limits.text_nbytes, rows=self._limits.table_rows)
        table = scorer.complete_table(read_table(body, scorer.columns, limits))
        scores = pa.table({"score": scorer.score_table(table)})
        about = {"model": name, "version": scorer.version}
        return table.num_rows, write_table(scores.replace_schema_metadata(about))

    async def _cut(self, body: bytes, *, explained: bool) -> Iterator[Rows]:
        first = body.lstrip(b" \t\r\n")[:1]
        if first == b"{":
            if len(body) > self._limits.row_nbytes:
                raise Refused(413, f"the row has more than {self._limits.row_nbytes:,} bytes")
            return iter([_rows(body)])
        if first != b"[":
            raise Refused(400, f"got {str(body[:50])[1:]}, {_ALLOWED}")
        array = await cut(body, SLICE_ROWS)
        self._check(array.count, explained=explained)
        if array.longest_nbytes > self._limits.row_nbytes:
            raise Refused(413, f"row {array.longest} has more than {self._limits.row_nbytes:,} bytes")
        return array.slices()

    async def _in_slices(self, scorer: Scorer, slices: Iterator[Rows], kept: list[Any] | None) -> Scored:
        scores = await self._turns.take(score_slices(scorer, slices, kept))
        return Scored(scores, scorer, len(scores), kept or [])

    async def _explain(self, scored: Scored, rows: Rows, most: int) -> list[list[Contribution]]:
        return await self._turns.take(explain_slices(scored.scorer, rows, most))

    def _check(self, rows: int, *, explained: bool = False) -> None:
        if not rows:
            raise Refused(400, "there is no row")
        if rows > self._limits.rows:
            raise Refused(413, f"got {rows:,} rows, allowed: {self._limits.rows:,}; Arrow bodies may have more")
        if explained and rows > self._limits.explained_rows:
            raise Refused(413, f"got {rows:,} rows to explain, allowed: {self._limits.explained_rows:,}")


def _rows(body: bytes) -> list[Any]:
    value = read_json(body)
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    raise Refused(400, f"got {str(value)[:50]!r}, {_ALLOWED}")
