"""What training must give, computed in one process in the plainest way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from penstock.batch import Floats, Keys, SparseBatch
from penstock.data import Source
from penstock.features import Encoder
from penstock.models import Model
from penstock.table import unique_keys
from penstock.train import Holdout
from penstock.train.stream import read_for

Rows = dict[str, tuple[Keys, Floats]]


def rows_of(model: Model) -> Rows:
    """All rows of all tables, by rising keys."""
    return {name: table.copy_all() for name, table in model.tables().items()}


def assert_same(found: Rows, expected: Rows) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, (keys, words) in expected.items():
        assert len(keys)
        np.testing.assert_array_equal(found[name][0], keys)
        np.testing.assert_array_equal(found[name][1].view(np.uint32), words.view(np.uint32))


def micro_batches(
    model: Model, source: Source, minibatch: int, holdout: Holdout | None = None
) -> list[list[SparseBatch]]:
    """Of each chunk its micro-batches, of ``minibatch`` rows before the hold-out is taken away."""
    assert model.plan is not None
    source, encoder = read_for(source, model.plan), Encoder(model.plan)
    columns, keep = list(encoder.columns), None
    if holdout is not None:
        keep, _ = holdout.split(model.plan)
        columns += holdout.columns(model.plan)
    chunks = []
    for chunk in source.chunks():
        batches, row = [], 0
        for records in chunk.batches(columns, minibatch, 0):
            kept = records if keep is None else records.filter(pa.array(keep(records, chunk, row)))
            batches.append(encoder.encode(kept))
            row += len(records)
        chunks.append(batches)
    return chunks


def bsp(
    model: Model,
    source: Source,
    *,
    minibatch: int,
    lanes: int,
    passes: int = 1,
    holdout: Holdout | None = None,
) -> Rows:
    """Global batches, one after the other: gradients of all lanes on the same rows, summed in the lanes' order."""
    chunks = micro_batches(model, source, minibatch, holdout) * passes
    n_lanes = min(lanes, len(chunks))
    queues = [[batch for chunk in chunks[lane::n_lanes] for batch in chunk] for lane in range(n_lanes)]
    model.begin()
    tables = model.tables()
    for clock in range(max(map(len, queues))):
        parts = [_gradients(model, queue[clock]) for queue in queues if clock < len(queue)]
        for name in tables:
            keys = np.unique(np.concatenate([part[name][0] for part in parts]))
            total = np.full((len(keys), tables[name].dim), -0.0, np.float32)
            for part in parts:
                total[np.searchsorted(keys, part[name][0])] += part[name][1]
            tables[name].push(keys, total)
    return rows_of(model)


def counts(model: Model, source: Source, passes: int = 1, holdout: Holdout | None = None) -> tuple[Keys, Floats]:
    """How often each key occurs."""
    chunks = micro_batches(model, source, 1024, holdout)
    keys, n = np.unique(np.concatenate([b.keys for chunk in chunks for b in chunk]), return_counts=True)
    return keys, (n * passes).astype(np.float32)


def assert_counted(model: Model, source: Source, passes: int = 1) -> None:
    """Every example was learnt ``passes`` times."""
    keys, words = model.tables()["counts"].copy_all()
    expected_keys, expected = counts(model, source, passes)
    np.testing.assert_array_equal(keys, expected_keys)
    np.testing.assert_array_equal(words[:, 0], expected)


def _gradients(model: Model, batch: SparseBatch) -> Any:
    tables = model.tables()
    distinct = {name: unique_keys(keys) for name, keys in model.keys(batch).items()}
    rows = {name: tables[name].pull(keys) for name, (keys, _) in distinct.items()}
    index = {name: places for name, (_, places) in distinct.items()}
    _, gradients = model.gradients(rows, index, batch, np.empty(len(batch), np.float32))
    return {name: (keys, gradients[name]) for name, (keys, _) in distinct.items()}
