"""The click log as arrays: the same keys as in training, folded, in the log's order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import clicklog
from benchmarks.clicklog import CATEGORICAL, LABEL, NUMERIC, Clicks
from benchmarks.hashed import hashed
from penstock.batch import SparseBatch
from penstock.features import Encoder


@pytest.fixture
def clicks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clicks:
    monkeypatch.setattr(clicklog, "ROOT", tmp_path)
    return Clicks(300)


def test_rows_are_those_of_the_log(clicks: Clicks) -> None:
    rows = hashed(clicks, bits=12)
    ids, values, labels = (np.load(path) for path in (rows.ids, rows.values, rows.labels))
    log = pq.read_table(clicks.parquet)
    assert (ids.shape, ids.dtype) == ((300, len(CATEGORICAL)), np.int32)
    assert (values.shape, values.dtype) == ((300, len(NUMERIC)), np.float32)
    np.testing.assert_array_equal(labels, log[LABEL].to_numpy())
    np.testing.assert_allclose(values, np.stack([log[name].to_numpy() for name in NUMERIC], 1), rtol=1e-6)
    batch: SparseBatch = Encoder(clicklog.features(bias=False).resolve(log)).encode(log.to_batches()[0])
    keys = batch.keys.reshape(300, -1)[:, len(NUMERIC) :]
    np.testing.assert_array_equal(ids, keys // 2 % 2**12)
    assert len(np.unique(ids)) > 100


def test_they_are_made_once_and_again_when_the_log_is_newer(clicks: Clicks) -> None:
    rows = hashed(clicks, bits=12)
    made = rows.ids.stat().st_mtime_ns
    assert hashed(clicks, bits=12).ids.stat().st_mtime_ns == made
    newer = made + 10**9
    os.utime(clicks.parquet[0], ns=(newer, newer))
    os.utime(rows.ids, ns=(made - 10**9, made - 10**9))
    assert hashed(clicks, bits=12).ids.stat().st_mtime_ns != made - 10**9


def test_bits_fit_an_id(clicks: Clicks) -> None:
    with pytest.raises(ValueError, match="from 1 to 31, got 32"):
        hashed(clicks, bits=32)
