"""What runs where the data is: a partition's batches, their partial gradients, and sums of these.

Plain functions of plain data: ``partial_gradient`` and ``merge`` are all that an executor has to call, in a
thread, a process or a cluster. A partition holds its batch and that batch's distinct keys, never all features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.batch import Floats, Keys, SparseBatch
from penstock.data import BATCH_ROWS, Chunk, Source
from penstock.errors import DataError
from penstock.features import Encoder, FeaturePlan
from penstock.metrics import BinaryMetrics
from penstock.models import Model
from penstock.optim import SGD
from penstock.table import unique_keys
from penstock.train.holdout import Holdout
from penstock.train.session import check_finite
from penstock.train.stream import Encoded, EncodedStream, Keep

__all__ = [
    "Gradient",
    "Partial",
    "Partition",
    "Prepared",
    "Rows",
    "Work",
    "merge",
    "partial_gradient",
    "rehearse",
    "shell_of",
    "sum_gradients",
]

Gradient = Mapping[str, tuple[Keys, Floats]]
"""By table: rising distinct keys u64[n], and the sums of their gradients f32[n, dim]."""
Rows = Mapping[str, Floats]
"""By table: weights f32[n, dim] of a batch's distinct keys."""

START = (0, 0)
"""The position, as (chunk, row of it), where a pass begins."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a partition is made of, besides its number."""

    source: Source
    """As ``read_for`` gives it."""
    shell: Model
    """As ``shell_of`` gives it."""
    partitions: int
    batch_rows: int | None
    """Rows of a batch; None for all of a partition's."""
    holdout: Holdout | None

    @property
    def plan(self) -> FeaturePlan:
        """How columns become keys."""
        assert self.shell.plan is not None
        return self.shell.plan

    @property
    def keep(self) -> Keep | None:
        """Which rows are learnt."""
        return self.holdout.split(self.plan)[0] if self.holdout is not None else None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A batch whose distinct keys are known; valid until the partition prepares the next."""

    batch: SparseBatch
    keys: Mapping[str, Keys]
    """By table: distinct, rising."""
    index: Mapping[str, NDArray[np.int64]]
    """By table: which of them each non-zero uses."""
    chunk: Chunk
    row: int
    """Where the batch begins: ``row`` of ``chunk``."""
    position: tuple[int, int]
    """Where the next one does."""
    work: int
    """What reading it was of the source's size."""


@dataclass(frozen=True, kw_only=True)
class Partial:
    """What a partition says of a batch besides its gradient."""

    loss: float
    """Sum over the examples, weighted."""
    rows: int
    position: tuple[int, int]
    work: int
    predicted: Floats
    """Before the batch was learnt: f32[rows], or f32[0] where they were not asked for, as the two below."""
    labels: Floats
    weights: Floats | None


class Partition:
    """Every ``partitions``-th chunk of the source, from number ``number``, as batches."""

    def __init__(self, work: Work, number: int) -> None:
        self.number = number
        # One for each partition: a model's working memory is for one thread.
        self.model = work.shell.shell()
        self.ready: Prepared | None = None
        self._work = work
        self._source = _Dealt(work.source, number, work.partitions)
        self._stream: EncodedStream | None = None
        self._batches: Iterator[Prepared] = iter(())
        self._whole: Prepared | None = None

    def begin(self, position: tuple[int, int]) -> None:
        """Begin a pass, or go on with one from ``position``."""
        self.close()
        if self._work.batch_rows is None:
            self._batches = self._all_at_once() if position == START else iter(())
        else:
            self._batches = (self._prepared(item) for item in self._read(position, self._work.batch_rows))

    def prepare(self) -> Mapping[str, Keys] | None:
        """Read the next batch; its distinct keys by table, or None where the pass has ended."""
        self.ready = next(self._batches, None)
        return None if self.ready is None else self.ready.keys

    def close(self) -> None:
        """Stop reading."""
        self._batches, self.ready = iter(()), None
        if self._stream is not None:
            self._stream.__exit__(None, None, None)
            self._stream = None

    def _read(self, position: tuple[int, int], batch_rows: int) -> Iterator[Encoded]:
        self._stream = EncodedStream(
            self._source,
            self._work.plan,
            start=position,
            keep=self._work.keep,
            readers=1,
            batch_rows=batch_rows,
            extra_columns=self._work.holdout.columns(self._work.plan) if self._work.holdout else (),
        )
        return iter(self._stream)

    def _prepared(self, item: Encoded) -> Prepared:
        index = item.chunk.index
        work = item.rows if self._source.unit == "rows" else item.chunk.size * item.last
        return _prepared(
            self.model,
            item.batch,
            chunk=item.chunk,
            row=item.row,
            position=(index + 1, 0) if item.last else (index, item.row + item.rows),
            work=work,
        )

    def _all_at_once(self) -> Iterator[Prepared]:
        """All of the partition's rows as one batch, kept for further passes."""
        if self._whole is None:
            parts, items = [], []
            for item in self._read(START, BATCH_ROWS):
                parts.append(_copy(item.batch))
                items.append((item.chunk, item.row, item.chunk.index + 1))
                if len(items) > 1:
                    items[1:] = items[-1:]
            self.close()
            if not parts:
                return
            (chunk, row, _), (_, _, end) = items[0], items[-1]
            work = 0 if self._source.size is None else sum(chunk.size for chunk in self._source.chunks())
            self._whole = _prepared(
                self.model, _concatenated(parts), chunk=chunk, row=row, position=(end, 0), work=work
            )
        yield self._whole


