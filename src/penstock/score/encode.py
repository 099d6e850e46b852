"""Rows to keys and values, by the feature plan of an exported model; the same as ``penstock.features`` computes.

Rows are plain objects as JSON has them. Layout of an example: bias, single columns in the plan's order, crosses,
then lists and maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ConfigError, RowError
from penstock.score import hashing
from penstock.score.hashing import Keys
from penstock.score.values import as_column, category, number, shown, weighted

__all__ = ["HASHING_VERSION", "Encoded", "Row", "RowEncoder"]

HASHING_VERSION = 1
"""Of ``FeaturePlan.version``, which this code computes."""

Row = Mapping[str, Any]
Floats = NDArray[np.float32]
T = TypeVar("T")

_PLAIN_NUMBERS = frozenset((float, int, bool, type(None)))
_PLAIN_TEXTS = frozenset((str, type(None)))
_LONG_LIST = 64


@dataclass(frozen=True, eq=False)
class Encoded:
    """Keys of B rows: those of row i are ``keys[offsets[i]:offsets[i + 1]]``."""

    keys: Keys
    values: Floats
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Rows."""
        return len(self.offsets) - 1

    def padded(self) -> tuple[NDArray[np.int64], Floats]:
        """The same as tensors i64[B, n] and f32[B, n]; short rows end in keys 0, which no model has."""
        sizes = np.diff(self.offsets)
        inside = np.arange(sizes.max(initial=0)) < sizes[:, None]
        keys, values = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.float32)
        keys[inside], values[inside] = self.keys.view(np.int64), self.values
        return keys, values


class RowEncoder:
    """Computes the keys of a plan. Holds no state between calls, so any number of threads may share it."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """Prepare for a plan, as a model's manifest or an exported file has it under ``features``.

        Raises:
            ConfigError: the plan is damaged, or its keys are of another version of the hashing.
        """
        try:
            self._prepare(plan)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"feature plan: damaged: {type(error).__name__}: {error}") from error

    def _prepare(self, plan: Mapping[str, Any]) -> None:
        if plan["version"] != HASHING_VERSION:
            raise ConfigError(f"features of hashing version {plan['version']}; allowed: {HASHING_VERSION}")
        columns = plan["columns"]
        for column in columns:
            if column["kind"] not in ("standard", "raw", "log", "categorical", "list", "map"):
                raise ConfigError(f"feature plan: column {column['name']!r} is of unknown kind {column['kind']!r}")
        crosses = [list(cross) for cross in plan["crosses"]]
        crossed = [name for cross in crosses for name in cross]
        first = int(plan["bias"])
        singles = [column for column in columns if column["kind"] not in ("list", "map")]
        places = {column["name"]: first + i for i, column in enumerate(singles)}
        categories = [column["name"] for column in singles if column["kind"] == "categorical"]
        self.inputs: list[str] = list(dict.fromkeys([column["name"] for column in columns] + crossed))
        """Columns that rows may have; others are ignored."""
        self._known = frozenset(self.inputs)
        self._bias = hashing.number_keys([hashing.BIAS]) if plan["bias"] else None
        self._width = first + len(singles) + len(crosses)
        self._numbers = _Numbers([column for column in singles if column["kind"] != "categorical"], places)
        self._texts = list(dict.fromkeys(categories + crossed))
        self._text_seeds, self._text_missing = hashing.seeds(self._texts), hashing.missing_keys(self._texts)
        self._text_places = [places[name] for name in categories]
        self._cross_seeds = hashing.seeds("\x1f".join(cross) for cross in crosses)
        self._crosses = [[self._texts.index(name) for name in cross] for cross in crosses]
        # A column of numbers may be crossed, too.
        types = {column["name"]: column["type"] for column in singles if column["kind"] != "categorical"}
        self._number_texts = {j: types[name] for j, name in enumerate(self._texts) if name in types}
        self._lists = [_List(column) for column in columns if column["kind"] in ("list", "map")]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Keys of rows: objects of columns. A column that a row lacks is missing in it, as None is.

        Raises:
            RowError: a row is no object, has none of the columns, or a value is not allowed.
        """
        for n, row in enumerate(rows):
            if not isinstance(row, dict):
                raise RowError(n, f"got {shown(row)}, allowed: an object of columns")
            if self._known.isdisjoint(row):
                raise RowError(n, f"has none of the model's columns; they are {_listed(self.inputs)}")
        B = len(rows)
        keys, values = np.empty((B, self._width), np.uint64), np.ones((B, self._width), np.float32)
        if self._bias is not None:
            keys[:, 0] = self._bias
        self._numbers.write(rows, keys, values)
        if self._texts:
            found = self._text_keys(rows)
            keys[:, self._text_places] = found[: len(self._text_places)].T
            place = self._width - len(self._crosses)
            for n, parts in enumerate(self._crosses):
                keys[:, place + n] = hashing.seal(self._cross_seeds[n], hashing.cross_hashes(found[parts]))
        if not self._lists:
            offsets = np.arange(0, B * self._width + 1, self._width) if self._width else np.zeros(B + 1, np.int64)
            return Encoded(keys.reshape(-1), values.reshape(-1), offsets)
        parts_of_rows = [(keys, values, np.full(B, self._width))]
        parts_of_rows += [column.keys(rows) for column in self._lists]
        return _joined(parts_of_rows)

    def _text_keys(self, rows: Sequence[Row]) -> Keys:
        """Keys u64[T, B] of the columns of categories."""
        B = len(rows)
        texts = [row.get(name) for name in self._texts for row in rows]
        for j, type_ in self._number_texts.items():
            texts[j * B : j * B + B] = [as_column(text, type_) for text in texts[j * B : j * B + B]]
        try:
            if _PLAIN_TEXTS.issuperset(map(type, texts)):
                encoded = [text.encode() if text else b"" for text in texts]
            else:
                encoded = [category(text) for text in texts]
        except (TypeError, ValueError):
            encoded = [b for name in self._texts for b in _column(rows, name, category, _A_CATEGORY)]
        seeds, missing = np.repeat(self._text_seeds, B), np.repeat(self._text_missing, B)
        present = np.fromiter(map(bool, encoded), np.bool_, len(encoded))
        keys = np.where(present, hashing.seal(seeds, hashing.text_hashes(encoded)), missing)
        return keys.reshape(len(self._texts), B)


