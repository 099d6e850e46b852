"""Columns to keys: one 64-bit hash for a column and a value, whatever type the value came in.

A text that is a canonical integer (``17``, ``-3``, not ``017`` or ``+3``) hashes as that integer. Each kernel
writes one or more columns of a batch: the key of row i goes to ``keys[starts[i] + c]``; values are 1 before, and
few kernels write others. A validity bitmap is Arrow's (least significant bit first); an empty one says that
nothing is missing.
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
    "NumberColumns",
    "Target",
    "TextColumns",
    "constant_keys",
    "copy_lists",
    "cross_keys",
    "distinct_in_lists",
    "gather_keys",
    "integer_keys",
    "many_text_keys",
    "number_keys",
    "text_hash",
    "text_keys",
]

U0, U1, U3, U7, U8, U10 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(8), np.uint64(10)
U4 = np.uint64(4)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
LOW_BYTE, HIGHS = np.uint64(0xFF), np.uint64(0xF0F0F0F0F0F0F0F0)
SIXES, THREES = np.uint64(0x0606060606060606), np.uint64(0x3333333333333333)
MINUS, ZERO_DIGIT, ZEROS = np.uint64(45), np.uint64(48), np.uint64(0x3030303030303030)
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
    """Constants of one column of categories."""

    seed: np.uint64
    missing: np.uint64


class TextColumns(NamedTuple):
    """Constants of T columns of categories, each an array of T."""

    seeds: NDArray[np.uint64]
    missing: NDArray[np.uint64]


class NumberColumns(NamedTuple):
    """Constants of N columns of numbers, each an array of N."""

    keys: NDArray[np.uint64]
    """Of a number that is a value."""
    seeds: NDArray[np.uint64]
    """Of a number that is a bucket."""
    missing: NDArray[np.uint64]
    how: NDArray[np.int64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    """A number x becomes ``(x - mean) * scale``, or with HOW_LOG the bucket of ``x`` with ``scale`` an octave."""
    places: NDArray[np.int64]
    """Where each stands in an example."""


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
def low_bytes(word: Any, n: Any) -> Any:
    """The first ``n`` of a word's 8 bytes, the others 0; for n from 1 to 8."""
    return word & (ALL >> (U8 * np.uint64(8 - n)))


@inlined
def may_be_integer(word: Any, n: Any) -> Any:
    """Whether the first ``n`` (1 to 8) bytes of a word are digits, but for a minus in front, without a branch.

    A hexadecimal text is told from an integer where the first letter stands, which no processor predicts.
    """
    word = low_bytes(word, n) | (ZEROS & ~low_bytes(ALL, n))
    if word & LOW_BYTE == MINUS:
        word ^= MINUS ^ ZERO_DIGIT
    return (word & HIGHS) | (((word + SIXES) & HIGHS) >> U4) == THREES


@inlined
def text_hash(data: Any, size: Any, begin: Any, end: Any) -> Any:
    """Hash of the bytes ``begin`` to ``end`` of ``data``, which has ``size`` bytes; 8 bytes at a time."""
    is_integer, value = False, U0
    if begin + 8 > size or may_be_integer(load8(data, begin), min(end - begin, 8)):
        is_integer, value = canonical_integer(data, begin, end)
    if is_integer:
        hashed = integer_hash(value)
    else:
        hashed = TEXT + np.uint64(end - begin) * LENGTH
        at = begin
        while end - at > 8:
            hashed = mix(hashed ^ load8(data, at))
            at += 8
        if at + 8 <= size:
            tail = low_bytes(load8(data, at), end - at)
        else:
            tail = U0
            for i in range(end - at):
                tail |= np.uint64(data[at + i]) << (np.uint64(i) * U8)
        hashed = mix(hashed ^ tail)
    return hashed


@kernel
def constant_keys(key: Any, batch: Any, c: int) -> None:
    """The same key in every row."""
    starts, keys = pointer(batch.starts), pointer(batch.keys)
    for i in range(batch.starts.size):
        keys[starts[i] + c] = key


@kernel
def text_keys(data: Any, offsets: Any, bitmap: Any, bit: int, column: Any, batch: Any, c: int) -> None:
    """Keys of a text column: value i is ``data[offsets[i]:offsets[i + 1]]``, its bit ``bit + i``.

    An empty text is missing. ``["a", "", "17"]`` gives ``[key(a), missing, integer_keys([17])[0]]``.
    """
    text, valid, starts = pointer(data), pointer(bitmap), pointer(batch.starts)
    keys = pointer(batch.keys)
    for i in range(batch.starts.size):
        begin, end = np.int64(offsets[i]), np.int64(offsets[i + 1])
        key = column.missing
        if end > begin and is_valid(valid, bitmap.size, bit + i):
            key = seal(column.seed, text_hash(text, data.size, begin, end))
        keys[starts[i] + c] = key


