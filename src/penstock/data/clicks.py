"""A synthetic click log whose best possible log loss is known, since its rows are drawn from a known model:

    logit P(clicked) = bias + sum_j coefficient_j n_j + sum_c weight(c, value) + weight(c1 and c2, values)

A weight is a hash of (seed, column, value) and values are drawn by a formula, so memory does not grow with
rows or with distinct values. It looks like the Criteo logs and copies none of their statistics.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from penstock.errors import ConfigError, StorageError
from penstock.kernels.clicks import (
    MISSING_BITS,
    SHAPES,
    add_weights,
    draw_clicks,
    draw_ids,
    draw_numbers,
    write_hex,
)
from penstock.metrics import BinaryMetrics

__all__ = ["BLOCK_ROWS", "ClickLog", "ClickSummary", "iter_blocks", "write_clicks"]

BLOCK_ROWS = 16_384
"""Rows that are drawn together: a block depends on the seed and its number alone."""

_SMALLEST = 10
_SPREAD = (1.42, 1.0, 1.71)
"""Standard deviation of each shape of numeric column."""
_NUMERIC_SHARE = 0.4
_CROSS_SHARE = 0.4
_MISSING_UNIT = 1 << MISSING_BITS
_SECONDS_A_DAY = 86_400.0
_MOST_FILES = 100_000
_SUMMARY = "_clicks.json"
_OWN_FILE = re.compile(r"clicks-\d{5}\.parquet(\.tmp)?|_?clicks\.json(\.tmp)?")

# Streams of random numbers in a block; a column's does not depend on which other columns there are.
_TIME, _CLICK, _NUMERIC, _CATEGORICAL = range(4)
_SAMPLE_BLOCK = (1 << 64) - 1

_LIMITS: dict[str, tuple[type, float, float]] = {
    "rows": (int, 1, 10**12),
    "numeric": (int, 0, 1000),
    "categorical": (int, 0, 1000),
    "distinct": (int, 2, 2**32),
    "zipf": (float, 0, 5),
    "click_rate": (float, 1e-6, 1 - 1e-6),
    "signal": (float, 0, 10),
    "missing": (float, 0, 0.9),
    "drift": (float, -1e6, 1e6),
    "events_per_s": (float, 1e-6, 1e9),
    "seed": (int, 0, 2**64 - 1),
    "rows_per_file": (int, 1, 10**9),
    "row_group_rows": (int, 1, 2**24),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickLog:
    """What to draw. The same spec gives the same rows; with more ``rows`` it begins with the same ones.

    ==============  =====================================================================================
    rows            number of rows
    numeric         number of columns ``n1 ...`` (f32): 5 u^3, about normal, and 0 to 5, in turn
    categorical     number of columns ``c1 ...`` (strings of 8 hex digits)
    distinct        values that the last categorical column can take; ``c1`` can take 10, and those between
                    rise geometrically
    zipf            value of rank r is drawn about in proportion to ``r ** -zipf``
    click_rate      mean of the true probabilities (at the beginning, as far as a sample of 16,384 rows tells)
    signal          standard deviation of the true logits: 0 is noise, 1.3 gives an AUC of about 0.79
    cross           whether the pair of values of ``c1`` and ``c2`` has a weight of its own, which no model
                    without that cross can learn (about 2 % of the variance of the logits)
    missing         share of nulls in each column; a null adds nothing to the logit
    drift           radians a day by which the weights turn, in steps of a block: over d days a weight has the
                    correlation cos(drift d) with itself. The click rate stays
    start           time of the first row, ISO 8601
    events_per_s    rows a second of event time
    seed            everything is drawn from it
    rows_per_file   rows of a file
    row_group_rows  rows of a row group
    ==============  =====================================================================================

    Raises:
        ConfigError: a value that is not allowed.
    """

    rows: int = 1_000_000
    numeric: int = 13
    categorical: int = 26
    distinct: int = 10_000_000
    zipf: float = 1.1
    click_rate: float = 0.25
    signal: float = 1.3
    cross: bool = True
    missing: float = 0.02
    drift: float = 0.0
    start: str = "2026-01-01"
    events_per_s: float = 10.0
    seed: int = 7
    rows_per_file: int = 1_000_000
    row_group_rows: int = 65_536

    def __post_init__(self) -> None:
        for name, (kind, least, most) in _LIMITS.items():
            value = getattr(self, name)
            good = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            if not (good and least <= value <= most):
                noun = "an integer" if kind is int else "a number"
                raise ConfigError(f"click log: {name} must be {noun} from {least} to {most}, got {value!r}")
        if not isinstance(self.cross, bool):
            raise ConfigError(f"click log: cross must be True or False, got {self.cross!r}")
        if self.numeric + self.categorical == 0:
            raise ConfigError("click log: numeric + categorical must be >= 1, got 0")
        if self.cross and self.categorical < 2:
            raise ConfigError(
                f"click log: cross=True needs categorical >= 2, got {self.categorical}; else cross=False"
            )
        if self.rows > self.rows_per_file * _MOST_FILES:
            raise ConfigError(
                f"click log: rows / rows_per_file must be at most {_MOST_FILES} files, "
                f"got {self.rows} / {self.rows_per_file}"
            )
        try:
            self._first_time() + timedelta(seconds=self.rows / self.events_per_s)
        except (ValueError, TypeError):
            raise ConfigError(
                f"click log: start must be a time in ISO 8601 like '2026-01-01', got {self.start!r}"
            ) from None
        except OverflowError:
            raise ConfigError(
                "click log: rows / events_per_s must end before the year 10000, "
                f"got {self.rows} / {self.events_per_s} s from {self.start}"
            ) from None

    def _first_time(self) -> datetime:
        time = datetime.fromisoformat(self.start)
        return time.replace(tzinfo=None) - (time.utcoffset() or timedelta())

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Values that each categorical column can take, in column order."""
        steps = max(self.categorical - 1, 1)
        ratio = max(self.distinct / _SMALLEST, 1.0)
        below = (min(round(_SMALLEST * ratio ** (i / steps)), self.distinct) for i in range(self.categorical - 1))
        return (*below, self.distinct)[-self.categorical :] if self.categorical else ()

    @property
    def schema(self) -> pa.Schema:
        """``clicked`` int8, ``time`` timestamp[ms] (UTC, without saying so), ``n1 ...``, ``c1 ...``."""
        fields: list[pa.Field[Any]] = [
            pa.field("clicked", pa.int8(), nullable=False),
            pa.field("time", pa.timestamp("ms"), nullable=False),
        ]
        fields += [pa.field(f"n{i + 1}", pa.float32()) for i in range(self.numeric)]
        fields += [pa.field(f"c{i + 1}", pa.string()) for i in range(self.categorical)]
        return pa.schema(fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickSummary:
    """What was written, and how good a model can be on it; log losses in nats, means over all rows.

    ==================  ===============================================================================
    files               names of the files in the folder, in row order
    click_rate          share of rows that were clicked
    best_logloss        to be expected of a model that knows the true probabilities: their mean entropy
    realised_logloss    log loss of the true probabilities on the labels that were drawn
    base_rate_logloss   log loss of a model that always predicts ``click_rate``
    best_auc            AUC of the true probabilities on the labels that were drawn; nan with one class
    ==================  ===============================================================================
    """

    rows: int
    files: tuple[str, ...]
    click_rate: float
    best_logloss: float
    realised_logloss: float
    base_rate_logloss: float
    best_auc: float


def iter_blocks(spec: ClickLog, *, probability: bool = False) -> Iterator[pa.RecordBatch]:
    """The rows in batches of ``BLOCK_ROWS`` (the last one may be shorter), without any file.

    With ``probability``, a last column ``probability`` f64 has each row's true probability of a click.
    """
    for block in _draw(spec):
        if probability:
            yield block.batch.append_column("probability", pa.array(block.probabilities))
        else:
            yield block.batch


def write_clicks(
    spec: ClickLog,
    folder: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> ClickSummary:
    """Write the log to ``folder`` as ``clicks-00000.parquet`` ..., and spec and summary to ``_clicks.json``.

    The folder must be new or empty; with ``overwrite`` it may also hold a click log, which is removed first.
    ``on_progress`` is told the number of rows written so far, after each row group. Memory is that of two or
    three row groups. Where writing ends early, for whatever reason, nothing that it wrote is left.

    Raises:
        ConfigError: the folder is a file, or has files in it that may not be replaced.
        StorageError: the disk is full, or the folder may not be written.
    """
    folder = Path(folder)
    written: list[Path] = []
    try:
        _prepare(folder, overwrite)
        try:
            return _write(spec, folder, written, on_progress or (lambda rows: None))
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
                _temporary(path).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StorageError(f"{folder}: cannot write the click log: {reason}") from error


def _prepare(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} must be a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in found if not _OWN_FILE.fullmatch(name)]
    if foreign or (found and not overwrite):
        raise ConfigError(
            f"{folder} must be new or empty"
            + (" or hold a click log alone" if overwrite else ", or overwrite=True (--overwrite) and a click log")
            + f", got {(foreign or found)[0]!r} in it"
        )
    for name in found:
        (folder / name).unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _write(spec: ClickLog, folder: Path, written: list[Path], on_progress: Callable[[int], None]) -> ClickSummary:
    """Each file under a temporary name first; ``written`` has the final names of all that were begun."""
    tally = _Tally()
    files = range(0, spec.rows, spec.rows_per_file)
    group_rows = (
        min(spec.row_group_rows, end - first)
        for begin in files
        for end in [min(begin + spec.rows_per_file, spec.rows)]
        for first in range(begin, end, spec.row_group_rows)
    )
    groups = _cut(tally.watch(_draw(spec)), group_rows)
    done = 0
    for number, begin in enumerate(files):
        end = min(begin + spec.rows_per_file, spec.rows)
        path = folder / f"clicks-{number:05d}.parquet"
        written.append(path)
        with pa.OSFile(str(_temporary(path)), "wb") as sink, _writer(spec, sink) as writer:
            while done < end:
                group = next(groups)
                writer.write_table(group, row_group_size=spec.row_group_rows)
                done += group.num_rows
                on_progress(done)
        _temporary(path).replace(path)
    summary = tally.summary(tuple(path.name for path in written))
    path = folder / _SUMMARY
    written.append(path)
    content = dataclasses.asdict(summary) | {"spec": dataclasses.asdict(spec)}
    if math.isnan(summary.best_auc):
        content["best_auc"] = None
    _temporary(path).write_text(json.dumps(content, indent=2) + "\n")
    _temporary(path).replace(path)
    return summary


def _writer(spec: ClickLog, sink: Any) -> pq.ParquetWriter:
    names = spec.schema.names
    strings = len(names) - spec.categorical
    return pq.ParquetWriter(
        sink,
        spec.schema,
        compression="snappy",
        use_dictionary=names[strings:],
        # Least and greatest of hashed strings tell a reader nothing, and take a tenth of the time to find.
        write_statistics=names[:strings],
        # A dictionary that outgrows its page is given up half-way: 12 bytes a value if all of them differ.
        dictionary_pagesize_limit=max(1 << 20, 16 * spec.row_group_rows),
    )


def _cut(batches: Iterator[pa.RecordBatch], lengths: Iterable[int]) -> Iterator[pa.Table]:
    """The same rows as tables of these lengths."""
    rest: pa.RecordBatch | None = None
    for length in lengths:
        parts = []
        need = length
        while need:
            if rest is None or rest.num_rows == 0:
                rest = next(batches)
            part = rest.slice(0, need)
            rest = rest.slice(part.num_rows)
            need -= part.num_rows
            parts.append(part)
        yield pa.Table.from_batches(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    batch: pa.RecordBatch
    clicked: NDArray[np.int8]
    probabilities: NDArray[np.float64]
    entropy: float
    loss: float


class _Tally:
    """Sums over all rows that went by."""

    def __init__(self) -> None:
        self._metrics = BinaryMetrics()
        self._clicks = 0
        self._entropy = 0.0
        self._loss = 0.0

    def watch(self, blocks: Iterable[_Block]) -> Iterator[pa.RecordBatch]:
        for block in blocks:
            self._metrics.update(block.probabilities.astype(np.float32), block.clicked.astype(np.float32))
            self._clicks += int(np.count_nonzero(block.clicked))
            self._entropy += block.entropy
            self._loss += block.loss
            yield block.batch

    def summary(self, files: tuple[str, ...]) -> ClickSummary:
        rows = self._metrics.rows
        rate = self._clicks / rows
        return ClickSummary(
            rows=rows,
            files=files,
            click_rate=rate,
            best_logloss=self._entropy / rows,
            realised_logloss=self._loss / rows,
            base_rate_logloss=-sum(p * math.log(p) for p in (rate, 1.0 - rate) if p > 0),
            best_auc=self._metrics.scores().auc,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Column:
    """A categorical column: how its values are drawn, written and weighted."""

    distinct: int
    slope: float
    exponent: float
    text_salt: np.uint64
    std: float


class _Truth:
    """The model that rows are drawn from, with one set of weights; two where they turn between them."""

    def __init__(self, spec: ClickLog) -> None:
        self.spec = spec
        self.missing = round(spec.missing * _MISSING_UNIT)
        self.axes = 2 if spec.drift else 1
        self.columns = [_column(i, distinct, spec.zipf) for i, distinct in enumerate(spec.cardinalities)]
        self.coefficients = np.zeros((self.axes, spec.numeric))
        for axis in range(self.axes):
            add_weights(
                np.arange(spec.numeric),
                _salt(spec.seed, axis, "coefficients"),
                _NUMERIC_SHARE,
                self.coefficients[axis],
            )
        self.coefficients /= [_SPREAD[i % SHAPES] for i in range(spec.numeric)]
        # Before scaling, to which rows of a sample add up: random, since few values are most of the rows.
        _, logits = self.draw(_SAMPLE_BLOCK, BLOCK_ROWS)
        # Rounded, so that they do not hang on the last bit of another machine's exp or sum.
        self.centres = [round(float(z.mean()), 9) for z in logits]
        self.scales = [round(spec.signal / max(float(z.std()), 1e-9), 9) for z in logits]
        self.bias = round(_bias_for(spec.click_rate, (logits[0] - self.centres[0]) * self.scales[0]), 9)

    def draw(self, block: int, n: int) -> tuple[list[pa.Array[Any]], NDArray[np.float64]]:
        """Numeric and categorical columns, and the sums of weights f64[axes, n]."""
        spec = self.spec
        logits = np.zeros((self.axes, n))
        arrays: list[pa.Array[Any]] = []
        for i in range(spec.numeric):
            values, validity = np.empty(n, np.float32), np.zeros((n + 7) // 8, np.uint8)
            raw = _raw(spec.seed, block, _NUMERIC, i, n)
            nulls = draw_numbers(raw, i % SHAPES, self.missing, values, validity)
            arrays.append(pa.Array.from_buffers(pa.float32(), n, _buffers(validity, values), nulls))
            for axis in range(self.axes):
                logits[axis] += self.coefficients[axis, i] * values.astype(np.float64)
        first_ids: list[NDArray[np.int64]] = []
        for i, column in enumerate(self.columns):
            ids = np.empty(n, np.int64)
            raw = _raw(spec.seed, block, _CATEGORICAL, i, n)
            draw_ids(raw, column.distinct, column.slope, column.exponent, self.missing, ids)
            self.weigh(ids, f"c{i + 1}", column.std, logits)
            arrays.append(_strings(ids, column.text_salt))
            first_ids += [ids] if i < 2 else []
        if spec.cross:
            a, b = first_ids
            pair = np.where((a < 0) | (b < 0), -1, a * self.columns[1].distinct + b)
            self.weigh(pair, "c1 and c2", _CROSS_SHARE, logits)
        return arrays, logits

    def weigh(self, ids: NDArray[np.int64], name: str, std: float, logits: NDArray[np.float64]) -> None:
        for axis in range(self.axes):
            add_weights(ids, _salt(self.spec.seed, axis, name), std, logits[axis])

    def block(self, number: int) -> _Block:
        spec = self.spec
        first = number * BLOCK_ROWS
        n = min(BLOCK_ROWS, spec.rows - first)
        arrays, sums = self.draw(number, n)
        angle = spec.drift * first / spec.events_per_s / _SECONDS_A_DAY
        logits = np.full(n, self.bias)
        for z, centre, scale, turn in zip(
            sums, self.centres, self.scales, (math.cos(angle), math.sin(angle)), strict=False
        ):
            logits += turn * scale * (z - centre)
        clicked, probabilities = np.empty(n, np.int8), np.empty(n)
        entropy, loss = draw_clicks(_raw(spec.seed, number, _CLICK, 0, n), logits, clicked, probabilities)
        # Each row has its own slot of time, so that a block needs no other.
        inside = (_raw(spec.seed, number, _TIME, 0, n) >> np.uint64(11)) * 2.0**-53
        since_start_ms = np.floor((first + np.arange(n) + inside) * (1000.0 / spec.events_per_s))
        time = np.datetime64(spec._first_time(), "ms") + since_start_ms.astype("timedelta64[ms]")
        batch = pa.RecordBatch.from_arrays([pa.array(clicked), pa.array(time), *arrays], schema=spec.schema)
        return _Block(batch, clicked, probabilities, entropy, loss)


def _draw(spec: ClickLog) -> Iterator[_Block]:
    truth = _Truth(spec)
    for number in range(-(-spec.rows // BLOCK_ROWS)):
        yield truth.block(number)


def _column(i: int, distinct: int, zipf: float) -> _Column:
    # x in [1, distinct + 1) with density x^-zipf; close to 1, where the powers cancel, by its limit.
    if abs(zipf - 1.0) < 1e-4:
        slope, exponent = math.log2(distinct + 1.0), 0.0
    else:
        slope, exponent = (distinct + 1.0) ** (1.0 - zipf) - 1.0, 1.0 / (1.0 - zipf)
    return _Column(
        distinct=distinct,
        slope=slope,
        exponent=exponent,
        text_salt=_salt("text", i) >> np.uint64(32),
        # Less where most values are rare, since what is seen once cannot be learnt.
        std=1.0 / math.sqrt(1.0 + math.log10(distinct)),
    )


def _salt(*parts: object) -> np.uint64:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _raw(seed: int, block: int, stream: int, column: int, n: int) -> NDArray[np.uint64]:
    """64 random bits each: Philox (Salmon et al. 2011), of which NumPy promises the same bits for ever."""
    bits = np.random.Philox(key=(block << 64) | seed, counter=(stream << 160) | (column << 128))
    return bits.random_raw(n)


def _bias_for(click_rate: float, logits: NDArray[np.float64]) -> float:
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2.0
        rate = float(np.mean(1.0 / (1.0 + np.exp(-(logits + middle)))))
        low, high = (middle, high) if rate < click_rate else (low, middle)
    return low


def _buffers(*arrays: Any) -> list[pa.Buffer | None]:
    return [pa.py_buffer(array) for array in arrays]


def _strings(ids: NDArray[np.int64], salt: np.uint64) -> pa.Array[Any]:
    n = len(ids)
    offsets, text = np.empty(n + 1, np.int32), np.empty(n, np.uint64)
    validity = np.zeros((n + 7) // 8, np.uint8)
    nulls = write_hex(ids, salt, offsets, text, validity)
    return pa.Array.from_buffers(pa.string(), n, _buffers(validity, offsets, text), nulls)
