"""The hash of ``penstock.kernels.hashing`` on arrays of NumPy: texts to keys, in vectors.

It is written a second time, since a kernel needs Numba. Tests hold both against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BIAS",
    "Keys",
    "cross_hashes",
    "integer_hashes",
    "missing_keys",
    "number_keys",
    "seal",
    "seeds",
    "text_hashes",
]

Keys = NDArray[np.uint64]

BIAS = "\x1e"
"""The bias as a column of numbers, under a name that no column of a user has."""

_INTEGER = np.uint64(0x9AE16A3B2F90404F)
_TEXT = np.uint64(0xC3A5C85C97CB3127)
_LENGTH = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0x3C79AC492BA7B653), np.uint64(0x1C69B3F74AC4AE35)
_S27, _S33 = np.uint64(27), np.uint64(33)
_EVEN = np.uint64(0xFFFFFFFFFFFFFFFE)
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_MINUS, _ZERO, _NINE = 45, 48, 57


def mix(x: Keys) -> Keys:
    """A bijection of u64 that spreads every bit over all (Evensen 2019, "Moremur")."""
    x = (x ^ (x >> _S27)) * _M1
    x = (x ^ (x >> _S33)) * _M2
    return x ^ (x >> _S27)


def seal(seeds: Keys | np.uint64, hashed: Keys) -> Keys:
    """Keys of hashed values in columns of these seeds: even and not 0."""
    keys = mix(hashed ^ seeds) & _EVEN
    keys[keys == 0] = 2
    return keys


def integer_hashes(values: Keys) -> Keys:
    """Hashes of integers, given modulo 2^64."""
    return mix(values + _INTEGER)


def cross_hashes(parts: Keys) -> Keys:
    """Hashes u64[n] of combinations of P keys, ``parts`` u64[P, n]; the order of the parts matters."""
    hashed = np.zeros(parts.shape[1], np.uint64)
    for keys in parts:
        hashed = mix(hashed + keys)
    return hashed


def text_hashes(texts: Sequence[bytes]) -> Keys:
    """Hashes u64[n] of UTF-8 texts, 8 bytes at a time; a canonical integer hashes as that integer.

    Those of empty texts mean nothing: such a value is missing.
    """
    data = np.frombuffer(b"".join(texts) + bytes(8), np.uint8)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(sizes)
    begins = ends - sizes
    # Little-endian words that begin at every byte.
    words: Keys = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, strides=(1,))
    hashed = sizes.astype(np.uint64) * _LENGTH + _TEXT
    for at in range(0, int(np.max(sizes, initial=0)), 8):
        left = sizes - at
        longer = np.flatnonzero(left > 0)
        word = words[begins[longer] + at] & _LOW_BYTES[np.minimum(left[longer], 8)]
        hashed[longer] = mix(hashed[longer] ^ word)
    first, last = data[begins], data[ends - 1]
    likely = (sizes > 0) & (sizes <= 20) & _is_digit(last) & (_is_digit(first) | (first == _MINUS))
    places = np.flatnonzero(likely).tolist()
    integers = [(n, value) for n in places if (value := _canonical_integer(texts[n])) is not None]
    if integers:
        found = np.array([value for _, value in integers], np.uint64)
        hashed[[n for n, _ in integers]] = integer_hashes(found)
    return hashed


def seeds(names: Iterable[str]) -> Keys:
    """Seeds u64[n] of columns, or of crosses by their columns' names: the hashes of the names."""
    # The prefix keeps a column called 17 from being taken as the integer.
    return seal(np.uint64(0), text_hashes([b"\x1d" + name.encode() for name in names]))


def number_keys(names: Iterable[str]) -> Keys:
    """Keys u64[n] of numbers that are values, not categories, by their columns."""
    return seeds(name + "\x1fvalue" for name in names)


def missing_keys(names: Iterable[str]) -> Keys:
    """Keys u64[n] of what is missing, by column."""
    return seeds(name + "\x1fmissing" for name in names)


def _is_digit(byte: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (byte >= _ZERO) & (byte <= _NINE)


def _canonical_integer(text: bytes) -> int | None:
    """The value modulo 2^64 of the text of an i64 as a computer prints it, else None."""
    digits = text[1:] if text[0] == _MINUS else text
    if not digits.isdigit() or (digits[0] == _ZERO and text != b"0"):
        return None
    value = int(text)
    return value & 0xFFFFFFFFFFFFFFFF if -(1 << 63) <= value < 1 << 63 else None
