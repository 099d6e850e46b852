"""Large requests in slices, so that small ones beside them are answered in time.

All requests share one thread, and JSON is read with the interpreter locked, so another thread would hold them up
as well. Instead a large request gives the loop back after each slice of about a millisecond; of several large
requests one at a time does its slice. Scores do not depend on how rows are grouped, so they have the same bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from penstock.errors import InputError
from penstock.kernels.json import cut_array
from penstock.serve.rows import BadRow
from penstock.serve.scorer import Contribution, Scorer

__all__ = [
    "SLICE_NBYTES",
    "SLICE_ROWS",
    "BadJson",
    "JsonArray",
    "Turns",
    "cut",
    "explain_slices",
    "read_json",
    "score_slices",
    "slices_of",
    "warm_up",
]

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]

SLICE_NBYTES = 64 << 10
"""Of JSON that is read at once, if it is no single row."""
SLICE_ROWS = 128
"""That are scored at once."""
_EXPLAINED_ROWS = 2
_IN_THREAD_NBYTES = 1 << 20
"""A text of so many bytes is cut in a thread: it takes longer than to start one."""
_SPACE = b" \t\r\n"
_decode = msgspec.json.Decoder().decode


class BadJson(InputError):
    """A text that is no JSON."""


class Turns:
    """One for all large requests of a server."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def take(self, steps: Generator[None, None, T]) -> T:
        """What the steps return; the loop's others have their turn after each."""
        while True:
            async with self._lock:
                try:
                    next(steps)
                except StopIteration as end:
                    result: T = end.value
                    return result
                await asyncio.sleep(0)


class JsonArray:
    """An array that has been cut, and not been read yet."""

    def __init__(self, text: bytes, items: int) -> None:
        """Cut it into slices of at most so many items; for any thread.

        Raises:
            BadJson: it is no array, or does not end where the text does.
        """
        begin = len(text) - len(text.lstrip(_SPACE))
        if text[begin : begin + 1] != b"[":
            raise BadJson("it does not begin as an array")
        room = np.empty((len(text) - begin) // min(SLICE_NBYTES, items) + 1, np.int64)
        data = np.frombuffer(text, np.uint8)[begin:]
        end, count, longest_at, longest, cuts = cut_array(data, SLICE_NBYTES, items, room)
        if text[begin + end - 1 : begin + end] != b"]":
            raise BadJson("its array has no end")
        if text[begin + end :].strip(_SPACE):
            raise BadJson(f"there is more behind its array (byte {begin + end})")
        self._text, self.count = text, int(count)
        self.longest, self.longest_nbytes = int(longest_at), int(longest)
        """The longest item, and how many bytes it has."""
        self._bounds = [begin, *(room[:cuts] + begin).tolist(), begin + int(end) - 1]

    def slices(self) -> Iterator[list[Any]]:
        """The items, some at a time.

        Raises:
            BadJson: some are no JSON.
        """
        for begin, end in zip(self._bounds, self._bounds[1:], strict=False):
            items = read_json(
                b"[%s]" % self._text[begin + 1 : end], f" in the part that begins at byte {begin + 1}"
            )
            if not items and self.count:
                raise BadJson(f"an item is missing before byte {end}")
            yield items


def read_json(text: bytes | msgspec.Raw, where: str = "") -> Any:
    """What a text says.

    Raises:
        BadJson: it is no JSON.
    """
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadJson(f"{' '.join(str(error).split())}{where}") from error


async def cut(text: bytes, items: int) -> JsonArray:
    """Cut an array; see ``JsonArray``."""
    if len(text) < _IN_THREAD_NBYTES:
        return JsonArray(text, items)
    return await asyncio.to_thread(JsonArray, text, items)


def slices_of(rows: Rows) -> Iterator[Rows]:
    """The rows, some at a time."""
    return (rows[begin : begin + SLICE_ROWS] for begin in range(0, len(rows), SLICE_ROWS))


def score_slices(
    scorer: Scorer, slices: Iterable[Rows], rows: list[Any] | None
) -> Generator[None, None, list[float]]:
    """Probabilities of all rows, in steps; all rows, as they were scored, are added to ``rows``.

    Raises:
        BadRow: one cannot be scored.
        BadJson: as the slices.
    """
    scores: list[float] = []
    for each in slices:
        try:
            whole = scorer.complete(each)
            scores += scorer.score(whole).tolist()
        except BadRow as error:
            raise BadRow(len(scores) + error.row, error.message) from error
        if rows is not None:
            rows += whole
        yield
    return scores


def explain_slices(scorer: Scorer, rows: Rows, most: int) -> Generator[None, None, list[list[Contribution]]]:
    """As ``Scorer.explain``, in steps."""
    found: list[list[Contribution]] = []
    for begin in range(0, len(rows), _EXPLAINED_ROWS):
        found += scorer.explain(rows[begin : begin + _EXPLAINED_ROWS], most)
        yield
    return found


def warm_up() -> None:
    """Have the kernel compiled before the first request."""
    JsonArray(b"[]", 1)
