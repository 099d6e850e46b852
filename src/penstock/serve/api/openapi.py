"""The server's description of itself: OpenAPI 3.1, and a page of it for people."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.features import FeaturePlan
from penstock.serve.api.arrow import ARROW
from penstock.serve.api.inference import DATATYPES
from penstock.version import __version__

__all__ = ["describe", "page"]

_CATEGORY: dict[str, Any] = {"type": ["string", "number", "boolean", "null"]}
_NUMBER: dict[str, Any] = {"type": ["number", "boolean", "null"]}
_KINDS: dict[str, dict[str, Any]] = {
    "list": {"type": ["array", "null"], "items": _CATEGORY},
    "map": {"type": ["object", "null"], "additionalProperties": _NUMBER},
    **dict.fromkeys(("raw", "standard", "log"), _NUMBER),
}


def describe(
    plans: Mapping[str, FeaturePlan | None],
    rows: int,
    *,
    with_token: bool,
    brought: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The OpenAPI document. By model, ``brought`` are columns of its rows, and their kinds, where
    these are not its inputs."""
    schemas, row = _schemas(plans, brought or {})
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": __version__},
        "paths": _paths(list(plans), row, rows),
        "components": {"schemas": schemas},
    }
    if with_token:
        _ask_for_token(described)
    return described


