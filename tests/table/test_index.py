"""An index in memory and one in a file answer alike; damage is found where it is touched."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ModelError, StorageError
from penstock.table.index import Overlay, WeightIndex


def some_rows(n: int, dim: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    keys = np.unique(draw.integers(1, 1 << 63, n, dtype=np.uint64) * np.uint64(2))
    return keys, draw.normal(size=(len(keys), dim)).astype(np.float32)


def in_parts(keys: np.ndarray, weights: np.ndarray, size: int):
    for begin in range(0, len(keys), size):
        yield keys[begin : begin + size], weights[begin : begin + size]


@pytest.mark.parametrize(("n", "dim"), [(0, 1), (1, 1), (20_000, 1), (5_000, 3)])
def test_a_file_answers_as_memory_does(n: int, dim: int, tmp_path: Path) -> None:
    keys, weights = some_rows(n, dim)
    asked = np.concatenate([keys, keys + np.uint64(2)])
    memory = WeightIndex.build(in_parts(keys, weights, 777), rows=n, dim=dim)
    path = tmp_path / "a" / "weights.index"
    WeightIndex.write(path, in_parts(keys, weights, 777), rows=n, dim=dim, source="x")
    mapped = WeightIndex.open(path, source="x")
    assert mapped is not None and mapped.rows == memory.rows == len(keys) and mapped.pages_read == 0
    found = memory.pull(asked)
    np.testing.assert_array_equal(found[: len(keys)], weights)
    np.testing.assert_array_equal(found, mapped.pull(asked))
    assert [p.name for p in path.parent.iterdir()] == ["weights.index"]


def test_only_pages_that_are_touched_are_read(tmp_path: Path) -> None:
    keys, weights = some_rows(50_000)
    path = tmp_path / "weights.index"
    WeightIndex.write(path, [(keys, weights)], rows=len(keys), dim=1, source="x")
    mapped = WeightIndex.open(path, source="x")
    assert mapped is not None
    mapped.pull(keys[1000:1001])
    assert 1 <= mapped.pages_read <= 2
    mapped.pull(keys)
    assert mapped.pages_read > 200


@given(st.integers(4096, 4096 * 100), st.integers(0, 7))
def test_a_damaged_page_is_told_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    keys, weights = some_rows(17_000)
    path = tmp_path_factory.getbasetemp() / "damaged.index"
    WeightIndex.write(path, [(keys, weights)], rows=len(keys), dim=1, source="x")
    before = WeightIndex.build([(keys, weights)], rows=len(keys), dim=1)
    data = bytearray(path.read_bytes())
    place = min(place, 4096 + before.nbytes - 1)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    mapped = WeightIndex.open(path, source="x")
    assert mapped is not None
    told = 0
    for part, expected in in_parts(keys, weights, 100):
        try:
            np.testing.assert_array_equal(mapped.pull(part), expected)
        except ModelError as error:
            assert "damaged.index: damaged: a page does not have its checksum" in str(error)
            told += 1
    assert told >= 1
    assert told <= 5


def test_what_is_torn_or_of_something_else_is_no_index(tmp_path: Path) -> None:
    keys, weights = some_rows(3000)
    path = tmp_path / "weights.index"
    assert WeightIndex.open(path, source="x") is None
    WeightIndex.write(path, [(keys, weights)], rows=len(keys), dim=1, source="x")
    assert WeightIndex.open(path, source="y") is None
    data = path.read_bytes()
    damaged = (data[:50] + b"?" + data[51:], data[:-3] + b"abc")
    for torn in (b"", data[:100], data[:4096], data[:-1], data + b"x", *damaged):
        path.write_bytes(torn)
        assert WeightIndex.open(path, source="x") is None
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the index"):
        WeightIndex.write(tmp_path / "file" / "weights.index", [], rows=0, dim=1, source="x")


def test_keys_that_do_not_rise_or_are_too_many_are_no_index() -> None:
    keys, weights = some_rows(100)
    with pytest.raises(ValueError, match="must rise"):
        WeightIndex.build([(keys[::-1], weights)], rows=100, dim=1)
    with pytest.raises(ValueError, match="must rise"):
        WeightIndex.build([(keys[50:], weights[50:]), (keys[:50], weights[:50])], rows=100, dim=1)
    with pytest.raises(ValueError, match="10 rows promised"):
        WeightIndex.build([(keys, weights)], rows=10, dim=1)


@given(st.lists(st.dictionaries(st.integers(1, 40), st.floats(width=32, allow_nan=False)), max_size=6))
def test_the_newest_row_in_an_overlay_counts(layers: list[dict[int, float]]) -> None:
    overlay = Overlay.of(np.empty(0, np.uint64), np.empty((0, 1), np.float32))
    expected: dict[int, float] = {}
    for layer in layers:
        rows = {2 * key: value for key, value in layer.items()}
        expected.update(rows)
        keys = np.array(sorted(rows), np.uint64)
        overlay = overlay.with_rows(keys, np.array([[rows[k]] for k in sorted(rows)], np.float32).reshape(-1, 1))
    assert dict(zip(overlay.keys.tolist(), overlay.weights[:, 0].tolist(), strict=True)) == expected
    asked = np.arange(2, 90, 2, dtype=np.uint64)
    base = WeightIndex.build([(asked, np.full((len(asked), 1), 7, np.float32))], rows=len(asked), dim=1)
    found = base.pull(asked, overlay.index)[:, 0].tolist()
    assert found == [expected.get(key, 7.0) for key in asked.tolist()]


def test_threads_may_write_one_index_at_once(tmp_path: Path) -> None:
    keys, weights = some_rows(20_000)
    path = tmp_path / "weights.index"

    def write(_: int) -> float:
        WeightIndex.write(path, in_parts(keys, weights, 500), rows=len(keys), dim=1, source="x")
        found = WeightIndex.open(path, source="x")
        assert found is not None
        return float(found.pull(keys).sum())

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write, range(24))) == {float(weights.sum())}
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.index"]


def test_a_full_disk_is_an_error_and_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    keys, weights = some_rows(100)
    with pytest.raises(StorageError, match="No space left on device"):
        WeightIndex.write(tmp_path / "weights.index", [(keys, weights)], rows=100, dim=1, source="x")
    assert not list(tmp_path.iterdir())
