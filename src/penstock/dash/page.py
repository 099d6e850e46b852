"""A comparison as one HTML file that needs nothing else: facts, advice, table, plots and their numbers.

The page's policy lets no resource load and no script run but its own, whatever the text of the data is.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from penstock.dash.advice import advice
from penstock.dash.figures import columns, labels, one_line
from penstock.dash.markup import Markup, element, escaped, joined
from penstock.dash.plots import Shown, bytes_plot, curves, idle_plot, speed_plot, staleness_plots
from penstock.dash.trials import Comparison, Trial, replace_file

__all__ = ["document", "to_html", "write_page"]

FILES = 8


def write_page(comparison: Comparison, path: str | Path) -> None:
    """Write the page, replacing the file at once.

    Raises:
        StorageError: the disk is full or the folder cannot be written; an older file is unharmed.
    """
    replace_file(Path(path), to_html(comparison).encode())


def to_html(comparison: Comparison) -> str:
    """The page; equal comparisons give equal pages."""
    shown = tuple(
        Shown(label=label, style=style_, trial=trial)
        for style_, (label, trial) in enumerate(zip(labels(comparison), comparison.trials, strict=True))
    )
    finished = [one for one in shown if one.trial.error is None]
    plots = [
        *curves(finished),
        *speed_plot(finished),
        *bytes_plot(finished),
        *idle_plot(finished),
        *staleness_plots(finished),
    ]
    title = f"Strategies compared: {', '.join(one.label for one in shown)}"
    body = [
        element("h1", escaped("Strategies compared")),
        _facts(comparison),
        element("p", escaped(advice(comparison), 4000), class_="advice"),
        *_failures(shown),
        element("h2", escaped("Figures")),
        _table(comparison, shown),
        *([element("h2", escaped("Plots")), element("div", *plots, class_="plots")] if plots else []),
        element("h2", escaped("Strategies")),
        _descriptions(shown),
        *_events(shown),
        element("footer", escaped(f"penstock {comparison.machine.penstock} compare")),
    ]
    return document(title, body)


def document(
    title: str,
    body: Sequence[Markup],
    *styles: str,
    scripts: Sequence[str] = (),
    asks: bool = False,
    data: bytes | None = None,
) -> str:
    """A whole page of these elements; ``styles`` and ``scripts`` are files beside those of all pages.

    With ``asks`` the page may ask the server that it came from. ``data`` is JSON, which scripts find in the
    element ``data``.
    """
    style = "".join(_asset(name) for name in ("page.css", *styles))
    script = "".join(_asset(name) for name in ("page.js", *scripts))
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    if asks:
        policy += "; connect-src 'self'; form-action 'none'; base-uri 'none'"
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup('<link rel="icon" href="data:,">'),
        element("title", escaped(title)),
        Markup(f"<style>{style}</style>"),
    ]
    # The script stands last: it looks for the element that it fills.
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        *head,
        "</head>",
        "<body>",
        "<main>",
        *body,
        "</main>",
    ]
    if data is not None:
        # As it stands in JSON, "<" could end the element.
        text = data.decode().replace("<", "\\u003c")
        parts.append(f'<script type="application/json" id="data">{text}</script>')
    parts += ['<div id="tip" role="status" hidden></div>', f"<script>{script}</script>", "</body>", "</html>", ""]
    return "\n".join(parts)


def _asset(name: str) -> str:
    return files("penstock.dash").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    """The source of a policy that allows this inline text alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(comparison: Comparison) -> Markup:
    job, machine = comparison.job, comparison.machine
    names = [one_line(name, 300) for name in job.files[:FILES]]
    if len(job.files) > FILES:
        names.append(f"and {len(job.files) - FILES} more")
    facts = [
        ("Data", ", ".join(names)),
        ("Rows", "" if job.rows is None else f"{job.rows:,}"),
        ("Features", job.features),
        ("Optimizer", job.optimizer),
        ("Slowed down", "" if comparison.straggler is None else comparison.straggler),
        (
            "Machine",
            f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}, "
            f"Python {machine.python}, penstock {machine.penstock}",
        ),
        ("When", comparison.when.strftime("%Y-%m-%d %H:%M %Z").strip()),
    ]
    rows = [
        joined(element("dt", escaped(name)), element("dd", escaped(value, 8000))) for name, value in facts if value
    ]
    return element("dl", *rows, class_="facts")


def _failures(shown: Sequence[Shown]) -> list[Markup]:
    return [
        element("p", escaped(f"{one.label} failed: {one.trial.error or 'no reason given'}", 2000), class_="failed")
        for one in shown
        if one.trial.error is not None
    ]


def _table(comparison: Comparison, shown: Sequence[Shown]) -> Markup:
    made = columns(comparison)
    head = [element("th", escaped("strategy"), scope="col")]
    head += [element("th", escaped(column.head), scope="col", title=column.explanation) for column in made]
    rows = []
    for index, one in enumerate(shown):
        cells = [element("th", escaped(one.label), scope="row")]
        if one.trial.error is not None:
            cells.append(element("td", escaped("failed"), class_="failed text", colspan=max(len(made), 1)))
        else:
            for column in made:
                cell = column.cells[index]
                cells.append(element("td", escaped(cell.text), class_="best" if cell.best else None))
        rows.append(element("tr", *cells))
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    notes = [element("li", escaped(f"{column.head}: {column.explanation}.")) for column in made]
    return joined(
        element("div", table, class_="box", tabindex=0, role="region", aria_label="Figures of all strategies"),
        element("p", escaped("Best of each column in bold."), class_="note"),
        element("details", element("summary", escaped("What the columns say")), element("ul", *notes)),
    )


def _descriptions(shown: Sequence[Shown]) -> Markup:
    head = [element("th", escaped(name), scope="col", class_=kind) for name, kind in _ABOUT]
    rows = [
        element(
            "tr",
            element("th", escaped(one.label), scope="row"),
            *(element("td", escaped(figure)) for figure in _sizes(one.trial)),
            element("td", escaped(one.trial.description), class_="text"),
        )
        for one in shown
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    return element("div", table, class_="box", tabindex=0, role="region", aria_label="What each strategy is")


_ABOUT = (
    ("strategy", None),
    ("servers", None),
    ("workers", None),
    ("mini-batch, rows", None),
    ("what it is", "text"),
)


def _sizes(trial: Trial) -> tuple[str, ...]:
    return (str(trial.servers or "–"), str(trial.workers), f"{trial.minibatch:,}")


def _events(shown: Sequence[Shown]) -> list[Markup]:
    rows = [
        element(
            "tr",
            element("td", escaped(one.label)),
            element("td", escaped(f"{seconds:.1f} s")),
            element("td", escaped(text), class_="text"),
        )
        for one in shown
        for seconds, text in sorted(one.trial.events)
    ]
    if not rows:
        return []
    table = element("table", element("tbody", *rows))
    box = element("div", table, class_="box", tabindex=0, role="region", aria_label="Events")
    return [element("h2", escaped("What happened")), box]
