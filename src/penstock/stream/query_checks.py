"""What DuckDB itself says of a query: its syntax, its functions, the types that it binds.

DuckDB's own parse tree is what counts for functions: it has the names as they will be called, whatever form the
text has. A function is allowed if DuckDB's catalogue says that equal arguments give equal values.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.errors import ConfigError, DataError
from penstock.stream.sql import Database, identifier, literal

if TYPE_CHECKING:
    import duckdb

__all__ = ["check_calls", "check_types", "parse_tree"]

# Their value does not depend on the order of the rows (of equal keys, arg_min and arg_max take any row; they get
# an order).
_FREE = frozenset(
    (
        *("count", "count_star", "count_if", "countif", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or"),
        *("bit_xor", "bitstring_agg", "histogram", "histogram_exact", "median", "quantile", "quantile_cont"),
        *("quantile_disc", "mad", "regr_count", "arg_min", "arg_max", "argmin", "argmax", "min_by", "max_by"),
        *("arg_min_null", "arg_max_null", "arg_min_nulls_last", "arg_max_nulls_last"),
    )
)
# Exact over integers and decimals, so that the types decide.
_SUMS = frozenset(("sum", "avg", "mean", "sum_no_overflow"))
_REFUSED = ("approx_", "reservoir_", "lttb")
_FREE_WINDOWS = frozenset(("rank", "dense_rank", "rank_dense", "percent_rank", "cume_dist"))
_TABLE_FUNCTIONS = frozenset(("unnest", "range", "generate_series"))
_CLOCKS = frozenset(("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"))
_ROWS = frozenset(("unnest", "regexp_split_to_table", "generate_subscripts"))
_NODES = {
    "SET_OPERATION_NODE": "UNION, INTERSECT and EXCEPT are not supported",
    "RECURSIVE_CTE_NODE": "WITH RECURSIVE is not supported",
    "SHOW_REF": "DESCRIBE and SHOW are not supported",
    "PIVOT": "PIVOT and UNPIVOT are not supported",
}
_CLASSES = {
    "PARAMETER": "parameters ($1, ?) are not supported",
    "POSITIONAL_REFERENCE": "#1 is not supported; name the column",
}


def parse_tree(sql: str) -> dict[str, Any]:
    """DuckDB's parse tree of one SELECT.

    Raises:
        ConfigError: not the syntax of DuckDB, more than one statement, or no SELECT.
    """
    found = _serialized("json_serialize_sql", sql)
    if found.get("error"):
        if found.get("error_type") == "not implemented":
            raise ConfigError("got a statement that is no SELECT, allowed: one SELECT")
        place = ""
        if str(found.get("position", "")).isdigit():
            place = f"{position(sql, int(found['position']))}: "
        raise ConfigError(place + _one_line(found["error_message"]))
    statements = found["statements"]
    if len(statements) != 1:
        raise ConfigError(f"got {len(statements)} statements, allowed: one SELECT")
    node: dict[str, Any] = statements[0]["node"]
    return node


def position(sql: str, offset: int) -> str:
    """Line and column, from 1."""
    before = sql.encode()[:offset].decode(errors="replace")
    return f"line {before.count(chr(10)) + 1}, column {len(before) - (before.rfind(chr(10)) + 1) + 1}"


def check_calls(
    sql: str, tree: Mapping[str, Any], *, grouped: bool, relations: Sequence[str] | None = None
) -> None:
    """Refuse functions that are not known, look at other examples, or differ from run to run.

    Args:
        sql: the text, for places.
        tree: DuckDB's parse tree of it.
        grouped: whether the query has GROUP BY.
        relations: what FROM may name, in lower case; None where that was checked.

    Raises:
        ConfigError: with the function.
    """
    for node, nested in _nodes(tree):
        kind, form = node.get("class"), node.get("type")
        place = ""
        if isinstance(node.get("query_location"), int) and node["query_location"] <= len(sql.encode()):
            place = f" at {position(sql, node['query_location'])}"
        if isinstance(form, str) and form in _NODES:
            raise ConfigError(_NODES[form] + place)
        if kind in _CLASSES:
            raise ConfigError(_CLASSES[kind] + place)
        if kind == "COLUMN_REF":
            names = [str(name).lower() for name in node["column_names"]]
            if len(names) == 1 and names[0] in _CLOCKS:
                raise ConfigError(f"{names[0]}{place} differs from run to run")
        elif kind == "FUNCTION":
            _check_function(node, nested, grouped, place)
        elif kind == "WINDOW":
            _check_window(node, nested, place)
        elif form == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in _TABLE_FUNCTIONS:
                raise ConfigError(f"{name}(){place} reads outside the log; allowed in FROM are streams")
        elif form == "BASE_TABLE" and relations is not None and node["table_name"].lower() not in relations:
            raise ConfigError(f"{node['table_name']}{place} is no stream")


def check_types(
    connection: duckdb.DuckDBPyConnection, names: Sequence[str], sql: str, others: Sequence[str]
) -> None:
    """Bind a query, and refuse sums whose value depends on the order of rows.

    Args:
        connection: has the relations.
        names: of the relations.
        sql: the query.
        others: more queries, which must bind.

    Raises:
        ConfigError: a column that is not there, types that do not fit, a sum of floats without an order.
    """
    database = Database(threads=1)
    try:
        for name in names:
            described = connection.execute(f"describe select * from {identifier(name)}").fetchall()
            columns = ", ".join(f"{identifier(row[0])} {row[1]}" for row in described)
            try:
                database.run(f"create table {identifier(name)} ({columns})")
            except DataError as error:
                raise ConfigError(f"stream {name}: {error}") from error
        for text in (sql, *others):
            bound = _serialized("json_serialize_plan", text, database)
            if bound.get("error"):
                raise ConfigError(_one_line(bound["error_message"]))
            if text is sql:
                _check_sums(bound)
    finally:
        database.close()


def _check_sums(bound: Mapping[str, Any]) -> None:
    for node, _ in _nodes(bound):
        form = node.get("expression_class")
        if form not in ("BOUND_AGGREGATE", "BOUND_WINDOW"):
            continue
        name = node.get("qname", {}).get("path", [""])[-1]
        of = next((each.get("id") for each in node.get("arguments") or []), None)
        if name in _SUMS and of in ("FLOAT", "DOUBLE") and not _is_ordered(node):
            raise ConfigError(
                f"{name}() of {of} depends on the order of rows; write {name}(x order by …) or cast to a decimal"
            )


def _check_function(node: Mapping[str, Any], nested: bool, grouped: bool, place: str) -> None:
    name = str(node["function_name"]).lower()
    kinds = _check_stable(name, len(node["arguments"]), place)
    if not nested and name in _ROWS:
        raise ConfigError(f"{name}(){place} makes more than one row of an example")
    if "aggregate" in kinds:
        if not nested and not grouped:
            raise ConfigError(f"{name}(){place} puts examples together; group by a column of the primary stream")
        if "macro" not in kinds:
            _check_ordered(name, _is_ordered(node), place)


def _check_window(node: Mapping[str, Any], nested: bool, place: str) -> None:
    name = str(node["function_name"]).lower()
    if not nested:
        raise ConfigError(
            f"{name}() over (…){place} looks at other examples; what happened before is declared in [[aggregates]]"
        )
    kinds = _check_stable(name, len(node["arguments"]), place)
    ordered = _is_ordered(node)
    if "aggregate" in kinds and "window" not in kinds:
        _check_ordered(name, ordered, place)
    elif name not in _FREE_WINDOWS and not ordered:
        raise ConfigError(f"{name}() over (…){place} depends on the order of rows; write ORDER BY in it")


def _check_ordered(name: str, ordered: bool, place: str) -> None:
    if name.startswith(_REFUSED):
        raise ConfigError(f"{name}(){place} differs from run to run")
    if name not in _FREE and name not in _SUMS and not ordered:
        raise ConfigError(f"{name}(){place} depends on the order of rows; write {name}(x order by …)")


def _check_stable(name: str, arguments: int, place: str, above: tuple[str, ...] = ()) -> set[str]:
    """The kinds of function that a name may be, once it is known that equal arguments give equal values."""
    overloads = _catalogue().get(name)
    if overloads is None:
        raise ConfigError(f"{name}(){place} is no function that DuckDB knows")
    kinds = {each.kind for each in overloads}
    for macro in overloads:
        # A macro is what it stands for; one that calls its own name means the built-in function.
        if macro.kind == "macro" and macro.text is not None and name not in above:
            kinds |= _check_macro(name, macro.text, place, (*above, name))
    plain = [each for each in overloads if each.kind in ("scalar", "aggregate")]
    fitting = [each for each in plain if each.varargs or each.arity == arguments] or plain
    # age(x) is the time until today, and DuckDB calls it consistent.
    if (fitting and not any(each.stability == "CONSISTENT" for each in fitting)) or (
        name == "age" and arguments == 1
    ):
        raise ConfigError(f"{name}(){place} differs from run to run")
    if not kinds & {"scalar", "aggregate", "window", "macro"} and name not in _TABLE_FUNCTIONS:
        raise ConfigError(f"{name}(){place} is no function of values")
    return kinds


def _check_macro(name: str, text: str, place: str, above: tuple[str, ...]) -> set[str]:
    kinds: set[str] = set()
    for node, _ in _nodes(parse_tree(f"select {text}")):
        if node.get("type") == "TABLE_FUNCTION":
            raise ConfigError(f"{name}(){place} reads outside the log")
        if node.get("class") == "COLUMN_REF" and str(node["column_names"][-1]).lower() in _CLOCKS:
            raise ConfigError(f"{name}(){place} differs from run to run")
        if node.get("class") == "FUNCTION":
            inner = str(node["function_name"]).lower()
            if "aggregate" in _check_stable(inner, len(node["arguments"]), place, above):
                _check_ordered(inner, _is_ordered(node), place)
                kinds.add("aggregate")
    return kinds


def _is_ordered(node: Mapping[str, Any]) -> bool:
    return bool((node.get("order_bys") or {}).get("orders") or node.get("orders") or node.get("arg_orders"))


@dataclass(frozen=True)
class _Overload:
    kind: str
    stability: str | None
    arity: int
    varargs: str | None
    text: str | None


@functools.cache
def _catalogue() -> dict[str, list[_Overload]]:
    rows = _database().rows(
        "select lower(function_name), function_type, stability, len(parameters), varargs, macro_definition "
        "from duckdb_functions() order by all"
    )
    found: dict[str, list[_Overload]] = {}
    for name, *rest in rows:
        found.setdefault(name, []).append(_Overload(*rest))
    return found


_own = threading.local()


def _database() -> Database:
    """A database of this thread's own, as opening one takes longer than all else here."""
    if not hasattr(_own, "database"):
        _own.database = Database(threads=1)
    database: Database = _own.database
    return database


def _serialized(function: str, sql: str, database: Database | None = None) -> dict[str, Any]:
    try:
        rows = (database or _database()).rows(f"select {function}({literal(sql)}::varchar)")
        found: dict[str, Any] = json.loads(rows[0][0])
    except DataError as error:
        raise ConfigError(str(error)) from error
    return found


def _nodes(tree: Any) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """All objects of a tree, each with whether it is inside a subquery."""
    stack = [(tree, False)]
    while stack:
        value, nested = stack.pop()
        if isinstance(value, dict):
            yield value, nested
            below = nested or value.get("class") == "SUBQUERY" or value.get("type") == "SUBQUERY"
            stack.extend((each, below or key == "cte_map") for key, each in reversed(value.items()))
        elif isinstance(value, list):
            stack.extend((each, nested) for each in reversed(value))


def _one_line(message: str) -> str:
    return " ".join(message.split())[:400]
