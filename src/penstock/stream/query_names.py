"""What the names of a query mean: its scopes, what each reads from, and where every column comes from.

Columns are qualified, stars written out and USING turned into ON, so that hidden columns can join the streams
without being seen: ``_seq``, ``_t``, ``_step`` and ``_as_of``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from penstock.errors import ConfigError

__all__ = ["HIDDEN", "Scope", "Source", "column_of", "conjuncts", "parts_of", "read_scopes", "shown"]

HIDDEN = ("_seq", "_t", "_step", "_as_of")

_CLAUSES = {"with_", "expressions", "from_", "joins", "where", "group", "having", "distinct"}
_NESTED_CLAUSES = _CLAUSES | {"order", "limit", "offset"}
_REFUSED_CLAUSES = {
    "limit": "LIMIT would look at other examples",
    "offset": "OFFSET would look at other examples",
    "order": "ORDER BY has no meaning here: examples are in the order of the log",
    "qualify": "QUALIFY looks at other rows",
    "sample": "a sample differs from run to run",
    "windows": "WINDOW is not supported; write the window after OVER",
}


@dataclass(eq=False)
class Source:
    """What a scope reads from: a stream, or something without one."""

    number: int
    alias: str
    columns: tuple[str, ...] | None
    """None where they are not known."""
    stream: str | None
    node: exp.Expression
    kind: str
    """How it is joined: inner (also first, comma, cross), left, semi or anti."""
    join: exp.Join | None
    scope: Scope


@dataclass(eq=False)
class Scope:
    """One SELECT."""

    select: exp.Select
    place: str
    """query, with, derived, lateral or expression."""
    outer: Scope | None
    """Whose columns it can use too."""
    siblings: list[Source]
    """What stands before it in the same FROM, and it cannot see without LATERAL."""
    sources: list[Source] = field(default_factory=list)
    merged: dict[str, Source] = field(default_factory=dict)
    """By name of a USING column, where it comes from when it is not qualified."""
    outputs: tuple[str, ...] | None = None
    correlated: bool = False

    @property
    def seen(self) -> list[Source]:
        """What its clauses can use: SEMI and ANTI joins show nothing."""
        return [source for source in self.sources if source.kind in ("inner", "left")]


def shown(node: exp.Expr | str, limit: int = 80) -> str:
    """A piece of SQL on one line, for a message."""
    text = " ".join((node if isinstance(node, str) else node.sql("duckdb", comments=False)).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def column_of(source: Source | str, name: str) -> exp.Column:
    """A column by qualified name."""
    return exp.column(name, table=source if isinstance(source, str) else source.alias, quoted=True)


def parts_of(root: exp.Expression) -> Iterator[exp.Expression]:
    """All nodes, SELECTs below the root included, but not what is inside those."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        if node is root or not isinstance(node, exp.Select):
            stack.extend(reversed(list(node.iter_expressions())))


def conjuncts(condition: exp.Expression | None) -> list[exp.Expression]:
    """The conditions that AND joins."""
    found: list[exp.Expression] = []
    stack = [condition] if condition is not None else []
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Paren):
            stack.append(node.this)
        elif isinstance(node, exp.And):
            stack += [node.expression, node.this]
        else:
            found.append(node)
    return found


def read_scopes(tree: exp.Select, streams: Mapping[str, Sequence[str]]) -> list[Scope]:
    """All scopes of a query, itself first; the tree is changed in place.

    Args:
        tree: the query.
        streams: columns by name of stream.

    Raises:
        ConfigError: a form that cannot be evaluated row by row, or a name that is not known.
    """
    reader = _Reader(streams)
    reader.with_(tree)
    first = reader.read(tree, "query", None, [])
    return [first, *(scope for scope in reader.scopes if scope is not first)]


