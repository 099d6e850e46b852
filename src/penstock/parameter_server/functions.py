"""Functions that run on the servers, where the rows are, by name; only names and plain values cross the wire.

A function sees one server's tables. What several servers gave is put together by the client (``combine``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Keys
from penstock.errors import ConfigError, PenstockError
from penstock.parameter_server.messages import Call, Refused, Result

__all__ = ["Answer", "ServerFunction", "call_function", "combine", "register_function"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Plain values, and arrays: ``keys`` u64[n], ``floats`` f64[n]."""

    value: dict[str, Any]
    keys: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    floats: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))


@dataclass(frozen=True, kw_only=True)
class ServerFunction:
    """``run`` on each server's table, then ``merge`` of all answers, in the order of servers."""

    run: Callable[..., Answer]
    merge: Callable[[Sequence[Answer]], Answer]


_functions: dict[str, ServerFunction] = {}


def register_function(name: str, function: ServerFunction) -> None:
    """Make a function known, in every process that is to run it.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _functions:
        raise ConfigError(f"server function {name!r} is already registered")
    _functions[name] = function


def call_function(tables: Mapping[str, Any], call: Call) -> Result | Refused:
    """Run what was called for; errors go back to the caller."""
    try:
        table = tables.get(call.table)
        if table is None:
            raise ConfigError(f"table {call.table!r} is not known; allowed: {', '.join(sorted(tables))}")
        answer = _named(call.function).run(table, **call.arguments)
    except (PenstockError, TypeError, ValueError) as error:
        return Refused(id=call.id, error=f"function {call.function!r}: {error}", fatal=True)
    return Result(id=call.id, value=answer.value, keys=answer.keys, floats=answer.floats)


def combine(function: str, answers: Sequence[Answer]) -> Answer:
    """One answer of those of all servers."""
    return _named(function).merge(answers)


def _named(name: str) -> ServerFunction:
    if name not in _functions:
        raise ConfigError(f"server function {name!r} is not known; allowed: {', '.join(sorted(_functions))}")
    return _functions[name]


def _sums(answers: Sequence[Answer]) -> Answer:
    """Every plain value is a sum over rows."""
    names = answers[0].value if answers else {}
    return Answer(value={name: sum(answer.value[name] for answer in answers) for name in names})


def _norm(table: Any) -> Answer:
    norms = table.norms()
    return Answer(
        value={"rows": norms.rows, "nonzero": norms.nonzero, "l1": norms.l1, "l2_squared": norms.l2_squared}
    )


def _top(table: Any, k: int = 10) -> Answer:
    keys, norms = table.top(k)
    return Answer(value={"k": k}, keys=keys, floats=norms)


def _largest(answers: Sequence[Answer]) -> Answer:
    """The k largest of all servers, in falling order; equal ones by their keys."""
    keys = np.concatenate([answer.keys for answer in answers])
    norms = np.concatenate([answer.floats for answer in answers])
    k = answers[0].value["k"]
    order = np.lexsort((keys, -norms))[:k]
    return Answer(value={"k": k}, keys=keys[order], floats=norms[order])


def _prune(table: Any, threshold: float = 0.0) -> Answer:
    return Answer(value={"removed": table.prune(threshold), "rows": len(table)})


def _decay(table: Any, factor: float) -> Answer:
    table.decay(factor)
    return Answer(value={"rows": len(table)})


register_function("count", ServerFunction(run=lambda table: Answer(value={"rows": len(table)}), merge=_sums))
register_function("norm", ServerFunction(run=_norm, merge=_sums))
register_function("top", ServerFunction(run=_top, merge=_largest))
register_function("prune", ServerFunction(run=_prune, merge=_sums))
register_function("decay", ServerFunction(run=_decay, merge=_sums))
