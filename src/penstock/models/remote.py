"""A model folder on another store (any that fsspec knows): copied there version by version, and from there.

As in a local folder a version's files come first, and the manifest last; a file is told to be whole by its
checksum. What is there already is not copied again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import msgspec

from penstock.errors import ConfigError, ModelError, PenstockError, StorageError
from penstock.models.history import PIN, VERSION_NAME, VERSIONS, Pin, new_pin, version_file
from penstock.models.manifest import all_files, read_manifest
from penstock.storage import write_atomically

__all__ = ["RemoteFolder", "is_url"]

_MANIFEST = "manifest.json"
_OURS = re.compile(rf"(v\d{{6,}}|{VERSIONS})/")
"""Paths of files of versions; what else lies there is left alone."""


def is_url(path: str | Path) -> bool:
    """Whether a folder is not a local one."""
    return "://" in str(path) and not str(path).startswith("file://")


class RemoteFolder:
    """The folder at a URL."""

    def __init__(self, url: str) -> None:
        """Name it; nothing is touched yet.

        Raises:
            ConfigError: nobody here knows such URLs.
        """
        self.url = url.rstrip("/")
        try:
            # What a server looks at must not be what it looked at before.
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError, TypeError) as error:
            raise ConfigError(f"{url}: {' '.join(str(error).split())}") from error
        protocol = self._fs.protocol
        self._is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)
        self._there: set[str] = set()
        """Files that were copied there, or were found."""
        self._whole: set[Path] = set()
        """Copies of ours that had their checksums."""

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            StorageError: the store cannot be reached, or refuses.
        """
        with self._errors(name):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes | None) -> None:
        """Replace a small file; None removes it.

        Raises:
            StorageError: as ``read``.
        """
        with self._errors(name):
            if data is not None:
                self._fs.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
                if self._is_local:  # which others could see half written
                    write_atomically(Path(self._root) / name, data)
                else:
                    self._fs.pipe_file(f"{self._root}/{name}", data)
                return
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{name}")

    def fetch_manifest(self, root: Path, version: int | None = None) -> dict[str, Any]:
        """The valid manifest, or that of a version, once it is in a local folder.

        Raises:
            ModelError: there is none, or it is none of ours.
            StorageError: as ``read``.
        """
        name = _MANIFEST if version is None else version_file(version)
        data = self.read(name)
        if data is None:
            raise ModelError(f"{self.url}: no model there (no {name})")
        file = root / name
        if not file.exists() or file.read_bytes() != data:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)
        return read_manifest(root, file)

    def fetch_history(self, root: Path) -> None:
        """Copy the manifests of all versions that are there, and the pin, to a local folder.

        Raises:
            ModelError, StorageError: as ``fetch_manifest``.
        """
        newest = self.fetch_manifest(root)
        with self._errors(VERSIONS):
            try:
                listed = self._fs.ls(f"{self._root}/{VERSIONS}", detail=False)
                names = [str(path).rpartition("/")[2] for path in listed]
            except FileNotFoundError:
                names = []
        for name in names:
            found = VERSION_NAME.fullmatch(name)
            if found and int(found[1]) != newest["version"]:
                self.fetch_manifest(root, int(found[1]))
        data = self.read(PIN)
        if data is not None:
            write_atomically(root / PIN, data)

    def fetch_files(self, manifest: Mapping[str, Any], root: Path) -> None:
        """Copy what a version consists of and is not there yet; a file that is not whole is fetched anew.

        Raises:
            ModelError: a file is missing, or was damaged on its way or where it lies.
            StorageError: as ``read``.
        """
        for entry in all_files(manifest):
            path = root / entry["path"]
            if root.resolve() not in path.resolve().parents:
                raise ModelError(f"{self.url}: names a file outside of the model: {entry['path']!r}")
            if path.exists():
                if path in self._whole or _digest(path) == entry["sha256"]:
                    self._whole.add(path)
                    continue
                path.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                with self._errors(entry["path"]):
                    try:
                        self._fs.get_file(f"{self._root}/{entry['path']}", str(temporary))
                    except FileNotFoundError as error:
                        raise ModelError(
                            f"{self.url}/{entry['path']}: the manifest names it, but it is missing"
                        ) from error
                if _digest(temporary) != entry["sha256"]:
                    raise ModelError(
                        f"{self.url}/{entry['path']}: damaged: its checksum is not the one in the manifest"
                    )
                temporary.replace(path)
                self._whole.add(path)
            finally:
                temporary.unlink(missing_ok=True)

    def distrust(self) -> None:
        """Look at each copy's checksum again."""
        self._whole.clear()

    def put(self, root: Path, manifest: Mapping[str, Any]) -> None:
        """Copy a version of a local folder there, make it the valid one, and remove what the folder has no more.

        Raises:
            StorageError: as ``read``; the version before is valid.
        """
        if not self._there:
            self._check_not_anothers(manifest)
            with self._errors(""), contextlib.suppress(FileNotFoundError):
                self._there = {path.removeprefix(self._root).lstrip("/") for path in self._fs.find(self._root)}
        for entry in all_files(manifest):
            if entry["path"] not in self._there:
                with self._errors(entry["path"]):
                    self._fs.makedirs(f"{self._root}/{entry['path']}".rpartition("/")[0], exist_ok=True)
                    self._fs.put_file(str(root / entry["path"]), f"{self._root}/{entry['path']}")
                    nbytes = int(self._fs.size(f"{self._root}/{entry['path']}") or 0)
                if nbytes != entry["nbytes"]:
                    raise StorageError(
                        f"{self.url}/{entry['path']}: {entry['nbytes']} bytes were sent, {nbytes} are there"
                    )
                self._there.add(entry["path"])
        data = msgspec.json.encode(manifest)
        self.write(version_file(manifest["version"]), data)
        self.write(_MANIFEST, data)
        self._there |= {version_file(manifest["version"]), _MANIFEST}
        self._remove_old(root, manifest)

    def pin(self) -> Pin | None:
        """The version that is to be served, if one is named.

        Raises:
            ModelError: the pin is damaged.
            StorageError: as ``read``.
        """
        data = self.read(PIN)
        try:
            return msgspec.json.decode(data, type=Pin) if data is not None else None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ModelError(f"{self.url}/{PIN}: damaged: {' '.join(str(error).split())}") from error

    def pin_version(self, version: int | None, reason: str = "") -> None:
        """Have a version served from now on; None for whatever is newest.

        Raises:
            ModelError: there is no such version.
            StorageError: as ``read``.
        """
        if version is not None and self.read(version_file(version)) is None:
            raise ModelError(f"{self.url}: there is no version {version}")
        self.write(PIN, msgspec.json.encode(new_pin(version, reason)) if version is not None else None)

    def _check_not_anothers(self, manifest: Mapping[str, Any]) -> None:
        """No other run publishes there.

        Raises:
            StorageError: what is there is no earlier version of this folder's.
        """
        data = self.read(_MANIFEST)
        if data is None:
            return
        try:
            there = msgspec.json.decode(data)
            version, created = int(there["version"]), str(there["created"])
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{self.url}/{_MANIFEST}: is something else; name another place") from error
        if version > manifest["version"] or (version == manifest["version"] and created != manifest["created"]):
            raise StorageError(
                f"{self.url}: has version {version} of {created}, of another run, as this one is at "
                f"{manifest['version']}; name another place, or remove what is there"
            )

    def _remove_old(self, root: Path, manifest: Mapping[str, Any]) -> None:
        kept = {entry["path"] for entry in all_files(manifest)} | {_MANIFEST, PIN}
        pin = self.pin()
        names = {path.name for path in (root / VERSIONS).glob("v*.json")} if (root / VERSIONS).is_dir() else set()
        for name in {f"{VERSIONS}/{each}" for each in names} | {version_file(manifest["version"])}:
            kept |= {name, *_files_of(root / name, root)}
        if pin is not None:
            data = self.read(version_file(pin.version))
            if data is not None:
                kept |= {version_file(pin.version), *(e["path"] for e in all_files(msgspec.json.decode(data)))}
        for path in sorted(self._there - kept):
            if _OURS.match(path):
                self.write(path, None)
                self._there.discard(path)
                if self._is_local:
                    with contextlib.suppress(OSError):  # there is more in it
                        (Path(self._root) / path).parent.rmdir()

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except PenstockError:
            raise
        except Exception as error:  # clients of stores raise what they like, in no common tree
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise StorageError(f"{self.url}/{name}: {text}") from error


def _files_of(file: Path, root: Path) -> list[str]:
    with contextlib.suppress(ModelError):
        return [entry["path"] for entry in all_files(read_manifest(root, file))]
    return []


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
