"""Which columns of a Parquet file are worth a dictionary: those whose values repeat.

Arrow builds one for every column, and gives up where it grows too large; ids and times pay for that with half
of the time that a file takes to write, and with its size.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

__all__ = ["repeating_columns"]

_SAMPLE_ROWS = 4096
_DISTINCT_SHARE = 0.5


def repeating_columns(table: pa.Table) -> list[str]:
    """Columns of which the first rows have each value twice or more on average; none that is nested."""
    sample = table.slice(0, _SAMPLE_ROWS)
    return [
        field.name
        for field, column in zip(sample.schema, sample.columns, strict=True)
        if not pt.is_nested(field.type)
        and not pt.is_boolean(field.type)
        and pc.count_distinct(column, mode="all").as_py() <= _DISTINCT_SHARE * max(sample.num_rows, 2)
    ]
