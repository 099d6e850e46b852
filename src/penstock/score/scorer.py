"""Scores of rows by an exported model, with the bits that ``Model.predict`` gives on the same machine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ConfigError, ModelError, RowError
from penstock.score import file
from penstock.score.encode import Encoded, Row, RowEncoder
from penstock.score.hashing import Keys

__all__ = ["Scorer"]

PART_ROWS = 8192
"""Rows that are scored at once, so that many do not need much memory."""


class Scorer:
    """Logistic regression over hashed features. Does not change, so any number of threads may share it."""

    def __init__(self, header: Mapping[str, Any], keys: Keys, weights: NDArray[np.float32]) -> None:
        """A model of rows ``keys`` u64[n], rising, and ``weights`` f32[n], with what its file's header says.

        Raises:
            ConfigError: the feature plan is damaged, or of another version of the hashing.
        """
        self.header = header
        """Plain JSON values: the feature plan, version, lineage, metrics."""
        self.encoder = RowEncoder(header.get("features", {}))
        self._rows = _Rows(keys, weights)
        self._exp = _exp()

    @classmethod
    def load(cls, path: str | Path) -> Scorer:
        """Read a file of ``penstock export``, checking every byte.

        Raises:
            ModelError: there is none, it is damaged, or of a newer format.
        """
        try:
            return cls(*file.read(path))
        except ConfigError as error:
            raise ModelError(f"{path}: {error}") from error

    @property
    def version(self) -> str:
        """The version of the model that was exported."""
        return str(self.header.get("version", 0))

    @property
    def inputs(self) -> list[str]:
        """Columns that rows may have; others are ignored."""
        return self.encoder.inputs

    def __len__(self) -> int:
        """Rows of the model."""
        return len(self._rows)

    def predict(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Probabilities f32[n] of rows, which are objects of columns; values have the types of JSON.

        Raises:
            RowError: a row is no object, has none of the columns, or a value is not allowed.
        """
        parts = [np.empty(0, np.float32)]
        for begin in range(0, len(rows), PART_ROWS):
            try:
                parts.append(self.predict_encoded(self.encoder.encode(rows[begin : begin + PART_ROWS])))
            except RowError as error:
                raise RowError(begin + error.row, error.message) from error
        return np.concatenate(parts)

    def predict_encoded(self, batch: Encoded) -> NDArray[np.float32]:
        """Probabilities f32[n] of rows whose keys were computed before."""
        with np.errstate(over="ignore", invalid="ignore"):
            terms = self._rows.find(batch.keys) * batch.values
            return _sigmoid(_totals(terms, batch.offsets), self._exp)


class _Rows:
    """Weights by key. As keys are hashes, their highest bits say about where each stands."""

    def __init__(self, keys: Keys, weights: NDArray[np.float32]) -> None:
        bits = max(len(keys).bit_length() - 1, 1)
        self._shift = np.uint64(64 - bits)
        # One key behind the end, which no feature has, so that a search ends there.
        self._keys = np.append(keys, np.uint64(0xFFFFFFFFFFFFFFFF))
        self._weights = np.append(weights, np.float32(0))
        self._begins = np.searchsorted(keys, np.arange(1 << bits, dtype=np.uint64) << self._shift)

    def __len__(self) -> int:
        return len(self._keys) - 1

    def find(self, keys: Keys) -> NDArray[np.float32]:
        """Weights f32[n]; 0 where there is no row."""
        at = self._begins[keys >> self._shift]
        found = self._keys[at]
        behind = np.flatnonzero(found < keys)
        while len(behind):
            at[behind] += 1
            found[behind] = self._keys[at[behind]]
            behind = behind[found[behind] < keys[behind]]
        return np.where(found == keys, self._weights[at], np.float32(0))


def _totals(terms: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sums f32[B] of the terms of each row in four lanes, in the order of ``kernels.linear.total``."""
    sizes = np.diff(offsets)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(terms)) - offsets[rows]
    # What is left behind the last four goes to the first lane.
    lane = np.where(place < sizes[rows] // 4 * 4, place % 4, 0)
    lanes = np.zeros(4 * len(sizes), np.float32)
    np.add.at(lanes, 4 * rows + lane, terms)
    a, b, c, d = lanes.reshape(-1, 4).T
    total: NDArray[np.float32] = (a + b) + (c + d)
    return total


def _sigmoid(margins: NDArray[np.float32], exp: Callable[[float], float] | None) -> NDArray[np.float32]:
    one = np.float32(1)
    if exp is None:
        powers = np.exp(-margins.astype(np.float64)).astype(np.float32)
    else:
        powers = np.array([exp(margin) for margin in (-margins).tolist()], np.float32)
    return one / (one + powers)


def _exp() -> Callable[[float], float] | None:
    """The C library's ``expf``, which kernels call, too: NumPy's own differs in the last bits."""
    for library in (None, "libm.so.6"):
        try:
            expf = ctypes.CDLL(library).expf
        except (OSError, AttributeError, TypeError):
            continue
        expf.argtypes, expf.restype = [ctypes.c_float], ctypes.c_float
        return expf
    return None
