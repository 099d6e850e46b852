"""What the user says about columns, and the plan that it becomes once a schema and a sample are known.

A ``Features`` may leave columns out; ``resolve`` fills them in from the schema and fixes standardisation
constants from the sample. The plan is what trains and travels with the model, so serving computes the
same keys.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from penstock.errors import ConfigError, DataError

__all__ = ["ColumnPlan", "FeaturePlan", "Features", "Numeric"]

How = Literal["standard", "raw", "log"]
Kind = Literal["standard", "raw", "log", "categorical", "list", "map"]


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """A column that counts or measures.

    ``how`` is ``"standard"`` (less the mean, by the standard deviation, both fixed before training),
    ``"raw"`` (as it is), or ``"log"`` (a category of ``per_octave`` steps for each doubling of 1 + abs(x)).
    """

    name: str
    how: How = "standard"
    per_octave: int = 4

    def __post_init__(self) -> None:
        if self.how not in ("standard", "raw", "log"):
            raise ConfigError(f"numeric column {self.name!r}: how must be standard, raw or log, got {self.how!r}")
        if self.per_octave < 1:
            raise ConfigError(f"numeric column {self.name!r}: per_octave must be >= 1, got {self.per_octave}")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which columns become features, and how.

    Where both ``numeric`` and ``categorical`` are None, every other column is a feature by its type: floating
    point standardised; integers, text, booleans and dates categorical (integers are mostly ids); lists as
    sets of categories; maps as weighted categories. Where one is given, only named columns are features.
    """

    label: str = "label"
    numeric: Sequence[str | Numeric] | None = None
    categorical: Sequence[str] | None = None
    crosses: Sequence[Sequence[str]] = ()
    weight: str | None = None
    """Column of example weights, >= 0."""
    time: str | None = None
    """Column of event time, for a hold-out by time; not a feature."""
    ignore: Sequence[str] = ()
    bias: bool = True

    def __post_init__(self) -> None:
        for field, names in (
            ("numeric", self.numeric),
            ("categorical", self.categorical),
            ("ignore", self.ignore),
        ):
            if isinstance(names, str):
                raise ConfigError(f"{field} must be a list of names, got {names!r}; allowed: [{names!r}]")
        for cross in self.crosses:
            if isinstance(cross, str) or len(set(cross)) < 2:
                raise ConfigError(f"a cross must name two or more columns, got {cross!r}")
            for name in {self.label, self.weight}.intersection(cross):
                raise ConfigError(f"column {name!r} cannot be crossed: it is the label or the weight")
        named = [*(_name(n) for n in self.numeric or ()), *(self.categorical or ())]
        for name in named:
            if named.count(name) > 1:
                raise ConfigError(f"column {name!r} is named twice among numeric and categorical")
            if name in (self.label, self.weight):
                raise ConfigError(f"column {name!r} cannot be a feature: it is the label or the weight")

    def resolve(self, sample: pa.Table) -> FeaturePlan:
        """The plan for data like ``sample``, whose first rows fix the standardisation constants.

        Raises:
            DataError: a named column is missing, or of a type that it cannot have; nothing is left to learn from.
        """
        schema = sample.schema
        crossed = [name for cross in self.crosses for name in cross]
        for name in [self.label, self.weight, self.time, *crossed, *self.ignore]:
            if name is not None and name not in schema.names:
                raise unknown_column(name, schema)
        if self.numeric is None and self.categorical is None:
            columns = self._inferred(schema)
        else:
            columns = [_numeric_plan(n, schema) for n in self.numeric or ()]
            columns += [_categorical_plan(name, schema) for name in self.categorical or ()]
        if not columns and not self.crosses:
            raise DataError(f"no column is left to learn from; the columns are {', '.join(schema.names)}")
        for name in dict.fromkeys(crossed):
            if _categorical_plan(name, schema).kind != "categorical":
                raise DataError(f"column {name!r} cannot be crossed: its type is {schema.field(name).type}")
        return FeaturePlan(
            label=self.label,
            columns=tuple(_with_constants(column, sample) for column in columns),
            crosses=tuple(dict.fromkeys(tuple(sorted(set(cross))) for cross in self.crosses)),
            weight=self.weight,
            time=self.time,
            bias=self.bias,
        )

    def _inferred(self, schema: pa.Schema) -> list[ColumnPlan]:
        other = {self.label, self.weight, self.time, *self.ignore}
        return [_inferred_plan(f) for f in schema if f.name not in other and not pt.is_timestamp(f.type)]


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """How one column becomes keys. ``mean`` and ``scale`` as in ``kernels.hashing.NumberColumns``."""

    name: str
    kind: Kind
    type: str
    """The Arrow type that it had when the plan was made, for people."""
    mean: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """A resolved feature spec; equal plans give equal keys."""

    label: str
    columns: tuple[ColumnPlan, ...]
    crosses: tuple[tuple[str, ...], ...] = ()
    weight: str | None = None
    time: str | None = None
    bias: bool = True
    version: int = 1
    """Of the hashing: a change of keys is a new version."""

    @property
    def inputs(self) -> list[str]:
        """Columns that features are computed from."""
        return list(dict.fromkeys([c.name for c in self.columns] + [n for x in self.crosses for n in x]))

    @property
    def read_types(self) -> dict[str, pa.DataType]:
        """Types to read columns as, where a format (CSV) leaves a choice: categories keep their text."""
        types = {c.name: pa.float64() for c in self.columns if c.kind in ("standard", "raw", "log")}
        texts = [c.name for c in self.columns if c.kind == "categorical"] + [n for x in self.crosses for n in x]
        return {**types, **dict.fromkeys(texts, pa.string())}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(plan: Mapping[str, Any]) -> FeaturePlan:
        """The inverse of ``to_dict``.

        Raises:
            msgspec.ValidationError: a field is missing or of another type.
            ConfigError: its keys are of another version of the hashing.
        """
        made = msgspec.convert(plan, FeaturePlan)
        if any(len(cross) < 2 for cross in made.crosses):
            raise ConfigError("features: a cross of less than two columns")
        if made.version != FeaturePlan.version:
            raise ConfigError(f"features of hashing version {made.version}; allowed: {FeaturePlan.version}")
        return made

    def describe(self) -> list[tuple[str, str, str]]:
        """Rows (columns, type, what they become) for people; neighbours alike share a row."""
        rows = [(self.label, "", "label")]
        for (type_, kind), group in itertools.groupby(self.columns, lambda c: (c.type, _kind_in_words(c))):
            rows.append((_listed([column.name for column in group]), type_, kind))
        rows += [(" x ".join(cross), "", "cross") for cross in self.crosses]
        rows += [(name, "", what) for name, what in ((self.weight, "weight"), (self.time, "event time")) if name]
        return rows


