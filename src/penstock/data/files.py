"""Where files are: paths, globs, folders and URLs become a list of files, and a file becomes bytes.

Local files are memory-mapped; URLs go through fsspec. Errors of the operating system, Arrow and fsspec
become ``DataError`` here. What the bytes mean is the business of the readers.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
from pyarrow.fs import FSSpecHandler, PyFileSystem

from penstock.errors import ConfigError, DataError, PenstockError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_files", "is_local", "nbytes_of", "open_file", "reading"]

_NO_GLOB = ("http://", "https://")  # a question mark there begins a query


def is_local(path: str) -> bool:
    """Whether ``path`` is a path of this machine, not a URL."""
    return "://" not in path


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what goes wrong with ``path`` inside the block into one ``DataError`` that names it."""
    try:
        yield
    except PenstockError:
        raise
    except ImportError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {_one_line(error)}") from error
    except Exception as error:
        # File systems behind fsspec raise what their clients raise, in no common tree.
        if is_local(path):
            raise
        raise DataError(f"{path} cannot be read: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def find_files(places: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Files at these places, in their order; those of one glob or folder are sorted.

    Folders are searched to the bottom; names with a leading ``.`` or ``_`` (``_SUCCESS``) are passed over.

    Raises:
        DataError: nothing there.
        ConfigError: the file system of a URL is unknown or not installed.
    """
    found: list[str] = []
    for place in places:
        path = os.fspath(place).removeprefix("file://")
        with reading(path):
            found += _local(path) if is_local(path) else _remote(path)
    return found


def _local(path: str) -> list[str]:
    path = str(Path(path).expanduser())
    if Path(path).exists():
        return _expand(path, path, [path], _walk)
    if not glob.has_magic(path):
        raise DataError(f"{path} does not exist")
    return _expand(path, path, glob.glob(path, recursive=True), _walk)  # noqa: PTH207 (`**` finds files)


def _walk(folder: str) -> list[str] | None:
    """All files below a folder; None if it is not one."""
    if not Path(folder).is_dir():
        return None
    return [str(Path(root, name)) for root, _, names in os.walk(folder, followlinks=True) for name in names]


def _remote(url: str) -> list[str]:
    if url.startswith(_NO_GLOB):
        return [url]
    filesystem, path = _filesystem(url)

    def walk(place: str) -> list[str] | None:
        return filesystem.find(place) if filesystem.isdir(place) else None

    if not filesystem.exists(path) and not glob.has_magic(path):
        raise DataError(f"{url} does not exist")
    matches = [path] if filesystem.exists(path) else filesystem.glob(path)
    return [filesystem.unstrip_protocol(name) for name in _expand(url, path, matches, walk)]


def _expand(
    given: str, pattern: str, matches: Sequence[str], walk: Callable[[str], list[str] | None]
) -> list[str]:
    """Files at and below the matches, without those that the pattern does not spell out and that hide."""
    files: list[str] = []
    for match in sorted(matches):
        below = walk(match)
        spelled_out = match == pattern or Path(pattern).name[:1] in (".", "_")
        if below is not None:
            files += [name for name in sorted(below) if not _hides(name[len(match.rstrip("/")) :])]
        elif spelled_out or not _hides(Path(match).name):
            files.append(match)
    # `logs/**` matches folders and the files in them.
    files = list(dict.fromkeys(files))
    if not files:
        what = "has no files" if matches and matches[0] == pattern else "matches no files"
        raise DataError(f"{given} {what}")
    return files


def _hides(path: str) -> bool:
    return any(part[:1] in (".", "_") for part in path.split("/"))


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ConfigError(f"{url}: {_one_line(error)}") from error


def open_file(path: str) -> pa.NativeFile:
    """The file for random access; reading a local one copies nothing.

    Call it, and use the file, inside ``reading``.
    """
    if is_local(path):
        return pa.memory_map(path)
    filesystem, name = _filesystem(path)
    return PyFileSystem(FSSpecHandler(filesystem)).open_input_file(name)


def nbytes_of(path: str) -> int:
    """Size of a file.

    Raises:
        DataError: it is missing, empty or unreadable.
    """
    with reading(path):
        if is_local(path):
            nbytes = Path(path).stat().st_size
        else:
            filesystem, name = _filesystem(path)
            nbytes = int(filesystem.size(name) or 0)
    if not nbytes:
        raise DataError(f"{path} is empty (0 bytes)")
    return nbytes
