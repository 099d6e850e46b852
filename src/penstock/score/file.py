"""The file of an exported model: an ``.npz`` without pickle, which ``numpy.load`` opens anywhere.

header.npy     u8[n], JSON: format, feature plan, version, lineage, metrics
keys.npy       u64[rows], rising
weights.npy    f32[rows], of the rows whose weight is not 0
sha256.npy     u8[32], of the bytes of the three before
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelError, StorageError

__all__ = ["FORMAT", "FORMAT_VERSION", "read", "write"]

FORMAT = "penstock-scorer"
FORMAT_VERSION = 1

_BROKEN = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, MemoryError)


def write(
    path: str | Path, header: Mapping[str, Any], keys: NDArray[np.uint64], weights: NDArray[np.float32]
) -> int:
    """Write a file, which is there whole or not at all; returns its bytes. Equal contents give equal bytes.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **header}, allow_nan=False)
    arrays: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(text.encode(), np.uint8),
        "keys": keys.astype("<u8", copy=False),
        "weights": weights.astype("<f4", copy=False),
    }
    arrays["sha256"] = np.frombuffer(_digest(arrays), np.uint8)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    # An entry of this kind has no time of its own.
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        return path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Any], NDArray[np.uint64], NDArray[np.float32]]:
    """Header, keys and weights of a file, every byte checked.

    Raises:
        ModelError: there is none, it is damaged, or of a newer format.
    """
    try:
        with Path(path).open("rb") as file:
            return _read(str(path), file)
    except ModelError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; penstock export makes one") from error
    except _BROKEN as error:
        message = " ".join(str(error).split())
        raise ModelError(f"{path}: cannot be read: {type(error).__name__}: {message}") from error


def _read(path: str, file: io.BufferedReader) -> tuple[dict[str, Any], NDArray[np.uint64], NDArray[np.float32]]:
    if file.read(2) != b"PK":  # a zip, as NumPy's are
        raise ModelError(f"{path}: not an exported model of Penstock")
    file.seek(0)
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ModelError(f"{path}: not an exported model of Penstock")
    with loaded as archive:
        if "header" not in archive:
            raise ModelError(f"{path}: not an exported model of Penstock")
        header = json.loads(archive["header"].tobytes())
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ModelError(f"{path}: not an exported model of Penstock")
        if header.get("format_version") != FORMAT_VERSION:
            raise ModelError(
                f"{path}: format version {header.get('format_version')!r}; this Penstock reads {FORMAT_VERSION}"
            )
        arrays = {name: archive[name] for name in ("header", "keys", "weights")}
        keys, weights = arrays["keys"], arrays["weights"]
        if _digest(arrays) != archive["sha256"].tobytes():
            raise ModelError(f"{path}: damaged: its contents do not match their checksum")
    good = keys.ndim == weights.ndim == 1 and len(keys) == len(weights)
    if not good or keys.dtype != np.dtype("<u8") or weights.dtype != np.dtype("<f4"):
        raise ModelError(f"{path}: damaged: keys {keys.dtype}{keys.shape}, weights {weights.dtype}{weights.shape}")
    if np.any(keys[1:] <= keys[:-1]) or not np.isfinite(weights).all():
        raise ModelError(f"{path}: damaged: keys must rise, and weights be finite")
    return header, keys.astype(np.uint64, copy=False), weights.astype(np.float32, copy=False)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    digest = hashlib.sha256()
    for name in ("header", "keys", "weights"):
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.digest()