class _Reader:
    def __init__(self, streams: Mapping[str, Sequence[str]]) -> None:
        self._streams = {name.lower(): (name, tuple(columns)) for name, columns in streams.items()}
        self._with: dict[str, tuple[str, ...] | None] = {}
        self._count = 0
        self.scopes: list[Scope] = []

    def with_(self, tree: exp.Select) -> None:
        """Read the CTEs, which see no stream."""
        clause = tree.args.get("with_")
        if clause is None:
            return
        if clause.args.get("recursive"):
            raise ConfigError("WITH RECURSIVE is not supported")
        for cte in clause.expressions:
            if cte.alias.lower() in self._streams:
                raise ConfigError(f"WITH {cte.alias}: there is a stream of this name; take another")
            if not isinstance(cte.this, exp.Select):
                raise ConfigError(f"WITH {cte.alias}: got {shown(cte.this)}, allowed: a SELECT")
            scope = self.read(cte.this, "with", None, [])
            self._with[cte.alias.lower()] = _renamed(cte.args["alias"].columns, scope.outputs)

    def read(self, select: exp.Select, place: str, outer: Scope | None, siblings: list[Source]) -> Scope:
        """Read a SELECT and all inside it."""
        _check_clauses(select, place)
        scope = Scope(select, place, outer, siblings)
        self.scopes.append(scope)
        start = select.args.get("from_")
        if start is not None:
            self._source(scope, start.this, None)
        for join in select.args.get("joins") or []:
            self._source(scope, join.this, join)
        self._expand_stars(scope)
        scope.outputs = _names(select)
        aliases = {each.alias.lower() for each in select.expressions if isinstance(each, exp.Alias)}
        for source in scope.sources:
            if source.join is not None and source.join.args.get("on") is not None:
                before = [each for each in scope.seen if each.number < source.number]
                self._resolve(scope, source.join.args["on"], [*before, source], set())
        for key in ("expressions", "where", "group", "having", "order", "limit", "offset", "distinct"):
            value = select.args.get(key)
            for node in value if isinstance(value, list) else [value] if value is not None else []:
                self._resolve(scope, node, scope.seen, aliases, late=key in ("having", "order"))
        return scope

    def _source(self, scope: Scope, node: exp.Expression, join: exp.Join | None) -> None:
        kind = "inner" if join is None else _kind(join)
        alias, columns, stream = self._what(scope, node)
        if any(each.alias.lower() == alias.lower() for each in scope.sources):
            raise ConfigError(f"{shown(node)}: {alias!r} is used twice in one FROM; give it an alias")
        source = Source(self._count, alias, columns, stream, node, kind, join, scope)
        self._count += 1
        if join is not None:
            if kind == "inner" and join.args.get("on") is None and not join.args.get("using"):
                # A comma binds less than JOIN; what is joined after it must see the primary all the same.
                join.set("kind", "CROSS")
            _using_to_on(scope, source, join)
        scope.sources.append(source)
        if not isinstance(node, exp.Subquery | exp.Lateral):
            self._resolve(scope, node, scope.seen[:-1] if source in scope.seen else scope.seen, set())

    def _what(self, scope: Scope, node: exp.Expression) -> tuple[str, tuple[str, ...] | None, str | None]:
        """Alias, columns and stream of what stands in FROM."""
        alias = node.args.get("alias")
        name = node.alias
        renamed = list(alias.columns) if isinstance(alias, exp.TableAlias) else []
        if isinstance(node, exp.Lateral | exp.Subquery):
            body = (
                node.this.this
                if isinstance(node, exp.Lateral) and isinstance(node.this, exp.Subquery)
                else node.this
            )
            extra = {key for key, value in node.args.items() if value} - {"this", "alias"}
            if not isinstance(body, exp.Select) or extra:
                raise ConfigError(
                    f"{shown(node)} in FROM: allowed are streams, VALUES and SELECTs, joined in a row"
                )
            lateral = isinstance(node, exp.Lateral)
            inner = (
                self.read(body, "lateral", scope, [])
                if lateral
                else self.read(body, "derived", scope.outer, [*scope.siblings, *scope.sources])
            )
            return name or f"_{self._count}", _renamed(renamed, inner.outputs), None
        if isinstance(node, exp.Values):
            first = node.expressions[0] if node.expressions else None
            width = len(first.expressions) if isinstance(first, exp.Tuple) else 1
            return name, _renamed(renamed, tuple(f"col{n}" for n in range(width))), None
        if isinstance(node, exp.Unnest):
            return name or "unnest", tuple(each.name for each in renamed) or None, None
        if not isinstance(node, exp.Table):
            raise ConfigError(f"{shown(node)} in FROM: allowed are streams, VALUES and SELECTs")
        extra = {key for key, value in node.args.items() if value} - {"this", "alias"}
        if "sample" in extra:
            raise ConfigError(f"{shown(node)}: {_REFUSED_CLAUSES['sample']}")
        if not isinstance(node.this, exp.Identifier):
            return name or shown(node.this), tuple(each.name for each in renamed) or None, None
        key = node.name.lower()
        if key in self._with and not extra:
            node.set("alias", exp.TableAlias(this=exp.to_identifier(name or node.name), columns=renamed))
            return name or node.name, _renamed(renamed, self._with[key]), None
        if extra or key not in self._streams:
            known = ", ".join(each for each, _ in self._streams.values())
            raise ConfigError(f"{shown(node)} is no stream; streams: {known}")
        if renamed:
            raise ConfigError(f"{shown(node)}: columns of a stream cannot be renamed in FROM; use AS in SELECT")
        stream, columns = self._streams[key]
        node.set("alias", exp.TableAlias(this=exp.to_identifier(name or node.name, quoted=True)))
        return name or node.name, columns, stream

    def _expand_stars(self, scope: Scope) -> None:
        expressions: list[exp.Expr] = []
        for node in scope.select.expressions:
            if isinstance(node, exp.Star):
                expressions += _expand(node, scope.seen, scope.merged)
            elif isinstance(node, exp.Column) and isinstance(node.this, exp.Star):
                found = [each for each in scope.seen if each.alias.lower() == node.table.lower()]
                if not found:
                    raise ConfigError(f"{shown(node)}: {node.table!r} is not in FROM")
                expressions += _expand(node.this, found, {})
            else:
                expressions.append(node)
        scope.select.set("expressions", expressions)

    def _resolve(
        self, scope: Scope, root: exp.Expression, visible: list[Source], aliases: set[str], *, late: bool = False
    ) -> None:
        """Qualify columns below a node and read the SELECTs there; ``late`` clauses look at aliases first."""
        for node in list(parts_of(root)):
            if isinstance(node, exp.Select) and node.find_ancestor(exp.Select) is scope.select:
                self.read(node, "expression", scope, [])
            elif isinstance(node, exp.Subquery) and not isinstance(node.this, exp.Select | exp.Subquery):
                raise ConfigError(f"{shown(node)}: allowed here is a SELECT")
            elif isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count):
                raise ConfigError(f"{shown(node.parent or node)}: name the columns; * stands alone or in count(*)")
            elif isinstance(node, exp.Columns):
                raise ConfigError(f"{shown(node)}: name the columns")
            elif isinstance(node, exp.Dot):
                _check_dot(node)
            elif isinstance(node, exp.Array) and any(
                isinstance(each, exp.Select | exp.Subquery) for each in node.expressions
            ):
                raise ConfigError(f"{shown(node)} has no order; write (select list(… order by …))")
            elif isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
                self._column(scope, node, visible, aliases, late)

    def _column(
        self, scope: Scope, node: exp.Column, visible: list[Source], aliases: set[str], late: bool
    ) -> None:
        names = [part.name for part in node.parts]
        if any(name.lower() in HIDDEN for name in names):
            raise ConfigError(f"{shown(node)}: the columns {', '.join(HIDDEN)} are Penstock's own")
        if len(names) == 1 and (_bound(node) or (late and names[0].lower() in aliases)):
            return
        level: Scope | None = scope
        rows = False
        while level is not None:
            sources = visible if level is scope else level.seen
            found = _lookup(node, names, sources, level.merged)
            if found is None and _lookup(node, names, level.siblings, {}) is not None:
                raise ConfigError(
                    f"{shown(node)}: a derived table does not see what stands beside it; say LATERAL"
                )
            if found is not None:
                _qualify(node, names, found)
                below: Scope | None = scope
                while below is not None and below is not level:
                    below.correlated = True
                    below = below.outer
                return
            if level is scope and len(names) == 1 and names[0].lower() in aliases:
                return
            if any(each.columns is None for each in sources):
                return
            rows = rows or any(each.alias.lower() == names[0].lower() for each in sources)
            level = level.outer
        if rows and len(names) == 1:
            raise ConfigError(f"{shown(node)}: a whole row is no value; name its columns")
        raise ConfigError(f"{shown(node)}: there is no such column; columns: {_known(scope, visible)}")


