"""A span of OpenTelemetry for each request: how long it took, of what model and version, how many rows.

It continues the caller's trace (W3C Trace Context). Where spans go, and which are kept, the SDK's ``OTEL_``
variables say, as everywhere. No other module imports OpenTelemetry, and without ``--otel`` this one is not either.
Attributes: OpenTelemetry's semantic conventions for HTTP servers, and ours under ``penstock.``.
"""

from __future__ import annotations

import threading
from typing import Any

from penstock.errors import ConfigError
from penstock.serve.api.facts import FACTS, Facts
from penstock.transport.http import Receive, Scope, Send, headers_of
from penstock.version import __version__, the_extra

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ConfigError(f"traces need {the_extra('otel')}") from error

__all__ = ["Tracing"]

_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
_GONE = 499
_CLOSE_S = 3.0


class Tracing:
    """An ASGI application around another, which fills in its requests' ``Facts``."""

    def __init__(self, app: Any, processor: SpanProcessor | None = None) -> None:
        """Spans go to ``processor``; if there is none, by OTLP over HTTP, in batches, from a thread."""
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "penstock"}))
        self._app, self._provider = app, TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("penstock.serve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = headers_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            _name(method),
            context=self._propagator.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes=_asked(scope, headers, method),
        )
        facts = scope[FACTS] = Facts(trace_id=f"{span.get_span_context().trace_id:032x}")
        try:
            await self._app(scope, receive, send)
        finally:
            span.update_name(_name(method, facts.route))
            span.set_attributes(_answered(facts))
            if facts.status >= 500:
                span.set_status(trace.StatusCode.ERROR)
            span.end()

    def close(self) -> None:
        """Send what has not been sent; a collector that does not answer is not waited for."""
        ending = threading.Thread(target=self._provider.shutdown, name="penstock-traces", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)


def _name(method: str, route: str = "") -> str:
    return f"{method.replace('_OTHER', 'HTTP')} {route}".rstrip()


def _asked(scope: Scope, headers: dict[str, str], method: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method == "_OTHER":
        found["http.request.method_original"] = scope["method"]
    if query := scope.get("query_string"):
        found["url.query"] = query.decode("latin-1")
    if "user-agent" in headers:
        found["user_agent.original"] = headers["user-agent"]
    for side in ("server", "client"):
        if address := scope.get(side):
            found[f"{side}.address"] = address[0]
            found[f"{side}.port"] = address[1]
    return found


def _answered(facts: Facts) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if facts.route:
        found["http.route"] = facts.route
    if facts.status != _GONE:
        found["http.response.status_code"] = facts.status
    if facts.status >= 500:
        found["error.type"] = str(facts.status)
    if facts.model is not None:
        found["penstock.model.name"] = facts.model
        found["penstock.model.version"] = facts.version
        found["penstock.rows"] = facts.rows
        found["penstock.batch.rows"] = facts.batch_rows
    return found
