"""Rows of a version of a model as a server has them: weights alone, a base and what changed since.

The next version of a model shares the base with the one before, and what it shares of the rest is not read again.
A base is in memory, or in a file that is mapped: then only what is looked up is read, and it may be of any size.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from penstock.batch import Floats, Keys
from penstock.errors import ModelError
from penstock.models.manifest import Manifest
from penstock.models.weights import Layer, layers_of, read_layer
from penstock.table.index import Overlay, WeightIndex

__all__ = ["ServedTable", "load_tables", "remove_unused"]

_LayerId = tuple[str, ...]
_UNUSED_S = 3600.0
"""For so long a file that nobody has needed stays: another server may be at another version."""


@dataclass(frozen=True, eq=False)
class ServedTable:
    """Weights by key, of one version."""

    layers: tuple[_LayerId, ...]
    base: WeightIndex
    over: Overlay | None

    def pull(self, keys: Keys) -> Floats:
        """Weights f32[n, dim] of ``keys`` u64[n]; zeros where there is no row.

        Raises:
            ModelError: the mapped file is damaged.
        """
        return self.base.pull(keys, self.over.index if self.over is not None else None)

    def remove_file(self) -> None:
        """Remove the mapped file, if there is one; whoever has it mapped goes on with it."""
        if self.base.mapped is not None:
            with contextlib.suppress(OSError):
                self.base.mapped.unlink()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory or, mapped, on disk."""
        return self.base.nbytes + (self.over.index.nbytes if self.over is not None else 0)


def load_tables(
    root: Path, contents: Manifest, *, before: Mapping[str, ServedTable] | None = None, mapped: Path | None = None
) -> dict[str, ServedTable]:
    """The tables of a manifest; what ``before`` has of them is not read again.

    With ``mapped`` bases are files in that folder, written where they are missing.

    Raises:
        ModelError: a file is damaged, or has weights that are not finite.
        StorageError: an index cannot be written.
        FileNotFoundError: a file is not there.
    """
    found = {}
    for name in contents.tables:
        layers = layers_of(contents, name)
        try:
            found[name] = _load(root, name, layers, (before or {}).get(name), mapped)
        except ValueError as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{root}: version {contents.version}, table {name}: damaged: {error}") from error
    return found


def _load(
    root: Path, name: str, layers: list[Layer], before: ServedTable | None, mapped: Path | None
) -> ServedTable:
    ids = tuple(layer.id for layer in layers)
    if before is not None and before.layers == ids and not _has_gone(before.base):
        return before
    if before is not None and before.layers[0] == ids[0] and not _has_gone(before.base):
        base, over = before.base, before.over
        known = len(before.layers)
        if before.layers != ids[:known]:
            over, known = None, 1
    else:
        base, over, known = _base(root, name, layers[0], mapped), None, 1
    for layer in layers[known:]:
        keys, weights = _whole(root, layer)
        over = over.with_rows(keys, weights) if over is not None else Overlay.of(keys, weights)
    return ServedTable(ids, base, over)


def _base(root: Path, name: str, layer: Layer, mapped: Path | None) -> WeightIndex:
    dim, rows = layer.layout.dim, layer.rows
    if rows is None:  # written by code that did not say it
        keys, weights = _whole(root, layer)
        return WeightIndex.build([(keys, weights)], rows=len(keys), dim=dim)
    if mapped is None:
        return WeightIndex.build(read_layer(root, layer), rows=rows, dim=dim)
    source = blake2b(" ".join(layer.id).encode(), digest_size=16).hexdigest()
    path = mapped / f"{name}-{source}.index"
    index = WeightIndex.open(path, source=source)
    if index is None:
        WeightIndex.write(path, read_layer(root, layer), rows=rows, dim=dim, source=source)
        index = WeightIndex.open(path, source=source)
    if index is None:
        raise ModelError(f"{path}: was written, but cannot be read back")
    return index


def remove_unused(mapped: Path, tables: Iterable[ServedTable]) -> None:
    """Remove index files of bases that these tables do not need, and that no other server has needed of late."""
    wanted = {table.base.mapped for table in tables}
    for path in mapped.glob("*.index"):
        with contextlib.suppress(OSError):
            if path in wanted:
                os.utime(path)
            elif path.stat().st_mtime < time.time() - _UNUSED_S:
                path.unlink()
    for left in mapped.glob(".*.index.*.tmp"):  # of somebody who was killed
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _UNUSED_S:
                left.unlink()


def _has_gone(base: WeightIndex) -> bool:
    """Whether its file was removed, as it is when it was found damaged."""
    return base.mapped is not None and not base.mapped.exists()


def _whole(root: Path, layer: Layer) -> tuple[Keys, Floats]:
    parts = list(read_layer(root, layer))
    dim = layer.layout.dim
    keys = np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in parts)])
    weights = np.concatenate([np.empty((0, dim), np.float32), *(weights for _, weights in parts)])
    return keys, weights
