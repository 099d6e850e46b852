"""What prediction servers answer with, and how fresh that is: from their ``/metrics``, asked for now and then.

Each server is asked in a thread of its own, so that one that is slow holds nobody. What a server does not have is
left out.
"""

from __future__ import annotations

import http.client
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.dash.live.series import Series
from penstock.errors import ConfigError
from penstock.version import the_extra

__all__ = ["Servers", "models_of"]

ASK_S = 2.0
"""Between two questions to a server."""
TIMEOUT_S = 3.0
_NBYTES = 4 << 20
_MODELS = 20
_SWITCHES = 100


class Servers:
    """Prediction servers by their URLs; a context that asks them while entered."""

    def __init__(self, urls: Sequence[str], token: bytes | None = None) -> None:
        """Check the URLs.

        Raises:
            ConfigError: one is not http or https, or the extra is not installed.
        """
        for url in urls:
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(f"--serve {url}: got no address of a server, allowed: http://host:port")
        if urls:
            models_of("")
        self._urls = [url.rstrip("/").removesuffix("/metrics") for url in urls]
        self._token = token
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Any]] = {
            url: {"url": url, "error": "not asked yet"} for url in self._urls
        }
        self.ages: dict[str, Series[list[float | None]]] = {}
        """By ``MODEL at URL``: [seconds since 1970, age of the newest event, age of the version]."""
        self._switched: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Servers:
        for url in self._urls:
            thread = threading.Thread(target=self._ask_on, args=(url,), name=f"asks {url}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 1.0)

    @property
    def urls(self) -> list[str]:
        """Of the servers, without what they end in."""
        return list(self._urls)

    def shown(self) -> list[dict[str, Any]]:
        """What each said last, or why it did not."""
        with self._lock:
            return list(self._found.values())

    def switched(self) -> list[tuple[float, str]]:
        """When (since 1970) which server was first seen to answer with another version."""
        with self._lock:
            return list(self._switched)

    def ask(self, url: str) -> None:
        """Ask one server now."""
        began_s = time.time()
        found: dict[str, Any]
        try:
            found = {"url": url, "error": None, "models": models_of(self._fetch(url))}
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = getattr(reason, "strerror", None) or reason
            found = {"url": url, "error": f"does not answer: {reason}"[:300]}
        with self._lock:
            before = self._found.get(url, {})
            if found["error"] is None:
                found["asked_at"] = began_s
            else:  # what it said before stands, with its age
                found |= {name: before[name] for name in ("models", "asked_at") if name in before}
            self._found[url] = found
            for model in found["models"] if found["error"] is None else ():
                name = f"{_called(model)} at {url}"
                then = {_called(each): each["version"] for each in before.get("models", ())}
                if then.get(_called(model), model["version"]) != model["version"]:
                    self._switched = [
                        *self._switched[-_SWITCHES:],
                        (began_s, f"{name} answers with version {model['version']}"),
                    ]
                if name not in self.ages and len(self.ages) < _MODELS:
                    self.ages[name] = Series(lambda a, b: b)
                if name in self.ages:
                    self.ages[name].add([round(began_s, 1), model["newest_event_age_s"], model["age_s"]])

    def _ask_on(self, url: str) -> None:
        while True:
            self.ask(url)
            if self._stop.wait(ASK_S):
                return

    def _fetch(self, url: str) -> str:
        request = urllib.request.Request(f"{url}/metrics")
        if self._token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._token.decode()}")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text: bytes = answer.read(_NBYTES + 1)
        if len(text) > _NBYTES:
            raise ValueError(f"its /metrics has more than {_NBYTES:,} bytes")
        return text.decode(errors="replace")


def _called(model: Mapping[str, Any]) -> str:
    """A model may answer in several roles, a canary beside the one for all others."""
    return str(model["model"]) + ("" if model["role"] in (None, "stable") else f" ({model['role']})")


def models_of(text: str) -> list[dict[str, Any]]:
    """The models of a server, from what Prometheus would read.

    Raises:
        ConfigError: the extra is not installed.
        ValueError: it is none of Prometheus's format.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise ConfigError(f"--serve needs {the_extra('serve')}") from error
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    found = []
    for labels, value in samples.get("penstock_model_info", []):
        if value != 1:
            continue

        def of(name: str, labels: dict[str, str] = labels) -> float | None:
            return _value(samples.get(name, ()), labels)

        name = labels.get("model", "?")
        buckets = [
            (float(each["le"]), count)
            for each, count in samples.get("penstock_freshness_seconds_bucket", [])
            if each.get("model") == name and "le" in each
        ]
        found.append(
            {
                "model": name,
                "role": labels.get("role"),
                "version": labels.get("version", "?"),
                "age_s": of("penstock_model_age_seconds"),
                "newest_event_age_s": of("penstock_newest_event_age_seconds"),
                "refused": of("penstock_versions_refused_total"),
                "switches": of("penstock_model_switches_total"),
                "rows": of("penstock_rows_total"),
                "freshness_s": [_quantile(buckets, 0.5), _quantile(buckets, 0.95)],
            }
        )
    return found


def _value(samples: Sequence[tuple[dict[str, str], float]], labels: Mapping[str, str]) -> float | None:
    """Of the sample of this model, and of this role where the sample has one."""
    for own, value in samples:
        alike = all(own.get(name) in (None, labels.get(name)) for name in ("model", "role"))
        if "model" in own and alike and math.isfinite(value):
            return value
    return None


def _quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Of a Prometheus histogram, as ``histogram_quantile`` has it: evenly within a bucket."""
    ordered = sorted(buckets)
    if not ordered or not ordered[-1][1] > 0:
        return None
    wanted = share * ordered[-1][1]
    low, below = 0.0, 0.0
    for high, count in ordered:
        if count >= wanted:
            if not math.isfinite(high):
                return low
            return low + (high - low) * (wanted - below) / (count - below) if count > below else high
        low, below = high, count
    return low
