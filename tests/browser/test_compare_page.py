"""The page of a comparison in a real browser: no errors, no wider than the window, tips that show.

Chromium alone, without a driver: pages in frames of two widths, measured by a script of the page around them,
which leaves its findings in the document that ``--dump-dom`` prints.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.dash import Comparison, JobSummary, Machine, Point, Trial, WorkerFigures, write_page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
NO_CHROMIUM = "needs Chromium, as by: apt-get install chromium"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

AROUND = """<!doctype html><title>frames</title><pre id="found"></pre>
<iframe src="page.html" width="390" height="800"></iframe>
<iframe src="page.html" width="1280" height="800"></iframe>
<script>
window.addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const inner = frame.contentDocument, root = inner.documentElement, tip = inner.getElementById("tip");
    const before = tip.hidden;
    const mark = inner.querySelector("figure [data-tip]");
    const pointer = {bubbles: true, clientX: 380, clientY: 50};
    mark.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove", pointer));
    const box = tip.getBoundingClientRect();
    return {
      width: frame.contentWindow.innerWidth, needed: root.scrollWidth,
      alerted: frame.contentWindow.alerted === true,
      tip: [before, tip.hidden, tip.textContent, mark.dataset.tip, box.left >= 0 && box.right <= root.clientWidth],
      cut: [...inner.querySelectorAll("figure svg")].flatMap((svg) => {
        const outer = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter((text) => {
          const box = text.getBoundingClientRect();
          return box.left < outer.left - 1 || box.right > outer.right + 1 || box.bottom > outer.bottom + 1
            || box.top < outer.top - 1;
        }).map((text) => text.textContent);
      }),
      smallest: Math.min(...[...inner.querySelectorAll("figure svg text")].map((text) => {
        const {a, b} = text.getScreenCTM();
        return parseFloat(inner.defaultView.getComputedStyle(text).fontSize) * Math.hypot(a, b);
      })),
      styled: inner.defaultView.getComputedStyle(inner.querySelector(".line")).strokeWidth,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


def busy_comparison() -> Comparison:
    """Names too long, many workers, markup, a path without a place to break."""
    nasty = "<script>alerted = true</script><img src=x onerror='alerted = true'>"
    trials = [
        Trial(
            name=name,
            description="word " * 60 + "x" * 200,
            rows=100_000,
            seconds=seconds,
            servers=2,
            workers=12,
            scores={"logloss": 0.48, "auc": 0.78, "normalised_entropy": 0.84},
            curve=tuple(
                Point(seconds=seconds * i / 50, rows=2000 * i, logloss=0.48 + 0.1 / i, auc=0.7)
                for i in range(1, 50)
            ),
            by_worker=tuple(
                WorkerFigures(name=f"{nasty}-{i}", rows=9, batches=9, busy_s=2.0, idle_s=i, waits_s={"pull": i})
                for i in range(12)
            ),
            staleness={0: 5, 3: 9, 12345: 1},
            bytes_in=10**9,
            bytes_out=10**9,
            events=((1.0, nasty + "y" * 300),),
        )
        for name, seconds in (
            *(
                ("bsp", 40.0),
                ("ssp:1024", 30.0),
                ("asp", 20.0),
                ("tree", 400.0),
                ("online", 500.0),
                ("ssp:65536", 9.0),
            ),
            (nasty, 9000.0),
        )
    ]
    return Comparison(
        job=JobSummary(files=(nasty, "s3://" + "bucket" * 60), features="f" * 300),
        machine=Machine(cores=2, python="3.12", penstock="0.3"),
        when=datetime(2025, 1, 1, tzinfo=UTC),
        trials=(*trials, Trial(name="bsp", error="z" * 500)),
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str]]:
    """What was found at each width, and what the browser logged to its console."""
    folder = tmp_path_factory.mktemp("browser")
    write_page(busy_comparison(), folder / "page.html")
    (folder / "around.html").write_text(AROUND)
    return browse(folder)


def browse(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    assert CHROMIUM is not None
    options = (
        *("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "allow-file-access-from-files", "enable-logging=stderr"),
        *(f"user-data-dir={folder / 'profile'}", "window-size=1800,900", "virtual-time-budget=5000", "dump-dom"),
    )
    command = [CHROMIUM, *(f"--{option}" for option in options), (folder / "around.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found)), console


def test_no_errors(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, console = seen
    assert console == [] and not any(page["alerted"] for page in found)
    # The style sheet was let in by the page's policy.
    assert all(page["styled"] == "2.2px" for page in found)


def test_no_wider_than_the_window(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, _ = seen
    assert [page["width"] for page in found] == [390, 1280]
    assert all(page["needed"] <= page["width"] for page in found), found


def test_no_text_of_a_plot_is_cut_off_or_too_small(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, _ = seen
    assert [page["cut"] for page in found] == [[], []]
    assert all(page["smallest"] >= 9 for page in found), found


def test_tips_show_and_stay_on_the_page(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, _ = seen
    for page in found:
        before, hidden, text, expected, inside = page["tip"]
        assert before and not hidden and text == expected and inside


def test_the_console_is_heard(tmp_path: Path) -> None:
    """Else the first test could not fail."""
    (tmp_path / "around.html").write_text(
        '<pre id="found">[]</pre><script>console.error("heard"); nonsense();</script>'
    )
    _, console = browse(tmp_path)
    assert len(console) == 2 and "heard" in console[0] and "nonsense" in console[1]
