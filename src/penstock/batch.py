"""The data contract between features, models and tables: examples as sparse vectors of hashed keys.

What stands here is a type and its invariants; how columns become keys is in ``features``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Keys", "SparseBatch"]

Keys = NDArray[np.uint64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseBatch:
    """B examples with nnz non-zeros in all; example i owns ``keys[offsets[i]:offsets[i + 1]]``.

    ==========  ==================  ===============================================================
    keys        u64[nnz]            hashes of (column, value); even and not 0; distinct in an example
    values      f32[nnz] or None    None says that every value is 1
    offsets     i64[B + 1]          rises from 0 to nnz
    labels      f32[B]              0 or 1
    weights     f32[B] or None      finite and >= 0; None says that every weight is 1
    width       int or None         number of keys of every example, where it is the same
    ==========  ==================  ===============================================================

    Keys are even because tables keep a mark in bit 0, and not 0 because 0 is an empty slot there.
    """

    keys: Keys
    offsets: NDArray[np.int64]
    labels: Floats
    values: Floats | None = None
    weights: Floats | None = None
    width: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nnz(self) -> int:
        return len(self.keys)

    def slice(self, begin: int, end: int) -> SparseBatch:
        """Examples ``begin`` to ``end``, sharing memory."""
        first, last = self.offsets[begin], self.offsets[end]
        return SparseBatch(
            keys=self.keys[first:last],
            offsets=self.offsets[begin : end + 1] - first,
            labels=self.labels[begin:end],
            values=None if self.values is None else self.values[first:last],
            weights=None if self.weights is None else self.weights[begin:end],
            width=self.width,
        )

    def check(self) -> None:
        """Check every invariant of the table above.

        Raises:
            ValueError: with the field, what it has and what it may have.
        """
        B, nnz = len(self.labels), len(self.keys)
        _expect_array("keys", self.keys, np.uint64, nnz)
        _expect_array("offsets", self.offsets, np.int64, B + 1)
        _expect_array("labels", self.labels, np.float32, B)
        lengths = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != nnz or (lengths < 0).any():
            raise ValueError(f"offsets must rise from 0 to nnz = {nnz}, got {self.offsets}")
        if self.width is not None and (lengths != self.width).any():
            raise ValueError(f"width {self.width} but examples have {np.unique(lengths)} keys")
        if (self.keys & np.uint64(1)).any() or not self.keys.all():
            raise ValueError("keys must be even and not 0")
        example = np.repeat(np.arange(B), lengths)
        if len(np.unique(np.stack([example.astype(np.uint64), self.keys]), axis=1).T) != nnz:
            raise ValueError("a key stands twice in one example")
        if not np.isin(self.labels, (0.0, 1.0)).all():
            raise ValueError(f"labels must be 0 or 1, got {np.unique(self.labels)[:5]}")
        if self.values is not None:
            _expect_array("values", self.values, np.float32, nnz)
            if not np.isfinite(self.values).all():
                raise ValueError("values must be finite")
        if self.weights is not None:
            _expect_array("weights", self.weights, np.float32, B)
            if not (np.isfinite(self.weights) & (self.weights >= 0)).all():
                raise ValueError("weights must be finite and >= 0")


def _expect_array(name: str, array: NDArray[np.generic], dtype: type, length: int) -> None:
    if array.dtype != dtype or array.shape != (length,) or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous {np.dtype(dtype)}[{length}], got {array.dtype}{list(array.shape)}"
        )