def _check_clauses(select: exp.Select, place: str) -> None:
    allowed = _CLAUSES if place in ("query", "with") else _NESTED_CLAUSES
    for key, value in select.args.items():
        if value and key not in allowed:
            piece = shown(value[0] if isinstance(value, list) else value) if not isinstance(value, bool) else key
            raise ConfigError(f"{piece}: {_REFUSED_CLAUSES.get(key, 'this clause is not supported')}")
    if select.args.get("with_") and place != "query":
        raise ConfigError(f"{shown(select.args['with_'])}: WITH stands at the start of the query only")
    distinct = select.args.get("distinct")
    if distinct is not None and distinct.args.get("on"):
        raise ConfigError(f"{shown(distinct)}: DISTINCT ON depends on an order")
    if (select.args.get("limit") or select.args.get("offset")) and not select.args.get("order"):
        raise ConfigError(f"{shown(select.args.get('limit') or select.args['offset'])} without ORDER BY")


def _kind(join: exp.Join) -> str:
    side, kind, method = join.side.upper(), join.kind.upper(), join.method.upper()
    extra = {key for key, value in join.args.items() if value} - {"this", "side", "kind", "method", "on", "using"}
    if side in ("RIGHT", "FULL"):
        raise ConfigError(f"{shown(join)}: a {side} join gives rows that are no row of the primary stream")
    if method:
        hint = "; use a subquery with ORDER BY … LIMIT 1" if method == "ASOF" else "; write ON"
        raise ConfigError(f"{shown(join)}: {method} joins are not supported{hint}")
    if extra or side not in ("", "LEFT") or kind not in ("", "INNER", "CROSS", "OUTER", "SEMI", "ANTI"):
        raise ConfigError(f"{shown(join)}: allowed are INNER, LEFT, CROSS, SEMI and ANTI joins")
    return kind.lower() if kind in ("SEMI", "ANTI") else "left" if side == "LEFT" else "inner"


