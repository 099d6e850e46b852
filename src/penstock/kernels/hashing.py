"""Columns to keys: one 64-bit hash for a column and a value, whatever type the value came in.

A text that is a canonical integer (``17``, ``-3``, not ``017`` or ``+3``) hashes as that integer. Each kernel
writes one column of a batch: the key of row i goes to ``keys[starts[i] + c]``. A validity bitmap is Arrow's
(least significant bit first); an empty one says that nothing is missing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.compile import inlined, kernel, load8, pointer

__all__ = [
    "HOW_LOG",
    "HOW_STANDARD",
    "Column",
    "Target",
    "copy_lists",
    "cross_keys",
    "distinct_in_lists",
    "gather_keys",
    "integer_keys",
    "numeric_keys",
    "text_hash",
    "text_keys",
]

U0, U1, U3, U7, U8, U10 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(8), np.uint64(10)
LARGEST = np.uint64((1 << 63) - 1)
EVEN = np.uint64(0xFFFFFFFFFFFFFFFE)
INTEGER = np.uint64(0x9AE16A3B2F90404F)
TEXT = np.uint64(0xC3A5C85C97CB3127)
LENGTH = np.uint64(0x9E3779B97F4A7C15)
M1, M2 = np.uint64(0x3C79AC492BA7B653), np.uint64(0x1C69B3F74AC4AE35)
S27, S33, S56 = np.uint64(27), np.uint64(33), np.uint64(56)
HOW_STANDARD, HOW_LOG = 0, 1
F1 = np.float32(1)


class Column(NamedTuple):
    """Constants of one column."""

    seed: np.uint64
    key: np.uint64
    """The key of a number that is a value, not a category."""
    missing: np.uint64
    how: np.int64
    mean: np.float64
    scale: np.float64
    """A number x becomes ``(x - mean) * scale``, or with HOW_LOG the bucket of ``x`` with ``scale`` an octave."""


class Target(NamedTuple):
    """The batch that a column is written to."""

    starts: NDArray[np.int64]
    keys: NDArray[np.uint64]
    values: NDArray[np.float32]
    """Empty when every value is 1."""


@inlined
def mix(x: Any) -> Any:
    """A bijection of u64 that spreads every bit over all (Evensen 2019, "Moremur")."""
    x = (x ^ (x >> S27)) * M1
    x = (x ^ (x >> S33)) * M2
    return x ^ (x >> S27)


@inlined
def seal(seed: Any, hashed: Any) -> Any:
    """Key of a hashed value in the column of this seed: even and not 0."""
    key = mix(hashed ^ seed) & EVEN
    return key if key != U0 else np.uint64(2)


@inlined
def integer_hash(value: Any) -> Any:
    """Hash of an integer."""
    return mix(np.uint64(value) + INTEGER)


@inlined
def is_valid(bitmap: Any, n_bytes: Any, index: Any) -> Any:
    """Whether Arrow's bit ``index`` is set, or there is no bitmap."""
    valid = True
    if n_bytes > 0:
        valid = (bitmap[index >> 3] >> (index & 7)) & 1 != 0
    return valid


@inlined
def canonical_integer(data: Any, begin: Any, end: Any) -> Any:
    """(True, value modulo 2^64) for the text of an i64 as a computer prints it, else (False, anything)."""
    at = begin
    negative = False
    if end - at > 1 and data[at] == 45:
        negative = True
        at += 1
    digits = end - at
    ok = 0 < digits <= 19 and not (data[at] == 48 and (digits > 1 or negative))
    value = U0
    if ok:
        for i in range(at, end):
            digit = np.int64(data[i]) - 48
            if digit < 0 or digit > 9:
                ok = False
                break
            value = value * U10 + np.uint64(digit)
        ok = ok and value <= LARGEST + np.uint64(negative)
    return ok, (U0 - value if negative else value)


@inlined
def text_hash(data: Any, size: Any, begin: Any, end: Any) -> Any:
    """Hash of the bytes ``begin`` to ``end`` of ``data``, which has ``size`` bytes; 8 bytes at a time."""
    is_integer, value = canonical_integer(data, begin, end)
    if is_integer:
        hashed = integer_hash(value)
    else:
        hashed = TEXT + np.uint64(end - begin) * LENGTH
        at = begin
        while end - at > 8:
            hashed = mix(hashed ^ load8(data, at))
            at += 8
        rest = end - at
        if at + 8 <= size:
            tail = load8(data, at)
            if rest < 8:
                tail &= (U1 << (np.uint64(rest) * U8)) - U1
        else:
            tail = U0
            for i in range(rest):
                tail |= np.uint64(data[at + i]) << (np.uint64(i) * U8)
        hashed = mix(hashed ^ tail)
    return hashed


