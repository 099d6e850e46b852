"""Record batches to sparse batches of keys, by a feature plan.

One encoder serves one thread: it keeps the keys of the dictionaries that it saw last. Layout of an example:
bias, single columns in the plan's order, crosses, then lists and maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.batch import Floats, Keys, SparseBatch
from penstock.errors import DataError, RowError
from penstock.features.arrays import Numbers, as_category, as_numbers, validity
from penstock.features.spec import ColumnPlan, FeaturePlan
from penstock.kernels import hashing

__all__ = ["Encoder"]

_NO_VALUES = np.empty(0, np.float32)
_NO_BITS = np.empty(0, np.uint8)


class Encoder:
    """Computes the keys of a plan. Not for two threads at once."""

    def __init__(self, plan: FeaturePlan) -> None:
        self.plan = plan
        names = [*plan.inputs]
        self._columns = {c.name: _column(c) for c in plan.columns}
        self._columns |= {
            name: _column(ColumnPlan(name=name, kind="categorical", type=""))
            for name in names
            if name not in self._columns
        }
        self._cross_seeds = [_seed("\x1f".join(cross)) for cross in plan.crosses]
        self._bias = _key_of_column("\x1e")
        self._singles = [c for c in plan.columns if c.kind not in ("list", "map")]
        self._lists = [c for c in plan.columns if c.kind in ("list", "map")]
        self._has_values = any(c.kind in ("raw", "standard", "map") for c in plan.columns)
        self._width = int(plan.bias) + len(self._singles) + len(plan.crosses)
        # The dictionary is kept, so that no other can come to lie at its address.
        self._dictionaries: dict[str, tuple[pa.Array, Keys]] = {}

    @property
    def columns(self) -> list[str]:
        """Columns to read: those of the features, the label, weight and time."""
        plan = self.plan
        return list(dict.fromkeys(n for n in [*plan.inputs, plan.label, plan.weight, plan.time] if n))

    def encode(self, batch: pa.RecordBatch, *, labelled: bool = True) -> SparseBatch:
        """Keys of a record batch; without ``labelled``, labels are 0 and weights None.

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
        keys = np.empty(offsets[-1], np.uint64)
        # What is not written otherwise has the value 1.
        values = np.ones(len(keys), np.float32) if self._has_values else _NO_VALUES
        target = hashing.Target(offsets[:-1], keys, values)
        c = 0
        if self.plan.bias:
            keys[target.starts] = self._bias
            c += 1
        for column in self._singles:
            self._encode_single(batch, column, target, c)
            c += 1
        for cross, seed in zip(self.plan.crosses, self._cross_seeds, strict=True):
            parts = np.stack([self._flat_keys(name, _get(batch, name)) for name in cross])
            hashing.cross_keys(parts, seed, target, c)
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
            constants = self._columns[column.name]
            names[int(constants.missing)] = f"{column.name} is missing"
            if column.kind in ("raw", "standard"):
                names[int(constants.key)] = column.name
                continue
            array = _get(batch, column.name)
            if column.kind in ("list", "map"):
                array = _children(array)[1]
            if column.kind == "log":
                offsets = np.arange(len(array), dtype=np.int64)
                target = hashing.Target(offsets, np.empty(len(array), np.uint64), _NO_VALUES)
                self._encode_single(batch, column, target, 0)
                keys = target.keys
            else:
                keys = self._flat_keys(column.name, array)
            for key, row in _first_rows(keys, wanted):
                names.setdefault(key, f"{column.name}={_text(array[row])}")
        for cross, seed in zip(self.plan.crosses, self._cross_seeds, strict=True):
            arrays = [_get(batch, name) for name in cross]
            parts = np.stack([self._flat_keys(n, a) for n, a in zip(cross, arrays, strict=True)])
            target = hashing.Target(np.arange(len(batch)), np.empty(len(batch), np.uint64), _NO_VALUES)
            hashing.cross_keys(parts, seed, target, 0)
            for key, row in _first_rows(target.keys, wanted):
                pairs = zip(cross, arrays, strict=True)
                names.setdefault(key, " & ".join(f"{name}={_text(array[row])}" for name, array in pairs))
        return {key: name for key, name in names.items() if key in wanted_set}

    def _encode_single(self, batch: pa.RecordBatch, column: ColumnPlan, target: hashing.Target, c: int) -> None:
        array = _get(batch, column.name)
        if column.kind == "categorical":
            self._category_keys(column.name, array, target, c)
            return
        if pt.is_dictionary(array.type):
            array = array.dictionary_decode()
        try:
            array, numbers = as_numbers(array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {column.name!r} must be numeric, its type is {array.type}") from error
        bits, bit = validity(array)
        bad = hashing.numeric_keys(numbers, bits, bit, self._columns[column.name], target, c)
        if bad >= 0:
            got = array[bad].as_py()
            raise RowError(bad, f"column {column.name!r} is {got}; allowed: a finite f32 number, or null")

    def _category_keys(self, name: str, array: pa.Array, target: hashing.Target, c: int) -> None:
        constants = self._columns[name]
        if pt.is_dictionary(array.type) and pt.is_floating(array.type.value_type):
            array = array.dictionary_decode()  # so that a number that is not finite is found with its row
        if pt.is_dictionary(array.type):
            bits, bit = validity(array.indices)
            indices = array.indices.to_numpy(zero_copy_only=False) if not len(bits) else _indices(array.indices)
            known = self._dictionary_keys(name, array.dictionary)
            hashing.gather_keys(indices, known, bits, bit, constants, target, c)
            return
        if pt.is_null(array.type):
            target.keys[target.starts + c] = constants.missing
            return
        try:
            array, items = as_category(name, array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {name!r}: a {array.type} cannot be a category") from error
        bits, bit = validity(array)
        if isinstance(items, Numbers):
            hashing.integer_keys(items.data, bits, bit, constants, target, c)
        else:
            hashing.text_keys(items.data, items.offsets, bits, bit, constants, target, c)

    def _dictionary_keys(self, name: str, dictionary: pa.Array) -> Keys:
        known = self._dictionaries.get(name)
        if known is not None and _same_memory(known[0], dictionary):
            return known[1]
        keys = self._flat_keys(name, dictionary)
        self._dictionaries[name] = (dictionary, keys)
        return keys

    def _flat_keys(self, name: str, array: pa.Array) -> Keys:
        keys = np.empty(len(array), np.uint64)
        self._category_keys(name, array, hashing.Target(np.arange(len(array)), keys, _NO_VALUES), 0)
        return keys

    def _list_keys(self, batch: pa.RecordBatch, column: ColumnPlan) -> _ListKeys:
        array = _get(batch, column.name)
        if not pt.is_nested(array.type):
            raise DataError(f"column {column.name!r} must be a {column.type}, its type is {array.type}")
        offsets, children, items = _children(array)
        try:
            keys = self._flat_keys(column.name, children)
        except RowError as error:
            raise RowError(_list_of(offsets, error.row), error.message) from error
        if array.null_count:
            lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets), 0)
        else:
            lengths = np.diff(offsets)
        if items is None:
            distinct = np.empty(len(array), np.int64)
            # A null list may have a range of its own in Arrow; it has no keys.
            hashing.distinct_in_lists(offsets, keys, distinct)
            return _ListKeys(offsets, np.minimum(distinct, lengths), keys, _NO_VALUES)
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
        bad = np.flatnonzero((labels != 0) & (labels != 1))
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


