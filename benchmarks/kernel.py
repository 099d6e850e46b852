"""Learning alone, in one thread, on hashed batches in memory: ours, scikit-learn, and what the memory allows.

The peer learns by plain SGD, so the ratio is of ours by SGD, both with their weights in memory already. FTRL,
by which ours learns unless told otherwise, stands beside it, and so do both from nothing. The limit is a loop
that only loads the eight bytes where the search for each key begins, in the same table: what any way of
learning one row after the other, without asking for rows ahead, pays at least.
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
_OURS, _LARGE = "penstock, SGD", "penstock, FTRL, 2^25 slots"


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
        goals=(
            Goal(what="scikit-learn", least=2.5),
            Goal(what="penstock_FTRL_2^25_slots_ns_per_feature", most=10),
        ),
    )
    ftrl, sgd = ps.FTRL(alpha=0.1), ps.SGD(alpha=0.01)
    large, large_of_values = (ps.Linear(slots=SLOTS, optimizer=ftrl) for _ in range(2))
    grown, grown_by_sgd = ps.Linear(optimizer=ftrl), ps.Linear(optimizer=sgd)
    places = np.concatenate([_homes(large, batch.keys) for batch in binary])
    contenders = {
        _OURS: lambda: _sample(lambda: _learn(grown_by_sgd, binary), nnz),
        "penstock, FTRL": lambda: _sample(lambda: _learn(grown, binary), nnz),
        _LARGE: lambda: _sample(lambda: _learn(large, binary), nnz),
        f"{_LARGE}, values": lambda: _sample(lambda: _learn(large_of_values, with_values), nnz),
        "loads alone, 2^25 slots": lambda: _sample(lambda: gather(large.table.rows.keys, places), nnz),
        "penstock, SGD, from nothing": lambda: _sample(lambda: _learn(ps.Linear(optimizer=sgd), binary), nnz),
        "penstock, FTRL, from nothing": lambda: _sample(lambda: _learn(ps.Linear(optimizer=ftrl), binary), nnz),
    }
    no_peer = missing(_PEER)
    if no_peer is None:
        contenders |= _peers(binary, labels, nnz)
    else:
        result.conditions["missing"] = no_peer
        result.text.append(no_peer)
    # Two rounds of warm-up: the first makes the rows, the second is the first that finds them all.
    for model, batches in (
        (large, binary),
        (large_of_values, with_values),
        (grown, binary),
        (grown_by_sgd, binary),
    ):
        for _ in range(2):
            _learn(model, batches)
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
    rows = model.table.rows
    segments = keys >> rows.shift
    slots = (keys & rows.masks[segments]) // np.uint64(2)
    return (rows.bases[segments] + slots * rows.stride).astype(np.int64)


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

    def from_nothing() -> None:
        SGDClassifier(loss="log_loss", shuffle=False).partial_fit(X, y, classes=[0, 1])

    return {
        _PEER: lambda: _sample(lambda: whole.partial_fit(X, y, classes=[0, 1]), nnz),
        "scikit-learn, from nothing": lambda: _sample(from_nothing, nnz),
        "scikit-learn, in batches": lambda: _sample(stream, nnz),
    }


def _sample(work, nnz: int) -> dict[str, float]:
    seconds = timed(work)
    return {"seconds": seconds, "ns_per_feature": seconds / nnz * 1e9}


def _report(result: Result, found: dict[str, dict[str, Spread]], rows: int) -> None:
    ours = found[_OURS]["seconds"].median
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
        if name != _OURS:
            result.ratios[plain] = seconds.median / ours
    result.text.append(table(("", "rows/s", "ns/feature", "from, to", f"times {_OURS}"), lines))
