"""Files that survive a power cut: replaced in one step, with errors of the system in our words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import StorageError
from penstock.kill import kill_point

__all__ = ["storage_errors", "sync_folder", "write_atomically"]


def write_atomically(file: Path, data: bytes) -> None:
    """Replace a file's contents in one step."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        kill_point(f"{file}: written beside, not replaced")
        temporary.replace(file)
        sync_folder(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(root: Path, what: str = "the model") -> Iterator[None]:
    """Errors of the system while something is written.

    Raises:
        StorageError: with the place.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{root}: cannot write {what}: {error.strerror or error}") from error
