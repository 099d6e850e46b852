"""The click log as arrays of hashed ids, for peers that read neither our files nor our features.

The keys are those of ``benchmarks.online``, folded to a vector of 2^bits slots, so what is learnt is the same
problem, but for collisions. Made once, beside the log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import penstock as ps
from benchmarks.clicklog import CATEGORICAL, NUMERIC, Clicks, features
from benchmarks.harness import note
from penstock.batch import SparseBatch
from penstock.data import BATCH_ROWS
from penstock.features import Encoder

__all__ = ["HashedRows", "hashed"]


@dataclass(frozen=True, kw_only=True)
class HashedRows:
    """Files of N rows in the log's order, each one array in NumPy's format.

    ======  ===========  =========================================================
    ids     i32[N, 26]   slots of the categories, from 0 to 2^bits - 1
    values  f32[N, 13]   the numbers; their keys are constant, so they need no ids
    labels  f32[N]       0 or 1
    ======  ===========  =========================================================
    """

    ids: Path
    values: Path
    labels: Path


def hashed(clicks: Clicks, *, bits: int) -> HashedRows:
    """The rows of a click log, for a vector of 2^bits slots (``bits`` from 1 to 31)."""
    if not 1 <= bits <= 31:
        raise ValueError(f"bits must be from 1 to 31, got {bits}")
    parquet, folder = clicks.parquet, clicks.folder
    rows = HashedRows(ids=folder / f"ids-{bits}.npy", values=folder / "values.npy", labels=folder / "labels.npy")
    newest = max(Path(file).stat().st_mtime_ns for file in parquet)
    files = (rows.ids, rows.values, rows.labels)
    if any(not file.exists() or file.stat().st_mtime_ns < newest for file in files):
        note(f"making {rows.ids} ...")
        for file, array in zip(files, _arrays(parquet, bits), strict=True):
            temporary = file.with_suffix(f".{os.getpid()}.npy")
            np.save(temporary, array)
            temporary.replace(file)
    return rows


def _arrays(parquet: list[str], bits: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    source = ps.open_source(parquet)
    # Raw numbers, as in `online`; the bias is a weight that each peer has of its own.
    encoder = Encoder(features(bias=False).resolve(source.sample(16_384)))
    ids, values, labels = [], [], []
    for chunk in source.chunks():
        for records in chunk.batches(encoder.columns, BATCH_ROWS):
            batch = encoder.encode(records)
            keys, numbers = _split(batch)
            # Bit 0 of a key is always 0.
            ids.append((keys >> np.uint64(1) & np.uint64((1 << bits) - 1)).astype(np.int32))
            # Copies, as the encoder uses its memory again.
            values.append(numbers.copy())
            labels.append(batch.labels.copy())
    return np.concatenate(ids), np.concatenate(values), np.concatenate(labels)


def _split(batch: SparseBatch) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Keys of the categories, values of the numbers; numbers come first in each row."""
    if batch.width != len(NUMERIC) + len(CATEGORICAL) or batch.values is None:
        raise ValueError(f"expected {len(NUMERIC)} numbers and {len(CATEGORICAL)} categories a row")
    keys, values = (array.reshape(len(batch), batch.width) for array in (batch.keys, batch.values))
    return keys[:, len(NUMERIC) :], values[:, : len(NUMERIC)]
