"""A collisionless, growing table of rows: pull, push, items, and which rows changed.

One process's part of a model. Kernels touch the rows; this class allocates, grows segment by segment while
no kernel runs, and speaks Arrow to the outside. It knows nothing of models or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError
from penstock.kernels import dedup, pull_push, reduce
from penstock.kernels import rows as kernels
from penstock.optim import Optimizer
from penstock.table.arena import Arena
from penstock.table.layout import SEGMENTS, Layout

__all__ = ["SEGMENTS", "Norms", "Table", "unique_keys"]

_LEAST_SLOTS = 64
_SMALL_SLOTS = 2048


@dataclass(frozen=True, kw_only=True)
class Norms:
    """What the weights of a table, or of several parts of one, add up to."""

    rows: int
    nonzero: int
    """Weights, of ``rows * dim``, that are not exactly 0."""
    l1: float
    """Sum of the weights' absolute values."""
    l2_squared: float
    """Sum of their squares."""

    def __add__(self, other: Norms) -> Norms:
        """Of both parts together."""
        return Norms(
            rows=self.rows + other.rows,
            nonzero=self.nonzero + other.nonzero,
            l1=self.l1 + other.l1,
            l2_squared=self.l2_squared + other.l2_squared,
        )


class Table:
    """Rows of ``dim`` weights and their optimizer states by key.

    Keys are hashes: u64, even, not 0; a key's segment is its highest bits. A key without a row has weights 0.
    Pulls may run beside each other; everything else needs the table for itself, except that several threads
    may run a learning kernel on ``rows`` at once.
    """

    def __init__(
        self, optimizer: Optimizer, *, dim: int = 1, segments: int = SEGMENTS, slots: int = 1 << 16
    ) -> None:
        """Start empty, with about ``slots`` slots in all (at least 64 a segment).

        Raises:
            ConfigError: ``segments`` is not a power of two, or a size is not positive.
        """
        if dim < 1 or slots < 1:
            raise ConfigError(f"dim and slots must be >= 1, got dim {dim}, slots {slots}")
        self.layout = Layout(optimizer=optimizer, dim=dim, segments=segments)
        self.optimizer = optimizer
        self.hyper = optimizer.hyper()
        self.dim = dim
        self.segments = segments
        self.width = self.layout.width
        """f32 words of a row, besides its key."""
        stride = (2 + self.width + 3) // 4 * 2
        self._arena = Arena(_LEAST_SLOTS * stride * 8)
        unit_bits = self._arena.view(np.uint64).size // 2
        self._marks = Arena(4096, reserve_nbytes=max(unit_bits // 8, 1 << 20))
        self.rows = kernels.Rows(
            keys=self._arena.view(np.uint64),  # type: ignore[arg-type]
            words=self._arena.view(np.float32),  # type: ignore[arg-type]
            bases=np.zeros(segments, np.uint64),
            masks=np.zeros(segments, np.uint64),
            used=np.zeros(segments, np.int64),
            limit=np.zeros(segments, np.int64),
            changed=self._marks.view(np.uint64),  # type: ignore[arg-type]
            halt=np.zeros(1, np.uint8),
            stride=np.uint64(stride),
            shift=np.uint64(64 - (segments.bit_length() - 1)),
        )
        # Segments fill at the same pace; limits from 1/2 to 3/4 spread their growth over time.
        reversed_bits = [int(f"{s:0{segments.bit_length() - 1}b}"[::-1], 2) for s in range(segments)]
        self._load = 0.5 + 0.25 * np.array(reversed_bits) / segments
        order = max(0, (-(-slots // segments) - 1).bit_length() - (_LEAST_SLOTS.bit_length() - 1))
        for segment in range(segments):
            self._place(segment, order)
        self._removed: list[Keys] = []

    @staticmethod
    def of(layout: Layout, *, slots: int = 1 << 16) -> Table:
        """An empty table."""
        return Table(layout.optimizer, dim=layout.dim, segments=layout.segments, slots=slots)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.rows.used.sum())

    @property
    def slots(self) -> int:
        """Number of slots, of which the rows use some."""
        return int((self.rows.masks // np.uint64(2)).sum()) + self.segments

    @property
    def nbytes(self) -> int:
        """Bytes of memory that slots take."""
        return self.slots * int(self.rows.stride) * 8

    def pull(self, keys: Keys) -> Floats:
        """Weights f32[n, dim] of ``keys`` u64[n]; zeros where there is no row."""
        out = np.empty((len(keys), self.dim), np.float32)
        pull_push.pull(self.rows, self.hyper, np.ascontiguousarray(keys), out)
        return out

    def push(self, keys: Keys, gradients: Floats) -> None:
        """Apply ``gradients`` f32[n, dim] to the rows of ``keys`` u64[n], in order; makes missing rows."""
        keys, gradients, done = np.ascontiguousarray(keys), np.ascontiguousarray(gradients), 0
        while (done := pull_push.push(self.rows, self.hyper, keys, gradients, done)) < len(keys):
            self.grow()

    def insert(self, keys: Keys, words: Floats) -> None:
        """Set rows as ``items`` gave them: ``words`` f32[n, width], each state's ``dim`` values in turn."""
        done = 0
        while (done := kernels.insert(self.rows, keys, words, done)) < len(keys):
            self.grow()

    def items(self, segment: int) -> tuple[Keys, Floats]:
        """Keys u64[n], rising, and words f32[n, width] of a segment's rows."""
        keys = np.empty(self.rows.used[segment], np.uint64)
        words = np.empty((len(keys), self.width), np.float32)
        kernels.list_rows(self.rows, segment, keys, words)
        order = np.argsort(keys)
        return keys[order], words[order]

    def read(self, keys: Keys) -> tuple[Floats, int]:
        """Words f32[n, width] of ``keys`` u64[n], zeros where there is no row, and how many there are."""
        words = np.empty((len(keys), self.width), np.float32)
        return words, kernels.read_words(self.rows, keys, words)

    def copy_all(self) -> tuple[Keys, Floats]:
        """All keys, rising, and their words f32[n, width]; they count as unchanged from now on."""
        self.take_changed()
        parts = [self.items(segment) for segment in range(self.segments)]
        return np.concatenate([keys for keys, _ in parts]), np.concatenate([words for _, words in parts])

    def copy_changed(self) -> tuple[Keys, Floats]:
        """The same of the rows that changed since they were last taken or copied."""
        keys = self.take_changed()
        return keys, self.read(keys)[0]

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each of ``keys`` u64[n] has a row."""
        found = np.empty(len(keys), np.bool_)
        reduce.contains(self.rows, keys, found)
        return found

    def touch(self, keys: Keys) -> None:
        """Count the rows of ``keys`` as changed."""
        kernels.mark_changed(self.rows, keys)

    def arrow_schema(self) -> pa.Schema:
        """Columns of ``to_arrow``: key, weight, then the optimizer's states."""
        return self.layout.schema()

    def to_arrow(self, segment: int) -> pa.RecordBatch:
        """A segment's rows, by rising key, as a model on disk has them."""
        return self.layout.to_arrow(*self.items(segment))

    def insert_arrow(self, batch: pa.RecordBatch) -> None:
        """The inverse of ``to_arrow``; rows of any segments."""
        self.insert(*self.layout.from_arrow(batch))

    def take_changed(self) -> Keys:
        """Keys of the rows that changed since the last call (or since the table began), rising."""
        found = []
        for segment in range(self.segments):
            keys = np.empty(self.rows.used[segment], np.uint64)
            found.append(keys[: kernels.take_changed(self.rows, segment, keys)])
        return np.sort(np.concatenate(found))

    def norms(self) -> Norms:
        """Rows, weights that are not 0, and sums of |w| and w² in f64, without moving a row.

        The sums are the same each time, but may differ in the last bits from those of a table that came to hold
        the same rows in another way.
        """
        out = np.zeros(4)
        reduce.add_norms(self.rows, self.hyper, self.dim, 0, self.segments, out)
        return Norms(rows=int(out[0]), nonzero=int(out[1]), l1=float(out[2]), l2_squared=float(out[3]))

    def top(self, k: int) -> tuple[Keys, NDArray[np.float64]]:
        """The k rows of largest Euclidean norm (dim 1: absolute weight), falling: keys u64[k], norms f64[k].

        Equal norms are in the order of their keys. Fewer than k where there are not as many rows.
        """
        keys, norms = np.empty(0, np.uint64), np.empty(0)
        for segment in range(self.segments if k > 0 else 0):
            more = np.empty(self.rows.used[segment], np.uint64)
            lengths = np.empty(len(more))
            reduce.row_norms(self.rows, self.hyper, self.dim, segment, more, lengths)
            if len(keys) == k:
                # Keys rise over the segments, so a row that equals the last of the best comes behind it.
                better = lengths > norms[-1]
                more, lengths = more[better], lengths[better]
            if len(more):
                keys, norms = np.concatenate([keys, more]), np.concatenate([norms, lengths])
                best = np.lexsort((keys, -norms))[:k]
                keys, norms = keys[best], norms[best]
        return keys, norms

    def prune(self, threshold: float = 0.0) -> int:
        """Remove the rows whose weights are all at most ``threshold`` in absolute value, states and all.

        Returns how many there were; ``take_removed`` says which. Segments are made anew around the rows that
        stay, smaller where these leave more than half of them empty. No kernel may run on ``rows`` meanwhile.

        Raises:
            ConfigError: ``threshold`` is negative or not finite.
        """
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"the threshold of prune must be a finite number >= 0, got {threshold}")
        before = len(self)
        for segment in range(self.segments):
            keys = np.empty(self.rows.used[segment], np.uint64)
            n = reduce.remove_small(self.rows, self.hyper, self.dim, segment, np.float32(threshold), keys)
            if n == 0:
                continue
            self._removed.append(keys[:n].copy())
            smaller = self._order(segment)
            while smaller and int(self._load[segment] * (_LEAST_SLOTS << smaller - 1)) > 2 * len(keys[n:]):
                smaller -= 1
            self._move(segment, smaller)
        return before - len(self)

    def take_removed(self) -> Keys:
        """Keys that ``prune`` removed since the last call and that have no row now, rising."""
        keys, _ = unique_keys(np.concatenate([np.empty(0, np.uint64), *self._removed]))
        self._removed.clear()
        return keys[~self.contains(keys)]

    def decay(self, factor: float) -> None:
        """Scale all weights by ``factor``, as the optimizer's ``scale`` does it; every row counts as changed.

        Raises:
            ConfigError: ``factor`` is not in [0, 1], or the optimizer has no ``scale`` for its states.
        """
        if not 0 <= factor <= 1:
            raise ConfigError(f"the factor of decay must be a number from 0 to 1, got {factor}")
        if not self.optimizer.can_scale():
            raise ConfigError(f"optimizer {self.optimizer.name} cannot decay: it has no function scale")
        reduce.decay(self.rows, self.hyper, self.dim, 0, self.segments, np.float32(factor))

    def grow(self) -> None:
        """Enlarge the segments that are full or nearly so, one at a time. No kernel may run on ``rows`` meanwhile.

        A small segment grows by four, a larger one by two: while the table is small, time matters more than
        its memory.
        """
        self.rows.halt[0] = 0
        for segment in np.flatnonzero(self.rows.used >= self.rows.limit - self.rows.limit // 32).tolist():
            self._move(segment, self._order(segment) + (2 if self._slots(segment) < _SMALL_SLOTS else 1))

    def validate(self) -> None:
        """Check that every row can be found, counts are right, and no two segments share memory."""
        self._arena.validate()
        ends: list[tuple[int, int]] = []
        for segment in range(self.segments):
            keys, words = self.items(segment)
            base, slots = int(self.rows.bases[segment]), self._slots(segment)
            ends.append((base, base + slots * int(self.rows.stride)))
            assert int(self.rows.used[segment]) == len(np.unique(keys)) <= slots
            assert (keys >> self.rows.shift == segment).all()
            if len(keys):
                again = np.empty_like(words)
                kernels.read_words(self.rows, keys, again)
                np.testing.assert_array_equal(words, again)
        ends.sort()
        for (_, end), (begin, _) in zip(ends, ends[1:], strict=False):
            assert end <= begin, "two segments overlap"

    def _slots(self, segment: int) -> int:
        return int(self.rows.masks[segment]) // 2 + 1

    def _order(self, segment: int) -> int:
        return (self._slots(segment) // _LEAST_SLOTS).bit_length() - 1

    def _move(self, segment: int, order: int) -> None:
        """Rows of a segment to a new block of ``order``; what they leave is given back."""
        base, mask, old_order = self.rows.bases[segment], self.rows.masks[segment], self._order(segment)
        self._place(segment, order)
        kernels.rehash(self.rows, base, mask, segment)
        self._arena.free(int(base) * 8, old_order)

    def _place(self, segment: int, order: int) -> None:
        slots = _LEAST_SLOTS << order
        offset = self._arena.allocate(order)
        self.rows.bases[segment] = offset // 8
        self.rows.masks[segment] = 2 * (slots - 1)
        self.rows.limit[segment] = int(slots * self._load[segment])


def unique_keys(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """The distinct keys, rising, and for each of ``keys`` its place among them."""
    return dedup.distinct(keys)