def _using_to_on(scope: Scope, source: Source, join: exp.Join) -> None:
    """Write USING as ON: a column that is used unqualified then is the left one's."""
    equalities: list[exp.Expression] = []
    for identifier in join.args.get("using") or []:
        name = identifier.name
        left = scope.merged.get(name.lower())
        if left is None:
            found = [each for each in scope.seen if _spelled(each, name) is not None]
            if len(found) != 1 or _spelled(source, name) is None:
                raise ConfigError(f"{shown(join)}: {name!r} must be in exactly one relation on each side")
            left = found[0]
            scope.merged[name.lower()] = left
        if _spelled(source, name) is None:
            raise ConfigError(f"{shown(join)}: {name!r} is no column of {source.alias!r}")
        equalities.append(exp.EQ(this=column_of(left, name), expression=column_of(source, name)))
    if equalities:
        join.set("using", None)
        join.set("on", exp.and_(*equalities, copy=False))


def _expand(star: exp.Star, sources: Iterable[Source], merged: Mapping[str, Source]) -> list[exp.Expr]:
    """The columns of a star, each with its name; EXCLUDE, REPLACE and RENAME are followed."""
    exclude = list(star.args.get("except_") or [])
    replace = {each.alias.lower(): each.this for each in star.args.get("replace") or []}
    rename = {each.this.name.lower(): each.alias for each in star.args.get("rename") or []}
    unused = {each.name.lower() for each in exclude} | set(replace) | set(rename)
    found: list[exp.Expr] = []
    for source in sources:
        if source.columns is None:
            raise ConfigError(f"{shown(star)}: the columns of {source.alias!r} are not known here; name them")
        for name in source.columns:
            key = name.lower()
            if merged.get(key, source) is not source:
                continue
            if key in unused:
                unused.discard(key)
            if any(
                each.name.lower() == key and getattr(each, "table", "").lower() in ("", source.alias.lower())
                for each in exclude
            ):
                continue
            value = replace[key].copy() if key in replace else column_of(source, name)
            found.append(exp.alias_(value, rename.get(key, name), quoted=True))
    if unused:
        raise ConfigError(f"{shown(star)}: there is no column {', '.join(sorted(unused))}")
    return found


