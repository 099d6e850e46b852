"""The prediction server's application: rows, the Open Inference Protocol, Arrow, metrics, its own description.

Requests share nothing but the scoring of their rows, and a bad one is told what is wrong with it and no other.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import parse_qsl

import msgspec
import pyarrow as pa

from penstock.errors import ConfigError, InputError, StorageError
from penstock.serve.batching import Batcher, Complete
from penstock.serve.inference import BadTensors, infer_response, model_metadata, read_infer, tensor_rows
from penstock.serve.metrics import CONTENT_TYPE, Metrics
from penstock.serve.openapi import describe, page
from penstock.serve.scorer import Scorer
from penstock.serve.served import Canary, Served
from penstock.transport.http import (
    JSON,
    Gone,
    HttpLimits,
    Receive,
    Refused,
    Scope,
    Send,
    authenticate,
    headers_of,
    plain_body,
    read_body,
    refusal,
    send_answer,
)
from penstock.version import __version__

if TYPE_CHECKING:
    from penstock.serve.features import Features

__all__ = ["ARROW", "App", "ServeLimits"]

ARROW = "application/vnd.apache.arrow.stream"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, kw_only=True)
class ServeLimits(HttpLimits):
    """What a server lets others do."""

    rows: int = 10_000
    """Of a request with rows in JSON."""
    explained_rows: int = 100
    tables: int = 4
    """Arrow tables that are scored, or wait for it, at the same time; more are refused."""


@dataclass(frozen=True, slots=True)
class _Answer:
    body: bytes
    type_: str = JSON
    status: int = 200


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    query: bytes
    headers: Mapping[str, str]
    receive: Receive


_Handler = Callable[[_Request], Awaitable[_Answer]]


class App:
    """Serves models, each under its name."""

    def __init__(
        self,
        models: Mapping[str, Scorer],
        *,
        canaries: Mapping[str, Canary] | None = None,
        token: bytes | None = None,
        limits: ServeLimits | None = None,
        access_log: TextIO | None = None,
        features: Mapping[str, Features] | None = None,
    ) -> None:
        """Serve these; the first is the one that ``/predict`` means. Those of ``canaries`` get a share of the
        requests for the model of their name. A line of JSON for each request goes to ``access_log``. By name of a
        model, ``features`` are what its pipeline adds to rows."""
        if not models:
            raise ConfigError("there is no model to serve")
        self._features = dict(features or {})
        self.models = {
            name: Served(scorer, (canaries or {}).get(name), self._completing(name))
            for name, scorer in models.items()
        }
        self.metrics = Metrics(self.models)
        for name, each in self._features.items():
            if not each.current.groups:
                continue  # columns are computed alone, and nothing ages
            self.metrics.watch_features(name, each)
        self._default = next(iter(models))
        self._token, self._limits, self._access_log = token, limits or ServeLimits(), access_log
        self._tables = 0
        self._routes: dict[str, dict[str, _Handler]] = {
            "/predict": {"POST": self._predict},
            "/metrics": {"GET": self._metrics},
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": self._ok},
            "/v2/health/ready": {"GET": self._ok},
            "/v2/models": {"GET": self._list},
            "/health": {"GET": self._ok},
            "/openapi.json": {"GET": self._openapi},
            "/": {"GET": self._page},
        }

    def switch(self, name: str, scorer: Scorer, *, canary: bool = False) -> None:
        """Let a version of a model answer from the next request on, or be its canary; in the server's thread."""
        served = self.models[name]
        batcher = served.canary if canary and served.canary is not None else served.stable
        batcher.scorer = scorer
        self.metrics.switched(name)

    def refused(self, name: str) -> None:
        """A version of a model was not switched to."""
        self.metrics.refused(name)

    def _completing(self, name: str) -> Complete | None:
        features = self._features.get(name)
        if features is None:
            return None
        return lambda scorer, rows: features.bind(scorer.model.plan).rows(rows)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        begun_s = time.perf_counter()
        status, route = 500, "other"
        try:
            route, handlers = self._route(scope["path"])
            headers = headers_of(scope)
            if route not in ("/health", "/v2/health/live", "/v2/health/ready"):
                authenticate(headers, self._token)
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            handler = handlers.get(method)
            if handler is None:
                allowed = ", ".join(handlers)
                raise Refused(405, f"got {scope['method']}, allowed: {allowed}", allow=allowed)
            query = scope.get("query_string", b"")
            answer = await handler(_Request(scope["path"], query, headers, receive))
            status = answer.status
            await send_answer(send, scope, status, answer.body, answer.type_)
        except Refused as refused:
            status = refused.status
            await send_answer(send, scope, status, refusal(refused), JSON, refused.headers)
        except (InputError, BadTensors) as error:
            status = 400
            await send_answer(send, scope, status, refusal(Refused(400, str(error))), JSON)
        except Gone:
            status = 499  # as nginx counts a client that went away
        except StorageError as error:  # a file of the model: it is being made anew
            status = 503
            _log.error("%s", error)
            await send_answer(send, scope, status, refusal(Refused(503, str(error))), JSON)
        except Exception as error:  # a defect of ours: told, and the server goes on
            _log.exception("%s %s", scope["method"], scope["path"])
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            await send_answer(send, scope, status, refusal(Refused(500, text)), JSON)
        finally:
            seconds = time.perf_counter() - begun_s
            self.metrics.answered(route, status, seconds)
            if self._access_log is not None:
                self._log(self._access_log, scope, status, seconds)

    def _route(self, path: str) -> tuple[str, Mapping[str, _Handler]]:
        found = self._routes.get(path)
        if found is not None:
            return path, found
        model = _MODEL.fullmatch(path)
        if model is None:
            known = ", ".join([*self._routes, "/v2/models/NAME/infer"])
            raise Refused(404, f"no such path {path[:100]!r}, allowed: {known}")
        match model[3]:
            case "/infer":
                return "/v2/models/NAME/infer", {"POST": self._infer}
            case "/ready":
                return "/v2/models/NAME/ready", {"GET": self._model_ready}
        return "/v2/models/NAME", {"GET": self._model}

    # ---- scoring

    async def _predict(self, request: _Request) -> _Answer:
        options = _options(request.query, ("model", "version", "explain", "lineage"))
        name, served, batcher = self._find(options.get("model", self._default), options.get("version"))
        type_ = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        body = await self._body(request)
        if type_ == ARROW:
            if "explain" in options or "lineage" in options:
                raise Refused(400, "explain and lineage are for rows in JSON")
            return await self._predict_table(name, served.role(batcher), batcher.scorer, body)
        if type_ not in (JSON, "application/x-www-form-urlencoded", ""):  # curl -d says the second unless told
            raise Refused(415, f"got content-type {type_[:50]!r}, allowed: {JSON} or {ARROW}")
        rows = _rows(body)
        self._check_rows(rows)
        scored = await batcher.score(rows)
        self.metrics.scored(name, served.role(batcher), scored.scorer, len(rows))
        answer: dict[str, Any] = {"predictions": scored.scores, "model": name, "version": scored.scorer.version}
        if "explain" in options:
            most = _whole(options["explain"], "explain")
            if len(rows) > self._limits.explained_rows:
                raise Refused(413, f"got {len(rows):,} rows to explain, allowed: {self._limits.explained_rows:,}")
            answer["explanations"] = scored.scorer.explain(scored.rows, most)
        if "lineage" in options:
            answer["lineage"] = _lineage(scored.scorer)
        return _Answer(msgspec.json.encode(answer))

    async def _predict_table(self, name: str, role: str, scorer: Scorer, body: bytes) -> _Answer:
        if self._tables >= self._limits.tables:
            raise Refused(429, "too many tables are scored at the moment; try again", retry_after="1")
        self._tables += 1
        try:
            rows, answer = await asyncio.to_thread(self._score_table, name, scorer, body)
        finally:
            self._tables -= 1
        self.metrics.scored(name, role, scorer, rows)
        return answer

    def _score_table(self, name: str, scorer: Scorer, body: bytes) -> tuple[int, _Answer]:
        try:
            with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
                table = stream.read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise Refused(400, f"the body is no Arrow stream: {text}") from error
        if name in self._features:
            table = self._features[name].bind(scorer.model.plan).table(table)
        scores = pa.table({"score": scorer.score_table(table)})
        scores = scores.replace_schema_metadata({"model": name, "version": scorer.version})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, scores.schema) as writer:
            writer.write_table(scores)
        return table.num_rows, _Answer(sink.getvalue().to_pybytes(), ARROW)

    async def _infer(self, request: _Request) -> _Answer:
        name, served, batcher = self._of_path(request.path)
        asked = read_infer(await self._body(request))
        rows = tensor_rows(asked)
        self._check_rows(rows)
        scored = await batcher.score(rows)
        self.metrics.scored(name, served.role(batcher), scored.scorer, len(rows))
        return _json(infer_response(asked, name, scored.scorer.version, scored.scores))

    async def _body(self, request: _Request) -> bytes:
        return plain_body(
            await read_body(request.receive, request.headers, self._limits), request.headers, self._limits
        )

    def _check_rows(self, rows: Sequence[Any]) -> None:
        if not rows:
            raise Refused(400, "there is no row")
        if len(rows) > self._limits.rows:
            raise Refused(
                413, f"got {len(rows):,} rows, allowed: {self._limits.rows:,}; Arrow bodies may have more"
            )

    # ---- what there is

    def _find(self, name: str, version: str | None) -> tuple[str, Served, Batcher]:
        served = self.models.get(name)
        if served is None:
            raise Refused(404, f"there is no model {name[:100]!r}; models: {', '.join(self.models)}")
        batcher = served.pick(version)
        if batcher is None:
            there = ", ".join(served.versions())
            raise Refused(404, f"model {name}: there is no version {str(version)[:20]!r}; versions: {there}")
        return name, served, batcher

    def _of_path(self, path: str) -> tuple[str, Served, Batcher]:
        found = _MODEL.fullmatch(path)
        assert found is not None
        return self._find(found[1], found[2])

    async def _ok(self, request: _Request) -> _Answer:
        key = {"/v2/health/live": "live", "/v2/health/ready": "ready"}.get(request.path)
        return _json({key: True} if key is not None else {"status": "ok"})

    async def _server(self, request: _Request) -> _Answer:
        return _json({"name": "penstock", "version": __version__, "extensions": []})

    async def _list(self, request: _Request) -> _Answer:
        return _json(
            {
                "models": [
                    {"name": name, "version": version}
                    for name, each in self.models.items()
                    for version in each.versions()
                ]
            }
        )

    async def _model(self, request: _Request) -> _Answer:
        name, served, batcher = self._of_path(request.path)
        plan = batcher.scorer.model.plan
        assert plan is not None
        brought = self._features[name].bind(plan).inputs if name in self._features else None
        about = model_metadata(name, served.versions(), plan, brought)
        return _json({**about, "parameters": _lineage(batcher.scorer)})

    async def _model_ready(self, request: _Request) -> _Answer:
        name, _, _ = self._of_path(request.path)
        return _json({"name": name, "ready": True})

    async def _metrics(self, request: _Request) -> _Answer:
        return _Answer(self.metrics.text(), CONTENT_TYPE)

    async def _openapi(self, request: _Request) -> _Answer:
        return _json(self._described())

    async def _page(self, request: _Request) -> _Answer:
        return _Answer(
            page(self._described(), request.headers.get("host", "localhost:8080")).encode(),
            "text/html; charset=utf-8",
        )

    def _described(self) -> dict[str, Any]:
        plans = {name: each.stable.scorer.model.plan for name, each in self.models.items()}
        brought = {name: self._features[name].bind(plans[name]).inputs for name in self._features}
        return describe(plans, self._limits.rows, with_token=self._token is not None, brought=brought)

    @staticmethod
    def _log(log: TextIO, scope: Scope, status: int, seconds: float) -> None:
        client = scope.get("client")
        line = {
            "time": time.time(),
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1000, 3),
            "client": None if client is None else client[0],
        }
        print(msgspec.json.encode(line).decode(), file=log, flush=True)


def _rows(body: bytes) -> list[Any]:
    try:
        value = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {' '.join(str(error).split())}") from error
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    raise Refused(400, f"got {str(value)[:50]!r}, allowed: a row (an object of columns) or a list of rows")


def _options(query: bytes, allowed: Sequence[str]) -> dict[str, str]:
    if not query:
        return {}
    found = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=20))
    for name in found:
        if name not in allowed:
            raise Refused(400, f"got the option {name[:50]!r}, allowed: {', '.join(allowed)}")
    return found


def _whole(text: str, what: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 10_000:
        return int(text)
    raise Refused(400, f"{what}: got {text[:20]!r}, allowed: 1 to 10,000")


def _lineage(scorer: Scorer) -> dict[str, Any]:
    """Which data the version has learnt, how good it was, and how old the newest of its events is by now."""
    keys = ("version", "created", "code_version", "metrics", "lineage")
    found = {key: scorer.manifest[key] for key in keys if key in scorer.manifest}
    if scorer.newest_event_s is not None:
        found["newest_event_age_s"] = round(time.time() - scorer.newest_event_s, 3)
    return found


def _json(value: Any) -> _Answer:
    return _Answer(msgspec.json.encode(value))
