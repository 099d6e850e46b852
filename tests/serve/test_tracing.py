"""Spans of requests: what they say, whose trace they continue, and that a collector gets them over OTLP."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import io
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.serve.api.app import App
from tests.asgi import Answer, ask
from tests.serve.conftest import Served
from tests.serve.test_server import connect, serving

pytest.importorskip("opentelemetry.sdk", reason="no OpenTelemetry SDK (extra `otel`)")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from penstock.serve.api.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROW = {"site": "site-1"}


class Traced:
    """An application whose spans are kept, and its access log."""

    def __init__(self, served: Served) -> None:
        self.exporter, self.log = InMemorySpanExporter(), io.StringIO()
        self.app = App({"ctr": served.scorer}, access_log=self.log)
        self.tracing = Tracing(self.app, SimpleSpanProcessor(self.exporter))

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        data = b"" if body is None else json.dumps(body).encode()
        return asyncio.run(ask(self.tracing, method, path, data, headers))

    def spans(self) -> list[Any]:
        found = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return found


@pytest.fixture
def traced(served: Served) -> Traced:
    return Traced(served)


def test_a_span_says_what_was_asked_and_answered(traced: Traced) -> None:
    answer = traced.call("POST", "/predict?model=ctr", [ROW] * 3, **{"user-agent": "me"})
    assert answer.status == 200
    [span] = traced.spans()
    assert (span.name, span.kind, span.status.status_code) == ("POST /predict", SpanKind.SERVER, StatusCode.UNSET)
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "url.path": "/predict",
        "url.query": "model=ctr",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": "me",
        "penstock.model.name": "ctr",
        "penstock.model.version": "1",
        "penstock.rows": 3,
        "penstock.batch.rows": 3,
    }
    assert span.parent is None and span.end_time > span.start_time
    assert span.resource.attributes["service.name"] == "penstock"


def test_the_batch_is_that_of_all_that_came_together(traced: Traced) -> None:
    async def all_at_once() -> None:
        await asyncio.gather(
            *[ask(traced.tracing, "POST", "/predict", json.dumps(ROW).encode()) for _ in range(5)]
        )

    asyncio.run(all_at_once())
    found = [(each.attributes["penstock.rows"], each.attributes["penstock.batch.rows"]) for each in traced.spans()]
    assert found == [(1, 5)] * 5


@pytest.mark.parametrize(
    ("method", "path", "body", "name", "status", "code"),
    [
        ("GET", "/nowhere", None, "GET", 404, StatusCode.UNSET),
        ("BREW", "/predict", None, "HTTP /predict", 405, StatusCode.UNSET),
        ("POST", "/v2/models/ctr/infer", {}, "POST /v2/models/{name}/infer", 400, StatusCode.UNSET),
        ("HEAD", "/health", None, "HEAD /health", 200, StatusCode.UNSET),
        ("POST", "/predict", [ROW], "POST /predict", 500, StatusCode.ERROR),
    ],
)
def test_spans_of_what_failed(
    traced: Traced,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: Any,
    name: str,
    status: int,
    code: Any,
) -> None:
    monkeypatch.setattr("penstock.serve.scorer.Scorer.score", lambda self, rows: 1 / 0)
    assert traced.call(method, path, body).status == status
    [span] = traced.spans()
    assert (span.name, span.status.status_code) == (name, code)
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes.get("error.type") == ("500" if status == 500 else None)
    assert span.attributes.get("http.request.method_original") == ("BREW" if method == "BREW" else None)
    assert "penstock.rows" not in span.attributes


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE),
        (f"cc-{TRACE}-{PARENT}-01-of-a-later-version", TRACE),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}", None),
        ("x" * 1000, None),
        ("", None),
    ],
)
def test_the_trace_of_the_caller_goes_on(traced: Traced, traceparent: str, trace: str | None) -> None:
    assert traced.call("POST", "/predict", ROW, traceparent=traceparent).status == 200
    [span] = traced.spans()
    found = f"{span.get_span_context().trace_id:032x}"
    assert (found == TRACE) == (trace is not None)
    assert (span.parent is not None) == (trace is not None)
    assert json.loads(traced.log.getvalue())["trace_id"] == found
    # The access log of a server that does not trace knows the caller's as well, and otherwise none.
    traced.log.seek(0)
    traced.log.truncate()
    asyncio.run(ask(traced.app, "POST", "/predict", json.dumps(ROW).encode(), {"traceparent": traceparent}))
    assert json.loads(traced.log.getvalue()).get("trace_id") == trace


@contextlib.contextmanager
def collector() -> Iterator[tuple[int, queue.Queue[Any]]]:
    """A server that takes OTLP over HTTP: its port, and spans as they come."""
    spans: queue.Queue[Any] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        spans.put((self.path, resource.resource, span))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], spans
        server.shutdown()
        thread.join()


def test_a_collector_gets_the_spans(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (collecting, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collecting}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ads")
        with serving(served.folder, "--otel", "--drain-s", 0) as (running, port, _):
            with contextlib.closing(connect(port)) as connection:
                connection.request(
                    "POST", "/predict", json.dumps([ROW] * 2), {"traceparent": f"00-{TRACE}-{PARENT}-01"}
                )
                assert connection.getresponse().read()
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
            assert running.stderr is not None and running.stderr.read() == ""
        path, resource, span = spans.get(timeout=60)
        assert spans.empty() and path == "/v1/traces"
        assert {each.key: each.value.string_value for each in resource.attributes}["service.name"] == "ads"
        assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("POST /predict", TRACE, PARENT)
        [rows] = [each.value.int_value for each in span.attributes if each.key == "penstock.rows"]
        assert rows == 2


def test_without_the_option_nothing_of_it_is_imported() -> None:
    """Neither by the server nor by the application."""
    code = "import sys, penstock.serve.api.app; print([name for name in sys.modules if 'opentelemetry' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
