"""The page: it needs nothing else, shows all figures, and text of the data is never markup."""

from __future__ import annotations

import base64
import hashlib
import re
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from penstock.dash import Comparison, JobSummary, Point, Trial, WorkerFigures, advice, write_page
from penstock.dash.markup import element, escaped
from penstock.dash.page import to_html
from penstock.dash.plots import thinned
from penstock.errors import StorageError

Make = Callable[..., Trial]
Compare = Callable[..., Comparison]

VOID = {"meta", "link"}
NASTY = "</title></script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"


class Page(HTMLParser):
    """Elements in order, text by element, and whether tags close in the order in which they open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def svgs(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_everything_is_there(comparison: Comparison) -> None:
    text = to_html(comparison)
    page = Page(text)
    shown = " ".join(page.text)
    for words in (
        advice(comparison),
        "clicks/day-00.parquet, clicks/day-01.parquet",
        "39 columns, 1.21 M keys",
        "8 cores, Python 3.11.7, penstock 0.3.0",
        "2025-03-14 15:09 UTC",
        "1=4x",
        "SSP(64) failed: server 2 (127.0.0.1:9000) died after 3.1 s",
        "worker-3 died",
        "Nobody waits.",
    ):
        assert words in shown
    # Two curves, rows/s, bytes, idle, three histograms; their titles are read aloud.
    named = [svg for svg in svgs(text) if svg.get("role") == "img"]
    assert [svg.get("aria-label") for svg in named] == [
        "Log loss against time",
        "Log loss against examples",
        "Rows learnt in a second",
        "Bytes over the wire for each row",
        "Idle share of each worker",
        "Staleness under BSP",
        "Staleness under SSP(4)",
        "Staleness under ASP",
    ]
    assert all((svg[0].tag, svg[0].text) == ("title", svg.get("aria-label")) for svg in named)
    figures = text.split("<figure")[1:]
    assert len(figures) == 6 and all("<details>" in figure and "<td>" in figure for figure in figures)


def test_it_needs_nothing_else(comparison: Comparison) -> None:
    text = to_html(comparison)
    page = Page(text)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert all("src" not in attributes for _, attributes in page.tags)
    assert [attributes["href"] for tag, attributes in page.tags if "href" in attributes] == ["data:,"]
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)


def test_the_policy_allows_its_own_script_and_style_alone(comparison: Comparison) -> None:
    text = to_html(comparison)
    [policy] = [
        attributes["content"] or ""
        for _, attributes in Page(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_text_of_the_data_is_never_markup(trial: Make, compare: Compare) -> None:
    worker = WorkerFigures(name=NASTY, rows=9, batches=1, busy_s=1.0, idle_s=1.0, waits_s={NASTY: 1.0})
    made = compare(
        trial(NASTY, description=NASTY, by_worker=(worker,), staleness={1: 2}, events=((1.0, NASTY),)),
        trial("asp", error=NASTY),
        job=JobSummary(files=(NASTY, "a\x00\x1b\udcff.csv"), features=NASTY, optimizer=NASTY),
        straggler=NASTY,
    )
    text = to_html(made)
    plain = to_html(compare(trial("a", by_worker=(worker,), staleness={1: 2}), trial("asp", error="x")))
    page = Page(text)
    assert (
        page.count("script") == 1 and page.count("img") == 0 and page.count("title") == Page(plain).count("title")
    )
    assert NASTY in page.text and "\x00" not in text and "\x1b" not in text
    text.encode()
    assert len(svgs(text)) == len(svgs(plain))


def test_marks_are_within_the_drawing(comparison: Comparison) -> None:
    for svg in svgs(to_html(comparison)):
        _, _, width, height = map(float, (svg.get("viewBox") or "").split())
        for mark in svg.iter("rect"):
            x, y, w, h = (float(mark.get(name, "0")) for name in ("x", "y", "width", "height"))
            assert x >= -0.01 and x + w <= width + 0.01 and y >= -0.01 and y + h <= height + 0.01
        for mark in svg.iter("circle"):
            assert 0 <= float(mark.get("cx", "")) <= width and 0 <= float(mark.get("cy", "")) <= height


def test_bars_are_in_proportion(comparison: Comparison) -> None:
    [svg] = [svg for svg in svgs(to_html(comparison)) if svg.get("aria-label") == "Rows learnt in a second"]
    widths = {mark.get("data-tip", "").split(":")[0]: float(mark.get("width", "")) for mark in svg.iter("rect")}
    assert list(widths) == ["BSP", "SSP(4)", "ASP", "tree", "online"]
    assert widths["BSP"] / widths["ASP"] == pytest.approx(20 / 42, abs=1e-3)


def test_histograms_share_their_columns_and_count_everything(trial: Make, compare: Compare) -> None:
    made = compare(trial("ssp:4", staleness={0: 1, 4: 3}), trial("asp", staleness={0: 98, 3: 1, 500: 1}))
    text = to_html(made)
    assert "ASP, staleness 5 or more: 1.0 % of micro-batches" in text
    assert "SSP(4), staleness 4: 75.0 % of micro-batches" in text
    assert text.count(": 0.0 % of micro-batches") == 4 + 3


def test_strategies_look_different_beyond_the_colours(trial: Make, compare: Compare) -> None:
    text = to_html(compare(*(trial(f"ssp:{n}") for n in range(12))))
    keys = re.findall(r'<svg[^>]*class="key".*?</svg>', text, re.DOTALL)[:12]
    assert len(set(keys)) == 12


def test_a_long_curve_is_thinned_and_a_short_one_is_not(trial: Make, compare: Compare) -> None:
    points = [Point(seconds=float(i), rows=i, logloss=0.5) for i in range(1, 5001)]
    kept = thinned(points, 240)
    assert len(kept) == 240 and kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(set(kept), key=lambda point: point.rows)
    assert thinned(points[:240], 240) == points[:240]
    long = trial("bsp", rows=5000, seconds=5000.0, curve=tuple(points))
    assert to_html(compare(long)).count("<circle") <= 2 * 240


@pytest.mark.parametrize(
    "made",
    [
        (),
        (Trial(name="bsp", error="died"),),
        (Trial(name="bsp"),),
        (Trial(name="bsp", rows=10, seconds=1.0, scores={"logloss": 0.5}),),
        (Trial(name="bsp", rows=10, seconds=0.0, curve=(Point(seconds=0.0, rows=0, logloss=0.5),)),),
    ],
)
def test_pages_of_little(made: tuple[Trial, ...], compare: Compare) -> None:
    assert Page(to_html(compare(*made))).count("h1") == 1


def test_equal_comparisons_give_equal_pages(comparison: Comparison) -> None:
    assert to_html(comparison) == to_html(Comparison.from_json(comparison.to_json()))


def test_writing_replaces_whole_or_not_at_all(
    comparison: Comparison, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "compare.html"
    write_page(comparison, path)
    assert path.read_text("utf-8") == to_html(comparison)
    assert stat.S_IMODE(path.stat().st_mode) & 0o444

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"compare\.html: cannot be written: No space left on device"):
        write_page(compare(), path)
    assert path.read_text("utf-8") == to_html(comparison) and list(tmp_path.iterdir()) == [path]


def test_elements() -> None:
    made = element("a", escaped("x < y & z"), class_="k", data_tip='"q"', x=1.5, y=2.0, none=None, view_box="0 0")
    assert made == '<a class="k" data-tip="&quot;q&quot;" x="1.5" y="2" viewBox="0 0">x &lt; y &amp; z</a>'
    assert element("p", width=100.0) == '<p width="100"></p>'
