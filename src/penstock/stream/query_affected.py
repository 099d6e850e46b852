"""Which primary rows new rows of another stream may change: the join that finds them.

It gives more rows rather than missing one. The query's WHERE is no condition where the new row is joined LEFT or
stands in a subquery, because it may become true by that row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlglot import exp

from penstock.stream.query_names import Scope, Source, column_of, conjuncts

__all__ = ["affected_rows", "in_of", "in_reach", "needs_of", "select_affected"]

_COMPARISONS = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Between)
# Null of a null, so that a comparison of them is true of rows that are there only.
_STRICT = (
    *(exp.Column, exp.Identifier, exp.Literal, exp.Paren, exp.Neg, exp.Add, exp.Sub, exp.Mul),
    *(exp.Interval, exp.Var, exp.Cast, exp.DataType),
)


def affected_rows(
    target: Source,
    new: str,
    main: Source,
    sources: Mapping[int, Source],
    needs: Mapping[int, Sequence[exp.Expression]],
    reaches: Mapping[str, tuple[int, int]],
) -> list[exp.Select]:
    """Inner joins of the primary stream, the new rows, and the streams that a condition on those names.

    A condition is used if a row of the target cannot matter where it is not true: all of ON, and of WHERE where
    the target is joined inner. What refers to a third stream is used if it is a comparison that nulls do not
    satisfy, as then a row of that must be there too; everything else is left out, which gives more rows.

    Args:
        target: the source that the new rows are of.
        new: the relation that has them.
        main: the primary source.
        sources: all, by number.
        needs: ``needs_of`` each source of a stream, by number.
        reaches: how far before and after, by stream.
    """
    return [_select(target, new, main, sources, needs, reaches, extra) for extra in _in_conditions(target, main)]


def _select(
    target: Source,
    new: str,
    main: Source,
    sources: Mapping[int, Source],
    needs: Mapping[int, Sequence[exp.Expression]],
    reaches: Mapping[str, tuple[int, int]],
    extra: Sequence[exp.Expression],
) -> exp.Select:
    aliases = {main.number: "p", target.number: "n"}
    relations = [(main.stream or "", "p"), (new, "n")]
    conditions = list(extra)
    queue = [target]
    while queue:
        source = queue.pop(0)
        conditions.append(in_reach(aliases[source.number], "p", *reaches[source.stream or ""]))
        for need in needs[source.number]:
            used = _used(need)
            if used is None or source.number not in used:
                continue
            others = [sources[number] for number in sorted(used - set(aliases))]
            if others and not (_is_strict(need) and all(_can_follow(other) for other in others)):
                continue
            for other in others:
                aliases[other.number] = f"s{other.number}"
                relations.append((other.stream or "", aliases[other.number]))
                queue.append(other)
            conditions.append(need)
    conditions = list(dict.fromkeys(_with_aliases(condition, aliases) for condition in conditions))
    return select_affected(relations, "p", "n", conditions)


def in_reach(alias: str, main: str, before_us: int, within_us: int) -> exp.Expression:
    """That a row's time is no further from the primary row's than the stream reaches."""
    return exp.Between(
        this=column_of(alias, "_t"),
        low=exp.Sub(this=column_of(main, "_t"), expression=exp.Literal.number(before_us)),
        high=exp.Add(this=column_of(main, "_t"), expression=exp.Literal.number(within_us)),
    )


def in_of(scope: Scope) -> exp.In | exp.Any | None:
    """The IN or ANY whose subquery a scope is."""
    node = scope.select.parent
    while isinstance(node, exp.Subquery):
        node = node.parent
    return node if isinstance(node, exp.In | exp.Any) else None


def needs_of(source: Source) -> list[exp.Expression]:
    """Conditions without which a row of the source takes no part, as copies."""
    found = conjuncts(source.join.args.get("on")) if source.join is not None else []
    if source.kind == "inner":
        where = source.scope.select.args.get("where")
        found += conjuncts(where.this if where is not None else None)
        for other in source.scope.sources:
            if other is not source and other.kind == "inner" and other.join is not None:
                found += conjuncts(other.join.args.get("on"))
    return [each.copy() for each in found]


def _used(condition: exp.Expression) -> set[int] | None:
    """Numbers of the sources of its columns; None if something else is in it."""
    used: set[int] = set()
    for node in condition.walk():
        if isinstance(node, exp.Query | exp.AggFunc | exp.Window):
            return None
        if isinstance(node, exp.Column):
            if "source" not in node.meta:
                return None
            used.add(node.meta["source"])
    return used


def _is_strict(condition: exp.Expression) -> bool:
    return isinstance(condition, _COMPARISONS) and all(
        isinstance(node, _STRICT) for node in condition.walk() if node is not condition
    )


def _can_follow(source: Source) -> bool:
    return source.stream is not None and source.kind in ("inner", "left")


def _in_conditions(source: Source, main: Source) -> Iterator[Sequence[exp.Expression]]:
    """What ``x in (select y …)`` says of a row of the subquery, of which one must be true for it to matter.

    A null on either side matters too: it makes the result null.
    """
    scope = source.scope
    above = in_of(scope)
    plain = not any(scope.select.args.get(key) for key in ("group", "having", "limit", "offset"))
    if isinstance(above, exp.In) and plain and len(scope.select.expressions) == 1:
        left, right = above.this.copy(), scope.select.expressions[0].unalias().copy()
        condition = exp.EQ(this=left, expression=right)
        if _is_strict(condition) and _used(left) == {main.number} and _used(right) == {source.number}:
            yield [condition]
            yield [exp.Is(this=right.copy(), expression=exp.Null())]
            yield [exp.Is(this=left.copy(), expression=exp.Null())]
            return
    yield []


def _with_aliases(condition: exp.Expression, aliases: Mapping[int, str]) -> exp.Expression:
    condition = condition.copy()
    for column in condition.find_all(exp.Column):
        if "source" in column.meta:
            first = next(key for key in ("catalog", "db", "table") if column.args.get(key))
            column.set(first, exp.to_identifier(aliases[column.meta["source"]], quoted=True))
    return condition


def select_affected(
    relations: Sequence[tuple[str, str]], main: str, new: str, conditions: Sequence[exp.Expression]
) -> exp.Select:
    """Pairs of a primary row and the step of a new row."""
    tables = [
        exp.alias_(exp.Table(this=exp.to_identifier(name, quoted=True)), alias, table=True, quoted=True)
        for name, alias in relations
    ]
    select = exp.select(
        exp.alias_(column_of(main, "_seq"), "_seq", quoted=True),
        exp.alias_(column_of(new, "_step"), "_step", quoted=True),
    )
    select = select.distinct().from_(tables[0])
    for table in tables[1:]:
        select = select.join(table, join_type="cross")
    return select.where(*conditions) if conditions else select
