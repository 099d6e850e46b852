"""The description of the server and what it does: requests are made from the one, and sent to the other.

schemathesis makes requests that the description allows, and some that it does not, and compares statuses, types
and bodies of the answers with it.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from penstock.serve.api.app import App, ServeLimits
from tests.serve.conftest import Served

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

OPERATIONS = [
    ("/predict", "POST"),
    ("/metrics", "GET"),
    ("/v2", "GET"),
    ("/v2/health/live", "GET"),
    ("/v2/health/ready", "GET"),
    ("/v2/models", "GET"),
    ("/v2/models/{name}", "GET"),
    ("/v2/models/{name}/ready", "GET"),
    ("/v2/models/{name}/infer", "POST"),
    ("/v2/models/{name}/versions/{version}/infer", "POST"),
]


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    app = App({"ctr": served.scorer, "other": served.scorer}, limits=ServeLimits(rows=5, explained_rows=5))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_all_operations_are_tried(schema: Any) -> None:
    found = {(each.ok().path, each.ok().method.upper()) for each in schema.get_all_operations()}
    assert found == set(OPERATIONS)


RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
TRIED = [
    (path, method, mode)
    for path, method in OPERATIONS
    for mode in (RIGHT, WRONG)
    if mode is RIGHT or method == "POST" or "{" in path  # without parameters a request cannot be wrong
]


def is_huge(value: Any) -> bool:
    """Whether it has a number that, divided by its column's deviation, may be none of f32; no schema says that."""
    if isinstance(value, dict):
        return any(map(is_huge, value.values()))
    if isinstance(value, list):
        return any(map(is_huge, value))
    return isinstance(value, int | float) and abs(value) > 1e30


@pytest.mark.parametrize(("path", "method", "mode"), TRIED)
def test_it_does_as_it_says(schema: Any, path: str, method: str, mode: Any) -> None:
    operation = schema[path][method]
    # A schema cannot say that a tensor has as many values as its shape.
    excluded = [checks.positive_data_acceptance] if "infer" in path else []
    examples = 50 if method == "POST" else 5

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    def compare(case: Any) -> None:
        assume(not is_huge(case.body))
        case.call_and_validate(excluded_checks=excluded)

    compare()
