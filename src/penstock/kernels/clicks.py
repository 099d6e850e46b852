"""Columns of a synthetic click log out of random bits, and the logits that they add up to.

A weight is a hash of (column, value), so there is no table of weights: memory does not grow with the number
of values. Powers are made of additions and multiplications alone, so the same bits give the same values on
every machine. Which columns there are, and how they are scaled, is decided in ``penstock.data.clicks``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, kernel

__all__ = [
    "BELL",
    "COUNT",
    "SHAPES",
    "SKEWED",
    "add_weights",
    "draw_clicks",
    "draw_ids",
    "draw_numbers",
    "exp2",
    "log2",
    "write_hex",
]

SHAPES = 3
SKEWED, BELL, COUNT = range(SHAPES)
"""Shapes of a numeric column: 5 u^3, about normal, and the whole numbers 0 to 5."""

MISSING_BITS = 24
"""Low bits of a cell's 64 that say whether it is missing; the other 40 say which value it has."""

U1 = np.uint64(1)
U3 = np.uint64(3)
U4 = np.uint64(4)
U7 = np.uint64(7)
VALUE_SHIFT = np.uint64(MISSING_BITS)
MISSING_MASK = np.uint64((1 << MISSING_BITS) - 1)
TO_UNIT40 = 2.0**-40
TO_UNIT53 = 2.0**-53
LOW10 = np.uint64(0x3FF)
LOW16 = np.uint64(0xFFFF)

LN2 = math.log(2.0)
LOG2_E = 1.0 / LN2
SQRT2 = math.sqrt(2.0)
F64_FRACTION = np.int64((1 << 52) - 1)
F64_ONE = np.int64(1023 << 52)
F64_SHIFT = np.int64(52)
F64_BIAS = np.int64(1023)

# The sum of four uniform numbers is near enough to normal (Irwin-Hall), and exact on every machine.
SUM16_MEAN = 2.0 * 0xFFFF
PER_SUM16 = math.sqrt(3.0 / (65536.0**2 - 1.0))
SUM10_MEAN = 2.0 * 0x3FF
PER_SUM10 = math.sqrt(3.0 / (1024.0**2 - 1.0))


@inlined
def exp2(x: Any) -> Any:
    """2^x for abs(x) < 1000, to about 1e-11 of it: ``exp2(3.0) == 8``."""
    whole = math.floor(x + 0.5)
    f = (x - whole) * LN2
    # Taylor series of e^f for abs(f) <= ln(2) / 2.
    y = 1.0 / 40320.0 + f * (1.0 / 362880.0)
    y = 1.0 / 5040.0 + f * y
    y = 1.0 / 720.0 + f * y
    y = 1.0 / 120.0 + f * y
    y = 1.0 / 24.0 + f * y
    y = 1.0 / 6.0 + f * y
    y = 1.0 + f * (1.0 + f * (0.5 + f * y))
    return y * np.int64((np.int64(np.int32(whole)) + F64_BIAS) << F64_SHIFT).view(np.float64)


@inlined
def log2(x: Any) -> Any:
    """Logarithm of a normal x > 0, to about 1e-10: ``log2(8.0) == 3``."""
    bits = np.float64(x).view(np.int64)
    exponent = np.float64(np.int32((bits >> F64_SHIFT) - F64_BIAS))
    m = np.int64((bits & F64_FRACTION) | F64_ONE).view(np.float64)
    high = m > SQRT2
    m = m * 0.5 if high else m
    exponent = exponent + 1.0 if high else exponent
    # log m = 2 artanh z.
    z = (m - 1.0) / (m + 1.0)
    q = z * z
    y = 1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0))))
    return exponent + (2.0 * LOG2_E) * (z + z * q * y)


