"""The page of ``penstock label-delay`` in a real browser: no errors, no wider than the window, no text cut off."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.dash.delay_page import write_delay_page
from tests.browser.test_compare_page import AROUND, CHROMIUM, NO_CHROMIUM, browse
from tests.dash.test_delay_page import delays_of
from tests.dash.test_page import NASTY

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module", params=[True, False], ids=["by arrival", "by event time"])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], list[str]]:
    """What was found at each width, and what the browser logged to its console."""
    folder = tmp_path_factory.mktemp("browser")
    write_delay_page(delays_of(by_arrival=request.param, name="pipeline_" * 7, label=NASTY), folder / "page.html")
    (folder / "around.html").write_text(AROUND)
    return browse(folder)


def test_no_errors(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, console = seen
    assert console == [] and not any(page["alerted"] for page in found)
    assert all(page["styled"] == "2.2px" for page in found)


def test_it_fits(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, _ = seen
    assert [page["width"] for page in found] == [390, 1280]
    assert all(page["needed"] <= page["width"] for page in found), found
    assert [page["cut"] for page in found] == [[], []]
    assert all(page["smallest"] >= 9 for page in found), found


def test_tips_show_and_stay_on_the_page(seen: tuple[list[dict[str, Any]], list[str]]) -> None:
    found, _ = seen
    for page in found:
        before, hidden, text, expected, inside = page["tip"]
        assert before and not hidden and text == expected and inside
