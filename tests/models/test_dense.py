"""Dense parameters as rows: arrays come back, keys are fixed and spread, initial values are rows like others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.models import DenseSlices
from penstock.optim import FTRL, SGD, AdaGrad
from penstock.table import Layout, Table


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    block=st.sampled_from([1, 2, 8, 64]),
    name=st.text(min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_an_array_comes_back_from_its_rows(shape, block, name, seed):
    part = DenseSlices(name, shape, block)
    array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    rows = part.to_rows(array)
    assert rows.shape == (len(part), block) == (-(-array.size // block), block)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(part.to_array(rows), array)
    # Nothing but zeros pads the last block.
    assert np.sort(rows[rows != 0]).tolist() == np.sort(array[array != 0]).tolist()
    assert (part.keys & np.uint64(1) == 0).all() and part.keys.all()
    assert (part.keys[1:] > part.keys[:-1]).all()


def test_a_row_holds_one_block_under_the_key_of_its_number() -> None:
    part = DenseSlices("layer", (5, 2), 4)
    array = np.arange(10, dtype=np.float32).reshape(5, 2)
    numbers = {int(row[0]) // 4: key for row, key in zip(part.to_rows(array), part.keys.tolist(), strict=True)}
    assert sorted(numbers) == [0, 1, 2]
    # The key of a block does not depend on how many there are, nor on their size.
    assert DenseSlices("layer", (1,), 64).keys.tolist() == [numbers[0]]
    assert {numbers[0], numbers[1]} == set(DenseSlices("layer", (128,), 64).keys.tolist())


def test_keys_are_those_that_saved_models_have() -> None:
    assert DenseSlices("layer", (130,), 64).keys.tolist() == GOLDEN


GOLDEN = [5825993990833894938, 7277294078119498690, 14959001319001638824]


def test_blocks_spread_over_all_segments() -> None:
    part = DenseSlices("embedding", (1000, 640))
    segments = Layout(optimizer=SGD(), dim=64, segments=16).segments_of(part.keys)
    counts = np.bincount(segments, minlength=16)
    assert len(part) == 10_000 and counts.min() > 500 and counts.max() < 750
    assert not np.isin(DenseSlices("other", (1000, 640)).keys, part.keys).any()


@pytest.mark.parametrize("optimizer", [SGD(alpha=0.5), AdaGrad()])
def test_initial_values_are_pulled_as_they_were_given(optimizer) -> None:
    part, table = DenseSlices("w", (3, 7), 8), Table(optimizer, dim=8, slots=1)
    array = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    table.insert(*part.rows_for(array, optimizer))
    np.testing.assert_array_equal(part.to_array(table.pull(part.keys)), array)
    # The second state of AdaGrad begins at 0, as that of any new row.
    assert table.read(part.keys)[0][:, 8:].sum() == 0
    table.push(part.keys, part.to_rows(np.ones((3, 7), np.float32)))
    after = part.to_array(table.pull(part.keys))
    assert (after < array).all()
    if isinstance(optimizer, SGD):
        np.testing.assert_array_equal(after, array - np.float32(0.5))


def test_ftrl_has_no_row_for_a_weight() -> None:
    with pytest.raises(ConfigError, match=r"first state is the weight 'w'.* got ftrl with states z, n"):
        DenseSlices("w", (3,)).rows_for(np.ones(3, np.float32), FTRL())


def test_parameters_share_a_table() -> None:
    parts = [DenseSlices(name, shape, 4) for name, shape in (("a", (3, 3)), ("b", ()), ("c", (20,)))]
    table = Table(SGD(alpha=1.0), dim=4, slots=1)
    arrays = [np.random.default_rng(i).standard_normal(p.shape).astype(np.float32) for i, p in enumerate(parts)]
    for part, array in zip(parts, arrays, strict=True):
        table.push(part.keys, part.to_rows(-array))
    for part, array in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(part.to_array(table.pull(part.keys)), array)
    assert len(table) == sum(map(len, parts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", (3,)), "must have a name"),
        (("w", (3, 0)), r"got block 64, shape \(3, 0\)"),
        (("w", (3,), 0), "got block 0"),
        (("w", (1 << 20, 1 << 20)), "of 2147483648 values at most"),
    ],
)
def test_sizes_are_checked(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        DenseSlices(*arguments)


def test_other_shapes_are_refused() -> None:
    part = DenseSlices("w", (3, 2), 4)
    with pytest.raises(ValueError, match=r"'w' must be f32\[3, 2\], got \[2, 3\]"):
        part.to_rows(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"rows of 'w' must be f32\[2, 4\], got \[1, 4\]"):
        part.to_array(np.zeros((1, 4), np.float32))
