"""What a model is: tables of rows, and gradients as a pure function of pulled rows.

Every way of training and serving uses models through this; a class of one's own is registered by its kind.
A model crosses a wire as its spec, of plain values; nothing is ever unpickled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from penstock.batch import Floats, Keys, SparseBatch
from penstock.errors import ConfigError, DataError, RowError
from penstock.features import Encoder, FeaturePlan, Features
from penstock.optim import FTRL, Optimizer, optimizer_from_dict
from penstock.table import SEGMENTS, Layout, Table

__all__ = ["Model", "Slots", "model_from_spec", "register_model", "table_layouts"]

Slots = int | Mapping[str, int]
"""Rows to make room for at first: in each table, or by the table's name."""

_by_kind: dict[str, type[Model]] = {}

M = TypeVar("M", bound="type[Model]")


class Model(ABC):
    """A feature plan, an optimizer, and tables of rows.

    A subclass names its ``kind``, makes its tables in ``__init__`` by ``add_table``, and says which keys a batch
    touches and what the gradients are. It is made anew on other machines as ``cls(plan, optimizer=..., slots=...,
    segments=..., **model.settings())``, so ``__init__`` takes these, and leaves the tables empty::

        @register_model
        class Mean(Model):
            kind = "mean"

            def __init__(self, features=None, *, optimizer=None, slots=1 << 16, segments=SEGMENTS):
                super().__init__(features, optimizer=optimizer)
                self.add_table("weights", dim=1, slots=slots, segments=segments)

    All tables of a model have the same number of segments, as these are what servers share out.
    """

    kind: ClassVar[str]

    def __init__(
        self, features: Features | FeaturePlan | None = None, *, optimizer: Optimizer | None = None
    ) -> None:
        """With a ``FeaturePlan`` the model can learn at once, with ``Features`` after ``resolve``."""
        self.features = features if isinstance(features, Features) else Features()
        self.plan: FeaturePlan | None = features if isinstance(features, FeaturePlan) else None
        self.optimizer = optimizer if optimizer is not None else FTRL()
        self.metadata: dict[str, Any] = {}
        """What the manifest says besides: metrics and lineage of the last fit."""
        self.names: dict[int, str] = {}
        """``column=value`` of some keys, for people."""
        self._tables: dict[str, Table] = {}
        self._sample: pa.Table | None = None

    # What a subclass says.

    @abstractmethod
    def keys(self, batch: SparseBatch) -> Mapping[str, Keys]:
        """By table, the keys that the batch touches, each as often as it is used (so not yet distinct)."""

    @abstractmethod
    def gradients(
        self, rows: Mapping[str, Floats], index: Mapping[str, Any], batch: SparseBatch, out: Floats
    ) -> tuple[float, dict[str, Floats]]:
        """Loss (sum over the examples, weighted) and gradients of pulled rows; changes nothing.

        By table, ``rows`` f32[U, dim] are the weights of the batch's distinct keys, and ``index`` i64[n] says
        which of them each of the n keys that ``keys`` gave is. ``out`` f32[B] gets the predictions. Gradients
        f32[U, dim] are summed over examples, in their order, not averaged.
        """

    @abstractmethod
    def predict_batch(self, batch: SparseBatch) -> Floats:
        """Predictions f32[B] of the rows as they are now."""

    def predict_pulled(self, weights: Mapping[str, Floats], batch: SparseBatch) -> Floats:
        """Predictions f32[B] by weights that come from elsewhere: by table f32[n, dim] of the n keys that ``keys``
        gave, each as often as it is there. The same bits as ``predict_batch``; the model's rows are not looked at.
        """
        out = np.empty(len(batch), np.float32)
        self.gradients(weights, {name: np.arange(len(part)) for name, part in weights.items()}, batch, out)
        return out

    def settings(self) -> dict[str, Any]:
        """Hyperparameters of its own, as plain values: the keyword arguments that ``__init__`` takes besides."""
        return {}

    def initial_rows(self) -> dict[str, tuple[Keys, Floats]]:
        """By table, rows that a new model begins with: keys u64[n], and words f32[n, width] as ``Table.insert``
        takes them. Always the same for the same settings."""
        return {}

    # What every model has.

    def add_table(
        self,
        name: str,
        *,
        dim: int,
        slots: Slots,
        segments: int = SEGMENTS,
        optimizer: Optimizer | None = None,
    ) -> Table:
        """Make a table, with the model's optimizer where none is given.

        Raises:
            ConfigError: the name is taken or no identifier, or the number of segments is not that of the others.
        """
        if not name.isidentifier() or name in self._tables:
            raise ConfigError(f"model {self.kind}: a table's name must be a new identifier, got {name!r}")
        for other in self._tables.values():
            if other.segments != segments:
                raise ConfigError(
                    f"model {self.kind}: tables must have the same number of segments, got {segments} for "
                    f"{name!r}, {other.segments} before"
                )
        room = slots if isinstance(slots, int) else slots[name]
        table = Table(optimizer or self.optimizer, dim=dim, segments=segments, slots=room)
        self._tables[name] = table
        return table

    def tables(self) -> Mapping[str, Table]:
        """The tables that hold the model's rows, by name."""
        return self._tables

    @property
    def segments(self) -> int:
        """Segments of each table."""
        return next(iter(self._tables.values())).segments

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(len(table) for table in self._tables.values())

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tables' slots take."""
        return sum(table.nbytes for table in self._tables.values())

    def begin(self) -> None:
        """Put the initial rows into tables that are empty: the first step of training a new model."""
        empty = {name for name, table in self._tables.items() if not len(table)}
        for name, (keys, words) in self.initial_rows().items():
            if name in empty:
                self._tables[name].insert(keys, words)

    def adopt(self, other: Model) -> None:
        """Take over the tables of a model made from the same spec, which must not be used any more."""
        self._tables = other._tables

    def to_spec(self) -> dict[str, Any]:
        """What makes this model elsewhere, without its rows: plain values that JSON and TOML can hold.

        ``kind``, ``features`` (the plan), ``optimizer``, ``segments``, ``settings``, and ``tables``: for each
        name, ``dim``, ``segments`` and ``optimizer`` (see ``table_layouts``).

        Raises:
            ConfigError: the model has not been fitted, or a setting is not a plain value.
        """
        if self.plan is None:
            raise ConfigError("the model has not been fitted: it knows no columns yet")
        spec = {
            "kind": self.kind,
            "features": self.plan.to_dict(),
            "optimizer": self.optimizer.to_dict(),
            "segments": self.segments,
            "settings": self.settings(),
            "tables": {name: table.layout.to_dict() for name, table in self._tables.items()},
        }
        return {name: _plain(value, name) for name, value in spec.items()}

    def shell(self, *, segments: int | None = None) -> Model:
        """A new model of the same plan and settings, without a row, and as small as can be."""
        sizes: dict[str, Any] = {"slots": 1, "segments": segments if segments is not None else self.segments}
        return type(self)(self.plan, optimizer=self.optimizer, **sizes, **self.settings())

    def resolve(self, sample: pa.Table) -> FeaturePlan:
        """Fix the feature plan, if it is not fixed yet, by a sample of the data."""
        if self.plan is None:
            self.plan = self.features.resolve(sample)
        return self.plan

    def keep_sample(self, sample: pa.Table) -> None:
        """Rows of the data, from which ``name_features`` takes names."""
        self._sample = sample

    @property
    def sample(self) -> pa.Table | None:
        """What ``keep_sample`` was given, until names were taken from it."""
        return self._sample

    def sample_batch(self, columns: list[str], rows: int) -> pa.RecordBatch:
        """The first rows of the sample."""
        assert self._sample is not None
        table = self._sample.select(columns).slice(0, rows).combine_chunks()
        return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)

    def name_features(self) -> dict[int, str]:
        """``column=value`` of some keys, also kept in ``names``; the sample is not needed any more."""
        self._sample = None
        return self.names

    def predict(self, data: Any) -> Floats:
        """Predictions f32[rows] for an Arrow table or record batch, a pandas or Polars data frame.

        Raises:
            DataError: a column that the model needs is missing, or a value is not allowed.
            ConfigError: the model has never seen data.
        """
        if self.plan is None:
            raise ConfigError("the model has not been fitted: it knows no columns yet")
        if not isinstance(data, pa.Table):
            try:
                data = pa.table(data) if not isinstance(data, pa.RecordBatch) else pa.Table.from_batches([data])
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"cannot predict for a {type(data).__name__}; allowed: an Arrow table or record batch, "
                    "a pandas or Polars data frame"
                ) from error
        encoder, begin = Encoder(self.plan), 0
        parts = [np.empty(0, np.float32)]
        for batch in data.combine_chunks().to_batches(max_chunksize=4096):
            try:
                parts.append(self.predict_batch(encoder.encode(batch, labelled=False)))
            except RowError as error:
                raise RowError(begin + error.row, error.message) from error
            begin += len(batch)
        return np.concatenate(parts)

    def save(self, path: str) -> None:
        """Write the model to a folder, as a new version that replaces the one before at once.

        Raises:
            StorageError: the disk is full or the folder cannot be written; an older model there is unharmed.
        """
        from penstock.models.folder import save_model

        save_model(self, path)


