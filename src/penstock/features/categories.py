"""Columns of categories to keys: texts, integers, and dictionaries of them, whose values are hashed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.batch import Keys
from penstock.errors import DataError
from penstock.features.arrays import Numbers, as_category, validity
from penstock.features.memory import Memory
from penstock.kernels import hashing

__all__ = ["BIAS", "Categories", "key_of_missing", "key_of_number", "seed_of"]

BIAS = "\x1e"
"""The bias as a column of numbers, under a name that no column of a user has."""

_NO_VALUES = np.empty(0, np.float32)
_NO_BITS = np.empty(0, np.uint8)

Place = tuple[int, str, pa.Array]
"""Where a column stands in an example, its name, and its array."""


def seed_of(name: str) -> np.uint64:
    """Seed of a column, or of a cross by its columns' names: the hash of the name."""
    # The prefix keeps a column called 17 from being taken as the integer.
    data = np.frombuffer(b"\x1d" + name.encode(), np.uint8)
    zero = np.uint64(0)
    target = hashing.Target(np.zeros(1, np.int64), np.empty(1, np.uint64), _NO_VALUES)
    hashing.text_keys(data, np.array([0, len(data)], np.int64), _NO_BITS, 0, hashing.Column(zero, zero), target, 0)
    return target.keys[0]  # type: ignore[no-any-return]


def key_of_number(name: str) -> np.uint64:
    """Key of a number that is a value, not a category."""
    return seed_of(name + "\x1fvalue")


def key_of_missing(name: str) -> np.uint64:
    """Key of what is missing in a column."""
    return seed_of(name + "\x1fmissing")


class Categories:
    """Keys of columns of categories, by their names. Not for two threads at once."""

    def __init__(self, names: Iterable[str]) -> None:
        self._columns = {name: hashing.Column(seed_of(name), key_of_missing(name)) for name in names}
        self._memory = Memory()
        # The dictionary is kept, so that no other can come to lie at its address.
        self._dictionaries: dict[str, tuple[pa.Array, Keys]] = {}
        self._joined: tuple[list[Keys], Keys, NDArray[np.int64]] = (
            [],
            np.empty(0, np.uint64),
            np.empty(0, np.int64),
        )

    def write(self, columns: Sequence[Place], target: hashing.Target) -> None:
        """Write the keys of columns of a batch.

        Raises:
            RowError: a number that is not finite.
            DataError: a column's type is not that of a category, or an index is outside of its dictionary.
        """
        indexed = [place for place in columns if _is_indexed(place[2])]
        if indexed:
            self._gather(indexed, target)
        for c, name, array in columns:
            if not _is_indexed(array):
                self._write_one(name, array, target, c)

    def keys(self, name: str, array: pa.Array) -> Keys:
        """Keys u64[n] of the values of an array; raises as ``write``."""
        target = hashing.Target(np.arange(len(array)), np.empty(len(array), np.uint64), _NO_VALUES)
        self.write([(0, name, array)], target)
        return target.keys

    def _write_one(self, name: str, array: pa.Array, target: hashing.Target, c: int) -> None:
        column = self._columns[name]
        if pt.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pt.is_null(array.type):
            hashing.constant_keys(column.missing, target, c)
            return
        try:
            array, items = as_category(name, array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {name!r}: a {array.type} cannot be a category") from error
        bits, bit = validity(array)
        if isinstance(items, Numbers):
            hashing.integer_keys(items.data, bits, bit, column, target, c)
        else:
            hashing.text_keys(items.data, items.offsets, bits, bit, column, target, c)

    def _gather(self, columns: Sequence[Place], target: hashing.Target) -> None:
        known, begins = self._join([self._dictionary_keys(name, array.dictionary) for _, name, array in columns])
        indices = self._memory.array("indices", (len(columns), len(target.starts)), np.int32)
        for row, (_, _, array) in zip(indices, columns, strict=True):
            row[:] = _indices(array)
        places = np.array([c for c, _, _ in columns])
        outside = hashing.gather_keys(indices, known, begins, places, target)
        if outside >= 0:
            raise DataError(f"column {columns[outside][1]!r}: an index is outside of its dictionary")

    def _join(self, parts: list[Keys]) -> tuple[Keys, NDArray[np.int64]]:
        """The keys of several dictionaries end to end, and their bounds; kept until one is another."""
        before, known, begins = self._joined
        if len(parts) != len(before) or not all(a is b for a, b in zip(parts, before, strict=True)):
            known = np.concatenate(parts)
            begins = np.cumsum([0, *(len(part) for part in parts)])
            self._joined = (parts, known, begins)
        return known, begins

    def _dictionary_keys(self, name: str, dictionary: pa.Array) -> Keys:
        """Keys of a dictionary's values, and behind them that of what is missing."""
        known = self._dictionaries.get(name)
        if known is not None and _same_memory(known[0], dictionary):
            return known[1]
        n = len(dictionary)
        keys = np.empty(n + 1, np.uint64)
        keys[n] = self._columns[name].missing
        self._write_one(name, dictionary, hashing.Target(np.arange(n), keys, _NO_VALUES), 0)
        self._dictionaries[name] = (dictionary, keys)
        return keys


def _is_indexed(array: pa.Array) -> bool:
    # A dictionary of floats is looked at row by row, so that a number that is not finite is found with its row.
    return bool(pt.is_dictionary(array.type) and not pt.is_floating(array.type.value_type))


def _indices(array: pa.DictionaryArray) -> NDArray[np.int32]:
    """Indices i32[n] into the dictionary; of what is missing, the place behind its end."""
    indices = array.indices
    if indices.null_count:
        indices = pc.fill_null(indices.cast(pa.int32()), len(array.dictionary))
    return indices.to_numpy()  # type: ignore[no-any-return]


def _same_memory(a: pa.Array, b: pa.Array) -> bool:
    if a is b:
        return True
    if len(a) != len(b) or a.offset != b.offset or a.type != b.type:
        return False
    addresses = [[x.address if x is not None else 0 for x in array.buffers()] for array in (a, b)]
    return addresses[0] == addresses[1]
