"""What ``penstock label-delay`` shows: the columns of its table, and a page with two plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.dash import svg
from penstock.dash.markup import Markup, element, escaped, joined
from penstock.dash.page import document
from penstock.dash.scale import Axis
from penstock.dash.trials import replace_file
from penstock.log.times import SECOND_US, format_duration, format_time
from penstock.stream.delay import Delays
from penstock.stream.delay_advice import advice, percent
from penstock.stream.delay_costs import Wait
from penstock.version import __version__

__all__ = ["DelayColumn", "delay_columns", "delay_page", "row_mark", "write_delay_page"]


@dataclass(frozen=True, kw_only=True)
class DelayColumn:
    """One figure of every ``label_wait``."""

    head: str
    explanation: str
    cell: Callable[[Wait], str]


def delay_columns(delays: Delays) -> tuple[DelayColumn, ...]:
    """The columns, the wait itself first."""
    made = [
        DelayColumn(
            head="label_wait",
            explanation="how long windows wait for labels, after the watermark has passed their ends",
            cell=lambda wait: format_duration(wait.wait_us),
        ),
        DelayColumn(
            head="known by then",
            explanation="share of positives whose events had happened so long after their examples",
            cell=lambda wait: percent(wait.known),
        ),
    ]
    if delays.basis == "arrival":
        made.append(
            DelayColumn(
                head="arrived by then",
                explanation="share of positives whose events had also arrived; what follows goes by arrival",
                cell=lambda wait: percent(wait.arrived or 0.0),
            )
        )
    made += [
        DelayColumn(
            head="on time",
            explanation="share of positives that are known when their windows are sealed, "
            "which is what on_time must say",
            cell=lambda wait: percent(wait.on_time),
        ),
        DelayColumn(
            head="fake negatives",
            explanation="share of examples that are given out as negative, and are positive in the end",
            cell=lambda wait: percent(wait.fake_negatives),
        ),
        DelayColumn(
            head="CTR given out",
            explanation="mean of the labels as they are given out, over that of the final labels",
            cell=lambda wait: f"×{wait.mean_label:.3f}",
        ),
        DelayColumn(
            head="CTR learnt",
            explanation="the same where a changed label is learnt as one more example, as by late_positives = "
            '"none": by this factor predictions are too small',
            cell=lambda wait: f"×{wait.learnt:.3f}",
        ),
        DelayColumn(
            head="corrected a day",
            explanation="labels that change after they were given out",
            cell=lambda wait: f"{wait.corrections_per_day:,.0f}",
        ),
        DelayColumn(
            head="age",
            explanation="mean time from an event until its example is given out: half a window, "
            "lateness and label_wait",
            cell=lambda wait: _round(wait.age_us),
        ),
    ]
    return tuple(made)


def row_mark(delays: Delays, wait: Wait) -> str:
    """Why a row of the table stands out: it is the present setting, or the first to reach a share."""
    marks = ["now"] if wait is delays.current else []
    marks += [f"{100 * choice.share:.0f} %" for choice in delays.choices if choice.wait is wait]
    return ", ".join(marks)


def write_delay_page(delays: Delays, path: str | Path) -> None:
    """Write the page, replacing the file at once.

    Raises:
        StorageError: the disk is full or the folder cannot be written; an older file is unharmed.
    """
    replace_file(Path(path), delay_page(delays).encode())


def delay_page(delays: Delays) -> str:
    """The page; equal measurements give equal pages."""
    plots = [_curve(delays), _cost(delays)]
    body = [
        element("h1", escaped("How long labels take")),
        _facts(delays),
        element("p", escaped(advice(delays), 2000), class_="advice"),
        *(element("p", escaped(f"Note: {note}.", 1000), class_="note") for note in delays.notes),
        element("h2", escaped("What to put")),
        *_settings(delays),
        element("h2", escaped("Plots")),
        element("div", *plots, class_="plots"),
        element("h2", escaped("Figures")),
        _table(delays),
        element("footer", escaped(f"penstock {__version__} label-delay")),
    ]
    return document(f"Label delay of {delays.pipeline.name}", body, "delay.css")


def _facts(delays: Delays) -> Markup:
    pipeline = delays.pipeline
    policy = pipeline.late
    present = f'label_wait = "{format_duration(pipeline.label_wait_us)}", late_positives = "{policy.mode}"'
    if policy.needs_predictions:
        present += f", on_time = {policy.on_time:g}"
    lateness = format_duration(pipeline.streams[pipeline.primary].lateness_us)
    measured = f"{delays.examples:,}"
    if delays.measured < delays.examples:
        measured += f", of which {delays.measured:,} were followed"
    facts = [
        ("Pipeline", f"{pipeline.name}, of the log {pipeline.log}"),
        ("Label", delays.label),
        ("Examples", measured),
        ("Positives", f"{delays.positives:,} ({percent(delays.positives / delays.measured)})"),
        ("Events", f"{_second(delays.first_us)} to {_second(delays.last_us)}"),
        ("Windows", f"{format_duration(pipeline.window_us)}, {pipeline.primary} up to {lateness} late"),
        ("Now", present),
        ("Delays", "by arrival" if delays.basis == "arrival" else "by event time"),
    ]
    rows = [joined(element("dt", escaped(name)), element("dd", escaped(value, 2000))) for name, value in facts]
    return element("dl", *rows, class_="facts")


def _settings(delays: Delays) -> list[Markup]:
    shown = [("As it is", delays.current)]
    shown += [
        (f"{100 * choice.share:.0f} % on time", choice.wait)
        for choice in delays.choices
        if choice.wait is not None and choice.wait is not delays.current
    ]
    blocks = []
    for title, wait in shown:
        lines = Markup("\n").join([escaped("[pipeline]"), *(escaped(line) for line in delays.toml(wait))])
        age = f"{percent(wait.on_time)} on time; examples are {_round(wait.age_us)} old when they are given out."
        blocks.append(
            element(
                "div",
                element("h3", escaped(title)),
                element("pre", Markup(lines), tabindex=0),
                element("p", escaped(age), class_="note"),
            )
        )
    found = [element("div", *blocks, class_="settings")]
    if not delays.pipeline.late.needs_predictions:
        other = 'late_positives = "importance" takes the same on_time: late positives are then not learnt at all.'
        found.append(element("p", escaped(other), class_="note"))
    return found


def _curve(delays: Delays) -> Markup:
    """Shares of positives known, over the time since the event."""
    title = "When positives are known"
    shown = [("had happened", 0, [wait.known for wait in delays.waits])]
    if delays.basis == "arrival":
        shown.append(("had arrived", 1, [wait.arrived or 0.0 for wait in delays.waits]))
    note = "Share of the positives whose label had turned positive, by the time since the example's event."
    return _figure(delays, title, "delay-curve", "time since the event", shown, note, 1.0)


def _cost(delays: Delays) -> Markup:
    """What is wrong under each wait, in per cent."""
    title = "What each label_wait costs"
    shown = [
        ("positives given out as negatives", 2, [1 - wait.on_time for wait in delays.waits]),
        ('CTR too low, late_positives = "none"', 3, [1 - wait.learnt for wait in delays.waits]),
    ]
    most = max(max(shares) for _, _, shares in shown)
    note = "Share of positives that come too late for their windows, and by how much predictions are too small."
    return _figure(delays, title, "delay-cost", "label_wait", shown, note, most)


def _figure(
    delays: Delays,
    title: str,
    name: str,
    x_label: str,
    shown: Sequence[tuple[str, int, Sequence[float]]],
    note: str,
    most: float,
) -> Markup:
    left, right, bottom, top = svg.lines_frame()
    low, high = _range(delays, shown)
    x = Axis(low=low, high=high, start=left, end=right, logarithmic=True)
    step = next(each for each in (1, 2, 5, 10, 20, 40, 60, 80, 100) if 100 * most <= each or each == 100)
    y = Axis(low=0.0, high=float(step), start=bottom, end=top)
    lines = []
    for label, style, shares in shown:
        points = [
            (wait.wait_us / SECOND_US, 100 * share)
            for wait, share in zip(delays.waits, shares, strict=True)
            if 0 < wait.wait_us <= high * SECOND_US
        ]
        tips = [
            f"{format_duration(wait.wait_us)}: {percent(share)} {label}"
            for wait, share in zip(delays.waits, shares, strict=True)
            if 0 < wait.wait_us <= high * SECOND_US
        ]
        lines.append(svg.Line(label=label, style=style, points=points, tips=tips))
    now = delays.current.wait_us / SECOND_US
    plot = svg.lines(
        title,
        name,
        x,
        y,
        f"{x_label} (logarithmic)",
        "share, %",
        lines,
        ticks=_ticks(low, high),
        upright=(now, f"now {format_duration(delays.current.wait_us)}") if low <= now <= high else None,
    )
    legend = element(
        "ul",
        *(element("li", svg.key(style), element("span", escaped(label))) for label, style, _ in shown),
        class_="legend",
    )
    return element(
        "figure", element("h3", escaped(title)), element("p", escaped(note), class_="note"), legend, plot
    )


def _range(delays: Delays, shown: Sequence[tuple[str, int, Sequence[float]]]) -> tuple[float, float]:
    """Seconds from where the curves begin to move, to where they are at their ends."""
    lengths = [wait.wait_us / SECOND_US for wait in delays.waits]
    moving = [
        n
        for n in range(1, len(lengths))
        if any(abs(each[n] - each[0]) > 0.005 and abs(each[n] - each[-1]) > 0.0005 for _, _, each in shown)
    ]
    positive = [length for length in lengths if length > 0]
    first = lengths[max(moving[0] - 1, 1)] if moving else positive[0]
    last = lengths[min(moving[-1] + 1, len(lengths) - 1)] if moving else positive[-1]
    now = delays.current.wait_us / SECOND_US
    if now > 0:
        first, last = min(first, now / 1.5), max(last, now * 1.5 if now < positive[-1] else now)
    return (first, last) if last >= 10 * first else (last / 10, last)


_TICKS_S = (
    *(0.001, 0.01, 0.1, 1, 3, 10, 30, 60, 180, 600, 1800),
    *(3600, 3 * 3600, 8 * 3600, 86400, 3 * 86400, 7 * 86400, 21 * 86400, 60 * 86400, 180 * 86400),
)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Durations that people say, seven at most."""
    ticks = [each for each in _TICKS_S if low * 0.999 <= each <= high * 1.001]
    ticks = ticks[:: -(-len(ticks) // 7) or 1]
    return [(each, format_duration(round(each * SECOND_US))) for each in ticks]


def _table(delays: Delays) -> Markup:
    columns = delay_columns(delays)
    head = [element("th", escaped(each.head), scope="col", title=each.explanation) for each in columns]
    head.append(element("th", escaped(""), scope="col"))
    rows = []
    for wait in delays.waits:
        cells = [element("th", escaped(columns[0].cell(wait)), scope="row")]
        cells += [element("td", escaped(each.cell(wait))) for each in columns[1:]]
        cells.append(element("td", escaped(row_mark(delays, wait))))
        rows.append(element("tr", *cells, class_="now" if wait is delays.current else None))
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    notes = [element("li", escaped(f"{each.head}: {each.explanation}.")) for each in columns]
    return joined(
        element("div", table, class_="box", tabindex=0, role="region", aria_label="What each label_wait means"),
        element("details", element("summary", escaped("What the columns say")), element("ul", *notes)),
    )


def _second(us: int) -> str:
    return format_time(us // SECOND_US * SECOND_US)


def _round(us: int) -> str:
    """A duration to about three digits."""
    grain = next(each for each in (86_400, 3_600, 600, 60, 10, 1, 0) if us >= 60 * each * SECOND_US)
    return format_duration(round(us / (grain * SECOND_US)) * grain * SECOND_US if grain else us // 1000 * 1000)
