"""The prediction server's application: rows, the Open Inference Protocol, Arrow, metrics, its own description.

Requests share nothing but the scoring of their rows, and a bad one is told what is wrong with it and no other.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import parse_qsl

import msgspec

from penstock.errors import ConfigError, InputError, StorageError
from penstock.serve.api.arrow import ARROW
from penstock.serve.api.bodies import Bodies, Request
from penstock.serve.api.facts import FACTS, Facts, trace_id
from penstock.serve.api.inference import BadTensors, infer_response, model_metadata
from penstock.serve.api.limits import ServeLimits
from penstock.serve.api.metrics import CONTENT_TYPE, Metrics
from penstock.serve.api.openapi import describe, page
from penstock.serve.api.scoring import Scoring
from penstock.serve.api.slices import BadJson
from penstock.serve.batching import Batcher
from penstock.serve.scorer import Scorer
from penstock.serve.served import Canary, Served
from penstock.transport.http import (
    JSON,
    Gone,
    Receive,
    Refused,
    Scope,
    Send,
    authenticate,
    headers_of,
    refusal,
    send_answer,
)
from penstock.version import __version__

if TYPE_CHECKING:
    from penstock.serve.features import Features

__all__ = ["ARROW", "App", "ServeLimits"]

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    body: bytes
    type_: str = JSON
    status: int = 200


_Handler = Callable[[Request], Awaitable[_Answer]]


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
        self.models = {name: Served(scorer, (canaries or {}).get(name)) for name, scorer in models.items()}
        for name, served in self.models.items():
            for batcher in served.batchers():
                self._complete(name, batcher.scorer)
        self.metrics = Metrics(self.models)
        for name, each in self._features.items():
            if not each.current.groups:
                continue  # columns are computed alone, and nothing ages
            self.metrics.watch_features(name, each)
        self._default = next(iter(models))
        self._token, self._limits, self._access_log = token, limits or ServeLimits(), access_log
        self.draining = False
        """Nobody shall send new requests here: the server is about to end."""
        self._bodies, self._scoring = Bodies(self._limits), Scoring(self._limits)
        self._routes: dict[str, dict[str, _Handler]] = {
            "/predict": {"POST": self._predict},
            "/metrics": {"GET": self._metrics},
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": self._ok},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/models": {"GET": self._list},
            "/health": {"GET": self._ok},
            "/openapi.json": {"GET": self._openapi},
            "/": {"GET": self._page},
        }

    def drain(self) -> None:
        """Say that this server is not ready, and go on answering."""
        self.draining = True

    def switch(self, name: str, scorer: Scorer, *, canary: bool = False) -> None:
        """Let a version of a model answer from the next request on, or be its canary; in the server's thread."""
        self._complete(name, scorer)
        served = self.models[name]
        batcher = served.canary if canary and served.canary is not None else served.stable
        batcher.scorer = scorer
        self.metrics.switched(name)

    def refused(self, name: str) -> None:
        """A version of a model was not switched to."""
        self.metrics.refused(name)

    def _complete(self, name: str, scorer: Scorer) -> None:
        """Have a version's rows completed by its pipeline, if it has one."""
        if name in self._features:
            scorer.completer = self._features[name].bind(scorer.model.plan)

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
            request = Request(scope["path"], query, headers, receive, scope.get(FACTS))
            try:
                answer = await handler(request)
                status = answer.status
                await send_answer(send, scope, status, answer.body, answer.type_)
            finally:
                self._bodies.release(request)
        except Refused as refused:
            status = refused.status
            await send_answer(send, scope, status, refusal(refused), JSON, refused.headers)
        except BadJson as error:
            status = 400
            await send_answer(send, scope, status, refusal(Refused(400, f"the body is no JSON: {error}")), JSON)
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
            facts: Facts | None = scope.get(FACTS)
            if facts is not None:
                facts.route, facts.status = "" if route == "other" else route.replace("NAME", "{name}"), status
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

    async def _predict(self, request: Request) -> _Answer:
        options = _options(request.query, ("model", "version", "explain", "lineage"))
        name, served, batcher = self._find(options.get("model", self._default), options.get("version"))
        type_ = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if type_ not in (
            ARROW,
            JSON,
            "application/x-www-form-urlencoded",
            "",
        ):  # curl -d says the third unless told
            raise Refused(415, f"got content-type {type_[:50]!r}, allowed: {JSON} or {ARROW}")
        body = await self._bodies.read(request)
        if type_ == ARROW:
            if "explain" in options or "lineage" in options:
                raise Refused(400, "explain and lineage are for rows in JSON")
            scorer = batcher.scorer
            rows, table = await self._scoring.table(name, scorer, body)
            self._scored(request, served.role(batcher), name, scorer, rows, rows)
            return _Answer(table, ARROW)
        most = _whole(options["explain"], "explain") if "explain" in options else 0
        scored, explanations = await self._scoring.rows(batcher, body, most)
        self._scored(request, served.role(batcher), name, scored.scorer, len(scored.scores), scored.batch)
        _check_version(name, options.get("version"), scored.scorer)
        answer: dict[str, Any] = {"predictions": scored.scores, "model": name, "version": scored.scorer.version}
        if most:
            answer["explanations"] = explanations
        if "lineage" in options:
            answer["lineage"] = _lineage(scored.scorer)
        return _Answer(msgspec.json.encode(answer))

    async def _infer(self, request: Request) -> _Answer:
        name, served, batcher = self._of_path(request.path)
        asked, scored = await self._scoring.tensors(batcher, await self._bodies.read(request))
        self._scored(request, served.role(batcher), name, scored.scorer, len(scored.scores), scored.batch)
        found = _MODEL.fullmatch(request.path)
        _check_version(name, found[2] if found is not None else None, scored.scorer)
        return _json(infer_response(asked, name, scored.scorer.version, scored.scores))

    def _scored(self, request: Request, role: str, name: str, scorer: Scorer, rows: int, batch: int) -> None:
        self.metrics.scored(name, role, scorer, rows)
        facts = request.facts
        if facts is not None:
            facts.model, facts.version, facts.rows, facts.batch_rows = name, scorer.version, rows, batch

    # ---- what there is

    def _find(self, name: str, version: str | None) -> tuple[str, Served, Batcher]:
        served = self.models.get(name)
        if served is None:
            raise Refused(404, f"there is no model {name[:100]!r}; models: {', '.join(self.models)}")
        batcher = served.pick(version)
        if batcher is None:
            there = ", ".join(served.versions())
            raise Refused(
                404, f"model {name}: version {str(version)[:20]!r} is not served here; versions: {there}"
            )
        return name, served, batcher

    def _of_path(self, path: str) -> tuple[str, Served, Batcher]:
        found = _MODEL.fullmatch(path)
        assert found is not None
        return self._find(found[1], found[2])

    async def _ok(self, request: Request) -> _Answer:
        return _json({"live": True} if request.path == "/v2/health/live" else {"status": "ok"})

    async def _ready(self, request: Request) -> _Answer:
        return _json({"ready": not self.draining}, 503 if self.draining else 200)

    async def _server(self, request: Request) -> _Answer:
        return _json({"name": "penstock", "version": __version__, "extensions": []})

    async def _list(self, request: Request) -> _Answer:
        return _json(
            {
                "models": [
                    {"name": name, "version": version}
                    for name, each in self.models.items()
                    for version in each.versions()
                ]
            }
        )

    async def _model(self, request: Request) -> _Answer:
        name, served, batcher = self._of_path(request.path)
        plan = batcher.scorer.model.plan
        assert plan is not None
        brought = self._features[name].bind(plan).inputs if name in self._features else None
        about = model_metadata(name, served.versions(), plan, brought)
        return _json({**about, "parameters": _lineage(batcher.scorer)})

    async def _model_ready(self, request: Request) -> _Answer:
        name, _, _ = self._of_path(request.path)
        return _json({"name": name, "ready": not self.draining}, 503 if self.draining else 200)

    async def _metrics(self, request: Request) -> _Answer:
        return _Answer(self.metrics.text(), CONTENT_TYPE)

    async def _openapi(self, request: Request) -> _Answer:
        return _json(self._described())

    async def _page(self, request: Request) -> _Answer:
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
        if (trace := trace_id(scope)) is not None:
            line["trace_id"] = trace
        print(msgspec.json.encode(line).decode(), file=log, flush=True)


