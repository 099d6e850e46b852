"""A collisionless, growing table of rows: pull, push, items, and which rows changed.

One process's part of a model. Kernels touch the rows; this class allocates, grows segment by segment while
no kernel runs, and speaks Arrow to the outside. It knows nothing of models or files.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError
from penstock.kernels import rows as kernels
from penstock.optim import Optimizer
from penstock.table.arena import Arena

__all__ = ["SEGMENTS", "Table"]

SEGMENTS = 1024
"""Equal slices of the hash space: the unit of placement, growth and checkpoints."""

_LEAST_SLOTS = 64
_SMALL_SLOTS = 2048


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
        if segments < 2 or segments & (segments - 1):
            raise ConfigError(f"segments must be a power of two >= 2, got {segments}")
        if dim < 1 or slots < 1:
            raise ConfigError(f"dim and slots must be >= 1, got dim {dim}, slots {slots}")
        self.optimizer = optimizer
        self.hyper = optimizer.hyper()
        self.dim = dim
        self.segments = segments
        self.width = dim * len(optimizer.states)
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
        kernels.pull(self.rows, self.hyper, keys, out)
        return out

    def push(self, keys: Keys, gradients: Floats) -> None:
        """Apply ``gradients`` f32[n, dim] to the rows of ``keys`` u64[n], in order; makes missing rows."""
        done = 0
        while (done := kernels.push(self.rows, self.hyper, keys, gradients, done)) < len(keys):
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

    def arrow_schema(self) -> pa.Schema:
        """Columns of ``to_arrow``: key, weight, then the optimizer's states."""
        cell = pa.float32() if self.dim == 1 else pa.list_(pa.float32(), self.dim)
        states = [pa.field(name, cell) for name in self.optimizer.states if name != "w"]
        return pa.schema([pa.field("key", pa.uint64()), pa.field("weight", cell), *states])

    def to_arrow(self, segment: int) -> pa.RecordBatch:
        """A segment's rows, by rising key, as a model on disk has them."""
        keys, words = self.items(segment)
        columns = {"weight": self.pull(keys)}
        for s, name in enumerate(self.optimizer.states):
            columns[name] = words[:, s * self.dim : (s + 1) * self.dim]
        schema = self.arrow_schema()
        arrays = [pa.array(keys)]
        for field in list(schema)[1:]:
            flat = pa.array(np.ascontiguousarray(columns[field.name]).reshape(-1))
            arrays.append(flat if self.dim == 1 else pa.FixedSizeListArray.from_arrays(flat, self.dim))
        return pa.record_batch(arrays, schema=schema)

    def insert_arrow(self, batch: pa.RecordBatch) -> None:
        """The inverse of ``to_arrow``; rows of any segments."""
        keys = batch.column("key").to_numpy()
        words = np.empty((len(keys), self.width), np.float32)
        for s, name in enumerate(self.optimizer.states):
            column = batch.column("weight" if name == "w" else name)
            flat = column if self.dim == 1 else column.flatten()
            words[:, s * self.dim : (s + 1) * self.dim] = flat.to_numpy().reshape(-1, self.dim)
        self.insert(keys, words)

    def take_changed(self) -> Keys:
        """Keys of the rows that changed since the last call (or since the table began), rising."""
        found = []
        for segment in range(self.segments):
            keys = np.empty(self.rows.used[segment], np.uint64)
            found.append(keys[: kernels.take_changed(self.rows, segment, keys)])
        return np.sort(np.concatenate(found))

    def grow(self) -> None:
        """Enlarge the segments that are full or nearly so, one at a time. No kernel may run on ``rows`` meanwhile.

        A small segment grows by four, a larger one by two: while the table is small, time matters more than
        its memory.
        """
        self.rows.halt[0] = 0
        for segment in np.flatnonzero(self.rows.used >= self.rows.limit - self.rows.limit // 32).tolist():
            base, mask = self.rows.bases[segment], self.rows.masks[segment]
            slots = self._slots(segment)
            order = (slots // _LEAST_SLOTS).bit_length() - 1
            self._place(segment, order + (2 if slots < _SMALL_SLOTS else 1))
            kernels.rehash(self.rows, base, mask, segment)
            self._arena.free(int(base) * 8, order)

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

    def _place(self, segment: int, order: int) -> None:
        slots = _LEAST_SLOTS << order
        offset = self._arena.allocate(order)
        self.rows.bases[segment] = offset // 8
        self.rows.masks[segment] = 2 * (slots - 1)
        self.rows.limit[segment] = int(slots * self._load[segment])


def unique_keys(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """The distinct keys, rising, and for each of ``keys`` its place among them."""
    unique, index = np.unique(keys, return_inverse=True)
    return unique, index.astype(np.int64, copy=False)
