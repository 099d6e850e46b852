"""The query of a pipeline: checked, and rewritten so that it can be evaluated over a slice of the log.

The streams get hidden columns: ``_t``, the event time in microseconds; ``_seq``, the number of the row; ``_step``,
when it became visible; and the primary stream ``_as_of``. A row of another stream is seen by a row of the primary
one if ``_step <= _as_of`` and its time is within the stream's reach, whatever the query says::

    select i.*, c.click_id is not null as clicked
    from impressions i left join clicks c on c.request_id = i.request_id

becomes, with names shortened and a reach of a day ::

    select i.request_id, c.click_id is not null as clicked, i._seq, i._t, i._as_of
    from impressions i left join clicks c on c.request_id = i.request_id
         and c._step <= i._as_of and c._t between i._t - 0 and i._t + 86400000000

Wherever DuckDB may choose the order of rows, ``_seq`` decides, so that equal data give equal examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError
from sqlglot.tokenizer_core import TokenType

from penstock.errors import ConfigError
from penstock.stream.query_affected import affected_rows, in_of, in_reach, needs_of, select_affected
from penstock.stream.query_checks import check_calls, check_types, parse_tree
from penstock.stream.query_names import Scope, Source, column_of, parts_of, read_scopes, shown
from penstock.stream.query_rows import RowColumn, row_columns

if TYPE_CHECKING:
    import duckdb

__all__ = ["Query", "Reach"]

_T = TypeVar("_T")

_MAX_BYTES = 64 * 1024
_MAX_DEPTH = 40
_ORDERED_WINDOWS = (exp.RowNumber, exp.Ntile, exp.Lag, exp.Lead, exp.FirstValue, exp.LastValue, exp.NthValue)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What the query may see of a stream. Durations are microseconds."""

    columns: tuple[str, ...]
    """The user's columns, hidden ones not among them."""
    within_us: int = 0
    """How far after a row of the primary stream a row may lie."""
    before_us: int = 0
    """How far before."""


