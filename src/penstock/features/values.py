"""Plain values of a few rows to sparse batches: the keys of ``Encoder``, without what it costs for each column.

An ``Encoder`` pays some microseconds for a column of a record batch, which is nothing for 8,192 rows, and nearly
everything for one. Here all numbers of the rows are one array, and all their texts another.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.batch import SparseBatch
from penstock.features.arrays import validity
from penstock.features.categories import BIAS, key_of_missing, key_of_number, seed_of
from penstock.features.memory import Memory
from penstock.features.numeric import NumericColumns
from penstock.features.spec import FeaturePlan
from penstock.kernels import hashing

__all__ = ["ValueEncoder"]

_NO_VALUES = np.empty(0, np.float32)


class ValueEncoder:
    """For plans without lists and maps. Not for two threads at once."""

    def __init__(self, plan: FeaturePlan) -> None:
        """Prepare for a plan.

        Raises:
            ValueError: it has lists or maps.
        """
        if not self.can(plan):
            raise ValueError("a plan with lists or maps is for Encoder alone")
        first = int(plan.bias)
        places = [(first + i, column) for i, column in enumerate(plan.columns)]
        numeric = [(c, column) for c, column in places if column.kind != "categorical"]
        categories = [(c, column.name) for c, column in places if column.kind == "categorical"]
        crossed = [name for cross in plan.crosses for name in cross]
        self.numbers = [column.name for _, column in numeric]
        """Names of the columns of numbers, N of them."""
        self.narrow: NDArray[np.int64] = np.array(
            [j for j, (_, column) in enumerate(numeric) if column.type in ("float", "halffloat")], np.int64
        )
        """Which of these were f32 in training, and are rounded to it."""
        self.texts = list(dict.fromkeys([*(name for _, name in categories), *crossed]))
        """Names of the columns of categories, T of them."""
        self._width = first + len(places) + len(plan.crosses)
        self._bias = key_of_number(BIAS) if plan.bias else None
        self._numeric = NumericColumns(numeric)
        self._columns = hashing.TextColumns(
            seeds=np.array([seed_of(name) for name in self.texts], np.uint64),
            missing=np.array([key_of_missing(name) for name in self.texts], np.uint64),
        )
        self._text_places = np.array([c for c, _ in categories], np.int64)
        cross_place = first + len(places)
        self._crosses = [
            (cross_place + n, seed_of("\x1f".join(cross)), np.array([self.texts.index(name) for name in cross]))
            for n, cross in enumerate(plan.crosses)
        ]
        self._has_values = any(column.kind in ("raw", "standard") for column in plan.columns)

    @staticmethod
    def can(plan: FeaturePlan) -> bool:
        """Whether it is for such plans."""
        return all(column.kind not in ("list", "map") for column in plan.columns)

    def encode(
        self, numbers: NDArray[np.float64], absent: NDArray[np.bool_], texts: pa.Array, memory: Memory
    ) -> SparseBatch | None:
        """A batch without labels, which ``memory`` holds; None where a number is not finite.

        Args:
            numbers: f64[N, B]; those of ``narrow`` are rounded in place
            absent: bool[N, B], which are missing
            texts: T * B strings, column by column
        """
        B = numbers.shape[1] if len(self.numbers) else len(texts) // max(len(self.texts), 1)
        nnz = B * self._width
        offsets = np.arange(0, nnz + 1, self._width)
        keys = memory.array("keys", (nnz,), np.uint64)
        values = _NO_VALUES
        if self._has_values:
            values = memory.array("values", (nnz,), np.float32)
            values[:] = 1
        target = hashing.Target(offsets[:-1], keys, values)
        table = keys.reshape(B, self._width)
        if self._bias is not None:
            table[:, 0] = self._bias
        if len(self.numbers):
            if len(self.narrow):
                with np.errstate(over="ignore"):
                    numbers[self.narrow] = numbers[self.narrow].astype(np.float32)
            if self._numeric.write_numbers(numbers, absent, target) >= 0:
                return None
        if self.texts:
            found = memory.array("texts", (len(self.texts), B), np.uint64)
            _, begins, data = texts.buffers()
            bits, bit = validity(texts)
            bytes_ = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
            places = np.frombuffer(begins, np.int32)[texts.offset : texts.offset + len(texts) + 1]
            hashing.many_text_keys(bytes_, places, bits, bit, self._columns, found)
            table[:, self._text_places] = found[: len(self._text_places)].T
            for c, seed, parts in self._crosses:
                hashing.cross_keys(found[parts], seed, target, c)
        return SparseBatch(
            keys=keys,
            offsets=offsets,
            labels=np.zeros(B, np.float32),
            values=values if self._has_values else None,
            weights=None,
            width=self._width,
        )
