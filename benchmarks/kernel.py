"""Learning alone, in one thread, on hashed batches in memory: ours, scikit-learn, and what the memory allows.

The limit is a loop that only loads the eight bytes where the search for each key begins, in the same table:
what any way of learning one row after the other, without asking for rows ahead, pays at least.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

import penstock as ps
from benchmarks.clicklog import Clicks, features
from benchmarks.harness import Goal, Options, Result, Spread, in_turn, machine, missing, table, timed
from penstock.batch import SparseBatch
from penstock.data import BATCH_ROWS
from penstock.features import Encoder

__all__ = ["run"]

SLOTS = 1 << 25
_PEER_COLUMNS = 1 << 24
_PEER = "scikit-learn"


def run(options: Options) -> Result:
    """39 binary features an example (numbers in logarithmic buckets); and 39 of which 13 have values."""
    files = Clicks(options.rows).parquet
    binary, with_values = _encoded(files, "log"), _encoded(files, "raw")
    labels = np.concatenate([batch.labels for batch in binary])
    nnz = sum(batch.nnz for batch in binary)
    result = Result(
        name="kernel",
        options=options,
        conditions={
            "rows": len(labels),
            "features": nnz,
            "slots": SLOTS,
            "repetitions": options.repetitions,
            **machine(_PEER),
        },
        goals=(Goal(what="scikit-learn", least=2.5), Goal(what="penstock_ns_per_feature", most=10)),
    )
    model, model_of_values = (ps.Linear(slots=SLOTS, optimizer=ps.FTRL(alpha=0.1)) for _ in range(2))
    places = np.concatenate([_homes(model, batch.keys) for batch in binary])
    contenders = {
        "penstock": lambda: _sample(lambda: _learn(model, binary), nnz),
        "penstock, with values": lambda: _sample(lambda: _learn(model_of_values, with_values), nnz),
        "loads alone": lambda: _sample(lambda: gather(model.table.rows.keys, places), nnz),
    }
    no_peer = missing(_PEER)
    if no_peer is None:
        contenders |= _peers(binary, labels, nnz)
    else:
        result.conditions["missing"] = no_peer
        result.text.append(no_peer)
    # Two rounds of warm-up: the first makes the rows, the second is the first that finds them all.
    for _ in range(2):
        _learn(model, binary)
        _learn(model_of_values, with_values)
    found = in_turn(contenders, options.repetitions)
    _report(result, found, len(labels))
    return result


@numba.njit(nogil=True)
def gather(memory: NDArray[np.uint64], places: NDArray[np.int64]) -> int:
    """Sum of ``memory`` at ``places``: ``gather([5, 6, 7], [2, 0]) == 12``."""
    total = np.uint64(0)
    for i in range(places.size):
        total += memory[places[i]]
    return total  # type: ignore[return-value]


def _encoded(files: list[str], how: str) -> list[SparseBatch]:
    source = ps.open_source(files)
    encoder = Encoder(features(how=how, bias=False).resolve(source.sample(16_384)))
    return [
        encoder.encode(records)
        for chunk in source.chunks()
        for records in chunk.batches(encoder.columns, BATCH_ROWS)
    ]


def _homes(model: ps.Linear, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where the search for each key begins, as ``kernels.rows.home`` says."""
    rows, one = model.table.rows, np.uint64(1)
    place = rows.places[keys >> rows.shift]
    mask = (one << (place & np.uint64(63))) - one
    return ((place >> np.uint64(6)) + (keys >> one & mask) * rows.stride).astype(np.int64)


def _learn(model: ps.Linear, batches: list[SparseBatch]) -> None:
    out = np.empty(BATCH_ROWS, np.float32)
    for batch in batches:
        model.learn(batch, out)


def _peers(batches: list[SparseBatch], labels: NDArray[np.float32], nnz: int) -> dict:
    """``SGDClassifier`` in one call for all rows, as it is fastest, and batch by batch, as one streams.

    Its own order and precision are kept where they help it: no shuffling, f32.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier

    low = np.uint64(_PEER_COLUMNS - 1)
    columns = np.concatenate([(batch.keys >> np.uint64(1) & low).astype(np.int32) for batch in batches])
    starts = np.arange(0, nnz + 1, nnz // len(labels), dtype=np.int32)
    X = csr_matrix((np.ones(nnz, np.float32), columns, starts), shape=(len(labels), _PEER_COLUMNS))
    y = labels.astype(np.int64)
    cuts = [*range(0, len(y), BATCH_ROWS), len(y)]
    parts = [(X[begin:end], y[begin:end]) for begin, end in zip(cuts, cuts[1:], strict=False)]
    whole, streaming = (SGDClassifier(loss="log_loss", shuffle=False) for _ in range(2))

    def stream() -> None:
        for X_part, y_part in parts:
            streaming.partial_fit(X_part, y_part, classes=[0, 1])

    return {
        "scikit-learn": lambda: _sample(lambda: whole.partial_fit(X, y, classes=[0, 1]), nnz),
        "scikit-learn, in batches": lambda: _sample(stream, nnz),
    }


def _sample(work, nnz: int) -> dict[str, float]:
    seconds = timed(work)
    return {"seconds": seconds, "ns_per_feature": seconds / nnz * 1e9}


def _report(result: Result, found: dict[str, dict[str, Spread]], rows: int) -> None:
    ours = found["penstock"]["seconds"].median
    lines = []
    for name, figures in found.items():
        seconds, ns = figures["seconds"], figures["ns_per_feature"]
        lines.append(
            (
                name,
                f"{rows / seconds.median:,.0f}",
                f"{ns.median:.2f}",
                f"{ns.least:.2f} to {ns.most:.2f}",
                f"{seconds.median / ours:.2f}",
            )
        )
        plain = name.replace(",", "").replace(" ", "_")
        result.figures[f"{plain}_ns_per_feature"] = ns.median
        if not name.startswith("penstock"):
            result.ratios[plain] = seconds.median / ours
    result.text.append(table(("", "rows/s", "ns/feature", "from, to", "times penstock's"), lines))
