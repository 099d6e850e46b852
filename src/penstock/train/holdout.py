"""Which rows are kept from the learner, to evaluate on: a fraction, or those after a time."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.data import Chunk
from penstock.errors import ConfigError, DataError
from penstock.features import FeaturePlan
from penstock.train.stream import Keep

__all__ = ["Holdout"]


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Rows to evaluate on after training, and not to learn: give one of the two.

    ``fraction`` takes rows at random, but always the same ones of the same data. ``after`` takes the rows whose
    event time (the feature spec's ``time`` column) is at or after it: an ISO 8601 time for a timestamp or date
    column, a number for a number column.
    """

    fraction: float | None = None
    after: str | float | None = None

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.after is None):
            raise ConfigError("a hold-out needs either fraction or after")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ConfigError(f"hold-out fraction must be between 0 and 1, got {self.fraction}")

    def split(self, plan: FeaturePlan) -> tuple[Keep, Keep]:
        """Which rows to learn, and which to evaluate on.

        Raises:
            ConfigError: ``after`` without a time column.
        """
        if self.after is not None and plan.time is None:
            raise ConfigError("a hold-out by time needs the feature spec's time column (--time COLUMN)")

        def held_out(records: pa.RecordBatch, chunk: Chunk, row: int) -> NDArray[np.bool_]:
            if self.fraction is not None:
                return _fraction(self.fraction, chunk.index, row, len(records))
            return _after(self.after, plan.time, records)

        def learnt(records: pa.RecordBatch, chunk: Chunk, row: int) -> NDArray[np.bool_]:
            return ~held_out(records, chunk, row)

        return learnt, held_out

    def columns(self, plan: FeaturePlan) -> tuple[str, ...]:
        """What ``split`` looks at besides the columns of features."""
        return (plan.time,) if self.after is not None and plan.time is not None else ()


def _fraction(fraction: float, chunk: int, row: int, rows: int) -> NDArray[np.bool_]:
    # Philox draws any range of its sequence at once; four numbers to a step of its counter.
    first = row // 4 * 4
    generator = np.random.Philox(key=chunk, counter=first // 4)
    drawn = generator.random_raw(row - first + rows)[row - first :]
    return np.asarray(drawn < np.uint64(fraction * 2.0**64))


def _after(after: Any, column: str | None, records: pa.RecordBatch) -> NDArray[np.bool_]:
    assert column is not None
    times = records.column(column)
    try:
        if pt.is_temporal(times.type):
            moment = datetime.datetime.fromisoformat(str(after))
            zone = getattr(times.type, "tz", None)
            if zone is None:
                moment = moment.replace(tzinfo=None)
            elif moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            bound = pa.scalar(moment.date() if pt.is_date(times.type) else moment)
        else:
            bound = pa.scalar(float(after))
        mask = pc.fill_null(pc.greater_equal(times, bound), False)
    except ValueError as error:
        raise ConfigError(
            f"hold-out after {after!r} does not fit column {column!r} of type {times.type}: {error}"
        ) from error
    except pa.ArrowNotImplementedError as error:
        raise DataError(f"column {column!r} of type {times.type} is not a time") from error
    return np.asarray(mask.to_numpy(zero_copy_only=False))