class Query:
    """A query that was checked. Equal text and reaches give equal SQL."""

    sql: str
    """As the user wrote it."""
    primary: str
    streams: tuple[str, ...]
    """Those that it reads, the primary one first."""
    columns: tuple[str, ...]
    """Of an example, hidden ones not among them."""

    def __init__(self, sql: str, scopes: Sequence[Scope], primary: Source, reaches: Mapping[str, Reach]) -> None:
        """Of scopes that were read and checked; ``parse`` is what others call."""
        self.sql = sql
        self.primary = primary.stream or ""
        self.columns = tuple(scopes[0].outputs or ())
        self._reaches = reaches
        self._main = primary
        sources = sorted((each for scope in scopes for each in scope.sources), key=lambda source: source.number)
        self._sources = {source.number: source for source in sources}
        self.streams = tuple(
            dict.fromkeys([self.primary, *(source.stream for source in sources if source.stream is not None)])
        )
        self._needs = {source.number: needs_of(source) for source in sources if source.stream is not None}
        self._tree = scopes[0].select
        self._enforce(scopes)

    @staticmethod
    def parse(sql: str, *, primary: str, reaches: Mapping[str, Reach], where: str = "query") -> Query:
        """Check a query.

        Args:
            sql: one SELECT, as DuckDB takes it.
            primary: the stream of which each row gives one example.
            reaches: by name of stream, the primary one included.
            where: what messages begin with.

        Raises:
            ConfigError: with the piece that is refused, and why.
        """
        try:
            return _nested(lambda: _parse(sql, primary, reaches))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def versioned(self, relations: Mapping[str, str] | None = None) -> str:
        """DuckDB SQL that gives the user's columns, and ``_seq``, ``_t`` and ``_as_of`` of the primary row.

        Args:
            relations: names of relations that stand for streams; their own names where not given.
        """
        tree = self._tree.copy()
        for table in tree.find_all(exp.Table):
            stream = table.meta.get("stream")
            if stream is not None:
                table.set("this", exp.to_identifier((relations or {}).get(stream, stream), quoted=True))
        return _nested(lambda: _text(tree))

    def affected(self, stream: str, new: str) -> str:
        """DuckDB SQL that gives pairs ``_seq``, ``_step``: primary rows whose result new rows may change.

        It may give more rows than change, and never misses one.

        Args:
            stream: one of ``streams``.
            new: a relation with the columns of the stream, which has the new rows alone.

        Raises:
            ValueError: the query does not read the stream.
        """
        if stream not in self.streams:
            raise ValueError(f"the query does not read {stream!r}; it reads {', '.join(self.streams)}")
        if stream == self.primary:
            return _nested(lambda: _text(select_affected([(new, "n")], "n", "n", [])))
        reaches = {name: (reach.before_us, reach.within_us) for name, reach in self._reaches.items()}
        targets = [source for source in self._sources.values() if source.stream == stream]
        selects = [
            select
            for source in targets
            for select in affected_rows(source, new, self._main, self._sources, self._needs, reaches)
        ]
        return _nested(lambda: " UNION ".join(dict.fromkeys(_text(select) for select in selects)))

    @property
    def alias(self) -> str:
        """What the query calls the primary stream."""
        return self._main.alias

    def row_columns(self) -> list[RowColumn]:
        """Which of an example's columns a row of the primary stream gives by itself, and how."""
        return row_columns(self._tree, self._main.alias)

    def dialect(self, name: str) -> str:
        """The user's query in the SQL of another engine, such as ``spark``.

        Raises:
            ConfigError: the dialect is not known, or has no such expression.
        """
        try:
            return _nested(
                lambda: sqlglot.transpile(
                    self.sql, read="duckdb", write=name, comments=False, unsupported_level=ErrorLevel.RAISE
                )[0]
            )
        except (SqlglotError, ValueError) as error:
            raise ConfigError(f"the query cannot be written as {name}: {shown(str(error), 300)}") from error

    def check_types(self, connection: duckdb.DuckDBPyConnection, where: str = "query") -> None:
        """Bind the query to the types of relations that have the names of the streams, hidden columns included.

        Raises:
            ConfigError: types that do not fit, or a sum of floats without an order.
        """
        others = [self.affected(stream, stream) for stream in self.streams]
        try:
            check_types(connection, self.streams, self.versioned(), others)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def _enforce(self, scopes: Sequence[Scope]) -> None:
        """Add what each stream may see of the primary row, and the hidden columns of that."""
        for scope in scopes:
            _order_totally(scope)
        for source in self._sources.values():
            if source.stream is None:
                continue
            source.node.meta["stream"] = source.stream
            if source is self._main:
                continue
            reach = self._reaches[source.stream]
            conditions = [
                exp.LTE(this=column_of(source, "_step"), expression=column_of(self._main, "_as_of")),
                in_reach(source.alias, self._main.alias, reach.before_us, reach.within_us),
            ]
            if source.kind == "inner" or source.join is None:
                source.scope.select.where(*conditions, copy=False)
            else:
                source.join.on(*conditions, copy=False)
        hidden = [column_of(self._main, name) for name in ("_seq", "_t", "_as_of")]
        self._tree.select(*(exp.alias_(each.copy(), each.name, quoted=True) for each in hidden), copy=False)
        group = self._tree.args.get("group")
        if group is not None and not group.args.get("all"):
            self._tree.group_by(*hidden, copy=False)


def _parse(sql: str, primary: str, reaches: Mapping[str, Reach]) -> Query:
    if primary not in reaches:
        raise ConfigError(f"the primary stream {primary!r} is not declared; streams: {', '.join(reaches)}")
    select = _read(sql)
    called = parse_tree(sql)
    check_calls(sql, called, grouped=select.args.get("group") is not None)
    scopes = read_scopes(select, {name: reach.columns for name, reach in reaches.items()})
    main = _primary_of(scopes, primary)
    _check_grouping(select)
    _name_outputs(scopes[0])
    for scope in scopes:
        for source in scope.sources:
            if source.stream is not None and source is not main:
                _check_sees(source, main)
    query = Query(sql, scopes, main, reaches)
    # What DuckDB will read is the text that was written, so that this is what must pass.
    text = query.versioned()
    clause = select.args.get("with_")
    known = [*query.streams, *(cte.alias for cte in (clause.expressions if clause is not None else ()))]
    check_calls(
        text,
        parse_tree(text),
        grouped=select.args.get("group") is not None,
        relations=[name.lower() for name in known],
    )
    for stream in query.streams:
        query.affected(stream, stream)
    return query