def _options(query: bytes, allowed: Sequence[str]) -> dict[str, str]:
    if not query:
        return {}
    found = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=20))
    for name in found:
        if name not in allowed:
            raise Refused(400, f"got the option {name[:50]!r}, allowed: {', '.join(allowed)}")
    return found


def _whole(text: str, what: str) -> int:
    if len(text) <= 5 and text.isascii() and text.isdigit() and 1 <= int(text) <= 10_000:
        return int(text)
    raise Refused(400, f"{what}: got {text[:20]!r}, allowed: 1 to 10,000")


def _check_version(name: str, asked: str | None, scorer: Scorer) -> None:
    """Another version may have taken the place of the one that was asked for while the body came.

    Raises:
        Refused: it has.
    """
    if asked is not None and scorer.version != asked:
        raise Refused(404, f"model {name}: version {asked} answers no longer; version {scorer.version} does")


def _lineage(scorer: Scorer) -> dict[str, Any]:
    """Which data the version has learnt, how good it was, and how old the newest of its events is by now."""
    keys = ("version", "created", "code_version", "metrics", "lineage")
    found = {key: scorer.manifest[key] for key in keys if key in scorer.manifest}
    if scorer.newest_event_s is not None:
        found["newest_event_age_s"] = round(time.time() - scorer.newest_event_s, 3)
    return found


def _json(value: Any, status: int = 200) -> _Answer:
    return _Answer(msgspec.json.encode(value), status=status)
