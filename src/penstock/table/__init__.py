"""Rows in memory: a collisionless table that grows segment by segment."""

from penstock.table.layout import SEGMENTS, Layout
from penstock.table.table import Norms, Table, unique_keys

__all__ = ["SEGMENTS", "Layout", "Norms", "Table", "unique_keys"]