def _read(sql: str) -> exp.Select:
    """Parse one SELECT."""
    size = len(sql.encode(errors="replace"))
    if size > _MAX_BYTES:
        raise ConfigError(f"got {size} bytes of SQL, allowed: {_MAX_BYTES}")
    try:
        tokens = sqlglot.tokenize(sql, read="duckdb")
        depth = deepest = 0
        for token in tokens:
            if token.token_type in (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE):
                depth += 1
                deepest = max(deepest, depth)
            elif token.token_type in (TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE):
                depth -= 1
        if deepest > _MAX_DEPTH:
            raise ConfigError(f"got brackets {deepest} deep, allowed: {_MAX_DEPTH}")
        while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
            tokens.pop()
        if not tokens:
            raise ConfigError("got no statement, allowed: one SELECT")
        if any(token.token_type == TokenType.SEMICOLON for token in tokens):
            raise ConfigError("got more than one statement, allowed: one SELECT")
        first = tokens[0]
        if first.token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.FROM, TokenType.L_PAREN):
            raise ConfigError(f"got {shown(first.text)!r} …, allowed: one SELECT")
        tree = sqlglot.parse_one(sql, read="duckdb")
    except ParseError as error:
        found = error.errors[0] if error.errors else {}
        place = f"line {found['line']}, column {found['col']}: " if "line" in found else ""
        raise ConfigError(f"{place}{shown(str(found.get('description') or error), 200)}") from error
    except SqlglotError as error:
        raise ConfigError(f"the SQL cannot be read: {shown(str(error), 200)}") from error
    except (ConfigError, RecursionError):
        raise
    except Exception as error:
        # The parser is for SQL; what it makes of anything else is not part of its contract.
        raise ConfigError(f"the SQL cannot be read ({type(error).__name__})") from error
    while isinstance(tree, exp.Subquery) and {key for key, value in tree.args.items() if value} == {"this"}:
        tree = tree.this
    if isinstance(tree, exp.SetOperation):
        raise ConfigError(f"{tree.key.upper()}: UNION, INTERSECT and EXCEPT are not supported")
    if not isinstance(tree, exp.Select):
        raise ConfigError(f"got {shown(tree)!r}, allowed: one SELECT")
    return tree


def _primary_of(scopes: Sequence[Scope], primary: str) -> Source:
    found = [source for scope in scopes for source in scope.sources if source.stream == primary]
    if not found:
        raise ConfigError(f"the primary stream {primary!r} is not in FROM; each of its rows gives an example")
    if len(found) > 1:
        raise ConfigError(f"the primary stream {primary!r} is read {len(found)} times, allowed: once")
    main = found[0]
    if main.scope is not scopes[0]:
        raise ConfigError(f"the primary stream {primary!r} stands in a subquery, allowed: in the outer FROM")
    if main.kind != "inner":
        raise ConfigError(f"{shown(main.join or main.node)}: {primary!r} is primary and must come first in FROM")
    return main


def _check_sees(source: Source, main: Source) -> None:
    """Refuse a stream that stands where the primary row is not seen."""
    scope, name = source.scope, source.stream or ""
    if scope.place == "with":
        raise ConfigError(f"{name} in WITH would look outside its window; join it directly")
    if scope is main.scope:
        if source.kind != "inner" and source.number < main.number:
            raise ConfigError(
                f"{shown(source.join or source.node)}: joined before {main.stream!r}; put that first in FROM"
            )
        return
    above: Scope | None = scope
    while above is not None and above is not main.scope:
        if any(each.alias.lower() == main.alias.lower() for each in above.sources):
            raise ConfigError(f"{name}: {main.alias!r} hides the primary stream; take another alias")
        above = above.outer
    if above is None:
        raise ConfigError(
            f"{name} in a derived table would look outside its window; join it directly, or say LATERAL"
        )
    if not scope.correlated and in_of(scope) is None:
        raise ConfigError(
            f"{name}: its subquery names no column of the row outside and would look outside its window; "
            f"add a condition such as {source.alias}.… = {main.alias}.…, or join it directly"
        )


