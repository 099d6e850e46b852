"""What is known of a request when it has been answered, for its trace and its line in the access log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.transport.http import Scope

__all__ = ["FACTS", "Facts", "trace_id"]

FACTS = "penstock.facts"
"""Where a scope has them, if somebody wants to know."""
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


@dataclass(slots=True)
class Facts:
    """Of one request."""

    trace_id: str
    route: str = ""
    """As in the description of the paths; empty where there is no such path."""
    status: int = 500
    model: str | None = None
    """None where nothing was scored."""
    version: str = ""
    rows: int = 0
    batch_rows: int = 0
    """That were scored together, with those of other requests."""


def trace_id(scope: Scope) -> str | None:
    """Of the trace that a request belongs to, which its caller may have begun (W3C Trace Context)."""
    facts: Facts | None = scope.get(FACTS)
    if facts is not None:
        return facts.trace_id
    for name, value in scope["headers"]:
        if name == b"traceparent" and (found := _TRACEPARENT.fullmatch(value)):
            return str(found[1], "ascii")
    return None
