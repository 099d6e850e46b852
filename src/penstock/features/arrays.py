"""Arrow arrays as the plain buffers that kernels take; the one place that knows Arrow's layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.errors import RowError

__all__ = ["Numbers", "Texts", "as_category", "as_numbers", "validity"]

_NO_BITS = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Texts:
    """Text i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int32] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Integers i64[n]."""

    data: NDArray[np.int64]


def validity(array: pa.Array) -> tuple[NDArray[np.uint8], int]:
    """Arrow's validity bitmap and the number of its first bit; an empty bitmap where nothing is null."""
    bitmap = array.buffers()[0]
    if bitmap is None or array.null_count == 0:
        return _NO_BITS, 0
    return np.frombuffer(bitmap, np.uint8), array.offset


def as_category(name: str, array: pa.Array) -> tuple[pa.Array, Texts | Numbers]:
    """An array of categories as texts or integers, and the (perhaps cast) array whose nulls count.

    Raises:
        RowError: a floating-point value that is not finite.
    """
    type_ = array.type
    if pt.is_integer(type_):
        if type_ != pa.uint64() or _fits(array):
            array = array.cast(pa.int64())
            return array, Numbers(_data(array, np.int64))
    elif pt.is_floating(type_):
        bad = pc.index(pc.is_finite(array), False).as_py()
        if bad >= 0:
            raise RowError(bad, f"column {name!r} is {array[bad].as_py()}; allowed: a finite number or null")
        try:
            array = array.cast(pa.int64())
            return array, Numbers(_data(array, np.int64))
        except pa.ArrowInvalid:
            # Not all are whole: by their shortest text, and whole ones by that of the integer.
            is_whole = pc.and_(pc.equal(pc.trunc(array), array), pc.less(pc.abs(array), 2.0**63))
            whole = pc.if_else(is_whole, array, None).cast(pa.int64(), safe=False)
            array = pc.coalesce(whole.cast(pa.string()), array.cast(pa.string()))
    if pt.is_decimal(type_):
        return as_category(name, array.cast(pa.float64()))
    if not (pt.is_string(type_) or pt.is_binary(type_) or pt.is_large_string(type_) or pt.is_large_binary(type_)):
        array = array.cast(pa.large_string() if pt.is_string_view(type_) else pa.string())
    wide = pt.is_large_string(array.type) or pt.is_large_binary(array.type)
    offset_type: Any = np.int64 if wide else np.int32
    _, offsets, data = array.buffers()
    begins = np.frombuffer(offsets, offset_type)[array.offset : array.offset + len(array) + 1]
    return array, Texts(np.frombuffer(data, np.uint8) if data is not None else _NO_BITS, begins)


def as_numbers(array: pa.Array) -> tuple[pa.Array, NDArray[np.float32] | NDArray[np.float64]]:
    """An array of numbers as f32 or f64, without looking at nulls."""
    if array.type == pa.float32():
        return array, _data(array, np.float32)
    if pt.is_boolean(array.type):
        array = array.cast(pa.uint8())
    array = array.cast(pa.float64(), safe=False)
    return array, _data(array, np.float64)


def _fits(array: pa.Array) -> bool:
    largest = pc.max(array).as_py()
    return largest is None or largest < 2**63


def _data(array: pa.Array, dtype: Any) -> NDArray[Any]:
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), dtype)
    # Arrow may pad a buffer to any size.
    return np.frombuffer(buffer, dtype, array.offset + len(array))[array.offset :]
