"""Record batches to sparse batches of keys, by a feature plan.

One encoder serves one thread: it keeps the keys of the dictionaries that it saw last. Layout of an example:
bias, single columns in the plan's order, crosses, then lists and maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.batch import Floats, Keys, SparseBatch
from penstock.errors import DataError, RowError
from penstock.features.arrays import as_numbers
from penstock.features.categories import BIAS, Categories, key_of_missing, key_of_number, seed_of
from penstock.features.memory import Memory
from penstock.features.numeric import NumericColumns
from penstock.features.spec import ColumnPlan, FeaturePlan, is_list, unknown_column
from penstock.kernels import hashing

__all__ = ["Encoder"]

_NO_VALUES = np.empty(0, np.float32)


class Encoder:
    """Computes the keys of a plan. Not for two threads at once."""

    def __init__(self, plan: FeaturePlan) -> None:
        self.plan = plan
        self._categories = Categories(plan.inputs)
        self._cross_seeds = [seed_of("\x1f".join(cross)) for cross in plan.crosses]
        self._bias = key_of_number(BIAS)
        singles = [c for c in plan.columns if c.kind not in ("list", "map")]
        places = [(int(plan.bias) + i, column) for i, column in enumerate(singles)]
        self._single_categories = [(c, column.name) for c, column in places if column.kind == "categorical"]
        self._numeric = NumericColumns([place for place in places if place[1].kind != "categorical"])
        self._lists = [c for c in plan.columns if c.kind in ("list", "map")]
        self._has_values = any(c.kind in ("raw", "standard", "map") for c in plan.columns)
        self._width = int(plan.bias) + len(singles) + len(plan.crosses)

    @property
    def columns(self) -> list[str]:
        """Columns to read: those of the features, the label and the weight."""
        plan = self.plan
        return list(dict.fromkeys(n for n in [*plan.inputs, plan.label, plan.weight] if n is not None))

    def encode(self, batch: pa.RecordBatch, *, labelled: bool = True, memory: Memory | None = None) -> SparseBatch:
        """Keys of a record batch; without ``labelled``, labels are 0 and weights None.

        With ``memory`` it holds keys and values, and so the batch is valid until that is used again.

        Raises:
            RowError: a number that is not finite, a label that is not 0 or 1, a weight below 0.
            DataError: a column is missing or its type does not fit the plan.
        """
        B = len(batch)
        lists = [self._list_keys(batch, column) for column in self._lists]
        lengths = np.full(B, self._width, np.int64)
        for found in lists:
            lengths += found.lengths
        offsets = np.zeros(B + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        nnz = (int(offsets[-1]),)
        memory = memory if memory is not None else Memory()
        keys = memory.array("keys", nnz, np.uint64)
        values = memory.array("values", nnz, np.float32) if self._has_values else _NO_VALUES
        values[:] = 1  # where nothing else will be written
        target = hashing.Target(offsets[:-1], keys, values)
        if self.plan.bias:
            hashing.constant_keys(self._bias, target, 0)
        self._numeric.write([_get(batch, name) for name in self._numeric.names], target)
        self._categories.write([(c, name, _get(batch, name)) for c, name in self._single_categories], target)
        c = self._width - len(self.plan.crosses)
        for cross, seed in zip(self.plan.crosses, self._cross_seeds, strict=True):
            hashing.cross_keys(self._parts(batch, cross), seed, target, c)
            c += 1
        begins = target.starts + self._width
        for found in lists:
            hashing.copy_lists(found.offsets, found.lengths, found.keys, found.values, target, begins)
        return SparseBatch(
            keys=keys,
            offsets=offsets,
            labels=self._labels(batch) if labelled else np.zeros(B, np.float32),
            values=values if self._has_values else None,
            weights=self._weights(batch) if labelled else None,
            width=None if self._lists else self._width,
        )

    def name_keys(self, batch: pa.RecordBatch, wanted: Keys) -> dict[int, str]:
        """Names (``column=value``) of those of the ``wanted`` keys (rising) that this batch has."""
        names: dict[int, str] = {int(self._bias): "(bias)"} if self.plan.bias else {}
        wanted_set = set(wanted.tolist())
        for column in self.plan.columns:
            names[int(key_of_missing(column.name))] = f"{column.name} is missing"
            if column.kind in ("raw", "standard"):
                names[int(key_of_number(column.name))] = column.name
                continue
            array = _get(batch, column.name)
            if column.kind == "log":
                target = _flat_target(len(array))
                NumericColumns([(0, column)]).write([array], target)
                keys = target.keys
            else:
                if column.kind != "categorical":
                    array = _children(array)[1]
                keys = self._categories.keys(column.name, array)
            for key, row in _first_rows(keys, wanted):
                names.setdefault(key, f"{column.name}={_text(array[row])}")
        for cross, seed in zip(self.plan.crosses, self._cross_seeds, strict=True):
            target = _flat_target(len(batch))
            hashing.cross_keys(self._parts(batch, cross), seed, target, 0)
            for key, row in _first_rows(target.keys, wanted):
                pairs = ((name, _get(batch, name)[row]) for name in cross)
                names.setdefault(key, " & ".join(f"{name}={_text(value)}" for name, value in pairs))
        return {key: name for key, name in names.items() if key in wanted_set}

    def _parts(self, batch: pa.RecordBatch, cross: Sequence[str]) -> NDArray[np.uint64]:
        return np.stack([self._categories.keys(name, _get(batch, name)) for name in cross])

    def _list_keys(self, batch: pa.RecordBatch, column: ColumnPlan) -> _ListKeys:
        array = _get(batch, column.name)
        if not (is_list(array.type) or pt.is_map(array.type)):
            raise DataError(f"column {column.name!r} must be a {column.type}, its type is {array.type}")
        offsets, children, items = _children(array)
        try:
            keys = self._categories.keys(column.name, children)
        except RowError as error:
            raise RowError(_list_of(offsets, error.row), error.message) from error
        if array.null_count:
            lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets), 0)
        else:
            lengths = np.diff(offsets)
        distinct = np.empty(len(array), np.int64)
        if items is None:
            # A null list may have a range of its own in Arrow; it has no keys.
            hashing.distinct_in_lists(offsets, keys, distinct)
            return _ListKeys(offsets, np.minimum(distinct, lengths), keys, _NO_VALUES)
        hashing.distinct_in_lists(offsets, keys.copy(), distinct)
        twice = np.flatnonzero(distinct < lengths)
        if len(twice):
            message = f"column {column.name!r} has an entry twice; allowed: each once in a map"
            raise RowError(int(twice[0]), message)
        values = _as_f32(f"values of column {column.name!r}", items)
        if items.null_count:
            values[items.is_null().to_numpy(zero_copy_only=False)] = 0
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            got = items[int(bad[0])].as_py()
            message = f"column {column.name!r} has the value {got}; allowed: finite f32 numbers"
            raise RowError(_list_of(offsets, int(bad[0])), message)
        return _ListKeys(offsets, lengths, keys, values)

    def _labels(self, batch: pa.RecordBatch) -> Floats:
        array = _get(batch, self.plan.label)
        if array.null_count:
            row = array.is_null().index(True).as_py()
            raise RowError(row, f"label {self.plan.label!r} is missing; allowed: 0 or 1")
        try:
            labels = as_numbers(array)[1]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            row = _first_not_numeric(array)
            raise RowError(
                row,
                f"label {self.plan.label!r} is {array[row].as_py()!r}; allowed: 0 or 1, as a number or boolean",
            ) from error
        bad = np.flatnonzero(~((labels == 0) | (labels == 1)))
        if len(bad):
            raise RowError(
                int(bad[0]), f"label {self.plan.label!r} is {array[int(bad[0])].as_py()}; allowed: 0 or 1"
            )
        return labels.astype(np.float32)

    def _weights(self, batch: pa.RecordBatch) -> Floats | None:
        if self.plan.weight is None:
            return None
        array = _get(batch, self.plan.weight)
        weights = _as_f32(f"weight {self.plan.weight!r}", array)
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~(valid & np.isfinite(weights) & (weights >= 0)))
        if len(bad):
            got = array[int(bad[0])].as_py()
            raise RowError(int(bad[0]), f"weight {self.plan.weight!r} is {got}; allowed: finite, >= 0")
        return weights


class _ListKeys:
    """A list column's keys: list i has ``lengths[i]`` of them from ``offsets[i]``."""

    __slots__ = ("keys", "lengths", "offsets", "values")

    def __init__(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64], keys: Keys, values: Floats) -> None:
        self.offsets, self.lengths, self.keys, self.values = offsets, lengths, keys, values