@kernel
def text_keys(data: Any, offsets: Any, bitmap: Any, bit: int, column: Any, batch: Any, c: int) -> None:
    """Keys of a text column: value i is ``data[offsets[i]:offsets[i + 1]]``, its bit ``bit + i``.

    An empty text is missing. ``["a", "", "17"]`` gives ``[key(a), missing, integer_keys([17])[0]]``.
    """
    text, valid, starts, keys = pointer(data), pointer(bitmap), pointer(batch.starts), pointer(batch.keys)
    for i in range(batch.starts.size):
        begin, end = np.int64(offsets[i]), np.int64(offsets[i + 1])
        if end > begin and is_valid(valid, bitmap.size, bit + i):
            keys[starts[i] + c] = seal(column.seed, text_hash(text, data.size, begin, end))
        else:
            keys[starts[i] + c] = column.missing


@kernel
def integer_keys(numbers: Any, bitmap: Any, bit: int, column: Any, batch: Any, c: int) -> None:
    """Keys of an integer column, i64[B]."""
    valid, starts, keys = pointer(bitmap), pointer(batch.starts), pointer(batch.keys)
    for i in range(batch.starts.size):
        if is_valid(valid, bitmap.size, bit + i):
            keys[starts[i] + c] = seal(column.seed, integer_hash(numbers[i]))
        else:
            keys[starts[i] + c] = column.missing


@kernel
def gather_keys(
    indices: Any, dictionary_keys: Any, bitmap: Any, bit: int, column: Any, batch: Any, c: int
) -> None:
    """Keys of a dictionary column: ``dictionary_keys[indices[i]]``."""
    valid, starts, keys = pointer(bitmap), pointer(batch.starts), pointer(batch.keys)
    known = pointer(dictionary_keys)
    for i in range(batch.starts.size):
        if is_valid(valid, bitmap.size, bit + i):
            keys[starts[i] + c] = known[indices[i]]
        else:
            keys[starts[i] + c] = column.missing


@kernel
def numeric_keys(numbers: Any, bitmap: Any, bit: int, column: Any, batch: Any, c: int) -> int:
    """Keys and values of a number column, f32[B] or f64[B]; returns the first row that is not finite, or -1.

    As a value: ``(x - mean) * scale`` under the column's one key. As HOW_LOG: value 1 under the key of
    ``sign(x) * round(log2(1 + abs(x)) * scale)``. What is missing has value 1 under a key of its own.
    """
    valid, starts, keys = pointer(bitmap), pointer(batch.starts), pointer(batch.keys)
    values = pointer(batch.values)
    has_values = batch.values.size > 0
    for i in range(batch.starts.size):
        key, value = column.missing, F1
        if is_valid(valid, bitmap.size, bit + i):
            x = np.float64(numbers[i])
            if column.how == HOW_LOG:
                if not math.isfinite(x):
                    return i
                bucket = np.int64(math.floor(math.log2(1.0 + abs(x)) * column.scale + 0.5))
                key = seal(column.seed, integer_hash(-bucket if x < 0 else bucket))
            else:
                key = column.key
                value = np.float32((x - column.mean) * column.scale)
                if not math.isfinite(value):
                    return i
        keys[starts[i] + c] = key
        if has_values:
            values[starts[i] + c] = value
    return -1


@kernel
def cross_keys(parts: Any, seed: Any, batch: Any, c: int) -> None:
    """Key of the combination of P single keys, ``parts`` u64[P, B]; the order of the parts matters."""
    keys, starts = pointer(batch.keys), pointer(batch.starts)
    for i in range(batch.starts.size):
        hashed = U0
        for p in range(parts.shape[0]):
            hashed = mix(hashed + parts[p, i])
        keys[starts[i] + c] = seal(seed, hashed)


@kernel
def distinct_in_lists(offsets: Any, keys: Any, lengths: Any) -> None:
    """Keep the first of equal keys in each list, moved to the list's front; ``lengths`` i64[B] of what is left.

    ``offsets = [0, 3], keys = [8, 6, 8]`` gives ``keys = [8, 6, -], lengths = [2]``.
    """
    for i in range(lengths.size):
        begin, end = offsets[i], offsets[i + 1]
        n = np.int64(0)
        # Long lists are sorted first, so that equal keys are neighbours; short ones are searched.
        is_long = end - begin > 64
        if is_long:
            keys[begin:end].sort()
        for j in range(begin, end):
            seen = False
            for k in range(max(np.int64(0), n - 1) if is_long else np.int64(0), n):
                seen = seen or keys[begin + k] == keys[j]
            if not seen:
                keys[begin + n] = keys[j]
                n += 1
        lengths[i] = n


@kernel
def copy_lists(offsets: Any, lengths: Any, list_keys: Any, list_values: Any, batch: Any, begins: Any) -> None:
    """Copy each list's first ``lengths[i]`` keys and values to ``begins[i]``, which moves on behind them."""
    has_values = batch.values.size > 0
    for i in range(lengths.size):
        for j in range(lengths[i]):
            batch.keys[begins[i] + j] = list_keys[offsets[i] + j]
            if has_values:
                batch.values[begins[i] + j] = F1 if list_values.size == 0 else list_values[offsets[i] + j]
        begins[i] += lengths[i]
