"""Columns of numbers to keys and values, all of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.errors import DataError, RowError
from penstock.features.arrays import as_numbers
from penstock.features.categories import key_of_missing, key_of_number, seed_of
from penstock.features.memory import Memory
from penstock.features.spec import ColumnPlan
from penstock.kernels import hashing

__all__ = ["NumericColumns"]

_NONE_ABSENT = np.empty((0, 0), np.bool_)


class NumericColumns:
    """Columns of kinds raw, standard and log, each with its place in an example."""

    def __init__(self, places: Sequence[tuple[int, ColumnPlan]]) -> None:
        columns = [column for _, column in places]
        self._memory = Memory()
        self.names = [column.name for column in columns]
        log, standard = np.int64(hashing.HOW_LOG), np.int64(hashing.HOW_STANDARD)
        self._columns = hashing.NumberColumns(
            keys=np.array([key_of_number(name) for name in self.names], np.uint64),
            seeds=np.array([seed_of(name) for name in self.names], np.uint64),
            missing=np.array([key_of_missing(name) for name in self.names], np.uint64),
            how=np.array([log if column.kind == "log" else standard for column in columns], np.int64),
            mean=np.array([column.mean for column in columns], np.float64),
            scale=np.array([column.scale for column in columns], np.float64),
            places=np.array([c for c, _ in places], np.int64),
        )

    def write(self, arrays: Sequence[pa.Array], target: hashing.Target) -> None:
        """Write the keys and values of a batch's columns, given in the order of ``names``.

        Raises:
            RowError: a number that is not finite.
            DataError: a column is not numeric.
        """
        if not arrays:
            return
        arrays = [array.dictionary_decode() if pt.is_dictionary(array.type) else array for array in arrays]
        shape = (len(arrays), len(target.starts))
        numbers = self._memory.array("numbers", shape, np.float64)
        some_absent = any(array.null_count for array in arrays)
        absent = self._memory.array("absent", shape, np.bool_) if some_absent else _NONE_ABSENT
        for j, array in enumerate(arrays):
            try:
                numbers[j] = as_numbers(array)[1]
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(f"column {self.names[j]!r} must be numeric, its type is {array.type}") from error
            if some_absent:
                absent[j] = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else False
        bad = self.write_numbers(numbers, absent, target)
        if bad >= 0:
            j, row = divmod(bad, len(target.starts))
            got = arrays[j][row].as_py()
            raise RowError(row, f"column {self.names[j]!r} is {got}; allowed: a finite f32 number, or null")

    def write_numbers(
        self, numbers: NDArray[np.float64], absent: NDArray[np.bool_], target: hashing.Target
    ) -> int:
        """The same of numbers f64[N, B], of which some may be absent; see ``hashing.number_keys``."""
        return hashing.number_keys(numbers, absent, self._columns, target)
