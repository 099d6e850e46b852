"""What a prediction server lets others do."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.transport.http import HttpLimits

__all__ = ["ServeLimits"]


@dataclass(frozen=True, kw_only=True)
class ServeLimits(HttpLimits):
    """What a prediction server lets others do."""

    rows: int = 10_000
    """Of a request with rows in JSON."""
    explained_rows: int = 100
    row_nbytes: int = 512 << 10
    """Of one row, in a body of more than ``SLICE_NBYTES``; it is read at once."""
    tensors_nbytes: int = 16 << 20
    """Of a request with tensors in JSON."""
    tables: int = 4
    """Arrow tables that are scored, or wait for it, at the same time; more are refused."""
    table_rows: int = 16 << 20
    waiting_nbytes: int = 1 << 30
    """Of all bodies and answers of more than ``SLICE_NBYTES`` that are not answered, or not taken, yet."""
    drain_s: float = 1.0