def _get(batch: pa.RecordBatch, name: str) -> pa.Array:
    index = batch.schema.get_field_index(name)
    if index < 0:
        from penstock.features.spec import unknown_column

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
        with np.errstate(over="ignore"):
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


def _indices(indices: pa.Array) -> NDArray[Any]:
    dtype = indices.type.to_pandas_dtype()
    return np.frombuffer(indices.buffers()[1], dtype)[indices.offset : indices.offset + len(indices)]


def _same_memory(a: pa.Array, b: pa.Array) -> bool:
    if a is b:
        return True
    if len(a) != len(b) or a.offset != b.offset or a.type != b.type:
        return False
    addresses = [[x.address if x is not None else 0 for x in array.buffers()] for array in (a, b)]
    return addresses[0] == addresses[1]


def _first_rows(keys: Keys, wanted: Keys) -> list[tuple[int, int]]:
    unique, rows = np.unique(keys, return_index=True)
    kept = np.isin(unique, wanted, assume_unique=True)
    return list(zip(unique[kept].tolist(), rows[kept].tolist(), strict=True))


def _text(scalar: pa.Scalar) -> str:
    value = scalar.as_py()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _seed(text: str) -> np.uint64:
    """Seed of a column: the hash of its name."""
    data = np.frombuffer(text.encode(), np.uint8)
    keys = np.empty(1, np.uint64)
    # The prefix keeps a column called 17 from being taken as the integer.
    data = np.concatenate([np.frombuffer(b"\x1d", np.uint8), data])
    zero = np.uint64(0)
    column = hashing.Column(zero, zero, zero, np.int64(0), np.float64(0), np.float64(1))
    target = hashing.Target(np.zeros(1, np.int64), keys, _NO_VALUES)
    hashing.text_keys(data, np.array([0, len(data)], np.int64), _NO_BITS, 0, column, target, 0)
    return keys[0]  # type: ignore[no-any-return]


def _key_of_column(name: str) -> np.uint64:
    return _seed(name + "\x1fvalue")


def _column(plan: ColumnPlan) -> hashing.Column:
    return hashing.Column(
        seed=_seed(plan.name),
        key=_key_of_column(plan.name),
        missing=_seed(plan.name + "\x1fmissing"),
        how=np.int64(hashing.HOW_LOG if plan.kind == "log" else hashing.HOW_STANDARD),
        mean=np.float64(plan.mean),
        scale=np.float64(plan.scale),
    )