def _schemas(
    plans: Mapping[str, FeaturePlan | None], brought: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All schemas, and that of a row of any model."""
    schemas: dict[str, Any] = {
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        "Predictions": {
            "type": "object",
            "required": ["predictions", "model", "version"],
            "properties": {
                "predictions": {"type": "array", "items": {"type": "number"}},
                "model": {"type": "string"},
                "version": {"type": "string"},
                "explanations": {"type": "array", "items": {"type": "array", "items": _CONTRIBUTION}},
                "lineage": {"type": "object"},
            },
        },
        "Model": _MODEL,
        "Inference": _INFERENCE,
    }
    names = []
    for name, plan in plans.items():
        assert plan is not None
        of_row = brought.get(name)
        kinds = {**(of_row or {}), **{column.name: column.kind for column in plan.columns}}
        listed = plan.inputs if of_row is None else of_row
        columns = {column: _KINDS.get(kinds.get(column, ""), _CATEGORY) for column in listed}
        some = [{"required": [column]} for column in columns]
        schemas[f"Row of {name}"] = {"type": "object", "properties": columns, "anyOf": some}
        names.append({"$ref": f"#/components/schemas/{_pointer(f'Row of {name}')}"})
    return schemas, names[0] if len(names) == 1 else {"anyOf": names}


def _predict(names: Sequence[str], row: Mapping[str, Any], rows: int) -> dict[str, Any]:
    predict: dict[str, Any] = {
        "summary": "Score rows",
        "parameters": [
            _query("model", "which model", {"type": "string", "enum": list(names)}),
            _query("version", "only if this version answers", {"type": "string"}),
            _query("explain", "so many of the strongest features of each row", _EXPLAIN),
            _query("lineage", "what the version has learnt", {"type": "string"}),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"anyOf": [row, {"type": "array", "items": row, "minItems": 1, "maxItems": rows}]}
                },
                ARROW: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": _responses("Probabilities, in the order of the rows", "Predictions", *_OF_BODIES),
    }
    predict["responses"]["200"]["content"][ARROW] = {"schema": {"type": "string", "format": "binary"}}
    return predict


def _paths(names: Sequence[str], row: Mapping[str, Any], rows: int) -> dict[str, Any]:
    model = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(names)}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    infer = {
        "summary": "Score tensors (Open Inference Protocol)",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _INFER}}},
        "responses": _responses("One tensor: score", "Inference", *_OF_BODIES),
    }
    metrics = {"200": {"description": "Text", "content": {"text/plain": {}}}}
    return {
        "/predict": {"post": _predict(names, row, rows)},
        "/v2/models/{name}": {
            "get": {
                "summary": "Inputs and outputs of a model",
                "parameters": [model],
                "responses": _responses("Metadata", "Model", "404"),
            }
        },
        "/v2/models/{name}/ready": {
            "get": {
                "summary": "It answers",
                "parameters": [model],
                "responses": _responses("Yes", None, "404", no="503"),
            }
        },
        "/v2/models/{name}/infer": {"post": {**infer, "parameters": [model]}},
        "/v2/models/{name}/versions/{version}/infer": {"post": {**infer, "parameters": [model, version]}},
        "/v2/health/live": {"get": {"summary": "It lives", "responses": _responses("Yes", None)}},
        "/v2/health/ready": {"get": {"summary": "It answers", "responses": _responses("Yes", None, no="503")}},
        "/v2": {"get": {"summary": "The server", "responses": _responses("Metadata", None)}},
        "/v2/models": {"get": {"summary": "The models", "responses": _responses("Names and versions", None)}},
        "/metrics": {"get": {"summary": "For Prometheus", "responses": metrics}},
    }


def _ask_for_token(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        if path.startswith("/v2/health/"):
            methods["get"]["security"] = []
            continue
        for what in methods.values():
            what["responses"] = {**what["responses"], "401": _ERROR}
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"token": []}]


_OF_BODIES = ("400", "404", "408", "413", "415", "429", "503")
_EXPLAIN = {"type": "integer", "minimum": 1, "maximum": 10_000}
_CONTRIBUTION = {
    "type": "object",
    "required": ["feature", "contribution"],
    "properties": {"feature": {"type": "string"}, "contribution": {"type": "number"}},
}
_ERROR = {
    "description": "What is wrong, and what is allowed",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": _SHAPE,
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "data": {"type": "array"},
    },
}
_INFER: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 10_000, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "maxItems": 100,
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"enum": ["score"]}}},
        },
    },
}
_INFERENCE: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
    },
}
_METADATA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"enum": list(DATATYPES)},
            "shape": {"type": "array", "items": {"type": "integer"}},
        },
    },
}
_MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": _METADATA,
        "outputs": _METADATA,
    },
}


def page(described: Mapping[str, Any], host: str) -> str:
    """The description, to be read; ``host`` is how the reader calls this server."""
    parts = []
    for path, methods in described["paths"].items():
        for method, what in methods.items():
            parts.append(
                f"<dt><b>{method.upper()}</b> {html.escape(path)}</dt><dd>{html.escape(what['summary'])}</dd>"
            )
    rows = []
    for name, schema in described["components"]["schemas"].items():
        if name.startswith("Row of "):
            columns = "".join(
                f"<tr><td>{html.escape(column)}</td><td>{html.escape(_types(spec))}</td></tr>"
                for column, spec in schema["properties"].items()
            )
            rows.append(
                f"<h2>{html.escape(name)}</h2><table><tr><th>column</th><th>value</th></tr>{columns}</table>"
            )
    example = html.escape(_example(described, host))
    return _PAGE.format(
        version=html.escape(described["info"]["version"]),
        paths="".join(parts),
        rows="".join(rows),
        example=example,
    )


def _example(described: Mapping[str, Any], host: str) -> str:
    schema = next(s for name, s in described["components"]["schemas"].items() if name.startswith("Row of "))
    row = {}
    for column, spec in list(schema["properties"].items())[:3]:
        kinds = spec["type"]
        row[column] = (
            "a" if "string" in kinds else 1.5 if "number" in kinds else ["a"] if "array" in kinds else {"a": 1}
        )
    return f"curl {host}/predict -d '[{json.dumps(row)}]'"


def _types(spec: Mapping[str, Any]) -> str:
    return ", ".join(kind for kind in spec["type"] if kind != "null")


def _query(name: str, what: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": what, "schema": dict(schema)}


def _responses(what: str, schema: str | None, *errors: str, no: str | None = None) -> dict[str, Any]:
    content = {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "object"}
    found: dict[str, Any] = {"200": {"description": what, "content": {"application/json": {"schema": content}}}}
    if no is not None:
        found[no] = {**found["200"], "description": "No"}
    return {**found, **dict.fromkeys(errors, _ERROR)}


def _pointer(name: str) -> str:
    """As part of a JSON pointer in a URL (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1").replace(" ", "%20")


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Penstock</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
code, dt {{ font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
pre {{ overflow-x: auto; padding: .75rem; border: 1px solid #8886; border-radius: .4rem }}
dd {{ margin: 0 0 .5rem 1.5rem }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; padding: .15rem 1rem .15rem 0 }}
</style></head><body>
<h1>Penstock {version}</h1>
<p>A prediction server; see also <a href="openapi.json">openapi.json</a> and <a href="metrics">metrics</a>.</p>
<pre><code>{example}</code></pre>
<dl>{paths}</dl>{rows}</body></html>
"""
