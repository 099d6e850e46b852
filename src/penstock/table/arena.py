"""Memory of a table: one reservation of address space, handed out in blocks of powers of two.

Reserving costs nothing; pages are taken when first touched and given back when a block is freed. So
segments grow one at a time without the table ever being in memory twice, and kernels see one plain array.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from penstock.errors import StorageError

__all__ = ["Arena"]

# Python names it from 3.11.1 on; the value is Linux's on every architecture we run on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_PAGE = mmap.PAGESIZE
_GIVE_BACK_NBYTES = 1 << 20


class Arena:
    """Buddy allocation (Knowlton 1965) over ``unit`` bytes: blocks of ``unit << order``, all bytes 0."""

    def __init__(self, unit: int, *, reserve_nbytes: int = 1 << 40) -> None:
        """Reserve address space, half as much again and again where the system refuses.

        Raises:
            StorageError: not even 1 GiB can be reserved.
        """
        self.unit = unit
        self._free: dict[int, set[int]] = {}
        self._next = 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        while True:
            try:
                self._memory = mmap.mmap(-1, reserve_nbytes, flags=flags)
                break
            except OSError as error:
                reserve_nbytes //= 2
                if reserve_nbytes < 1 << 30:
                    raise StorageError(f"cannot reserve 1 GiB of address space for a table: {error}") from error
        self._bytes = np.frombuffer(self._memory, np.uint8)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def view(self, dtype: type) -> NDArray[np.generic]:
        """The whole reservation as an array of another type."""
        return self._bytes.view(dtype)

    def allocate(self, order: int) -> int:
        """Byte offset of a zeroed block of ``unit << order`` bytes.

        Raises:
            StorageError: the reservation is used up.
        """
        larger = next((o for o in sorted(self._free) if o >= order and self._free[o]), None)
        if larger is not None:
            block = min(self._free[larger])
            self._free[larger].remove(block)
        else:
            # Blocks begin at multiples of their size, so that a block and its buddy differ in one bit.
            block = -(-self._next >> order) << order
            self._give_gap(self._next, block)
            if (block + (1 << order)) * self.unit > len(self._bytes):
                raise StorageError(f"a table has used up its {len(self._bytes) >> 30} GiB of address space")
            self._next = block + (1 << order)
            larger = order
        while larger > order:
            larger -= 1
            self._free.setdefault(larger, set()).add(block + (1 << larger))
        return block * self.unit

    def free(self, offset: int, order: int) -> None:
        """Give a block back; its pages go to the system, and it reads as zeros from now on."""
        self._clear(offset, self.unit << order)
        block = offset // self.unit
        while block ^ (1 << order) in self._free.get(order, ()):
            self._free[order].remove(block ^ (1 << order))
            block &= ~(1 << order)
            order += 1
        self._free.setdefault(order, set()).add(block)

    def validate(self) -> None:
        """Check that free blocks do not overlap and lie within what was handed out."""
        ranges = sorted((b, b + (1 << order)) for order, blocks in self._free.items() for b in blocks)
        for (_, end), (begin, _) in zip(ranges, ranges[1:], strict=False):
            assert end <= begin, f"free blocks overlap at {begin}"
        assert not ranges or ranges[-1][1] <= self._next

    def _give_gap(self, begin: int, end: int) -> None:
        while begin < end:
            order = (begin & -begin).bit_length() - 1
            self._free.setdefault(order, set()).add(begin)
            begin += 1 << order

    def _clear(self, offset: int, nbytes: int) -> None:
        first, last = -(-offset // _PAGE) * _PAGE, (offset + nbytes) // _PAGE * _PAGE
        # A small block is soon used again: to write zeros costs less than to fault its pages in once more.
        if last - first >= _GIVE_BACK_NBYTES and _PAGES_READ_ZERO:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
            self._bytes[offset:first] = 0
            self._bytes[last : offset + nbytes] = 0
        else:
            self._bytes[offset : offset + nbytes] = 0


def _pages_read_zero() -> bool:
    """Whether MADV_DONTNEED empties private pages at once, as on Linux (elsewhere it is only advice)."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return False
    with mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1
        memory.madvise(mmap.MADV_DONTNEED)
        return memory[0] == 0


_PAGES_READ_ZERO = _pages_read_zero()
