"""Where files are: paths, globs, folders and URLs become a list of files, and a file becomes bytes.

Local files are memory-mapped; URLs go through fsspec. Errors of the operating system, Arrow and fsspec
become ``DataError`` here. What the bytes mean is the business of the readers.
"""

from __future__ import annotations

import contextlib
import fnmatch
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
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
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
    try:
        path = str(Path(path).expanduser())
    except RuntimeError as error:
        raise DataError(f"{path} does not exist: {_one_line(error)}") from error
    if Path(path).exists():
        return _expand(path, path, [path], _walk)
    if not glob.has_magic(path):
        raise DataError(f"{path} does not exist")
    return _expand(path, path, glob.glob(path, recursive=True), _walk)  # noqa: PTH207 (`**` finds files)


def _walk(folder: str) -> dict[str, str] | None:
    """All files below a folder, by their path from there; None if it is not one."""
    if not Path(folder).is_dir():
        return None
    found, seen = {}, set()
    for root, folders, names in os.walk(folder, followlinks=True):
        # A link to a folder above would lead round and round.
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        for name in names:
            file = str(Path(root, name))
            found[os.path.relpath(file, folder)] = file
    return found


def _remote(url: str) -> list[str]:
    if url.startswith(_NO_GLOB):
        return [url]
    filesystem, path = _filesystem(url)

    def walk(place: str) -> dict[str, str] | None:
        if not filesystem.isdir(place):
            return None
        return {file[len(place.rstrip("/")) :].lstrip("/"): file for file in filesystem.find(place)}

    if not filesystem.exists(path) and not glob.has_magic(path):
        raise DataError(f"{url} does not exist")
    matches = [path] if filesystem.exists(path) else filesystem.glob(path)
    return [filesystem.unstrip_protocol(name) for name in _expand(url, path, matches, walk)]


def _expand(
    given: str, pattern: str, matches: Sequence[str], walk: Callable[[str], dict[str, str] | None]
) -> list[str]:
    """Files at and below the matches, without those that hide and that the pattern does not spell out."""
    spelled_out = [part for part in pattern.split("/") if _hides(part)]
    files: list[str] = []
    for match in sorted(matches):
        hidden = [part for part in match.split("/") if _hides(part)]
        if not all(any(fnmatch.fnmatchcase(part, named) for named in spelled_out) for part in hidden):
            continue
        below = walk(match)
        if below is None:
            files.append(match)
        else:
            files += [file for path, file in sorted(below.items()) if not any(map(_hides, path.split("/")))]
    # `logs/**` matches folders and the files in them.
    files = list(dict.fromkeys(files))
    if not files:
        what = "has no files" if matches and matches[0] == pattern else "matches no files"
        raise DataError(f"{given} {what}")
    return files


def _hides(part: str) -> bool:
    return part[:1] in (".", "_") and part not in (".", "..")


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
