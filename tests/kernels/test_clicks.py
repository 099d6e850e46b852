"""Kernels of the synthetic click log against plain NumPy and plain Python integers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.kernels import clicks

N = 1000
MISSING = 1 << 21  # an eighth


@pytest.fixture(autouse=True)
def wrapping_integers() -> Iterator[None]:
    """Without compilation, NumPy warns where a hash wraps round."""
    with np.errstate(over="ignore"):
        yield


def random_bits(n: int = N, seed: int = 3) -> NDArray[np.uint64]:
    return np.random.Philox(key=seed).random_raw(n)


def is_there(raw: NDArray[np.uint64], missing: int = MISSING) -> NDArray[np.bool_]:
    return (raw & np.uint64(0xFFFFFF)) >= missing


def unit(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (raw >> np.uint64(24)) / 2.0**40


def bitmap(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(valid, bitorder="little")


def test_exp2_and_log2_are_close_to_numpy() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-900, 900, 300), np.arange(-40.0, 40.0) / 2])
    np.testing.assert_allclose([clicks.exp2(v) for v in x], np.exp2(x), rtol=1e-10)
    assert [clicks.exp2(float(k)) for k in range(-5, 6)] == [2.0**k for k in range(-5, 6)]
    y = np.concatenate([rng.uniform(1e-12, 2, 300), rng.uniform(1, 1e12, 300), 2.0 ** np.arange(-40, 40)])
    np.testing.assert_allclose([clicks.log2(v) for v in y], np.log2(y), rtol=1e-10, atol=1e-10)
    assert [clicks.log2(2.0**k) for k in range(-5, 6)] == list(range(-5, 6))


@pytest.mark.parametrize(
    ("distinct", "slope", "exponent"),
    [
        (10, 11**-0.1 - 1, -10.0),
        (10_000_000, 10_000_001**-0.1 - 1, -10.0),
        (2**32, (2**32 + 1) ** -1.0 - 1, -1.0),
        (1000, 1000.0, 1.0),
        (5000, math.log2(5001), 0.0),
    ],
)
def test_ids_are_an_inverse_power_law(distinct: int, slope: float, exponent: float) -> None:
    raw = random_bits()
    ids = np.empty(N, np.int64)
    clicks.draw_ids(raw, distinct, slope, exponent, MISSING, ids)
    there = is_there(raw)
    assert (ids[~there] == -1).all() and 0 < (~there).sum() < N
    u = unit(raw[there])
    x = (2.0 ** (slope * u) if exponent == 0 else (1 + slope * u) ** exponent) - 1
    # The kernel may fall to the other side of a whole number by its rounding alone.
    assert ((ids[there] <= x * (1 + 1e-8) + 1e-8) & (ids[there] + 1 >= x * (1 - 1e-8))).all()
    assert ids.max() < distinct


def test_ids_of_the_example() -> None:
    ids = np.empty(3, np.int64)
    clicks.draw_ids(np.array([1, 2**63 + 1, 0], np.uint64), 4, 4.0, 1.0, 1, ids)
    assert ids.tolist() == [0, 2, -1]


@settings(deadline=None, max_examples=50)
@given(
    bits=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    distinct=st.integers(2, 2**32),
    zipf=st.floats(0, 5).filter(lambda s: abs(s - 1) > 1e-4),
)
def test_ids_stay_within_their_range(bits: list[int], distinct: int, zipf: float) -> None:
    # All ones is the u nearest to 1, where rounding could reach beyond the last id.
    raw = np.array([*bits, 2**64 - 1, 0], np.uint64)
    ids = np.empty(len(raw), np.int64)
    with np.errstate(over="ignore"):
        clicks.draw_ids(raw, distinct, (distinct + 1.0) ** (1 - zipf) - 1, 1 / (1 - zipf), 0, ids)
    assert ids[-1] == 0
    assert (ids >= 0).all() and (ids < distinct).all()


@pytest.mark.parametrize("shape", range(clicks.SHAPES))
def test_numbers(shape: int) -> None:
    raw = random_bits(N + 3)
    n = len(raw)
    values, validity = np.full(n, 9, np.float32), np.zeros((n + 7) // 8, np.uint8)
    nulls = clicks.draw_numbers(raw, shape, MISSING, values, validity)
    there, u = is_there(raw), unit(raw)
    tens = [(raw >> np.uint64(24 + 10 * k)) & np.uint64(1023) for k in range(4)]
    oracle = {
        clicks.SKEWED: 5 * u**3,
        clicks.BELL: (sum(t.astype(float) for t in tens) - 2046) / math.sqrt((1024**2 - 1) / 3),
        clicks.COUNT: np.floor(3 * u * (1 + u)),
    }[shape]
    np.testing.assert_allclose(values, np.where(there, oracle, 0), rtol=1e-6, atol=1e-6)
    assert nulls == (~there).sum()
    np.testing.assert_array_equal(validity, bitmap(there))


def test_numbers_of_the_example() -> None:
    values, validity = np.empty(2, np.float32), np.zeros(1, np.uint8)
    assert clicks.draw_numbers(np.array([2**63 + 1, 0], np.uint64), clicks.COUNT, 1, values, validity) == 1
    assert values.tolist() == [2, 0] and validity.tolist() == [1]


def splitmix64(x: int) -> int:
    mask = 2**64 - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return x ^ (x >> 31)


def hashed_weight(salt: int, value: int) -> float:
    h = splitmix64(salt ^ splitmix64(value + 1))
    total = sum(h >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    return (total - 2 * 0xFFFF) / math.sqrt((2**32 - 1) / 3)


def test_weights_are_hashes_of_salt_and_value() -> None:
    ids = np.array([0, 1, -1, 2**32 - 1, 1, 10**14], np.int64)
    salt = 0xFEDCBA9876543210
    logits = np.arange(6.0)
    clicks.add_weights(ids, np.uint64(salt), 0.5, logits)
    added = [0.5 * hashed_weight(salt, v) if v >= 0 else 0.0 for v in ids.tolist()]
    np.testing.assert_allclose(logits, np.arange(6) + added, rtol=1e-12, atol=1e-12)
    assert logits[2] == 2


def test_weights_are_about_normal() -> None:
    n = 4000
    w = np.zeros(n)
    clicks.add_weights(np.arange(n), np.uint64(99), 1.0, w)
    assert abs(w.mean()) < 5 / math.sqrt(n)
    assert abs(w.std() - 1) < 0.06
    assert abs((abs(w) < 1).mean() - 0.68) < 0.04
    other = np.zeros(n)
    clicks.add_weights(np.arange(n), np.uint64(98), 1.0, other)
    assert abs(np.corrcoef(w, other)[0, 1]) < 5 / math.sqrt(n)


def murmur32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def hex_column(ids: NDArray[np.int64], salt: int) -> pa.Array:
    n = len(ids)
    offsets, text = np.empty(n + 1, np.int32), np.empty(n, np.uint64)
    validity = np.zeros((n + 7) // 8, np.uint8)
    nulls = clicks.write_hex(ids, np.uint64(salt), offsets, text, validity)
    buffers = [pa.py_buffer(a) for a in (validity, offsets, text)]
    column = pa.Array.from_buffers(pa.string(), n, buffers, nulls)
    column.validate(full=True)
    return column


@settings(deadline=None, max_examples=50)
@given(
    ids=st.lists(st.integers(-1, 2**32 - 1), max_size=40),
    salt=st.integers(0, 2**32 - 1),
)
def test_hex_strings(ids: list[int], salt: int) -> None:
    # Lowest half-byte first, so the digits of the mixed number are the other way round.
    expected = [None if v < 0 else f"{murmur32(v ^ salt):08x}"[::-1] for v in ids]
    with np.errstate(over="ignore"):
        column = hex_column(np.array(ids, np.int64), salt)
    assert column.to_pylist() == expected
    assert column.null_count == ids.count(-1)
    assert len(set(expected)) == len(set(ids))


def test_hex_of_the_example() -> None:
    assert hex_column(np.array([-1, 0]), 0).to_pylist() == [None, "00000000"]


def test_clicks_are_drawn_with_the_sigmoid() -> None:
    raw = random_bits()
    logits = np.random.default_rng(2).normal(0, 3, N)
    clicked, p = np.empty(N, np.int8), np.empty(N)
    entropy, loss = clicks.draw_clicks(raw, logits, clicked, p)
    q = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(p, q, rtol=1e-9)
    np.testing.assert_array_equal(clicked, (raw >> np.uint64(11)) * 2.0**-53 < p)
    assert entropy == pytest.approx(-(q * np.log(q) + (1 - q) * np.log(1 - q)).sum(), rel=1e-9)
    assert loss == pytest.approx(-np.log(np.where(clicked == 1, q, 1 - q)).sum(), rel=1e-9)


def test_clicks_of_the_example() -> None:
    clicked, p = np.empty(2, np.int8), np.empty(2)
    sums = clicks.draw_clicks(np.array([0, 2**64 - 1], np.uint64), np.zeros(2), clicked, p)
    assert clicked.tolist() == [1, 0] and p.tolist() == [0.5, 0.5]
    assert sums == pytest.approx((2 * math.log(2), 2 * math.log(2)))


def test_extreme_logits_have_finite_sums() -> None:
    logits = np.array([-1e4, -50.0, 50.0, 1e4])
    clicked, p = np.empty(4, np.int8), np.empty(4)
    entropy, loss = clicks.draw_clicks(np.full(4, 2**63, np.uint64), logits, clicked, p)
    assert clicked.tolist() == [0, 0, 1, 1]
    assert entropy == pytest.approx(2 * 51 * math.exp(-50), rel=1e-9, abs=0)
    assert loss == pytest.approx(2 * math.exp(-50), rel=1e-9, abs=0)
