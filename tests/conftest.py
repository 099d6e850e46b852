"""Shared fixtures: tables that check themselves at the end, and the documented hash in plain Python.

Hypothesis runs by one of two profiles. `fixed`, the default, depends on no chance and no clock: it tries the
same examples in every run. `search` (`make fuzz`) draws new ones, and keeps those that fail in .hypothesis.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from penstock.optim import Optimizer
from penstock.table import Table

U64 = (1 << 64) - 1

# A machine that is busy draws slowly, and that is no fault of a test.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile(os.environ.get("PENSTOCK_HYPOTHESIS", "fixed"))


@pytest.fixture(autouse=True)
def integers_may_wrap() -> Iterator[None]:
    """Compiled kernels wrap u64 silently; the same code as plain Python makes NumPy warn."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0"):
        yield
        return
    with np.errstate(over="ignore"):
        yield


@pytest.fixture
def new_table() -> Iterator[Callable[..., Table]]:
    """Makes tables; each is validated when the test is over."""
    made: list[Table] = []

    def make(optimizer: Optimizer, **sizes: int) -> Table:
        made.append(Table(optimizer, **sizes))
        return made[-1]

    yield make
    for table in made:
        table.validate()


class HashOracle:
    """Keys as ``kernels.hashing`` and ``features.encode`` document them, on Python's own integers.

    Evensen's "Moremur" mixes; an integer is mixed after an offset; a text starts from its length and takes 8
    little-endian bytes at a time; a column's seed is the key of its name after a byte that no number has.
    """

    def mix(self, x: int) -> int:
        x = (x ^ x >> 27) * 0x3C79AC492BA7B653 & U64
        x = (x ^ x >> 33) * 0x1C69B3F74AC4AE35 & U64
        return x ^ x >> 27

    def seal(self, seed: int, hashed: int) -> int:
        return self.mix(hashed ^ seed) & ~1 or 2

    def integer_hash(self, value: int) -> int:
        return self.mix((value + 0x9AE16A3B2F90404F) & U64)

    def text_hash(self, text: bytes) -> int:
        printed = text.decode("latin-1")
        if printed.removeprefix("-").isascii() and printed.removeprefix("-").isdigit():
            value = int(printed)
            if str(value) == printed and -(2**63) <= value < 2**63:
                return self.integer_hash(value)
        hashed = (0xC3A5C85C97CB3127 + len(text) * 0x9E3779B97F4A7C15) & U64
        for at in range(0, len(text), 8):
            hashed = self.mix(hashed ^ int.from_bytes(text[at : at + 8], "little"))
        return hashed

    def seed(self, name: str) -> int:
        return self.seal(0, self.text_hash(b"\x1d" + name.encode()))

    def missing(self, name: str) -> int:
        return self.seed(name + "\x1fmissing")

    def number(self, name: str) -> int:
        return self.seed(name + "\x1fvalue")

    def bias(self) -> int:
        return self.number("\x1e")

    def key(self, name: str, value: int | str | bytes | None) -> int:
        if value is None or value in ("", b""):
            return self.missing(name)
        if isinstance(value, int):
            return self.seal(self.seed(name), self.integer_hash(value))
        text = value.encode() if isinstance(value, str) else value
        return self.seal(self.seed(name), self.text_hash(text))

    def cross(self, names: Sequence[str], values: Sequence[int | str | None]) -> int:
        hashed = 0
        for name, value in sorted(zip(names, values, strict=True), key=lambda pair: pair[0]):
            hashed = self.mix((hashed + self.key(name, value)) & U64)
        return self.seal(self.seed("\x1f".join(sorted(names))), hashed)


@pytest.fixture(scope="session")
def oracle() -> HashOracle:
    return HashOracle()
