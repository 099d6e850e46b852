"""Rows in memory: a collisionless table that grows segment by segment."""

from penstock.table.table import SEGMENTS, Table, unique_keys

__all__ = ["SEGMENTS", "Table", "unique_keys"]
