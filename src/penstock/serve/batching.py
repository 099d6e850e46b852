"""Rows of requests that came at the same time are scored together.

Nobody waits for others to come: what is scored together is what had arrived when the loop came to it. A single
request is scored at once; under load, the more wait, the cheaper is each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.serve.rows import BadRow
from penstock.serve.scorer import Scorer

__all__ = ["Batcher", "Rows", "Scored"]

Rows = Sequence[Mapping[str, Any]]

MOST_ROWS = 1024
"""Rows that are scored without a look at what came meanwhile, unless one request alone has more."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Probabilities of a request's rows, and which version of the model gave them."""

    scores: list[float]
    scorer: Scorer
    batch: int
    """Rows that were scored together."""
    rows: Rows
    """As they were scored: with what a pipeline adds to them."""


class Batcher:
    """Scores rows by the newest version of a model, in the loop's thread."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.batches = 0
        """How often rows were scored."""
        self._waiting: list[tuple[Rows, asyncio.Future[Scored]]] = []

    async def score(self, rows: Rows) -> Scored:
        """Probabilities of rows.

        Raises:
            BadRow: one of them cannot be scored.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scored] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.append((rows, future))
        return await future

    def _run(self) -> None:
        group: list[tuple[Rows, asyncio.Future[Scored]]] = []
        count = taken = 0
        for rows, future in self._waiting:
            if group and count + len(rows) > MOST_ROWS:
                break
            taken += 1
            if not future.cancelled():
                group.append((rows, future))
                count += len(rows)
        del self._waiting[:taken]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._score(group)

    def _score(self, group: Sequence[tuple[Rows, asyncio.Future[Scored]]]) -> None:
        scorer, group = self.scorer, list(group)
        while group:
            self.batches += 1
            try:
                whole = scorer.complete([row for rows, _ in group for row in rows])
                scores = scorer.score(whole).tolist()
                break
            except BadRow as error:
                # The request at fault is told, and the others do not suffer for it.
                before = 0
                for at, (rows, future) in enumerate(group):
                    if error.row < before + len(rows):
                        future.set_exception(BadRow(error.row - before, error.message))
                        del group[at]
                        break
                    before += len(rows)
            except Exception as error:  # whatever it is, it must not leave them waiting
                for _, future in group:
                    future.set_exception(error)
                return
        begin = 0
        for rows, future in group:
            part = slice(begin, begin + len(rows))
            future.set_result(Scored(scores[part], scorer, len(scores), whole[part]))
            begin += len(rows)
