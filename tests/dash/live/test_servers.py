"""What prediction servers say at /metrics, of older and newer versions; and those that say nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

import penstock as ps
from penstock.dash.live.servers import Servers, models_of
from penstock.errors import ConfigError
from penstock.serve.api.app import App
from penstock.serve.versions.load import load_scorer

OLD = """\
# TYPE penstock_model_info gauge
penstock_model_info{kind="linear",model="ctr",version="41"} 1.0
# TYPE penstock_model_age_seconds gauge
penstock_model_age_seconds{model="ctr"} 7.5
# TYPE penstock_rows_total counter
penstock_rows_total{model="ctr"} 120.0
"""
NEW = (
    OLD
    + """\
# TYPE penstock_newest_event_age_seconds gauge
penstock_newest_event_age_seconds{model="ctr"} 9.25
# TYPE penstock_versions_refused_total counter
penstock_versions_refused_total{model="ctr"} 2.0
# TYPE penstock_freshness_seconds histogram
penstock_freshness_seconds_bucket{le="1.0",model="ctr"} 0.0
penstock_freshness_seconds_bucket{le="5.0",model="ctr"} 8.0
penstock_freshness_seconds_bucket{le="10.0",model="ctr"} 10.0
penstock_freshness_seconds_bucket{le="+Inf",model="ctr"} 10.0
penstock_freshness_seconds_count{model="ctr"} 10.0
penstock_freshness_seconds_sum{model="ctr"} 33.0
"""
)


def test_all_that_a_server_says() -> None:
    [model] = models_of(NEW)
    assert model == {
        "model": "ctr",
        "role": None,
        "version": "41",
        "age_s": 7.5,
        "newest_event_age_s": 9.25,
        "refused": 2.0,
        "switches": None,
        "rows": 120.0,
        "freshness_s": [pytest.approx(1 + 4 * 5 / 8), pytest.approx(5 + 5 * 1.5 / 2)],
    }


def test_a_canary_is_told_from_the_model_beside_it() -> None:
    lines = [
        line.replace('model="ctr"', 'model="ctr",role="canary"')
        for line in NEW.splitlines()
        if "_bucket" not in line
    ]
    lines = [line.replace('"41"', '"42"').replace(" 9.25", " 1.25").replace(" 120.0", " 7.0") for line in lines]
    stable = NEW.replace('model="ctr"', 'model="ctr",role="stable"').splitlines()
    names = sorted({line.split("{")[0] for line in stable if not line.startswith("#")})
    both = [line for name in names for line in [*stable, *lines] if line.startswith(f"{name}{{")]
    found = {model["role"]: model for model in models_of("\n".join(both) + "\n")}
    assert found["stable"]["version"] == "41" and found["canary"]["version"] == "42"
    assert found["stable"]["newest_event_age_s"] == 9.25 and found["canary"]["newest_event_age_s"] == 1.25
    assert found["stable"]["rows"] == 120.0 and found["canary"]["rows"] == 7.0


def test_a_real_server_says_what_is_read_here(tmp_path: Path) -> None:
    table = pa.table({"clicked": [0, 1, 0, 1] * 50, "site": ["a", "b", "a", "c"] * 50})
    ps.fit(ps.Linear(ps.Features(label="clicked")), table, progress=False, output=tmp_path)
    scorer = load_scorer(tmp_path)
    app = App({"ctr": scorer})
    app.metrics.scored("ctr", "stable", scorer, 7)
    app.refused("ctr")
    [model] = models_of(app.metrics.text().decode())
    assert (model["model"], model["role"], model["version"]) == ("ctr", "stable", "1")
    assert model["age_s"] >= 0 and model["rows"] == 7 and model["refused"] == 1


def test_what_a_server_does_not_say_is_none() -> None:
    [model] = models_of(OLD)
    assert model["version"] == "41" and model["age_s"] == 7.5
    assert (
        model["newest_event_age_s"] is None and model["refused"] is None and model["freshness_s"] == [None, None]
    )
    assert models_of("") == []


def test_a_histogram_with_nothing_or_all_beyond_its_last_bound() -> None:
    empty = NEW.replace(" 8.0", " 0.0").replace(" 10.0", " 0.0")
    assert models_of(empty)[0]["freshness_s"] == [None, None]
    beyond = NEW.replace('le="5.0",model="ctr"} 8.0', 'le="5.0",model="ctr"} 0.0')
    beyond = beyond.replace('le="10.0",model="ctr"} 10.0', 'le="10.0",model="ctr"} 0.0')
    assert models_of(beyond)[0]["freshness_s"] == [10.0, 10.0]


class _Prometheus(BaseHTTPRequestHandler):
    """Says what the test put into its server, and keeps what it was asked with."""

    def do_GET(self) -> None:
        server = self.server
        server.asked = (self.path, self.headers.get("Authorization"))  # type: ignore[attr-defined]
        self.send_response(server.status)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(server.text.encode())  # type: ignore[attr-defined]

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def prometheus(text: str) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Prometheus) as server:
        server.text, server.status = text, 200  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_asked_with_its_token_and_its_versions_are_followed() -> None:
    with prometheus(NEW) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        servers = Servers([f"{url}/"], b"secret")
        servers.ask(url)
        assert server.asked == ("/metrics", "Bearer secret")  # type: ignore[attr-defined]
        [found] = servers.shown()
        assert found["error"] is None and found["models"][0]["version"] == "41" and servers.switched() == []
        server.text = NEW.replace('version="41"', 'version="42"')  # type: ignore[attr-defined]
        servers.ask(url)
        assert [text for _, text in servers.switched()] == [f"ctr at {url} answers with version 42"]
        [points] = [series.items for series in servers.ages.values()]
        assert [point[1:] for point in points] == [[9.25, 7.5], [9.25, 7.5]]
        server.status = 401  # type: ignore[attr-defined]
        servers.ask(url)
        [found] = servers.shown()
        # What it said before is still there, with the reason why there is nothing newer.
        assert "does not answer" in found["error"] and found["models"][0]["version"] == "42"


def test_a_server_that_is_not_there_or_says_something_else() -> None:
    with prometheus("<html>no metrics</html> {") as server:
        url = f"http://127.0.0.1:{server.server_port}"
        servers = Servers([url])
        servers.ask(url)
        assert servers.shown()[0]["error"]
    servers.ask(url)
    assert servers.shown()[0]["error"] == "does not answer: Connection refused"
    assert "models" not in servers.shown()[0]


@pytest.mark.parametrize("url", ["localhost:8080", "file:///etc/passwd", "http://"])
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed: http://host:port"):
        Servers([url])
