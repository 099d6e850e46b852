"""A model that answers: rows to scores, the same bits as ``Model.predict`` gives for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from penstock.batch import Floats, Keys, SparseBatch
from penstock.errors import ConfigError, DataError, ModelError, RowError, StorageError
from penstock.features import Encoder, ValueEncoder
from penstock.features.memory import Memory
from penstock.models import Linear, Model
from penstock.serve.rows import BadRow, RowReader, read_values
from penstock.serve.versions.weights import ServedTable

__all__ = ["Contribution", "Scorer"]

PART_ROWS = 8192
"""Rows of a table that are scored at once; between two parts others get their turn."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one feature adds to the log-odds of a row."""

    feature: str
    contribution: float


class Completer(Protocol):
    """What a pipeline adds to rows, as of the moment at which it is asked."""

    names: frozenset[str]
    """Columns that it looks at."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Rows with what the model needs besides.

        Raises:
            BadRow: a key or time cannot be read.
        """

    def table(self, table: pa.Table) -> pa.Table:
        """The same of a table.

        Raises:
            DataError: a value cannot be read.
        """


@dataclass(eq=False)
class Scorer:
    """One version of a model. ``score`` and ``explain`` are for one thread, ``score_table`` for any."""

    model: Model
    """Its plan and settings; its own tables are empty."""
    tables: Mapping[str, ServedTable]
    manifest: dict[str, Any]
    reader: RowReader = field(init=False)
    completer: Completer | None = field(default=None, init=False)
    """Adds to rows what the server knows itself."""
    damaged: bool = field(default=False, init=False)
    """Its mapped file was found damaged: it must be loaded anew."""

    def __post_init__(self) -> None:
        plan = self.model.plan
        if plan is None:
            raise ConfigError("a model that has not been fitted cannot be served")
        self.reader = RowReader(plan)
        self._encoder, self._memory = Encoder(plan), Memory()
        self._values = ValueEncoder(plan) if ValueEncoder.can(plan) else None
        self._table_encoder, self._table_memory, self._table_lock = Encoder(plan), Memory(), threading.Lock()

    @cached_property
    def version(self) -> str:
        """The version in the model's manifest."""
        return str(self.manifest.get("version", 0))

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(int(table["rows"]) for table in self.manifest["tables"].values())

    @cached_property
    def newest_event_s(self) -> float | None:
        """Event time of the newest event that it has learnt, in seconds since 1970; None where it is not known."""
        lineage = self.manifest.get("lineage")
        newest = lineage.get("newest_event") if isinstance(lineage, dict) else None
        try:
            return datetime.fromisoformat(newest).timestamp() if isinstance(newest, str) else None
        except ValueError:
            return None

    @property
    def created_s(self) -> float:
        """When the version was written, in seconds since 1970; 0 where the manifest does not say."""
        try:
            return datetime.fromisoformat(str(self.manifest.get("created"))).timestamp()
        except ValueError:
            return 0.0

    @property
    def columns(self) -> frozenset[str]:
        """Columns that requests may bring."""
        plan = self.model.plan
        assert plan is not None
        return frozenset(plan.inputs) | (self.completer.names if self.completer is not None else frozenset())

    def complete(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Rows as ``score`` takes them, of those that a request brings.

        Raises:
            BadRow: one cannot be completed.
        """
        return rows if self.completer is None else self.completer.rows(rows)

    def complete_table(self, table: pa.Table) -> pa.Table:
        """The same of a table, for ``score_table``.

        Raises:
            DataError: a value cannot be read.
        """
        return table if self.completer is None else self.completer.table(table)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Probabilities f32[n].

        Raises:
            BadRow: a row cannot be scored.
        """
        self.reader.check(rows)
        if self._values is not None:
            found = read_values(self._values, rows)
            batch = self._values.encode(*found, self._memory) if found is not None else None
            if batch is not None:
                return self._predict(batch)
        records = self.reader.read(rows)
        try:
            return self._predict(self._encoder.encode(records, labelled=False, memory=self._memory))
        except RowError as error:
            raise BadRow(error.row, error.message) from error

    def score_table(self, table: pa.Table) -> Floats:
        """Probabilities f32[n] of a table whose columns have the types that training read, or could have read.

        Raises:
            DataError: a column is missing or of a type that does not fit, or a value is not allowed.
        """
        out = np.empty(table.num_rows, np.float32)
        table = table.select([name for name in self._table_encoder.plan.inputs if name in table.column_names])
        begin = 0
        for batch in table.to_batches(max_chunksize=PART_ROWS):
            with self._table_lock:
                try:
                    encoded = self._table_encoder.encode(batch, labelled=False, memory=self._table_memory)
                except RowError as error:
                    raise DataError(f"row {begin + error.row}: {error.message}") from error
                out[begin : begin + len(batch)] = self._predict(encoded)
            begin += len(batch)
        return out

    def _predict(self, batch: SparseBatch) -> Floats:
        weights = {name: self._pull(name, keys) for name, keys in self.model.keys(batch).items()}
        return self.model.predict_pulled(weights, batch)

    def _pull(self, table: str, keys: Keys) -> Floats:
        try:
            return self.tables[table].pull(keys)
        except ModelError as error:
            # Not the fault of who asks. Without the file, the next load makes a new one.
            self.damaged = True
            self.tables[table].remove_file()
            raise StorageError(str(error)) from error

    def explain(self, rows: Sequence[Mapping[str, Any]], most: int) -> list[list[Contribution]]:
        """For each row the features that add most to its log-odds, either way; none that adds nothing.

        Raises:
            BadRow: a row cannot be scored.
            ConfigError: the model is of a kind whose scores are no sums.
        """
        if not isinstance(self.model, Linear):
            raise ConfigError(f"a model of kind {self.model.kind!r} cannot be explained; allowed: linear")
        self.reader.check(rows)
        records = self.reader.read(rows)
        try:
            batch = self._encoder.encode(records, labelled=False)
        except RowError as error:
            raise BadRow(error.row, error.message) from error
        added = self._pull("weights", batch.keys)[:, 0]
        if batch.values is not None:
            added = added * batch.values
        found = []
        for n in range(len(batch)):
            part = slice(int(batch.offsets[n]), int(batch.offsets[n + 1]))
            names = self._encoder.name_keys(records.slice(n, 1), np.unique(batch.keys[part]))
            pairs = zip(batch.keys[part].tolist(), added[part].tolist(), strict=True)
            known = [Contribution(feature=names.get(key, "?"), contribution=add) for key, add in pairs if add]
            found.append(sorted(known, key=lambda each: -abs(each.contribution))[:most])
        return found
