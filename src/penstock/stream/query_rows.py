"""Which of a query's columns one row of the primary stream gives by itself, as a request brings one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from penstock.stream.query_names import shown

__all__ = ["RowColumn", "row_columns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowColumn:
    """One of an example's columns."""

    name: str
    sql: str
    """Over a relation of the primary stream's alias; for a message where ``refused``."""
    columns: tuple[str, ...] = ()
    """Of the primary stream, those that it is computed from."""
    plain: bool = False
    """It is one of these columns as it stands."""
    refused: str | None = None
    """Why the row alone does not give it."""


def row_columns(select: exp.Select, alias: str) -> list[RowColumn]:
    """The columns of a SELECT that was read; ``alias`` is how it calls the primary stream."""
    found = [(node.alias, node.this) for node in select.expressions if isinstance(node, exp.Alias)]
    names = {name.lower() for name, _ in found}
    return [_row_column(name, node, alias, names) for name, node in found if not name.startswith("_")]


def _row_column(name: str, node: exp.Expression, alias: str, names: set[str]) -> RowColumn:
    columns: dict[str, None] = {}
    refused = None
    for part in node.walk():
        if isinstance(part, exp.Select):
            refused = "looks at other rows"
        elif isinstance(part, exp.Window | exp.AggFunc):
            refused = f"looks at other rows: {shown(part, 60)}"
        elif isinstance(part, exp.Column):
            first, *rest = [each.name for each in part.parts]
            if rest and first.lower() == alias.lower():
                columns[rest[0]] = None
            elif rest:
                refused = f"looks at {first}.{rest[0]}, which a request does not have"
            elif first.lower() in names:
                refused = f"is made of {first!r}, another column of the query; write that out"
        if refused is not None:
            return RowColumn(name=name, sql=shown(node), refused=refused)
    plain = isinstance(node, exp.Column) and len(node.parts) == 2
    return RowColumn(name=name, sql=node.sql("duckdb", comments=False), columns=tuple(columns), plain=plain)
