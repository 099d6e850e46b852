"""Buddy allocation against a list of blocks: zeroed, aligned, apart from each other, and reused."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import penstock.table.arena as arena_module
from penstock.errors import StorageError
from penstock.table.arena import Arena

UNIT = 1024


class ArenaMachine(RuleBasedStateMachine):
    """Each block is filled with its own byte while it is held."""

    @initialize(pages_read_zero=st.booleans())
    def begin(self, pages_read_zero):
        # Elsewhere than on Linux MADV_DONTNEED is only advice, and blocks are cleared by writing.
        self.before = arena_module._PAGES_READ_ZERO
        arena_module._PAGES_READ_ZERO = pages_read_zero and self.before
        self.arena = Arena(UNIT, reserve_nbytes=1 << 30)
        self.bytes = self.arena.view(np.uint8)
        self.held: dict[int, tuple[int, int]] = {}
        self.most = self.n = 0

    @rule(order=st.integers(0, 6))
    def allocate(self, order):
        offset = self.arena.allocate(order)
        size = UNIT << order
        assert offset % size == 0
        assert not self.bytes[offset : offset + size].any()
        for other, (other_order, _) in self.held.items():
            assert offset + size <= other or other + (UNIT << other_order) <= offset
        self.n = self.n % 255 + 1
        self.bytes[offset : offset + size] = self.n
        self.held[offset] = (order, self.n)
        self.most = max(self.most, sum(UNIT << o for o, _ in self.held.values()))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data):
        offset = data.draw(st.sampled_from(sorted(self.held)))
        order, _ = self.held.pop(offset)
        self.arena.free(offset, order)

    @invariant()
    def blocks_hold_what_was_written(self):
        if not hasattr(self, "arena"):
            return
        self.arena.validate()
        for offset, (order, byte) in self.held.items():
            block = self.bytes[offset : offset + (UNIT << order)]
            assert block[0] == block[-1] == byte
            assert (block == byte).all()

    def teardown(self):
        if hasattr(self, "before"):
            arena_module._PAGES_READ_ZERO = self.before


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(deadline=None, max_examples=25, stateful_step_count=30)


def test_freed_buddies_become_one_block_again():
    arena = Arena(UNIT, reserve_nbytes=1 << 30)
    blocks = [arena.allocate(0) for _ in range(8)]
    for offset in blocks[::2] + blocks[1::2]:
        arena.free(offset, 0)
    assert arena.allocate(3) == min(blocks)


def test_a_large_block_is_split_for_small_ones_before_new_memory_is_taken():
    arena = Arena(UNIT, reserve_nbytes=1 << 30)
    large = arena.allocate(4)
    arena.free(large, 4)
    offsets = {arena.allocate(0) for _ in range(16)}
    assert offsets == {large + i * UNIT for i in range(16)}
    assert arena.allocate(0) == large + 16 * UNIT


def test_the_gap_before_an_aligned_block_is_used():
    arena = Arena(UNIT, reserve_nbytes=1 << 30)
    assert [arena.allocate(0), arena.allocate(3)] == [0, 8 * UNIT]
    assert sorted(arena.allocate(o) for o in (0, 1, 2)) == [UNIT, 2 * UNIT, 4 * UNIT]
    assert arena.allocate(0) == 16 * UNIT


def test_pages_of_a_freed_block_go_back_to_the_system():
    if not arena_module._PAGES_READ_ZERO:
        pytest.skip("this system does not take pages back at once")
    arena = Arena(UNIT, reserve_nbytes=1 << 30)
    words = arena.view(np.uint64)
    order, nbytes = 16, UNIT << 16
    offset = arena.allocate(order)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    words[offset // 8 : (offset + nbytes) // 8] = 1
    full = resident()
    arena.free(offset, order)
    assert full - resident() > nbytes // 2
    assert not words[offset // 8 : (offset + nbytes) // 8].any()


def test_a_used_up_reservation_is_an_error():
    arena = Arena(1 << 20, reserve_nbytes=1 << 30)
    for _ in range(4):
        arena.allocate(8)
    with pytest.raises(StorageError, match="used up its 1 GiB"):
        arena.allocate(0)


def refuse_above(limit: int, monkeypatch) -> list[int]:
    asked, real = [], mmap.mmap

    def limited(fd, nbytes, **options):
        asked.append(nbytes)
        if nbytes > limit:
            raise OSError(12, "Cannot allocate memory")
        return real(fd, nbytes, **options)

    monkeypatch.setattr(arena_module.mmap, "mmap", limited)
    return asked


def test_less_is_reserved_where_the_system_refuses(monkeypatch):
    asked = refuse_above(1 << 31, monkeypatch)
    arena = Arena(UNIT)
    assert asked == [1 << bits for bits in range(40, 30, -1)]
    assert arena.view(np.uint8).size == 1 << 31


def test_not_even_1_gib_is_an_error(monkeypatch):
    refuse_above(0, monkeypatch)
    with pytest.raises(StorageError, match=r"cannot reserve 1 GiB of address space.*Cannot allocate memory"):
        Arena(UNIT)
