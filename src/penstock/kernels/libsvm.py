"""Text of libsvm files to labels, indices and values: one pass over the bytes.

Decimals are right to the last bit of f32, as if read by ``float`` and rounded; the few that need more than
64 bits for it are left to the caller. So are indices that repeat in a row, which takes sorting where they
do not rise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, kernel

__all__ = ["BAD_INDEX", "BAD_LABEL", "BAD_VALUE", "DONE", "parse_libsvm"]

DONE, BAD_LABEL, BAD_INDEX, BAD_VALUE = 0, 1, 2, 3
"""How parsing ended."""

NO_NUMBER, ROUNDED, LONG = 0, 1, 2
"""What a token was found to be: nothing, a number, a number that needs more than 64 bits to be rounded."""

TAB, LF, CR, SPACE, HASH, PLUS, MINUS, DOT, ZERO, NINE, COLON, LOWER_E, LOWER_Q, LOWER_I, LOWER_D = (
    b"\t\n\r #+-.09:eqid"
)
TO_LOWER = 0x20

DIGITS_MAX = 19
"""So many digits fit u64."""
INDEX_DIGITS_MAX = 18
EXPONENT_MAX = 9999
POWER_MAX = 64
"""With 19 digits, powers of ten up to here span f32 down to what rounds to zero."""
POWERS = np.array([float(f"1e{power}") for power in range(POWER_MAX + 1)])
EXACT_MANTISSA = np.uint64(1 << 53)
EXACT_POWER = 22
"""Below these f64 holds mantissa and power exactly, so their product is rounded once."""
SLACK = 2.0**-50
"""More than the relative error of a product where mantissa, power and product are rounded: 1.5 * 2^-52."""
F32_BELOW_MAX = 3.4e38
TEN = np.uint64(10)


@inlined
def is_end(data: Any, at: Any) -> Any:
    """Whether no token goes on at this offset."""
    if at >= data.size:
        return True
    c = data[at]
    return c in (SPACE, LF, TAB, CR, HASH)


@inlined
def is_digit(data: Any, at: Any) -> Any:
    """Whether there is a digit at this offset."""
    return at < data.size and data[at] >= ZERO and data[at] <= NINE


@inlined
def skip_blanks(data: Any, at: Any) -> Any:
    """Offset of the next token of this line, or of what ends the line; ``b'  7', 0 -> 2``."""
    while at < data.size and (data[at] == SPACE or data[at] == TAB or data[at] == CR):
        at += 1
    return at


@inlined
def skip_token(data: Any, at: Any) -> Any:
    """Offset behind a token; ``b'qid:3 1:1', 0 -> 5``."""
    while not is_end(data, at):
        at += 1
    return at


@inlined
def skip_line(data: Any, at: Any) -> Any:
    """Offset of the next line; ``b'# a\\n1', 0 -> 4``."""
    while at < data.size and data[at] != LF:
        at += 1
    return at + 1


@inlined
def scaled(mantissa: Any, power: Any) -> Any:
    """``mantissa * 10^power`` as (kind, value); ``15, -1 -> ROUNDED, 1.5``."""
    if mantissa == np.uint64(0):
        return ROUNDED, 0.0
    if abs(power) > POWER_MAX:
        return LONG, 0.0
    value = np.float64(mantissa)
    value = value * POWERS[power] if power >= 0 else value / POWERS[-power]
    if mantissa < EXACT_MANTISSA and abs(power) <= EXACT_POWER:
        return ROUNDED if value < F32_BELOW_MAX else LONG, value
    if value > F32_BELOW_MAX:
        return LONG, value
    # The true product is between these two; where both round to one f32, so does it.
    sure = np.float32(value * (1.0 - SLACK)) == np.float32(value * (1.0 + SLACK))
    return ROUNDED if sure else LONG, value


@inlined
def number(data: Any, at: Any) -> Any:
    """The decimal at this offset as (kind, value, offset behind it); ``b'-1.5e1', 0 -> ROUNDED, -15.0, 6``."""
    negative = at < data.size and data[at] == MINUS
    if at < data.size and (data[at] == MINUS or data[at] == PLUS):
        at += 1
    mantissa = np.uint64(0)
    seen, significant, fraction, point = 0, 0, 0, 0
    while is_digit(data, at) or (at < data.size and data[at] == DOT and point == 0):
        if data[at] == DOT:
            point = 1
        else:
            if significant < DIGITS_MAX:
                mantissa = mantissa * TEN + np.uint64(data[at] - ZERO)
            significant += mantissa != np.uint64(0)
            fraction += point
            seen += 1
        at += 1
    exponent: Any = np.int64(0)
    exponent_digits, falls = 1, False
    if at < data.size and data[at] | TO_LOWER == LOWER_E:
        at += 1
        falls = at < data.size and data[at] == MINUS
        if at < data.size and (data[at] == MINUS or data[at] == PLUS):
            at += 1
        exponent_digits = 0
        while is_digit(data, at):
            if exponent < EXPONENT_MAX:
                exponent = exponent * 10 + np.int64(data[at] - ZERO)
            exponent_digits += 1
            at += 1
    if seen == 0 or exponent_digits == 0 or not is_end(data, at):
        return NO_NUMBER, 0.0, at
    kind, value = scaled(mantissa, (-exponent if falls else exponent) - fraction)
    if significant > DIGITS_MAX:
        kind = LONG
    return kind, -value if negative else value, at


@inlined
def index_before_colon(data: Any, at: Any) -> Any:
    """The index at this offset, -1 if it is none, and the offset behind its colon; ``b'12:1', 0 -> 12, 3``."""
    start = at
    index = np.int64(0)
    while is_digit(data, at):
        if at - start < INDEX_DIGITS_MAX:
            index = index * np.int64(10) + np.int64(data[at] - ZERO)
        at += 1
    if at == start or at - start > INDEX_DIGITS_MAX or at >= data.size or data[at] != COLON:
        return np.int64(-1), at
    return index, at + 1


@inlined
def is_query(data: Any, at: Any) -> Any:
    """Whether ``qid:`` and digits stand here."""
    found = at + 4 < data.size and data[at] == LOWER_Q and data[at + 1] == LOWER_I and data[at + 2] == LOWER_D
    if found and data[at + 3] == COLON:
        at += 4
        start = at
        while is_digit(data, at):
            at += 1
        return at > start and is_end(data, at)
    return False


@kernel
def parse_libsvm(
    data: Any,
    labels: Any,
    row_at: Any,
    offsets: Any,
    indices: Any,
    values: Any,
    long_at: Any,
    long_item: Any,
) -> Any:
    """Parse whole lines, up to the first mistake: ``b'+1 3:2 7:0.5\\n' -> [1], [0, 2], [3, 7], [2, 0.5]``.

    Args:
        data: u8[n]
        labels: f32[lines], 0 or 1; -1 becomes 0. Empty lines and comments are no rows
        row_at: i64[lines], offset of each row
        offsets: i32[lines + 1]; row i owns items ``offsets[i] <= k < offsets[i + 1]``
        indices: i64[colons]
        values: f32[colons]
        long_at: i64[colons], offsets of numbers that were not rounded
        long_item: i64[colons], and the items that they are

    Returns:
        how it ended, the offset of the token where, the number of rows, of items, of long numbers, and
        whether the indices of every row rise
    """
    at, rows, nnz, n_long = 0, 0, 0, 0
    rising = True
    offsets[0] = 0
    while at < data.size:
        at = skip_blanks(data, at)
        if is_end(data, at):
            at = skip_line(data, at)
            continue
        start = at
        kind, label, at = number(data, at)
        if kind != ROUNDED or (label != 1.0 and label != 0.0 and label != -1.0):
            return BAD_LABEL, start, rows, nnz, n_long, rising
        labels[rows] = np.float32(max(label, 0.0))
        row_at[rows] = start
        last = np.int64(-1)
        at = skip_blanks(data, at)
        while not is_end(data, at):
            start = at
            if is_query(data, at):
                at = skip_blanks(data, skip_token(data, at))
                continue
            index, at = index_before_colon(data, at)
            if index < 0:
                return BAD_INDEX, start, rows, nnz, n_long, rising
            value_at = at
            kind, value, at = number(data, at)
            if kind == NO_NUMBER:
                return BAD_VALUE, start, rows, nnz, n_long, rising
            if kind == LONG:
                long_at[n_long], long_item[n_long] = value_at, nnz
                n_long += 1
            else:
                values[nnz] = np.float32(value)
            indices[nnz] = index
            rising &= index > last
            last = index
            nnz += 1
            at = skip_blanks(data, at)
        rows += 1
        offsets[rows] = nnz
        at = skip_line(data, at)
    return DONE, at, rows, nnz, n_long, rising
