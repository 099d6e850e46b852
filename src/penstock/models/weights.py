"""Weights of a model on disk, without the optimizer's states: what a server needs, layer by layer.

A layer's files are merged into one sequence of rising keys, so that an index can be written from it front to back,
whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.batch import Floats, Keys
from penstock.errors import ModelError
from penstock.kernels.finite import all_finite
from penstock.models.files import read_checked
from penstock.models.manifest import FileEntry, LayerEntry, Manifest
from penstock.table import Layout

__all__ = ["Layer", "layers_of", "read_layer"]

Parts = Iterator[tuple[Keys, Floats]]


@dataclass(frozen=True)
class Layer:
    """Rows of a table that changed since the layer before, or all rows, and the keys of those that went."""

    entry: LayerEntry
    layout: Layout

    @property
    def id(self) -> tuple[str, ...]:
        """Says what is in it."""
        return tuple(entry.sha256 for entry in (*self.entry.files, *self.entry.removed))

    @property
    def rows(self) -> int | None:
        """How many rows its files have; None where the manifest does not say."""
        counts = [entry.rows for entry in self.entry.files]
        return None if None in counts else sum(count for count in counts if count is not None)


def layers_of(contents: Manifest, table: str) -> list[Layer]:
    """The layers of a table, oldest first; the first is complete."""
    layout = Layout.from_dict(contents.table_spec(table))
    return [Layer(entry, layout) for entry in contents.tables[table].all_layers()]


def read_layer(root: Path, layer: Layer) -> Parts:
    """Keys u64[n], rising through all parts, and weights f32[n, dim]; zeros for those that went.

    Raises:
        ModelError: a file is damaged, or has weights that are not finite.
        FileNotFoundError: a file is not there.
    """
    sources = [_rows(root, layer, entry) for entry in layer.entry.files]
    sources += [_removed(root, layer, entry) for entry in layer.entry.removed]
    return _merged(sources, layer.layout.dim)


def _rows(root: Path, layer: Layer, entry: FileEntry) -> Parts:
    dim = layer.layout.dim
    for batch in read_checked(root, entry, layer.layout.schema(), columns=["key", "weight"]):
        column = batch.column("weight")
        weights = (column if dim == 1 else column.flatten()).to_numpy().reshape(-1, dim)
        if not all_finite(weights):
            raise ModelError(f"{root / entry.path}: has weights that are not finite")
        yield batch.column("key").to_numpy(), weights


def _removed(root: Path, layer: Layer, entry: FileEntry) -> Parts:
    for batch in read_checked(root, entry, None):
        keys = batch.column("key").to_numpy()
        yield keys, np.zeros((len(keys), layer.layout.dim), np.float32)


def _merged(sources: Sequence[Parts], dim: int) -> Parts:
    """Parts of several rising sequences as one."""
    if len(sources) == 1:
        yield from sources[0]
        return
    heads: list[tuple[Keys, Floats] | None] = [_next(source) for source in sources]
    while any(head is not None for head in heads):
        # All that may still come is above the least of the last keys.
        bound = min(head[0][-1] for head in heads if head is not None)
        taken: list[tuple[Keys, Floats]] = []
        for n, head in enumerate(heads):
            if head is None:
                continue
            keys, weights = head
            cut = int(np.searchsorted(keys, bound, "right"))
            taken.append((keys[:cut], weights[:cut]))
            heads[n] = (keys[cut:], weights[cut:]) if cut < len(keys) else _next(sources[n])
        keys = np.concatenate([keys for keys, _ in taken])
        order = np.argsort(keys, kind="stable")
        yield keys[order], np.concatenate([weights for _, weights in taken]).reshape(-1, dim)[order]


def _next(source: Parts) -> tuple[Keys, Floats] | None:
    """The next part that has a row."""
    return next((part for part in source if len(part[0])), None)
