"""The page and its figures over HTTP: what is new, who may ask, by which name; and saved pages."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from penstock.dash.live.app import App
from penstock.dash.live.board import Board
from penstock.dash.live.page import live_page, save_page
from penstock.dash.live.series import Series
from tests.asgi import Answer, ask

LOCAL = {"host": "localhost:8090"}


def board_of(**sections: Any) -> tuple[Board, Series[int]]:
    board, series = Board(), Series[int](lambda a, b: b)
    for name, value in sections.items():
        board.put(name, value)
    board.show("curve", series, lambda point: [point])
    return board, series


def get(app: App, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    return asyncio.run(ask(app, method, path, headers=LOCAL if headers is None else headers))


def data(app: App, seen: Any = None, **headers: str) -> dict[str, Any]:
    query = "" if seen is None else f"?seen={quote(json.dumps(seen))}"
    answer = get(app, f"/data{query}", {**LOCAL, **headers})
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_only_what_is_new_is_sent() -> None:
    board, series = board_of(run={"name": "r"}, cluster=None)
    app = App("r", board)
    series.add(1)
    first = data(app)
    assert first["sections"] == {"run": {"name": "r"}, "cluster": None} and first["series"] == {
        "curve": [0, [[1]]]
    }
    again = data(app, first["seen"])
    assert again["sections"] == {} and again["series"] == {}
    board.put("run", {"name": "r"})
    board.put("cluster", {"phase": "training"})
    series.add(2)
    news = data(app, first["seen"])
    assert news["sections"] == {"cluster": {"phase": "training"}} and news["series"] == {"curve": [0, [[1], [2]]]}
    assert data(app, news["seen"])["series"] == {}


def test_a_reader_of_another_process_gets_everything() -> None:
    app = App("r", board_of(run=1)[0])
    other = data(App("r", board_of(run=2)[0]))
    assert data(app, {**other["seen"], "rev": 10**9})["sections"] == {"run": 1}


@pytest.mark.parametrize(
    "seen", ["x", "[]", "{}", '{"boot": "a", "rev": "b"}', "[" * 100_000, '{"boot":"","rev":0,"a":1}']
)
def test_what_no_answer_had_is_refused(seen: str) -> None:
    answer = get(App("r", board_of()[0]), f"/data?seen={quote(seen)}")
    assert answer.status == 400 and "allowed: what an answer had there" in json.loads(answer.body)["error"]


def test_the_page_has_a_strict_policy_and_loads_nothing() -> None:
    answer = get(App("r", board_of()[0]), "/")
    page = answer.body.decode()
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    [policy] = [line for line in page.splitlines() if "Content-Security-Policy" in line]
    assert "default-src &#x27;none&#x27;" in policy and "unsafe" not in policy
    assert "connect-src &#x27;self&#x27;" in policy
    assert "src=" not in page.replace("img.src=", "") and "http://" not in page.replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_figures_want_the_token_and_the_page_has_none() -> None:
    app = App("secret-run", board_of(run={"name": "secret-run"})[0], token=b"right")
    elsewhere = {"host": "trainer.example:8090"}
    assert get(app, "/data", elsewhere).status == 401
    assert get(app, "/data", {**elsewhere, "authorization": "Bearer wrong"}).status == 401
    assert get(app, "/data", {**elsewhere, "authorization": "Bearer right"}).status == 200
    page = get(app, "/", elsewhere)
    assert page.status == 200 and b"secret-run" not in page.body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8090", 200),
        ("127.0.0.1:8090", 200),
        ("127.9.9.9", 200),
        ("[::1]:8090", 200),
        ("[::1]", 200),
        ("evil.example:8090", 421),
        ("10.0.0.7:8090", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
def test_without_a_token_names_of_this_machine_alone(host: str, status: int) -> None:
    app = App("r", board_of()[0])
    for path in ("/", "/data"):
        assert get(app, path, {"host": host}).status == status


def test_other_paths_and_methods_are_refused() -> None:
    app = App("r", board_of()[0])
    assert get(app, "/../../etc/passwd").status == 404
    assert get(app, "/data", method="POST").status == 405
    assert get(app, "/", method="HEAD").body == b""


def test_a_defect_is_told_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    board, series = board_of()
    app = App("r", board)
    series.add(1)
    board.show("broken", series, lambda point: 1 / 0)
    answer = get(app, "/data")
    assert answer.status == 500 and "ZeroDivisionError" in json.loads(answer.body)["error"]
    assert "Traceback" in caplog.text and get(app, "/").status == 200


def test_text_of_the_run_cannot_end_an_element() -> None:
    nasty = "</title></script><script>alert(1)</script>"
    assert "<script>alert" not in live_page(nasty)


def test_a_saved_page_needs_nothing_else(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script><!--"
    board, _ = board_of(run={"name": nasty})
    save_page(tmp_path / "page.html", nasty, board.answer())
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "connect-src" not in page and "<!--" not in page
    inside = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(inside)["sections"]["run"]["name"] == nasty