def unknown_column(name: str, schema: pa.Schema) -> DataError:
    """The error for a column that is not there."""
    # Names that begin with _ are of our own making, in pipelines.
    names = [each for each in schema.names if not each.startswith("_")] or schema.names
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return DataError(f"column {name!r} is not in the data; its columns are {', '.join(names)}{hint}")


def _name(column: str | Numeric) -> str:
    return column if isinstance(column, str) else column.name


def _is_number(type_: pa.DataType) -> bool:
    return bool(pt.is_integer(type_) or pt.is_floating(type_) or pt.is_decimal(type_) or pt.is_boolean(type_))


def _inferred_plan(column: pa.Field) -> ColumnPlan:
    kind: Kind = "standard" if pt.is_floating(column.type) or pt.is_decimal(column.type) else "categorical"
    if pt.is_map(column.type):
        kind = "map"
    elif is_list(column.type):
        kind = "list"
    elif pt.is_nested(column.type):
        raise DataError(f"column {column.name!r}: a {column.type} cannot be a feature; flatten it, or ignore it")
    return ColumnPlan(name=column.name, kind=kind, type=str(column.type))


def is_list(type_: pa.DataType) -> bool:
    return bool(pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_))


def _categorical_plan(name: str, schema: pa.Schema) -> ColumnPlan:
    if name not in schema.names:
        raise unknown_column(name, schema)
    plan = _inferred_plan(schema.field(name))
    if plan.kind == "standard":
        return ColumnPlan(name=name, kind="categorical", type=plan.type)
    return plan


def _numeric_plan(column: str | Numeric, schema: pa.Schema) -> ColumnPlan:
    numeric = column if isinstance(column, Numeric) else Numeric(name=column)
    if numeric.name not in schema.names:
        raise unknown_column(numeric.name, schema)
    type_ = schema.field(numeric.name).type
    if not _is_number(type_) and not pt.is_null(type_):
        raise DataError(f"column {numeric.name!r} cannot be numeric: its type is {type_}")
    scale = float(numeric.per_octave) if numeric.how == "log" else 1.0
    return ColumnPlan(name=numeric.name, kind=numeric.how, type=str(type_), scale=scale)


def _with_constants(column: ColumnPlan, sample: pa.Table) -> ColumnPlan:
    if column.kind != "standard":
        return column
    numbers = pc.cast(sample.column(column.name), pa.float64(), safe=False)
    # What is not finite is refused where rows are read, with its place; here it must only do no harm.
    numbers = numbers.filter(pc.is_finite(numbers))
    mean = pc.mean(numbers).as_py()
    deviation = pc.stddev(numbers).as_py()
    if mean is None or not math.isfinite(mean):
        return column
    # Equal numbers may have a deviation, of the rounding of their mean.
    if not math.isfinite(deviation) or deviation <= max(1e-14 * abs(mean), 1e-300):
        return ColumnPlan(name=column.name, kind="standard", type=column.type, mean=mean)
    return ColumnPlan(name=column.name, kind="standard", type=column.type, mean=mean, scale=1.0 / deviation)


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 6 else f"{', '.join(names[:3])} ... {names[-1]} ({len(names)} columns)"


def _kind_in_words(column: ColumnPlan) -> str:
    if column.kind == "standard":
        return "number, standardised"
    if column.kind == "log":
        return f"number, in {column.scale:g} buckets for each doubling"
    return {"raw": "number, as it is", "list": "set of categories", "map": "weighted categories"}.get(
        column.kind, "category"
    )
