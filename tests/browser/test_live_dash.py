"""The page of ``penstock dash`` in a real browser: live, connection lost, narrow and wide, light and dark."""

from __future__ import annotations

import json
import re
import signal
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.dash.live.series import POINTS
from penstock.data.clicks import ClickLog, write_clicks
from penstock.train.progress import human
from tests.browser.live_dash import LAYOUT, Watched, busy_folder, dashing
from tests.browser.test_compare_page import CHROMIUM, NO_CHROMIUM
from tests.dash.live.helpers import cluster_line_of, line_of, write_lines
from tests.dash.live.test_servers import NEW, prometheus
from tests.log.helpers import free_port, process, until

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make, or pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

SCHEMES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a busy run, as --save writes it."""
    folder = busy_folder(tmp_path_factory.mktemp("busy"))
    page = tmp_path_factory.mktemp("saved") / "page.html"
    silent = f"http://127.0.0.1:{free_port()}"
    with prometheus(NEW) as server:
        speaking = f"http://127.0.0.1:{server.server_port}"
        with process("dash", folder, "--serve", speaking, "--serve", silent, "--save", page) as running:
            out, error = running.communicate(timeout=60)
    assert (out, error, running.returncode) == (f"page in {page}\n", "", 0)
    return page


def tile(page: Any, name: str) -> str:
    text: str = page.locator(f".tiles div:has(dt:text-is('{name}')) dd").inner_text()
    return text


def wait_for_tile(page: Any, name: str, text: str) -> None:
    page.locator(f".tiles div:has(dt:text-is('{name}')) dd:text-is('{text}')").wait_for()


def test_numbers_are_written_as_everywhere_else(page: Any, saved: Path) -> None:
    page.goto(saved.as_uri())
    numbers = [
        0,
        1,
        7,
        999,
        999.4,
        0.25,
        1000,
        1234,
        12_345,
        123_456,
        999_600,
        1e6,
        1.5e9,
        123e9,
        7e12,
        -1234,
        1e-3,
        3.2e-7,
    ]
    for unit in ("", "B"):
        assert page.evaluate("([all, unit]) => all.map((n) => human(n, unit))", [numbers, unit]) == [
            human(number, unit) for number in numbers
        ]
    asked = [0.04, 7.25, 59.9, 60, 100, 3600, 3725, 90_000, 180_000]
    assert page.evaluate("(all) => all.map(duration)", asked) == [
        *("0.0 s", "7.3 s", "60 s", "1 min", "1 min 40 s", "1 h", "1 h 2 min", "1 d 1 h", "2 d 2 h"),
    ]


@pytest.mark.parametrize(("width", "scheme"), SCHEMES)
def test_a_busy_run_is_readable(browser: Any, saved: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    watched = Watched(page)
    page.goto(saved.as_uri())
    page.locator("#serving table").wait_for()
    found = page.evaluate(LAYOUT)
    assert found["width"] <= found["window"] == width
    assert found["overlapping"] == [] and found["cut"] == [] and found["small"] == []
    # Every part is there, and so is each drawing.
    assert page.locator("section:visible h2").all_inner_texts() == [
        *("Learning", "What happened", "Cluster", "Streams", "Versions", "Serving"),
    ]
    assert page.locator(".plot svg").count() == 11
    served = page.locator("#serving tbody tr").all_inner_texts()
    assert served[0].split()[:9] == ["ctr", "–", "41", "7.5", "s", "ago", "9.3", "s", "ago"]
    assert "no answer" in served[1] and "Connection refused" in page.locator("#serving .failed").inner_text()
    # Markup in names stayed text.
    assert page.evaluate("typeof alerted") == "undefined" and page.locator("main img, main script").count() == 0
    assert "<script>alerted=1</script>" in page.locator("#happened").inner_text()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 600) == (scheme == "light")
    assert watched.errors == [] and watched.asked == [saved.as_uri()]
    page.close()


def test_a_long_run_is_thinned_out_and_small(saved: Path) -> None:
    text = saved.read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    points = data["series"]["curve"][1]
    assert POINTS / 2 <= len(points) <= POINTS and points[-1][1] == 29_990_000
    assert len(text) < 400_000


def test_it_follows_a_run_and_gets_only_what_is_new(page: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "progress.jsonl", *(line_of(float(n), 1000 * n) for n in range(1, 301)))
    watched = Watched(page)
    with dashing(tmp_path) as (_, url):
        page.goto(url)
        wait_for_tile(page, "Rows learnt", "300 k")
        assert page.locator("#connection").inner_text() == "Live"
        assert page.locator("#cluster").is_hidden()
        write_lines(tmp_path / "progress.jsonl", line_of(301.0, 400_000))
        wait_for_tile(page, "Rows learnt", "400 k")
        events = [[1_800_000_150.0, "worker-1 is out (left); 2 of its micro-batches go to others"]]
        write_lines(tmp_path / "cluster.jsonl", cluster_line_of(301.0, 400_000, events=events))
        page.locator("#cluster td:text-is('127.0.0.1:9000')").first.wait_for()
        page.locator("#happened th:text-is('2 min 30 s')").wait_for()
    assert watched.errors == []
    sizes = [len(points) for answer in watched.answers for _, points in answer["series"].values()]
    assert sizes[0] == 300 and all(size <= 2 for size in sizes[1:])
    assert "cluster" not in {name for answer in watched.answers[1:2] for name in answer["sections"]}


def test_a_lost_connection_is_said_and_recovers(page: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "progress.jsonl", line_of(1.0, 1000))
    port = free_port()
    with dashing(tmp_path, port=port) as (running, url):
        page.goto(url)
        wait_for_tile(page, "Rows learnt", "1 k")
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        page.locator("#connection.lost:has-text('Connection lost at')").wait_for()
        # What was known stays.
        assert tile(page, "Rows learnt") == "1 k"
    write_lines(tmp_path / "progress.jsonl", line_of(2.0, 2000))
    with dashing(tmp_path, port=port):
        page.locator("#connection:not(.lost):text-is('Live')").wait_for()
        wait_for_tile(page, "Rows learnt", "2 k")
        assert page.evaluate("store.series.curve.length") == 2


def test_a_real_run_while_it_goes_on_and_after(page: Any, tmp_path: Path) -> None:
    write_clicks(ClickLog(rows=20_000, numeric=3, categorical=5, distinct=2000), tmp_path / "log")
    run, watched = tmp_path / "run", Watched(page)
    log = tmp_path / "log" / "clicks-00000.parquet"
    with process("train", log, "--label", "clicked", "--passes", 100_000, "-o", run) as training:
        until(lambda: (run / "progress.jsonl").exists(), training)
        with dashing(run) as (_, url):
            page.goto(url)
            page.locator("#state .badge:text-is('running')").wait_for()
            page.locator("#learning .plot svg .mark").first.wait_for()
            before = page.evaluate("store.series.curve.at(-1)[1]")
            page.wait_for_function("(rows) => store.series.curve.at(-1)[1] > rows", arg=before)
            training.send_signal(signal.SIGINT)
            page.locator("#state:has-text('goes on from the checkpoint') .badge:text-is('stopped')").wait_for()
    assert watched.errors == []


def test_time_or_examples_so_far_or_recent(page: Any, saved: Path) -> None:
    page.goto(saved.as_uri())
    loss = page.locator("figure:has(h3:text-is('Log loss'))")
    assert loss.locator(".label").text_content() == "hours" and loss.locator(".plot .line").count() == 2
    page.get_by_label("examples", exact=True).check()
    assert loss.locator(".label").text_content() == "examples learnt"
    assert "10 M" in loss.locator(".plot .tick").all_text_contents()
    page.get_by_label("recent", exact=True).uncheck()
    assert loss.locator(".plot .line").count() == 1
    assert loss.locator(".legend").inner_text() == "so far"


def test_by_keyboard_alone(page: Any, saved: Path) -> None:
    page.goto(saved.as_uri())
    loss = page.locator("figure:has(h3:text-is('Log loss'))")
    plot = loss.locator(".plot svg")
    plot.focus()
    page.keyboard.press("End")
    last = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip").inner_text() != last and "rows" in last
    assert plot.get_attribute("aria-label").startswith("Log loss. so far 0.4")
    loss.locator("summary").focus()
    page.keyboard.press("Enter")
    rows = loss.locator("details tbody tr")
    rows.first.wait_for()
    assert rows.count() == 40 and "2 d 2 h" in rows.last.inner_text()
    # Everything that can be operated has a name.
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, [role=img], [role=region], [tabindex]")]
          .filter((one) => one.getClientRects().length)
          .filter((one) => !one.getAttribute("aria-label") && !one.closest("label") && !one.labels?.length)
          .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []


def test_pictures_can_be_saved(page: Any, saved: Path, tmp_path: Path) -> None:
    watched = Watched(page)
    page.emulate_media(color_scheme="dark")
    page.goto(saved.as_uri())
    for title, marks in (("Log loss", 2), ("Ring of segments", 1024), ("Time line", 5)):
        with page.expect_download() as download:
            page.get_by_label(f"Save {title} as SVG").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        root = ET.parse(path).getroot()
        assert path.name == f"{title.lower().replace(' ', '-')}.svg" and root.tag.endswith("svg")
        paths = [one for one in root.iter() if one.tag.endswith("path")]
        drawn = [one for one in paths if one.get("stroke-width") in ("2.2px", "1.4px")]
        drawn += [one for one in paths if one.get("fill", "none") != "none"]
        assert len(drawn) >= marks
        words = [one.text for one in root.iter() if one.tag.endswith("text")]
        assert words[0] == title and ("so far" in words) == (title == "Log loss")
        # It stands by itself: colours are in it, on the page's ground, and the run's text is still text.
        assert all(one.get("class") is None for one in root.iter())
        ground = next(one for one in root.iter() if one.tag.endswith("rect"))
        assert ground.get("fill") == "rgb(20, 23, 27)"
    with page.expect_download() as download:
        page.get_by_label("Save Log loss as PNG").click()
    download.value.save_as(tmp_path / "log-loss.png")
    image = (tmp_path / "log-loss.png").read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) > 5_000
    assert watched.errors == []


def test_a_page_for_others_asks_for_its_token(page: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "progress.jsonl", line_of(1.0, 1000))
    token = tmp_path / "token"
    with process("cluster", "new-token", token) as made:
        assert made.wait(60) == 0
    with dashing(tmp_path, "--page-token-file", token) as (_, url):
        page.goto(url)
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Show").click()
        page.locator("#connection:text-is('The token is wrong.')").wait_for()
        assert page.locator(".tiles div").count() == 0
        page.get_by_label("Token").fill(token.read_text().strip())
        page.get_by_role("button", name="Show").click()
        wait_for_tile(page, "Rows learnt", "1 k")
        assert page.get_by_label("Token").is_hidden()
        other = page.context.browser.new_page()
        other.goto(f"{url}/#token={token.read_text().strip()}")
        wait_for_tile(other, "Rows learnt", "1 k")
        # It is not left in the address, where it would be copied with it.
        assert other.url == f"{url}/"
        other.close()
