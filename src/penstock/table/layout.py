"""What the rows of a table are made of, without a table: enough to write rows to files and to read them.

It crosses wires and stands in manifests as plain values. It holds no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError
from penstock.kernels import pull_push as kernels
from penstock.optim import Optimizer, optimizer_from_dict

__all__ = ["SEGMENTS", "SEGMENTS_MAX", "Layout"]

SEGMENTS = 1024
"""Equal slices of the hash space: the unit of placement, growth and checkpoints."""

SEGMENTS_MAX = 1 << 20
_DIM_MAX = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Rows of ``dim`` weights and the states of an optimizer, over ``segments`` slices of the hash space."""

    optimizer: Optimizer
    dim: int = 1
    segments: int = SEGMENTS

    def __post_init__(self) -> None:
        for name in ("dim", "segments"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} must be an integer, got {value!r}")
        if self.segments < 2 or self.segments & (self.segments - 1):
            raise ConfigError(f"segments must be a power of two >= 2, got {self.segments}")
        if self.dim < 1:
            raise ConfigError(f"dim must be >= 1, got {self.dim}")

    @property
    def width(self) -> int:
        """f32 words of a row, besides its key: each state's ``dim`` values in turn."""
        return self.dim * len(self.optimizer.states)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"dim": self.dim, "segments": self.segments, "optimizer": self.optimizer.to_dict()}

    @staticmethod
    def from_dict(spec: Mapping[str, Any]) -> Layout:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: a field is missing, unknown, or has a value that is not allowed.
        """
        if not isinstance(spec, Mapping) or set(spec) != {"dim", "segments", "optimizer"}:
            got = sorted(map(str, spec)) if isinstance(spec, Mapping) else spec
            raise ConfigError(f"a table is described by dim, segments and optimizer, got {got!r}")
        if not isinstance(spec["optimizer"], Mapping):
            raise ConfigError(f"an optimizer is described by its name and numbers, got {spec['optimizer']!r}")
        layout = Layout(
            optimizer=optimizer_from_dict(spec["optimizer"]), dim=spec["dim"], segments=spec["segments"]
        )
        if layout.dim > _DIM_MAX or layout.segments > SEGMENTS_MAX:
            raise ConfigError(
                f"dim must be <= {_DIM_MAX}, segments <= {SEGMENTS_MAX}, got dim {layout.dim}, "
                f"segments {layout.segments}"
            )
        return layout

    def segments_of(self, keys: Keys) -> NDArray[np.int64]:
        """The segment of each key: its highest bits."""
        return (keys >> np.uint64(64 - (self.segments.bit_length() - 1))).astype(np.int64)

    def schema(self) -> pa.Schema:
        """Columns of rows in Arrow: key, weight, then the optimizer's states."""
        cell = pa.float32() if self.dim == 1 else pa.list_(pa.float32(), self.dim)
        states = [pa.field(name, cell) for name in self.optimizer.states if name != "w"]
        return pa.schema([pa.field("key", pa.uint64()), pa.field("weight", cell), *states])

    def to_arrow(self, keys: Keys, words: Floats) -> pa.RecordBatch:
        """Rows u64[n], f32[n, width] as a model on disk has them."""
        weights = np.empty((len(keys), self.dim), np.float32)
        kernels.weights(self.optimizer.hyper(), np.ascontiguousarray(words).reshape(-1), weights)
        columns = {"weight": weights}
        for s, name in enumerate(self.optimizer.states):
            columns[name] = words[:, s * self.dim : (s + 1) * self.dim]
        schema = self.schema()
        arrays = [pa.array(keys)]
        for field in list(schema)[1:]:
            flat = pa.array(np.ascontiguousarray(columns[field.name]).reshape(-1))
            arrays.append(flat if self.dim == 1 else pa.FixedSizeListArray.from_arrays(flat, self.dim))
        return pa.record_batch(arrays, schema=schema)

    def from_arrow(self, batch: pa.RecordBatch) -> tuple[Keys, Floats]:
        """The inverse of ``to_arrow``."""
        keys = batch.column("key").to_numpy()
        words = np.empty((len(keys), self.width), np.float32)
        for s, name in enumerate(self.optimizer.states):
            column = batch.column("weight" if name == "w" else name)
            flat = column if self.dim == 1 else column.flatten()
            words[:, s * self.dim : (s + 1) * self.dim] = flat.to_numpy().reshape(-1, self.dim)
        return keys, words
