"""Logistic regression over hashed features: the sparse workhorse of click-through prediction.

The model is a feature plan, an optimizer and one table of weights. It offers ``learn`` (one example at a
time, fused), and ``gradients`` (of a mini-batch, a pure function of pulled rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from penstock.batch import Floats, SparseBatch
from penstock.errors import ConfigError, DataError, RowError
from penstock.features import Encoder, FeaturePlan, Features
from penstock.optim import FTRL, Optimizer
from penstock.table import SEGMENTS, Table

__all__ = ["Linear"]

_NO_FLOATS = np.empty(0, np.float32)


class Linear:
    """P(label = 1) = sigmoid(sum of the weights of the example's keys, times their values)."""

    kind: ClassVar[str] = "linear"

    def __init__(
        self,
        features: Features | FeaturePlan | None = None,
        *,
        optimizer: Optimizer | None = None,
        slots: int = 1 << 16,
        segments: int = SEGMENTS,
    ) -> None:
        """A new model; with a ``FeaturePlan`` it can learn at once, with ``Features`` after ``resolve``.

        ``slots`` is the number of rows to make room for at first; the table grows by itself.
        """
        self.features = features if isinstance(features, Features) else Features()
        self.plan: FeaturePlan | None = features if isinstance(features, FeaturePlan) else None
        self.optimizer = optimizer if optimizer is not None else FTRL()
        self.table = Table(self.optimizer, slots=slots, segments=segments)
        self.metadata: dict[str, Any] = {}
        """What the manifest says besides: metrics and lineage of the last fit."""
        self.names: dict[int, str] = {}
        """``column=value`` of some keys, for people."""
        self._scratch = np.empty(0, np.uint64)
        self._sample: pa.Table | None = None

    def resolve(self, sample: pa.Table) -> FeaturePlan:
        """Fix the feature plan, if it is not fixed yet, by a sample of the data."""
        if self.plan is None:
            self.plan = self.features.resolve(sample)
        return self.plan

    def keep_sample(self, sample: pa.Table) -> None:
        """Rows of the data, from which ``name_features`` takes names."""
        self._sample = sample

    def sample_batch(self, columns: list[str], rows: int) -> pa.RecordBatch:
        """The first rows of the sample."""
        assert self._sample is not None
        table = self._sample.select(columns).slice(0, rows).combine_chunks()
        return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)

    def name_features(self, most: int = 10_000) -> dict[int, str]:
        """``column=value`` of the strongest features that occur in the sample, by key; also kept in ``names``."""
        if self._sample is None or self.plan is None:
            return self.names
        encoder = Encoder(self.plan)
        batches = self._sample.combine_chunks().to_batches()
        keys = [np.unique(encoder.encode(batch, labelled=False).keys) for batch in batches]
        unique = np.unique(np.concatenate([np.empty(0, np.uint64), *keys]))
        strength = np.abs(self.table.pull(unique)[:, 0])
        wanted = np.sort(unique[np.argsort(-strength, kind="stable")[:most]])
        for batch in batches:
            self.names.update(encoder.name_keys(batch, wanted))
        self._sample = None
        return self.names

    def strongest(self, most: int = 20) -> list[tuple[int, float]]:
        """Keys and weights of the rows with the largest absolute weight."""
        best: list[tuple[int, float]] = []
        for segment in range(self.table.segments):
            keys, _ = self.table.items(segment)
            weights = self.table.pull(keys)[:, 0]
            order = np.argsort(-np.abs(weights), kind="stable")[:most]
            best += zip(keys[order].tolist(), weights[order].tolist(), strict=True)
        return sorted(best, key=lambda row: -abs(row[1]))[:most]

    def tables(self) -> Mapping[str, Table]:
        """The tables that hold the model's rows, by name."""
        return {"weights": self.table}

    def learn(self, batch: SparseBatch, out: Floats, begin: int = 0, end: int | None = None) -> None:
        """Learn examples ``begin`` to ``end`` one by one; ``out`` f32[B] gets what was predicted before each."""
        end = len(batch) if end is None else end
        examples = as_examples(batch)
        memory = self._memory(batch)
        while (begin := self.learn_some(examples, memory, out, begin, end)) < end:
            self.table.grow()

    def learn_some(self, examples: Any, memory: Any, out: Floats, begin: int, end: int) -> int:
        """``learn`` up to where the table must grow; several threads may be in here at once."""
        from penstock.kernels import linear

        return linear.learn(self.table.rows, self.table.hyper, examples, begin, end, memory, out)

    def gradients(
        self, rows: Mapping[str, Floats], index: Mapping[str, Any], batch: SparseBatch, out: Floats
    ) -> tuple[float, dict[str, Floats]]:
        """Loss (sum over the examples, weighted) and gradients of pulled rows.

        ``rows["weights"]`` f32[U, 1] are the rows of the batch's distinct keys, ``index["weights"]`` i64[nnz]
        says which of them each non-zero uses; ``out`` f32[B] gets the probabilities. Gradients are summed over
        examples, in their order, not averaged.
        """
        from penstock.kernels import linear

        pulled = rows["weights"]
        grads = np.zeros_like(pulled)
        loss = linear.gradients(pulled, index["weights"], as_examples(batch), self._memory(batch), out, grads)
        return loss, {"weights": grads}

    def predict(self, data: Any) -> Floats:
        """Probabilities f32[rows] for an Arrow table or record batch, a pandas or Polars data frame.

        Raises:
            DataError: a column that the model needs is missing, or a value is not allowed.
            ConfigError: the model has never seen data.
        """
        if self.plan is None:
            raise ConfigError("the model has not been fitted: it knows no columns yet")
        if not isinstance(data, pa.Table):
            try:
                data = pa.table(data) if not isinstance(data, pa.RecordBatch) else pa.Table.from_batches([data])
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"cannot predict for a {type(data).__name__}; allowed: an Arrow table or record batch, "
                    "a pandas or Polars data frame"
                ) from error
        encoder, begin = Encoder(self.plan), 0
        parts = [np.empty(0, np.float32)]
        for batch in data.combine_chunks().to_batches(max_chunksize=4096):
            try:
                parts.append(self.predict_batch(encoder.encode(batch, labelled=False)))
            except RowError as error:
                raise RowError(begin + error.row, error.message) from error
            begin += len(batch)
        return np.concatenate(parts)

    def predict_batch(self, batch: SparseBatch) -> Floats:
        """Probabilities f32[B]."""
        from penstock.kernels import linear

        out = np.empty(len(batch), np.float32)
        linear.predict(self.table.rows, self.table.hyper, as_examples(batch), memory_for(batch), out)
        return out

    def save(self, path: str) -> None:
        """Write the model to a folder, as a new version that replaces the one before at once.

        Raises:
            StorageError: the disk is full or the folder cannot be written; an older model there is unharmed.
        """
        from penstock.models.folder import save_model

        save_model(self, path)

    def _memory(self, batch: SparseBatch) -> Any:
        from penstock.kernels.linear import PARTS

        if len(self._scratch) < PARTS * widest(batch):
            self._scratch = memory_for(batch)
        return self._scratch


def as_examples(batch: SparseBatch) -> Any:
    """The batch as kernels take it."""
    from penstock.kernels.linear import Examples

    values = _NO_FLOATS if batch.values is None else batch.values
    weights = _NO_FLOATS if batch.weights is None else batch.weights
    return Examples(batch.keys, values, batch.offsets, batch.labels, weights)


def widest(batch: SparseBatch) -> int:
    """Largest number of keys of an example."""
    if batch.width is not None:
        return batch.width
    return int(np.diff(batch.offsets).max(initial=0))


def memory_for(batch: SparseBatch) -> Any:
    """Working memory for a kernel on this batch."""
    from penstock.kernels.linear import scratch

    return scratch(widest(batch))