def partial_gradient(
    model: Model, prepared: Prepared, weights: Rows, *, observe: bool
) -> tuple[Gradient, Partial]:
    """Gradient of a batch's summed loss at ``weights``, the rows of its distinct keys.

    Predictions are returned where ``observe``.

    Raises:
        DataError: a prediction is not finite: training diverged.
    """
    batch = prepared.batch
    out = np.empty(len(batch), np.float32)
    loss, grads = model.gradients(weights, prepared.index, batch, out)
    check_finite(out, prepared.chunk, prepared.row)
    none = np.empty(0, np.float32)
    partial = Partial(
        loss=loss,
        rows=len(batch),
        position=prepared.position,
        work=prepared.work,
        predicted=out if observe else none,
        # The batch's memory is used again.
        labels=batch.labels.copy() if observe else none,
        weights=batch.weights.copy() if observe and batch.weights is not None else None,
    )
    return {name: (prepared.keys[name], grads[name]) for name in grads}, partial


def shell_of(model: Model) -> Model:
    """A model of the same kind without rows, for those who compute its gradients.

    These need no optimizer, so the model's own one need not be known where they are computed.
    """
    sizes: dict[str, Any] = {"slots": 1, "segments": 2}
    return type(model)(model.plan, optimizer=SGD(), **sizes, **model.settings())


def rehearse(model: Model, records: pa.RecordBatch) -> Gradient:
    """Compute with a few rows what is computed with all, so that kernels are loaded (or compiled) before the clock
    starts.

    Returns nothing where the rows are none, or bad: they will be met again, and said where they stand.
    """
    assert model.plan is not None
    encoder = Encoder(model.plan)
    with contextlib.suppress(DataError):
        batch = encoder.encode(records.select(encoder.columns))
        found = {name: unique_keys(keys) for name, keys in model.keys(batch).items()}
        rows = {name: model.tables()[name].pull(keys) for name, (keys, _) in found.items()}
        out = np.empty(len(batch), np.float32)
        _, grads = model.gradients(rows, {name: index for name, (_, index) in found.items()}, batch, out)
        gradient = {name: (found[name][0], grads[name]) for name in grads}
        BinaryMetrics().update(out, batch.labels, batch.weights)
        return merge(gradient, gradient)
    return {}


def merge(left: Gradient, right: Gradient) -> Gradient:
    """Their sum; keys of one alone keep its gradient."""
    return sum_gradients([left, right])


def sum_gradients(parts: Sequence[Gradient]) -> Gradient:
    """((part 0 + part 1) + part 2) ..., in f32; at least one part."""
    # Its kernels bring Numba, which looking at settings can do without.
    from penstock.kernels.merge import sum_sorted

    return {name: sum_sorted([part[name] for part in parts]) for name in parts[0]}


def _prepared(
    model: Model, batch: SparseBatch, *, chunk: Chunk, row: int, position: tuple[int, int], work: int
) -> Prepared:
    found = {name: unique_keys(keys) for name, keys in model.keys(batch).items()}
    return Prepared(
        batch=batch,
        keys={name: unique for name, (unique, _) in found.items()},
        index={name: index for name, (_, index) in found.items()},
        chunk=chunk,
        row=row,
        position=position,
        work=work,
    )


def _copy(batch: SparseBatch) -> SparseBatch:
    return SparseBatch(
        keys=batch.keys.copy(),
        offsets=batch.offsets.copy(),
        labels=batch.labels.copy(),
        values=None if batch.values is None else batch.values.copy(),
        weights=None if batch.weights is None else batch.weights.copy(),
        width=batch.width,
    )


def _concatenated(parts: Sequence[SparseBatch]) -> SparseBatch:
    """One batch of all examples, in order."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(part.nnz for part in parts)])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    widths = {part.width for part in parts if len(part)}

    def joined(name: str, sizes: list[int]) -> Floats | None:
        arrays = [getattr(part, name) for part in parts]
        if all(array is None for array in arrays):
            return None
        ones = (np.ones(size, np.float32) for size in sizes)
        return np.concatenate([one if array is None else array for array, one in zip(arrays, ones, strict=True)])

    return SparseBatch(
        keys=np.concatenate([part.keys for part in parts]),
        offsets=np.concatenate([*offsets, ends[-1:]]),
        labels=np.concatenate([part.labels for part in parts]),
        values=joined("values", [part.nnz for part in parts]),
        weights=joined("weights", [len(part) for part in parts]),
        width=widths.pop() if len(widths) == 1 else None,
    )


class _Dealt(Source):
    """The chunks of one partition, under their numbers in the whole."""

    def __init__(self, source: Source, number: int, partitions: int) -> None:
        self.schema, self.files, self.size, self.unit = source.schema, source.files, source.size, source.unit
        self.repeatable = source.repeatable
        self._source, self._number, self._partitions = source, number, partitions

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        for chunk in self._source.chunks(start):
            if chunk.index % self._partitions == self._number:
                yield chunk

    def sample(self, rows: int) -> pa.Table:
        return self._source.sample(rows)
