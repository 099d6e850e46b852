"""Values of rows as ``penstock serve`` takes them: which are numbers, and which text a category is.

A value has the types that JSON has. A value of another type is refused where training would not have read it as
the same thing: text is no number, while 17, 17.0 and "17" are one category.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["as_column", "category", "number", "shown", "weighted"]

_SHOWN = 50


def number(value: Any) -> float:
    """A number or a boolean as f64.

    Raises:
        TypeError: it is neither.
        ValueError: it is too large.
    """
    if not isinstance(value, bool | int | float):
        raise TypeError
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError from error


def category(value: Any) -> bytes:
    """The text, in UTF-8, whose key is that of the value; of None the empty one, which is missing.

    Raises:
        TypeError: it is no text, number or boolean, or not finite.
        ValueError: it is no text that UTF-8 can hold.
    """
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return str(value).encode()
    if isinstance(value, float) and math.isfinite(value):
        return (str(int(value)) if _fits_integer(value) else _as_arrow_prints(repr(value))).encode()
    raise TypeError


def as_column(value: Any, type_: str) -> Any:
    """What a number becomes in a column of this Arrow type, where it is to be a category."""
    if isinstance(value, bool):
        return value if type_ == "bool" else int(value)
    if type_ == "double" and isinstance(value, int):
        return float(value)  # all that such a column can hold
    if type_ not in ("float", "halffloat") or not isinstance(value, int | float):
        return value
    narrow = np.float32(value)
    if not math.isfinite(narrow) or _fits_integer(float(narrow)):
        return float(narrow)
    # As a category, an f32 is its own fewest digits, not those of the f64 that equals it.
    return _as_arrow_prints(str(narrow))


def weighted(value: Any) -> list[tuple[bytes, float]]:
    """Entries of a map; a weight that is missing is 0.

    Raises:
        TypeError: it is no object of numbers.
        ValueError: a key is no text that UTF-8 can hold.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError
    return [(key.encode(), 0.0 if item is None else number(item)) for key, item in value.items()]


def shown(value: Any) -> str:
    """A value in an error message, cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _fits_integer(value: float) -> bool:
    return value.is_integer() and abs(value) < 2.0**63


def _as_arrow_prints(printed: str) -> str:
    """Arrow and Python print the fewest digits that give a number back, but differ in where an exponent begins."""
    minus, numerals, exponent = Decimal(printed).as_tuple()
    place = len(numerals) - 1 + int(exponent)
    sign, digits = "-" if minus else "", "".join(map(str, numerals)).rstrip("0")
    if -6 <= place < 0:
        return f"{sign}0.{'0' * (-place - 1)}{digits}"
    if 0 <= place < 10:
        return f"{sign}{digits[: place + 1]}.{digits[place + 1 :]}"
    return f"{sign}{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e{place:+d}"