@inlined
def mix64(x: Any) -> Any:
    """Finalizer of SplitMix64 (Steele, Lea, Flood 2014), a bijection of u64; ``mix64(0) == 0``."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def mix32(x: Any) -> Any:
    """Finalizer of MurmurHash3 (Appleby 2011), a bijection of u32 held in u64; ``mix32(0) == 0``."""
    low = np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & low
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & low
    return x ^ (x >> np.uint64(16))


@inlined
def bell64(x: Any) -> Any:
    """About normal with mean 0 and variance 1, out of 64 bits: their four u16 summed; at most 3.47."""
    total = (x & LOW16) + ((x >> np.uint64(16)) & LOW16) + ((x >> np.uint64(32)) & LOW16) + (x >> np.uint64(48))
    return (np.float64(np.int64(total)) - SUM16_MEAN) * PER_SUM16


@kernel
def draw_ids(raw: Any, distinct: int, slope: float, exponent: float, missing: int, ids: Any) -> None:
    """Value ids by the inverse CDF of a bounded power law, ``ids`` i64[n] in [0, distinct), -1 where missing.

    With u in [0, 1) from the upper bits of ``raw`` u64[n], the id is ``floor(x) - 1`` of
    ``x = (1 + slope u)^exponent``; exponent 0 stands for the limit ``x = 2^(slope u)``. A cell is missing
    where the low 24 bits of ``raw`` are less than ``missing``. With distinct=4, slope=4, exponent=1,
    missing=1: ``raw=[1, 2^63 + 1, 0] -> [0, 2, -1]``.
    """
    last = np.float64(distinct - 1)
    for i in range(raw.size):
        u = np.float64(np.int64(raw[i] >> VALUE_SHIFT)) * TO_UNIT40
        if exponent == 0.0:
            x = exp2(slope * u)
        else:
            x = exp2(exponent * log2(1.0 + slope * u))
        there = np.int64(raw[i] & MISSING_MASK) >= missing
        ids[i] = np.int64(min(max(x - 1.0, 0.0), last)) if there else np.int64(-1)


@kernel
def draw_numbers(raw: Any, shape: int, missing: int, values: Any, validity: Any) -> int:
    """``values`` f32[n] of a shape, 0 where missing, and Arrow's bitmap u8; returns the number of missing.

    ``validity`` must be zero before. With COUNT and missing=1: ``raw=[2^63 + 1, 0]`` gives ``[2, 0]`` and the
    bitmap ``[1]``.
    """
    nulls = 0
    for i in range(raw.size):
        if np.int64(raw[i] & MISSING_MASK) < missing:
            values[i] = np.float32(0)
            nulls += 1
            continue
        at = np.uint64(i)
        validity[at >> U3] |= np.uint8(U1 << (at & U7))
        bits = raw[i] >> VALUE_SHIFT
        u = np.float64(np.int64(bits)) * TO_UNIT40
        if shape == SKEWED:
            values[i] = np.float32(5.0 * u * u * u)
        elif shape == COUNT:
            values[i] = np.float32(np.int64(6.0 * u * (0.5 + 0.5 * u)))
        else:
            total = (
                (bits & LOW10)
                + ((bits >> np.uint64(10)) & LOW10)
                + ((bits >> np.uint64(20)) & LOW10)
                + (bits >> np.uint64(30))
            )
            values[i] = np.float32((np.float64(np.int64(total)) - SUM10_MEAN) * PER_SUM10)
    return nulls


@kernel
def add_weights(ids: Any, salt: Any, scale: float, logits: Any) -> None:
    """Add to ``logits`` f64[n] the weight of each value, hashed from (salt, id); nothing for a missing one.

    Weights are about normal with standard deviation ``scale``. With scale=0: ``logits=[1, 2] -> [1, 2]``.
    """
    for i in range(ids.size):
        w = scale * bell64(mix64(salt ^ mix64(np.uint64(ids[i]) + U1)))
        logits[i] += w if ids[i] >= 0 else 0.0


@kernel
def write_hex(ids: Any, salt: Any, offsets: Any, text: Any, validity: Any) -> int:
    """An Arrow string column: 8 hex digits for each id, another string for another id; returns missing cells.

    ``offsets`` i32[n + 1], ``text`` u64[n] (8 bytes a string, little-endian), ``validity`` u8, zero before;
    ``salt`` is u32 in u64. With salt=0: ``ids=[-1, 0]`` gives offsets ``[0, 0, 8]``, text ``"00000000"`` and
    the bitmap ``[2]``.
    """
    k = 0
    for i in range(ids.size):
        offsets[i] = np.int32(8 * k)
        if ids[i] < 0:
            continue
        at = np.uint64(i)
        validity[at >> U3] |= np.uint8(U1 << (at & U7))
        x = mix32(np.uint64(ids[i]) ^ salt)
        # One half-byte to a byte, the lowest first, then all eight to ASCII at once.
        x = (x | (x << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
        x = (x | (x << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
        x = (x | (x << U4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
        letters = ((x + np.uint64(0x0606060606060606)) >> U4) & np.uint64(0x0101010101010101)
        text[k] = x + np.uint64(0x3030303030303030) + letters * np.uint64(ord("a") - ord("9") - 1)
        k += 1
    offsets[ids.size] = np.int32(8 * k)
    return ids.size - k  # type: ignore[no-any-return]


@kernel
def draw_clicks(raw: Any, logits: Any, clicked: Any, probabilities: Any) -> tuple[float, float]:
    """Draw ``clicked`` i8[n] with ``probabilities`` f64[n], the sigmoid of the logits.

    Returns two sums over the rows: the entropy of the true probabilities, which is the log loss to be
    expected of a model that knows them, and the log loss of the labels drawn. With ``logits=[0, 0]`` and
    ``raw=[0, 2^64 - 1]``: ``clicked=[1, 0], probabilities=[0.5, 0.5]``, and both sums are ``2 log 2``.
    """
    entropy = 0.0
    loss = 0.0
    for i in range(raw.size):
        z = logits[i]
        # Of the two labels, the likelier has probability 1 / (1 + e): no logarithm of a rounded-off number.
        size = min(abs(z), 600.0)
        e = exp2(-size * LOG2_E)
        high = 1.0 / (1.0 + e)
        low = e / (1.0 + e)
        p = high if z >= 0.0 else low
        click = np.float64(np.int64(raw[i] >> np.uint64(11))) * TO_UNIT53 < p
        clicked[i] = np.int8(click)
        probabilities[i] = p
        loss_high = math.log1p(e)
        loss_low = loss_high + size
        entropy += high * loss_high + low * loss_low
        loss += loss_high if click == (z >= 0.0) else loss_low
    return entropy, loss