def _flat_target(n: int) -> hashing.Target:
    """For one column of n keys and nothing else."""
    return hashing.Target(np.arange(n), np.empty(n, np.uint64), _NO_VALUES)


def _get(batch: pa.RecordBatch, name: str) -> pa.Array:
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise unknown_column(name, batch.schema)
    return batch.column(index)


def _children(array: pa.Array) -> tuple[NDArray[np.int64], pa.Array, pa.Array | None]:
    """Offsets i64[B + 1] from 0, the lists' items (a map's keys), and a map's values."""
    if pt.is_map(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        return offsets - first, array.keys[first:last], array.items[first:last]
    if pt.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    offsets = array.offsets.to_numpy().astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    return offsets - first, array.values[first:last], None


def _as_f32(what: str, array: pa.Array) -> Floats:
    """A copy as f32, in which too large numbers are infinite."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the second: of a signalling NaN
            return as_numbers(array)[1].astype(np.float32)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{what} must be numeric, its type is {array.type}") from error


def _first_not_numeric(array: pa.Array) -> int:
    for row, item in enumerate(array.to_pylist()):
        try:
            float(item)
        except (TypeError, ValueError):
            return row
    return 0


def _list_of(offsets: NDArray[np.int64], item: int) -> int:
    """The list that an item stands in."""
    return int(np.searchsorted(offsets, item, side="right")) - 1


def _first_rows(keys: Keys, wanted: Keys) -> list[tuple[int, int]]:
    unique, rows = np.unique(keys, return_index=True)
    kept = np.isin(unique, wanted, assume_unique=True)
    return list(zip(unique[kept].tolist(), rows[kept].tolist(), strict=True))


def _text(scalar: pa.Scalar) -> str:
    value = scalar.as_py()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