def register_model(cls: M) -> M:
    """Make a class of models known by its ``kind``; a decorator.

    Raises:
        ConfigError: no kind, or that of another class.
    """
    kind = getattr(cls, "kind", None)
    if not kind or not isinstance(kind, str) or not kind.replace("-", "_").isidentifier():
        raise ConfigError(f"{cls.__name__}.kind must be a word of letters, digits and '-', got {kind!r}")
    other = _by_kind.get(kind)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"model kind {kind!r} is already registered by {other.__module__}.{other.__qualname__}")
    _by_kind[kind] = cls
    return cls


def model_from_spec(spec: Mapping[str, Any], *, slots: Slots = 1) -> Model:
    """The model that ``to_spec`` described, without rows; with ``slots=1`` its tables are as small as can be.

    Raises:
        ConfigError: the kind is not known here, a value is not allowed, or the class here has other tables.
    """
    try:
        kind = spec["kind"]
        cls = _by_kind.get(kind) if isinstance(kind, str) else None
        if cls is None:
            raise ConfigError(f"model kind {kind!r} is not known; allowed: {', '.join(sorted(_by_kind))}")
        plan = FeaturePlan.from_dict(spec["features"])
        optimizer = optimizer_from_dict(spec["optimizer"])
        settings = spec.get("settings", {})
        model = cls(plan, optimizer=optimizer, slots=slots, segments=spec["segments"], **settings)  # type: ignore[call-arg]
        expected = table_layouts(spec)
    except KeyError as error:
        raise ConfigError(f"model spec: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model spec: {' '.join(str(error).split())}") from error
    found = {name: table.layout for name, table in model.tables().items()}
    if found != expected:
        raise ConfigError(f"model kind {kind!r} has here tables {_listed(found)}, in the spec {_listed(expected)}")
    return model


def table_layouts(spec: Mapping[str, Any]) -> dict[str, Layout]:
    """The tables of a model's spec: all that a server needs, which does not know the model's class.

    Raises:
        ConfigError: a value is missing or not allowed.
    """
    tables = spec.get("tables")
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(f"model spec: tables must be described by their names, got {tables!r}")
    return {name: Layout.from_dict(table) for name, table in tables.items()}


def _plain(value: Any, where: str) -> Any:
    """Lists for tuples, and no field that is None, as TOML has none."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if type(value) in (bool, int, float, str):
        return value
    raise ConfigError(f"model spec: {where} must be a plain value, got a {type(value).__name__}")


def _listed(layouts: Mapping[str, Layout]) -> str:
    return msgspec.json.encode({name: layout.to_dict() for name, layout in layouts.items()}).decode()
