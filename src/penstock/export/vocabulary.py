"""Which texts stand behind a model's rows: found in data, as keys are hashes and cannot be turned back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from penstock.batch import Keys
from penstock.data import BATCH_ROWS, Source, open_source
from penstock.errors import ConfigError
from penstock.features import FeaturePlan, unknown_column
from penstock.features.arrays import Numbers, as_category
from penstock.features.categories import Categories, seed_of
from penstock.kernels import hashing
from penstock.models import Linear

__all__ = ["Vocabulary"]

Texts = tuple[str, ...]


class Vocabulary:
    """Categories and their combinations that occur in data and have a weight in the model."""

    def __init__(self, model: Linear, plan: FeaturePlan, data: Any) -> None:
        """Read the columns of categories; ``data`` as ``ps.fit`` takes it.

        Memory is in proportion to the model's rows that are found.

        Raises:
            ConfigError: the plan has lists, maps, or numbers that are crossed: these have no vocabulary.
            DataError: a column is missing, or a value is not allowed.
        """
        self.categories: dict[str, dict[str, float]] = {
            c.name: {} for c in plan.columns if c.kind == "categorical"
        }
        """By column, weights of texts; a missing value is the empty text."""
        self.crosses: dict[Texts, dict[Texts, float]] = {cross: {} for cross in plan.crosses}
        """By the columns of a cross, weights of combinations of texts."""
        self._table = model.table
        self._names = list(dict.fromkeys([*self.categories, *(name for cross in plan.crosses for name in cross)]))
        for column in plan.columns:
            if column.kind in ("list", "map"):
                raise ConfigError(
                    f"column {column.name!r} is a {column.kind}, which has no tensor of its own; leave the "
                    "vocabulary out, and the model takes keys that penstock.score computes"
                )
            if column.kind != "categorical" and column.name in self._names:
                raise ConfigError(
                    f"column {column.name!r} is a number that is crossed; leave the vocabulary out, and the model "
                    "takes keys that penstock.score computes"
                )
        self._hashes = Categories(self._names)
        if self._names:
            for batch in self._batches(data, plan):
                self._add(batch)

    def texts(self, name: str) -> list[str]:
        """Every text of a column that has a weight, by itself or in a cross."""
        found = set(self.categories.get(name, ()))
        for cross, combinations in self.crosses.items():
            if name in cross:
                place = cross.index(name)
                found.update(combination[place] for combination in combinations)
        return sorted(found)

    def __len__(self) -> int:
        """Rows of the model that are covered."""
        return sum(map(len, self.categories.values())) + sum(map(len, self.crosses.values()))

    def _batches(self, data: Any, plan: FeaturePlan) -> Iterator[pa.RecordBatch]:
        source = data if isinstance(data, Source) else open_source(data)
        for name in self._names:
            if name not in source.schema.names:
                raise unknown_column(name, source.schema)
        types = {name: type_ for name, type_ in plan.read_types.items() if name in self._names}
        for chunk in source.read_as(types).chunks():
            yield from chunk.batches(self._names, BATCH_ROWS)

    def _add(self, batch: pa.RecordBatch) -> None:
        columns = {name: batch.column(name) for name in self._names}
        keys = {name: self._hashes.keys(name, array) for name, array in columns.items()}
        for name, known in self.categories.items():
            rows, weights = self._rows_with_weight(keys[name])
            texts = _texts(name, columns[name].take(rows))
            known.update((text, weight) for text, weight in zip(texts, weights, strict=True) if text is not None)
        for cross, combinations in self.crosses.items():
            rows, weights = self._rows_with_weight(_cross_keys(cross, [keys[name] for name in cross]))
            parts = [_texts(name, columns[name].take(rows)) for name in cross]
            for found, weight in zip(zip(*parts, strict=True), weights, strict=True):
                if None not in found:
                    combinations[found] = weight

    def _rows_with_weight(self, keys: Keys) -> tuple[pa.Array, list[float]]:
        """Of each distinct key that has a weight, the first row where it stands, and the weight."""
        distinct, rows = np.unique(keys, return_index=True)
        weights = self._table.pull(distinct)[:, 0]
        kept = weights != 0
        return pa.array(rows[kept]), weights[kept].tolist()


def _texts(name: str, array: pa.Array) -> list[Any]:
    """The texts that a client gives for these values, empty where one is missing; None where UTF-8 has none."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_null(array.type):
        return [""] * len(array)
    array, items = as_category(name, array)
    if isinstance(items, Numbers):
        array = array.cast(pa.string())
    return [_decoded(value) if isinstance(value, bytes) else value or "" for value in array.to_pylist()]


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _cross_keys(cross: Sequence[str], parts: Sequence[Keys]) -> Keys:
    n = len(parts[0])
    target = hashing.Target(np.arange(n), np.empty(n, np.uint64), np.empty(0, np.float32))
    hashing.cross_keys(np.stack(parts), seed_of("\x1f".join(cross)), target, 0)
    return target.keys