def _check_grouping(select: exp.Select) -> None:
    group = select.args.get("group")
    if group is None:
        return
    for node in group.walk():
        if isinstance(node, exp.Rollup | exp.Cube | exp.GroupingSets) or node.args.get("totals"):
            raise ConfigError(f"{shown(group)}: groups of groups are not examples; name columns")


def _name_outputs(scope: Scope) -> None:
    """Give every output its name, as what names an expression by default may change with its text."""
    seen: set[str] = set()
    expressions = []
    names = []
    for node in scope.select.expressions:
        if not isinstance(node, exp.Alias | exp.Column):
            raise ConfigError(f"{shown(node)}: a computed column needs a name; add AS …")
        name = node.alias_or_name
        if name.startswith("_"):
            raise ConfigError(f"{shown(node)}: names that begin with _ are Penstock's own")
        if name.lower() in seen:
            raise ConfigError(
                f"{shown(node)}: two columns are named {name!r}; rename one, or leave it out with EXCLUDE"
            )
        seen.add(name.lower())
        names.append(name)
        expressions.append(node if isinstance(node, exp.Alias) else exp.alias_(node, name, quoted=True))
    scope.select.set("expressions", expressions)
    scope.outputs = tuple(names)


def _order_totally(scope: Scope) -> None:
    """Let ``_seq`` decide between rows of equal keys, wherever an order decides what comes out."""
    streams = [source for source in scope.seen if source.stream is not None]
    grouped = scope.select.args.get("group") is not None
    keys = [column_of(source, "_seq") for source in streams]
    for node in list(parts_of(scope.select)):
        own = node.find_ancestor(exp.Select) is scope.select
        if isinstance(node, exp.ArgMax | exp.ArgMin) and own and keys and not node.find(exp.Order):
            last = "count" if node.args.get("count") else "expression"
            if node.args.get(last) is None:
                raise ConfigError(f"{shown(node)}: what to order by is missing")
            node.set(last, exp.Order(this=node.args[last], expressions=_ascending(keys)))
        if not isinstance(node, exp.Order) or not own:
            continue
        if isinstance(node.parent, exp.Select):
            if any(isinstance(each.this, exp.Var) for each in node.expressions):
                raise ConfigError(f"{shown(node)}: name the columns")
            extra: list[exp.Expression] = [*keys]
            if grouped:
                extra = [each.copy() for each in scope.select.args["group"].expressions]
            elif scope.select.args.get("distinct") is not None:
                extra = [each.unalias().copy() for each in scope.select.expressions]
            elif _aggregates(scope.select):
                extra = []
            node.set("expressions", [*node.expressions, *_ascending(extra)])
        elif isinstance(node.parent, exp.Window):
            if isinstance(node.parent.this, _ORDERED_WINDOWS):
                if grouped:
                    raise ConfigError(f"{shown(node.parent)}: not supported with GROUP BY")
                node.set("expressions", [*node.expressions, *_ascending(keys)])
        elif not isinstance(node.parent, exp.WithinGroup) and not isinstance(node.this, exp.Distinct):
            node.set("expressions", [*node.expressions, *_ascending(keys)])


def _aggregates(select: exp.Select) -> bool:
    return any(isinstance(node, exp.AggFunc) for each in select.expressions for node in parts_of(each))


def _ascending(keys: Sequence[exp.Expression]) -> list[exp.Expression]:
    return [exp.Ordered(this=key.copy(), nulls_first=False) for key in keys]


def _text(tree: exp.Expression) -> str:
    try:
        return tree.sql("duckdb", comments=False, unsupported_level=ErrorLevel.RAISE)
    except SqlglotError as error:
        raise ConfigError(f"the SQL cannot be rewritten: {shown(str(error), 200)}") from error


def _nested(make: Callable[[], _T]) -> _T:
    try:
        return make()
    except RecursionError as error:
        raise ConfigError("the SQL is nested too deeply") from error