class _Numbers:
    """Columns of kinds raw, standard and log."""

    def __init__(self, columns: Sequence[Mapping[str, Any]], places: Mapping[str, int]) -> None:
        self._names = [str(column["name"]) for column in columns]
        self._places = [places[name] for name in self._names]
        # Those that were f32 in training are rounded to it.
        self._narrow = [j for j, column in enumerate(columns) if column["type"] in ("float", "halffloat")]
        self._keys, self._missing = hashing.number_keys(self._names), hashing.missing_keys(self._names)
        self._seeds = hashing.seeds(self._names)
        self._log = [j for j, column in enumerate(columns) if column["kind"] == "log"]
        # Shapes [N, 1], against numbers [N, B].
        self._mean, self._scale = (
            np.array([[float(column[what])] for column in columns]).reshape(-1, 1) for what in ("mean", "scale")
        )

    def write(self, rows: Sequence[Row], keys: Keys, values: Floats) -> None:
        if not self._names:
            return
        B = len(rows)
        found: list[Any] = [row.get(name) for name in self._names for row in rows]
        try:
            if not _PLAIN_NUMBERS.issuperset(map(type, found)):
                raise TypeError
            numbers = np.array(found, np.float64)
        except (TypeError, ValueError, OverflowError):
            found = [x for name in self._names for x in _column(rows, name, number, "a number")]
            numbers = np.array(found, np.float64)
        numbers = numbers.reshape(len(self._names), B)
        absent = np.array([x is None for x in found], np.bool_).reshape(numbers.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._narrow:
                numbers[self._narrow] = numbers[self._narrow].astype(np.float32)
            scaled = ((numbers - self._mean) * self._scale).astype(np.float32)
        scaled[self._log] = 1
        refused = ~(np.isfinite(scaled) & np.isfinite(numbers) | absent)
        if refused.any():
            j, row = np.argwhere(refused)[0].tolist()
            got = rows[row][self._names[j]]
            raise RowError(
                row, f"column {self._names[j]!r} is {shown(got)}; allowed: a finite f32 number, or null"
            )
        scaled[absent] = 1
        column_keys = np.broadcast_to(self._keys[:, None], numbers.shape).copy()
        for j in self._log:
            column_keys[j] = hashing.seal(self._seeds[j], self._buckets(j, numbers[j]))
        column_keys = np.where(absent, self._missing[:, None], column_keys)
        keys[:, self._places], values[:, self._places] = column_keys.T, scaled.T

    def _buckets(self, j: int, numbers: NDArray[np.float64]) -> Keys:
        """Hashes of ``sign(x) * round(log2(1 + abs(x)) * scale)``."""
        # NumPy's own log2 may differ in the last bit from that of the C library, which kernels call.
        logs = np.array([math.log2(1.0 + abs(x)) if math.isfinite(x) else 0.0 for x in numbers.tolist()])
        buckets = np.floor(logs * self._scale[j] + 0.5).astype(np.int64)
        return hashing.integer_hashes(np.where(numbers < 0, -buckets, buckets).view(np.uint64))


class _List:
    """A column of lists, which are sets of categories, or of maps, which are weighted ones."""

    def __init__(self, column: Mapping[str, Any]) -> None:
        self._name = str(column["name"])
        self._is_map = column["kind"] == "map"
        self._seed, self._missing = hashing.seeds([self._name]), hashing.missing_keys([self._name])

    def keys(self, rows: Sequence[Row]) -> tuple[Keys, Floats, NDArray[np.int64]]:
        """Keys and values of all rows, end to end, and how many each has."""
        if self._is_map:
            return self._map_keys(rows)
        lists = [
            items or [] for items in _column(rows, self._name, _categories, "a list of texts, numbers or booleans")
        ]
        hashed = self._hashed([text for items in lists for text in items]).tolist()
        kept: list[int] = []
        lengths: list[int] = []
        begin = 0
        for items in lists:
            found = hashed[begin : begin + len(items)]
            # Training sorts long lists before it drops what is there twice.
            distinct = sorted(set(found)) if len(items) > _LONG_LIST else dict.fromkeys(found)
            kept.extend(distinct)
            lengths.append(len(distinct))
            begin += len(items)
        return np.array(kept, np.uint64), np.ones(len(kept), np.float32), np.array(lengths, np.int64)

    def _map_keys(self, rows: Sequence[Row]) -> tuple[Keys, Floats, NDArray[np.int64]]:
        maps = [entries or [] for entries in _column(rows, self._name, weighted, "an object of numbers")]
        entries = [entry for one in maps for entry in one]
        lengths = np.array([len(one) for one in maps], np.int64)
        with np.errstate(over="ignore"):
            values = np.array([weight for _, weight in entries], np.float64).astype(np.float32)
        refused = np.flatnonzero(~np.isfinite(values))
        if len(refused):
            row = int(np.searchsorted(np.cumsum(lengths), refused[0], side="right"))
            got = entries[int(refused[0])][1]
            raise RowError(row, f"column {self._name!r} has the value {got}; allowed: finite f32 numbers")
        return self._hashed([text for text, _ in entries]), values, lengths

    def _hashed(self, texts: Sequence[bytes]) -> Keys:
        present = np.array([bool(text) for text in texts], np.bool_)
        return np.where(present, hashing.seal(self._seed, hashing.text_hashes(texts)), self._missing)


_A_CATEGORY = "text, a number or a boolean"


def _categories(value: Any) -> list[bytes]:
    if not isinstance(value, list):
        raise TypeError
    return [category(item) for item in value]


def _column(rows: Sequence[Row], name: str, convert: Callable[[Any], T], allowed: str) -> list[T | None]:
    """A column's values, converted, one by one."""
    found: list[T | None] = []
    for n, row in enumerate(rows):
        value = row.get(name)
        try:
            found.append(None if value is None else convert(value))
        except (TypeError, ValueError) as error:
            raise RowError(n, f"column {name!r} is {shown(value)}; allowed: {allowed}, or null") from error
    return found


def _joined(parts: Sequence[tuple[Keys, Floats, NDArray[np.int64]]]) -> Encoded:
    """Parts of rows, side by side: each is keys and values of all rows, end to end, and how many a row has."""
    lengths = np.sum([part[2] for part in parts], axis=0, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    keys, values = np.empty(offsets[-1], np.uint64), np.empty(offsets[-1], np.float32)
    begins = offsets[:-1].copy()
    for part_keys, part_values, sizes in parts:
        ends = np.cumsum(sizes)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - sizes), sizes)
        keys[at], values[at] = part_keys.reshape(-1), part_values.reshape(-1)
        begins += sizes
    return Encoded(keys, values, offsets)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 8 else f"{', '.join(names[:5])}, ... ({len(names)} columns)"
