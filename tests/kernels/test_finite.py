"""Finding NaN and infinity, against ``np.isfinite``."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.kernels.finite import BLOCK, all_finite, first_not_finite

FINE = [0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.5]


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_the_example_of_first_not_finite_in_its_docstring():
    assert first_not_finite(f32(1, np.nan, np.inf)) == 1
    assert all_finite(f32()) is True


def test_every_finite_number_is_fine():
    assert first_not_finite(f32(*FINE)) == -1
    assert all_finite(f32(*FINE))


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0xFFC00000])
def test_infinities_and_nans_of_every_kind_are_found(bits):
    values = f32(*FINE)
    values[5] = np.array(bits, np.uint32).view(np.float32)
    assert first_not_finite(values) == 5
    assert not all_finite(values)


@pytest.mark.parametrize("place", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 6])
def test_the_first_is_named_wherever_it_is(place):
    values = np.ones(2 * BLOCK + 7, np.float32)
    values[place] = np.nan
    values[-1] = np.inf
    assert first_not_finite(values) == place == int(np.flatnonzero(~np.isfinite(values))[0])


def test_items_of_rows_are_counted_through():
    values = np.ones((5, 3), np.float32)
    values[3, 1] = np.inf
    assert first_not_finite(values) == 10
