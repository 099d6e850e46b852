"""What a prediction server counts, in the form that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from penstock.errors import ConfigError
from penstock.serve.scorer import Scorer

if TYPE_CHECKING:
    from penstock.serve.features import Features

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8)


class Metrics:
    """Of one server."""

    def __init__(self, models: Callable[[], Mapping[str, Scorer]]) -> None:
        """``models`` gives what is served when somebody looks.

        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ConfigError("a server needs the extra `serve`: pip install 'penstock[serve]'") from error
        self._models, self._write = models, prometheus.generate_latest
        self.registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "penstock_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self._seconds = prometheus.Histogram(
            "penstock_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = prometheus.Counter("penstock_rows", "Rows scored.", ["model"], registry=self.registry)
        self._switches = prometheus.Counter(
            "penstock_model_switches",
            "Versions that took the place of another.",
            ["model"],
            registry=self.registry,
        )
        self._info = prometheus.Gauge(
            "penstock_model_info",
            "1 for the version that answers.",
            ["model", "version", "kind"],
            registry=self.registry,
        )
        self._age = prometheus.Gauge(
            "penstock_model_age_seconds", "Since the version was written.", ["model"], registry=self.registry
        )
        self._size = prometheus.Gauge(
            "penstock_model_rows", "Rows of its tables.", ["model"], registry=self.registry
        )
        self._features_age = prometheus.Gauge(
            "penstock_features_age_seconds",
            "Since the log was last read to its end for a model's aggregates.",
            ["model"],
            registry=self.registry,
        )
        self._features_events = prometheus.Gauge(
            "penstock_features_events", "Events that a model's aggregates hold.", ["model"], registry=self.registry
        )
        self._by_route: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def watch_features(self, model: str, features: Features) -> None:
        """Show how old a model's aggregates are, and how many events they hold."""
        self._features_age.labels(model).set_function(lambda: features.age_s)
        self._features_events.labels(model).set_function(lambda: features.events)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was."""
        found = self._by_route.get((route, status))
        if found is None:
            count, took = self._requests.labels(route, str(status)), self._seconds.labels(route)
            found = self._by_route[route, status] = (count.inc, took.observe)
        found[0]()
        found[1](seconds)

    def scored(self, model: str, rows: int) -> None:
        """Rows were."""
        self._rows.labels(model).inc(rows)

    def switched(self, model: str) -> None:
        """Another version answers."""
        self._switches.labels(model).inc()

    def text(self) -> bytes:
        """Everything, for ``/metrics``."""
        self._info.clear()
        for name, scorer in self._models().items():
            self._info.labels(name, scorer.version, scorer.model.kind).set(1)
            self._age.labels(name).set(max(0.0, time.time() - scorer.created_s))
            self._size.labels(name).set(scorer.model.rows)
        written: bytes = self._write(self.registry)
        return written
