"""The instructions that Numba has no name for, and where compiled kernels are kept."""

from __future__ import annotations

import os
import stat
import tempfile
import threading

import numpy as np
import pytest
from numba.core.errors import TypingError

from penstock.kernels import compile as compile_
from penstock.kernels.compile import (
    DISABLE_JIT,
    atomic_add,
    atomic_or,
    cache_folder,
    compare_and_swap,
    kernel,
    load8,
    pointer,
    prefetch,
)


@kernel
def use_all(words, data, found):
    at = pointer(words)
    prefetch(at, 1)
    found[0] = atomic_add(at, 0, np.uint64(5))
    found[1] = atomic_or(at, 1, np.uint64(6))
    found[2] = compare_and_swap(at, 2, np.uint64(3), np.uint64(9))
    found[3] = compare_and_swap(at, 2, np.uint64(3), np.uint64(7))
    found[4] = load8(pointer(data), 3)


def test_each_returns_what_was_there_before():
    words, found = np.array([1, 3, 3, 4], np.uint64), np.zeros(5, np.uint64)
    use_all(words, np.arange(12, dtype=np.uint8), found)
    assert words.tolist() == [6, 7, 9, 4]
    assert found.tolist() == [1, 3, 3, 9, int.from_bytes(range(3, 11), "little")]


@kernel
def count_up(counts, bits, times):
    for i in range(times):
        atomic_add(pointer(counts), i & 1, np.int64(1))
        atomic_or(pointer(bits), 0, np.uint64(1) << np.uint64(i & 63))


@pytest.mark.skipif(DISABLE_JIT, reason="the stand-ins are for one thread")
def test_no_addition_of_several_threads_is_lost():
    counts, bits = np.zeros(2, np.int64), np.zeros(1, np.uint64)
    count_up(counts, bits, 0)
    threads = [threading.Thread(target=count_up, args=(counts, bits, 400_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.tolist() == [800_000, 800_000]
    assert bits.tolist() == [(1 << 64) - 1]


def test_division_by_zero_is_as_in_numpy():
    @kernel
    def divide(out):
        out[0] = np.float32(1) / out[1]

    out = np.zeros(2, np.float32)
    with np.errstate(divide="ignore"):
        divide(out)
    assert out[0] == np.inf


def test_the_cache_folder_is_the_one_named_and_goes_by_the_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "a" / "b"))
    folder = cache_folder.__wrapped__()
    assert folder.is_dir()
    assert folder.parent == tmp_path / "a" / "b"
    assert cache_folder.__wrapped__() == folder
    sources = tmp_path / "penstock" / "kernels"
    sources.mkdir(parents=True)
    monkeypatch.setattr(compile_, "__file__", str(sources / "compile.py"))
    (sources / "rows.py").write_text("one")
    before = cache_folder.__wrapped__()
    (sources / "rows.py").write_text("two")
    assert len({folder, before, cache_folder.__wrapped__()}) == 3


def test_the_user_s_cache_is_used_where_nothing_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("PENSTOCK_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder.__wrapped__().parent == tmp_path / "penstock"


def test_a_folder_of_one_s_own_among_temporary_ones_is_used_where_the_cache_cannot_be_written(
    monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder.__wrapped__()
    mine = tmp_path / f"penstock-{os.getuid()}"
    assert folder.parent == mine
    # Compiled code is loaded from there, so nobody else may write to it.
    for each in (mine, folder):
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0


def test_a_temporary_folder_that_others_may_write_is_not_trusted(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"penstock-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    folder = cache_folder.__wrapped__()
    assert folder.is_dir()
    assert planted not in folder.parents
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_what_was_compiled_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_, "cache_folder", lambda: tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "hashing.text_keys-187.py311.nbi").touch()
    assert compile_.is_compiled("hashing.text_keys")
    assert not compile_.is_compiled("linear.learn")


@kernel
def first_item(items):
    return pointer(items)[0]


def test_a_pointer_to_an_array_with_gaps_is_refused():
    items = np.arange(6, dtype=np.uint64)
    assert first_item(items) == 0
    with pytest.raises((TypingError, TypeError), match="needs a contiguous array"):
        first_item(items[::2])