@kernel
def many_text_keys(data: Any, offsets: Any, bitmap: Any, bit: int, columns: Any, keys: Any) -> None:
    """``text_keys`` of T text columns at once: value ``j * B + i`` is that of column j in row i.

    Args:
        data, offsets, bitmap, bit: of T * B texts, as ``text_keys`` takes them
        columns: ``TextColumns``
        keys: u64[T, B], to be written
    """
    text, valid = pointer(data), pointer(bitmap)
    B = keys.shape[1]
    for j in range(keys.shape[0]):
        seed, missing = columns.seeds[j], columns.missing[j]
        for i in range(B):
            n = j * B + i
            begin, end = np.int64(offsets[n]), np.int64(offsets[n + 1])
            key = missing
            if end > begin and is_valid(valid, bitmap.size, bit + n):
                key = seal(seed, text_hash(text, data.size, begin, end))
            keys[j, i] = key


@kernel
def integer_keys(numbers: Any, bitmap: Any, bit: int, column: Any, batch: Any, c: int) -> None:
    """Keys of an integer column, i64[B]."""
    valid, starts = pointer(bitmap), pointer(batch.starts)
    keys = pointer(batch.keys)
    for i in range(batch.starts.size):
        key = column.missing
        if is_valid(valid, bitmap.size, bit + i):
            key = seal(column.seed, integer_hash(numbers[i]))
        keys[starts[i] + c] = key


@kernel
def gather_keys(indices: Any, known: Any, begins: Any, places: Any, batch: Any) -> int:
    """Keys of N dictionary columns: that of row i and column j is ``known[begins[j] + indices[j, i]]``.

    Returns the first column of which an index is outside of its dictionary, or -1.

    Args:
        indices: i32[N, B]
        known: keys of all dictionaries, end to end
        begins: i64[N + 1], where in ``known`` each begins, and the last ends
        places: i64[N], where each column stands in an example
        batch: ``Target``
    """
    starts, table = pointer(batch.starts), pointer(known)
    keys = pointer(batch.keys)
    for j in range(places.size):
        begin, place, column = begins[j], places[j], indices[j]
        size = np.uint64(begins[j + 1] - begin)
        # Column by column: a dictionary's keys stay in the second-level cache. Row by row takes twice as long.
        for i in range(batch.starts.size):
            index = column[i]
            if np.uint64(index) >= size:  # below 0 is very large
                return j
            keys[starts[i] + place] = table[begin + index]
    return -1


@kernel
def number_keys(numbers: Any, absent: Any, columns: Any, batch: Any) -> int:
    """Keys and values of N number columns; returns ``j * B + i`` of the first that is not finite, or -1.

    As a value: ``(x - mean) * scale`` under the column's one key. As HOW_LOG: value 1 under the key of
    ``sign(x) * round(log2(1 + abs(x)) * scale)``. What is missing has value 1 under a key of its own.

    Args:
        numbers: f64[N, B]
        absent: bool[N, B], which are missing; empty where none is
        columns: ``NumberColumns``
        batch: ``Target``; its values must not be empty where a column is to have some
    """
    starts, keys, values = pointer(batch.starts), pointer(batch.keys), pointer(batch.values)
    has_values, has_absent = batch.values.size > 0, absent.size > 0
    B = batch.starts.size
    for j in range(columns.places.size):
        column, place, how = numbers[j], columns.places[j], columns.how[j]
        mean, scale = columns.mean[j], columns.scale[j]
        for i in range(B):
            key, value, x = columns.keys[j], F1, column[i]
            if has_absent and absent[j, i]:
                key = columns.missing[j]
            elif how == HOW_LOG:
                if not math.isfinite(x):
                    return j * B + i  # type: ignore[no-any-return]
                bucket = np.int64(math.floor(math.log2(1.0 + abs(x)) * scale + 0.5))
                key = seal(columns.seeds[j], integer_hash(-bucket if x < 0 else bucket))
            else:
                value = np.float32((x - mean) * scale)
                if not math.isfinite(value):
                    return j * B + i  # type: ignore[no-any-return]
            keys[starts[i] + place] = key
            if has_values:
                values[starts[i] + place] = value
    return -1


@kernel
def cross_keys(parts: Any, seed: Any, batch: Any, c: int) -> None:
    """Key of the combination of P single keys, ``parts`` u64[P, B]; the order of the parts matters."""
    starts, keys = pointer(batch.starts), pointer(batch.keys)
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
        n: Any = np.int64(0)
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
