"""Weights by key for answering: read-only, smaller than a table, in memory or mapped from a file of any size.

A file has a head, pages of slots, and a checksum for each page. Opening it reads head and checksums; a page is
read, and checked, when a key is first looked up in it. So a model may be larger than memory, and many processes
share what they have read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ModelError, StorageError
from penstock.kernels import index as kernels

__all__ = ["NO_ROWS", "Overlay", "WeightIndex"]

Parts = Iterable[tuple[Keys, Floats]]

_MAGIC = b"PENSTOCK"
_FORMAT = 1
_PAGE_NBYTES = kernels.PAGE_WORDS * 8
_FULL = 0.7
"""Share of the homes that rows take: more would make searches long, fewer the index large."""
_HOMES_MAX = 1 << 32
_NO_SUMS, _NO_SEEN = np.empty(0, np.uint64), np.empty(0, np.uint8)


class _Head(msgspec.Struct):
    format: int
    byteorder: str
    source: str
    dim: int
    rows: int
    homes: int
    pages: int
    sums: str
    """Digest of the checksums."""


@dataclass(frozen=True, eq=False)
class WeightIndex:
    """Weights f32[dim] of keys. Any number of threads may look up."""

    kernel: kernels.Index
    dim: int
    rows: int
    mapped: Path | None = None

    @staticmethod
    def build(parts: Parts, *, rows: int, dim: int) -> WeightIndex:
        """In memory, of at most ``rows`` rows: keys u64[n] that rise through all parts, weights f32[n, dim].

        Raises:
            ValueError: the keys do not rise, or are more than ``rows``.
        """
        homes, stride = _homes(rows), _stride(dim)
        slots = np.zeros((homes + rows + 1) * stride, np.uint64)  # pages that nobody touches cost nothing
        index = kernels.Index(slots, np.uint64(homes), np.uint64(stride), _NO_SUMS, _NO_SEEN)
        end, count = 0, 0
        for keys, weights in parts:
            count = _counted(count + len(keys), rows)
            end = _place(index, end, keys, weights)
        return WeightIndex(index._replace(slots=slots[: (max(end, homes) + 1) * stride]), dim, count)

    @staticmethod
    def write(path: Path, parts: Parts, *, rows: int, dim: int, source: str) -> None:
        """As a file, which is there whole or not at all; ``source`` says what it was made of.

        Raises:
            StorageError: it cannot be written.
            ValueError: as ``build``.
        """
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own: other threads, and other hosts, may write the same index.
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            os.close(handle)
            temporary = Path(name)
            temporary.chmod(0o644)
            _write(temporary, parts, rows, dim, source)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(f"{path}: cannot write the index: {error.strerror or error}") from error
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    @staticmethod
    def open(path: Path, *, source: str) -> WeightIndex | None:
        """Map a file; None where there is none, or one of another source or format, or a torn one.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            with path.open("rb") as handle:
                nbytes = os.fstat(handle.fileno()).st_size
                head = _read_head(handle.read(_PAGE_NBYTES))
                if head is None or head.source != source:
                    return None
                end = _PAGE_NBYTES * (1 + head.pages)
                if nbytes != end + 8 * head.pages:
                    return None
                handle.seek(end)
                sums = np.frombuffer(handle.read(), np.uint64)
                if blake2b(sums.tobytes(), digest_size=16).hexdigest() != head.sums:
                    return None
                memory = mmap.mmap(handle.fileno(), end, prot=mmap.PROT_READ)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        if hasattr(mmap, "MADV_RANDOM"):
            memory.madvise(mmap.MADV_RANDOM)  # neighbours of what is touched are not wanted
        slots = np.frombuffer(memory, np.uint64)[kernels.PAGE_WORDS :]
        seen = np.zeros(head.pages, np.uint8)
        index = kernels.Index(slots, np.uint64(head.homes), np.uint64(_stride(head.dim)), sums, seen)
        return WeightIndex(index, head.dim, head.rows, path)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, in memory or on disk."""
        return int(self.kernel.slots.nbytes)

    @property
    def pages_read(self) -> int:
        """Pages of a mapped index that were touched, and found sound."""
        return int(np.count_nonzero(self.kernel.seen))

    def pull(self, keys: Keys, over: WeightIndex | None = None) -> Floats:
        """Weights f32[n, dim] of ``keys`` u64[n]: of ``over`` where that has the key, zeros where neither has.

        Raises:
            ModelError: a page of the file is damaged.
        """
        out = np.empty((len(keys), self.dim), np.float32)
        damaged = kernels.pull(self.kernel, (over or NO_ROWS).kernel, keys, out)
        if damaged >= 0:
            raise ModelError(f"{self.mapped}: damaged: a page does not have its checksum; remove the file")
        return out


NO_ROWS = WeightIndex(
    kernels.Index(np.empty(0, np.uint64), np.uint64(1), np.uint64(2), _NO_SUMS, _NO_SEEN), dim=1, rows=0
)


@dataclass(frozen=True, eq=False)
class Overlay:
    """Rows that stand in front of an index: those that changed since it was made, zeros for those that went."""

    keys: Keys
    """Rising."""
    weights: Floats
    index: WeightIndex

    @staticmethod
    def of(keys: Keys, weights: Floats) -> Overlay:
        """Of rising keys u64[n], weights f32[n, dim]."""
        index = WeightIndex.build([(keys, weights)], rows=len(keys), dim=weights.shape[1])
        return Overlay(keys, weights, index)

    def with_rows(self, keys: Keys, weights: Floats) -> Overlay:
        """Another one, with these rows (of rising keys) instead of, or besides, those that are there."""
        if not len(keys):
            return self
        at = np.minimum(np.searchsorted(keys, self.keys), len(keys) - 1)
        kept = keys[at] != self.keys
        all_keys = np.concatenate([self.keys[kept], keys])
        order = np.argsort(all_keys, kind="stable")
        return Overlay.of(all_keys[order], np.concatenate([self.weights[kept], weights])[order])


def _counted(count: int, rows: int) -> int:
    if count > rows:  # there is no room for more
        raise ValueError(f"{rows} rows promised, got {count}")
    return count


def _homes(rows: int) -> int:
    return min(max(64, int(rows / _FULL)), _HOMES_MAX)


def _stride(dim: int) -> int:
    return 1 + (dim + 1) // 2


def _place(index: kernels.Index, end: int, keys: Keys, weights: Floats) -> int:
    found = kernels.place(index, end, np.ascontiguousarray(keys), np.ascontiguousarray(weights))
    if found < 0 or (len(keys) and end and not _rises(index, end, keys[0])):
        raise ValueError("keys of an index must rise")
    return int(found)


def _rises(index: kernels.Index, end: int, key: int) -> bool:
    """Whether a key is larger than the one before, in slot ``end - 1``."""
    return bool(index.slots[(end - 1) * int(index.stride)] < key)


def _write(path: Path, parts: Parts, rows: int, dim: int, source: str) -> None:
    homes, stride = _homes(rows), _stride(dim)
    most = -(-(homes + rows + 1) * stride // kernels.PAGE_WORDS)
    with path.open("w+b") as handle:
        handle.truncate(_PAGE_NBYTES * (1 + most))
        memory = mmap.mmap(handle.fileno(), _PAGE_NBYTES * (1 + most))
        slots: NDArray[np.uint64] = np.frombuffer(memory, np.uint64)[kernels.PAGE_WORDS :]
        sums = np.zeros(most, np.uint64)
        index = kernels.Index(slots, np.uint64(homes), np.uint64(stride), _NO_SUMS, _NO_SEEN)
        end, count, summed, room = 0, 0, 0, 0
        for keys, weights in parts:
            count = _counted(count + len(keys), rows)
            # To write into a hole of a mapped file on a full disk ends the process.
            room = _make_room(handle.fileno(), room, (max(end, homes) + len(keys) + 1) * stride)
            end = _place(index, end, keys, weights)
            done = end * stride // kernels.PAGE_WORDS  # while they are in memory
            kernels.sum_pages(slots, summed, done, sums)
            summed = max(summed, done)
        pages = -(-(max(end, homes) + 1) * stride // kernels.PAGE_WORDS)
        kernels.sum_pages(slots, summed, pages, sums)
        sums = sums[:pages]
        memory.flush()
        handle.truncate(_PAGE_NBYTES * (1 + pages))
        handle.seek(_PAGE_NBYTES * (1 + pages))
        handle.write(sums.tobytes())
        head = _Head(
            format=_FORMAT,
            byteorder=sys.byteorder,
            source=source,
            dim=dim,
            rows=count,
            homes=homes,
            pages=pages,
            sums=blake2b(sums.tobytes(), digest_size=16).hexdigest(),
        )
        handle.seek(0)
        handle.write(_head_page(head))
        handle.flush()
        os.fsync(handle.fileno())


def _make_room(file: int, room: int, words: int) -> int:
    """Have the disk keep room for so many words; ``room`` is for how many pages it does."""
    pages = -(-words // kernels.PAGE_WORDS)
    if pages > room and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, _PAGE_NBYTES * (1 + pages))
    return max(room, pages)


def _head_page(head: _Head) -> bytes:
    text = msgspec.json.encode(head)
    page = _MAGIC + len(text).to_bytes(8, "little") + text
    page += bytes(_PAGE_NBYTES - 16 - len(page))
    return page + blake2b(page, digest_size=16).digest()


def _read_head(page: bytes) -> _Head | None:
    """None where it is none of ours."""
    if len(page) != _PAGE_NBYTES or page[:8] != _MAGIC:
        return None
    if blake2b(page[:-16], digest_size=16).digest() != page[-16:]:
        return None
    text = page[16 : 16 + int.from_bytes(page[8:16], "little")]
    try:
        head = msgspec.json.decode(text, type=_Head)
    except msgspec.MsgspecError:
        return None
    return head if head.format == _FORMAT and head.byteorder == sys.byteorder else None