def _names(select: exp.Select) -> tuple[str, ...] | None:
    """Output names; None where one has no name of its own."""
    names = [each.alias_or_name for each in select.expressions if isinstance(each, exp.Alias | exp.Column)]
    return tuple(names) if len(names) == len(select.expressions) else None


def _renamed(renamed: Sequence[exp.Expression | str], columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
    names = tuple(each if isinstance(each, str) else each.name for each in renamed)
    return None if columns is None else (*names, *columns[len(names) :])


def _spelled(source: Source, name: str) -> str | None:
    return next((each for each in source.columns or () if each.lower() == name.lower()), None)


def _lookup(
    node: exp.Column, names: list[str], sources: Sequence[Source], merged: Mapping[str, Source]
) -> tuple[Source, int] | None:
    """The source of a column and how many of its name parts the alias takes."""
    if len(names) > 1:
        for source in sources:
            if source.alias.lower() == names[0].lower() and (
                source.columns is None or _spelled(source, names[1]) is not None
            ):
                return source, 1
    found = [source for source in sources if _spelled(source, names[0]) is not None]
    if len(found) > 1:
        left = merged.get(names[0].lower())
        if left not in found:
            held = ", ".join(source.alias for source in found)
            raise ConfigError(f"{shown(node)} is in several relations ({held}); say which")
        return left, 0
    return (found[0], 0) if found else None


def _qualify(node: exp.Column, names: list[str], found: tuple[Source, int]) -> None:
    source, taken = found
    rest = names[taken:]
    if len(rest) > 3:
        raise ConfigError(f"{shown(node)}: too many parts")
    parts = [exp.to_identifier(name, quoted=True) for name in (source.alias, *rest)]
    for key, part in zip(("this", "table", "db", "catalog"), [*reversed(parts), None, None], strict=False):
        node.set(key, part)
    node.meta["source"] = source.number


def _bound(node: exp.Column) -> bool:
    """Whether a list comprehension gives the name."""
    above = node.find_ancestor(exp.Comprehension)
    while above is not None:
        if node.name == above.expression.name:
            return True
        above = above.find_ancestor(exp.Comprehension)
    return False


def _check_dot(node: exp.Dot) -> None:
    """Refuse ``i.x.upper()``, in which the column would not be seen."""
    left: exp.Expression = node
    while isinstance(left, exp.Dot):
        left = left.this
    if isinstance(left, exp.Identifier):
        above = node.find_ancestor(exp.Lambda)
        while above is not None:
            if any(each.name == left.name for each in above.expressions):
                return
            above = above.find_ancestor(exp.Lambda)
        raise ConfigError(f"{shown(node)}: write f(x) for x.f()")


def _known(scope: Scope, visible: Sequence[Source]) -> str:
    held = [f"{source.alias}.{name}" for source in visible for name in source.columns or ()]
    return shown(", ".join(held) or "none", 200)
