"""What a prediction server counts, in the form that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from penstock.errors import ConfigError
from penstock.serve.scorer import Scorer
from penstock.serve.served import Served
from penstock.version import the_extra

if TYPE_CHECKING:
    from penstock.serve.features import Features

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8)
_AGES_S = (0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)


class Metrics:
    """Of one server."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        """``models`` are looked at when somebody looks.

        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ConfigError(f"a server needs {the_extra('serve')}") from error
        self._models, self._write = models, prometheus.generate_latest
        self.registry = registry = prometheus.CollectorRegistry()
        model, role = ["model"], ["model", "role"]
        counter, gauge, histogram = prometheus.Counter, prometheus.Gauge, prometheus.Histogram
        self._requests = counter("penstock_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = histogram(
            "penstock_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = counter("penstock_rows", "Rows scored.", role, registry=registry)
        self._fresh = histogram(
            "penstock_freshness_seconds",
            "Age, at each answer, of the newest event that the version had learnt.",
            model,
            buckets=_AGES_S,
            registry=registry,
        )
        self._switches = counter(
            "penstock_model_switches", "Versions that took the place of another.", model, registry=registry
        )
        self._refused = counter(
            "penstock_versions_refused", "Versions that were not switched to.", model, registry=registry
        )
        self._info = gauge(
            "penstock_model_info",
            "1 for a version that answers.",
            ["model", "role", "version", "kind"],
            registry=registry,
        )
        self._age = gauge("penstock_model_age_seconds", "Since the version was written.", role, registry=registry)
        self._newest = gauge(
            "penstock_newest_event_age_seconds",
            "Age of the newest event that the version has learnt.",
            role,
            registry=registry,
        )
        self._size = gauge("penstock_model_rows", "Rows of its tables.", role, registry=registry)
        self._features_age = gauge(
            "penstock_features_age_seconds",
            "Since the log was last read to its end for a model's aggregates.",
            model,
            registry=registry,
        )
        self._features_events = gauge(
            "penstock_features_events", "Events that a model's aggregates hold.", model, registry=registry
        )
        self._by_route: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._by_model: dict[tuple[str, str], tuple[Callable[[float], None], Callable[[float], None]]] = {}

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

    def scored(self, model: str, role: str, scorer: Scorer, rows: int) -> None:
        """Rows of a request were."""
        found = self._by_model.get((model, role))
        if found is None:
            counted, fresh = self._rows.labels(model, role), self._fresh.labels(model)
            found = self._by_model[model, role] = (counted.inc, fresh.observe)
        found[0](rows)
        if scorer.newest_event_s is not None:
            found[1](time.time() - scorer.newest_event_s)

    def switched(self, model: str) -> None:
        """Another version answers."""
        self._switches.labels(model).inc()

    def refused(self, model: str) -> None:
        """A version was not switched to."""
        self._refused.labels(model).inc()

    def text(self) -> bytes:
        """Everything, for ``/metrics``."""
        self._info.clear()
        now_s = time.time()
        for name, served in self._models.items():
            for batcher in served.batchers():
                scorer, role = batcher.scorer, served.role(batcher)
                self._info.labels(name, role, scorer.version, scorer.model.kind).set(1)
                self._age.labels(name, role).set(max(0.0, now_s - scorer.created_s))
                self._size.labels(name, role).set(scorer.rows)
                if scorer.newest_event_s is not None:
                    self._newest.labels(name, role).set(now_s - scorer.newest_event_s)
        written: bytes = self._write(self.registry)
        return written
