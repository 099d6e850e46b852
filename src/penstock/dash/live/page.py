"""The document of ``penstock dash``: its skeleton, which scripts fill from JSON.

Plots are drawn in the browser, not here: only new points cross the wire, time and examples switch without a
question to the server, and a plot is drawn at the width that it has, so that its text is as large on a telephone.
Text of the run becomes text nodes and attributes alone, so none of it can be markup.
"""

from __future__ import annotations

from pathlib import Path

from penstock.dash.markup import Markup, element, escaped
from penstock.dash.page import document
from penstock.dash.trials import replace_file
from penstock.version import __version__

__all__ = ["live_page", "save_page"]

_SCRIPTS = (
    "live/numbers.js",
    "live/plot.js",
    "live/charts.js",
    "live/sections.js",
    "live/operations.js",
    "live/feed.js",
)
_SECTIONS = (
    ("learning", "Learning"),
    ("happened", "What happened"),
    ("cluster", "Cluster"),
    ("streams", "Streams"),
    ("versions", "Versions"),
    ("serving", "Serving"),
)


def live_page(name: str) -> str:
    """The page that asks its server for the run's figures; has none of them itself."""
    return document(f"{name} – penstock dash", _body(), "live/live.css", scripts=_SCRIPTS, asks=True)


def save_page(path: str | Path, name: str, answer: bytes) -> None:
    """Write a page with the figures in it (``Board.answer``), which needs nothing else.

    Raises:
        StorageError: the disk is full or the folder cannot be written; an older file is unharmed.
    """
    text = document(f"{name} – penstock dash", _body(), "live/live.css", scripts=_SCRIPTS, data=answer)
    replace_file(Path(path), text.encode())


def _body() -> list[Markup]:
    sections = [
        element(
            "section",
            element("h2", escaped(head), id=f"{name}-head"),
            element("div", id=f"{name}-body"),
            id=name,
            aria_labelledby=f"{name}-head",
            hidden="hidden",
        )
        for name, head in _SECTIONS
    ]
    token = element(
        "form",
        element("label", escaped("Token"), for_="token"),
        Markup('<input id="token" type="password" autocomplete="off" required>'),
        element("button", escaped("Show"), type="submit"),
        element("p", escaped("This page asks for the token that penstock dash was started with."), class_="note"),
        id="ask-token",
        hidden="hidden",
    )
    return [
        element(
            "header",
            element("h1", escaped("penstock dash"), id="name"),
            element("p", id="state"),
            element("p", id="connection", role="status"),
            class_="top",
        ),
        element("noscript", element("p", escaped("This page draws its plots by JavaScript, which is off."))),
        token,
        element("dl", id="figures", class_="tiles"),
        *sections,
        element("footer", escaped(f"penstock {__version__} dash")),
    ]
