"""Logistic regression over hashed features: the sparse workhorse of click-through prediction.

The model is a feature plan, an optimizer and one table of weights. It offers ``learn`` (one example at a
time, fused), and ``gradients`` (of a mini-batch, a pure function of pulled rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from penstock.batch import Floats, Keys, SparseBatch
from penstock.features import Encoder, FeaturePlan, Features
from penstock.models.base import Model, Slots, register_model
from penstock.optim import Optimizer
from penstock.table import SEGMENTS, Table

__all__ = ["Linear"]

_NO_FLOATS = np.empty(0, np.float32)


@register_model
class Linear(Model):
    """P(label = 1) = sigmoid(sum of the weights of the example's keys, times their values)."""

    kind: ClassVar[str] = "linear"

    def __init__(
        self,
        features: Features | FeaturePlan | None = None,
        *,
        optimizer: Optimizer | None = None,
        slots: Slots = 1 << 16,
        segments: int = SEGMENTS,
    ) -> None:
        """A new model; with a ``FeaturePlan`` it can learn at once, with ``Features`` after ``resolve``.

        ``slots`` is the number of rows to make room for at first; the table grows by itself.
        """
        super().__init__(features, optimizer=optimizer)
        self.add_table("weights", dim=1, slots=slots, segments=segments)
        self._scratch = np.empty(0, np.uint64)

    @property
    def table(self) -> Table:
        """The only table."""
        return self._tables["weights"]

    @table.setter
    def table(self, table: Table) -> None:
        self._tables["weights"] = table

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

    def keys(self, batch: SparseBatch) -> Mapping[str, Keys]:
        """Those of the batch."""
        return {"weights": batch.keys}

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

    def predict_batch(self, batch: SparseBatch) -> Floats:
        """Probabilities f32[B]."""
        from penstock.kernels import linear

        out = np.empty(len(batch), np.float32)
        linear.predict(self.table.rows, self.table.hyper, as_examples(batch), memory_for(batch), out)
        return out

    def predict_pulled(self, weights: Mapping[str, Floats], batch: SparseBatch) -> Floats:
        """Probabilities f32[B]."""
        from penstock.kernels import linear

        out = np.empty(len(batch), np.float32)
        linear.predict_pulled(weights["weights"], as_examples(batch), memory_for(batch), out)
        return out

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
