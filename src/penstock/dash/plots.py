"""Which figures go into which plot, what is said of each mark, and the table of numbers under each plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.dash import svg
from penstock.dash.figures import NONE
from penstock.dash.markup import Markup, element, escaped, joined
from penstock.dash.scale import Axis, count_axis, loss_range, time_unit
from penstock.dash.trials import Point, Trial
from penstock.train.progress import human

__all__ = ["Shown", "bytes_plot", "curves", "idle_plot", "speed_plot", "staleness_plots", "thinned"]

CURVE_POINTS = 240
"""More are not seen on a plot of this width."""
TABLE_POINTS = 40
UNSETTLED = 0.05
"""Share of a run's rows before which its curve is not drawn: scores of few rows jump. The numbers have them."""
COLUMNS = 16
"""Of a histogram of staleness."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A finished trial as it is drawn: ``style`` is its place among all trials, on the whole page."""

    label: str
    style: int
    trial: Trial


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most that many of the points, evenly by their order, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def curves(shown: Sequence[Shown]) -> list[Markup]:
    """Log loss against time, and against examples."""
    drawn = [(one, points) for one in shown if (points := one.trial.points())]
    if not drawn:
        return []
    left, right, bottom, top = svg.lines_frame()
    low, high = loss_range([points for _, points in drawn])
    y = Axis(low=low, high=high, start=bottom, end=top)
    time_axis = count_axis([points[-1].seconds for _, points in drawn], left, right)
    unit_s, unit = time_unit(time_axis.high)
    time_axis = Axis(
        low=time_axis.low / unit_s,
        high=time_axis.high / unit_s,
        start=left,
        end=right,
        logarithmic=time_axis.logarithmic,
    )
    row_axis = count_axis([float(points[-1].rows) for _, points in drawn], left, right)
    legend = element(
        "ul",
        *(element("li", svg.key(one.style), element("span", escaped(one.label))) for one, _ in drawn),
        class_="legend",
    )
    made = []
    for name, title, axis, x_label in (
        ("by-time", "Log loss against time", time_axis, f"wall-clock {unit}"),
        ("by-rows", "Log loss against examples", row_axis, "examples learnt"),
    ):
        by_time = name == "by-time"
        lines = []
        for one, points in drawn:
            settled = [point for point in points if point.rows >= UNSETTLED * points[-1].rows]
            kept = thinned(settled, CURVE_POINTS)
            lines.append(
                svg.Line(
                    label=one.label,
                    style=one.style,
                    points=[
                        (p.seconds / unit_s if by_time else float(p.rows), p.logloss)
                        for p in kept
                        if p.logloss is not None
                    ],
                    tips=[
                        f"{one.label}: log loss {_loss(p.logloss)} at {p.seconds:.1f} s, {p.rows:,} rows"
                        for p in kept
                    ],
                )
            )
        if axis.logarithmic:
            x_label += " (logarithmic)"
        plot = svg.lines(title, name, axis, y, x_label, "log loss", lines)
        rows = [
            (one.label, f"{p.seconds:.1f}", f"{p.rows:,}", _loss(p.logloss), _loss(p.recent_logloss), _loss(p.auc))
            for one, points in drawn
            for p in thinned(points, TABLE_POINTS)
        ]
        head = ("strategy", "seconds", "rows", "log loss so far", "since the last point", "AUC so far")
        made.append(_figure(title, joined(legend, plot), head, rows))
    return made


def speed_plot(shown: Sequence[Shown]) -> list[Markup]:
    """Rows/s."""
    speeds = [(one, speed) for one in shown if (speed := one.trial.rows_per_s) is not None]
    if not speeds:
        return []
    marks = [
        svg.Bar(
            label=one.label,
            style=one.style,
            parts=[speed],
            text=human(speed),
            tip=f"{one.label}: {speed:,.0f} rows/s",
        )
        for one, speed in speeds
    ]
    rows = [
        (one.label, f"{speed:,.0f}", f"{one.trial.rows:,}", f"{one.trial.seconds:,.1f}") for one, speed in speeds
    ]
    title = "Rows learnt in a second"
    return [_figure(title, svg.bars(title, marks), ("strategy", "rows/s", "rows", "seconds"), rows)]


def bytes_plot(shown: Sequence[Shown]) -> list[Markup]:
    """Bytes over the wire for each row learnt."""
    with_bytes = [one for one in shown if one.trial.bytes_per_row is not None]
    if not with_bytes:
        return []
    marks, rows = [], []
    for one in with_bytes:
        trial = one.trial
        received, sent = trial.bytes_in / trial.rows, trial.bytes_out / trial.rows
        marks.append(
            svg.Bar(
                label=one.label,
                style=one.style,
                parts=[received, sent],
                text=human(received + sent),
                tip=f"{one.label}: servers received {human(received, 'B')} and sent {human(sent, 'B')} a row",
            )
        )
        rows.append(
            (one.label, f"{received:.1f}", f"{sent:.1f}", human(trial.bytes_in, "B"), human(trial.bytes_out, "B"))
        )
    head = ("strategy", "received/row", "sent/row", "received", "sent")
    title = "Bytes over the wire for each row"
    note = "Received by the servers in full colour, sent by them in pale."
    return [_figure(title, svg.bars(title, marks), head, rows, note=note)]


def idle_plot(shown: Sequence[Shown]) -> list[Markup]:
    """Idle share of each worker."""
    with_workers = [one for one in shown if one.trial.idle_shares]
    if not with_workers:
        return []
    groups, rows = [], []
    causes = sorted({cause for one in with_workers for worker in one.trial.by_worker for cause in worker.waits_s})
    for one in with_workers:
        marks = []
        for worker in one.trial.by_worker:
            share = worker.idle_share
            if share is not None:
                marks.append(
                    (worker.name, share, f"{one.label}, {worker.name}: idle {100 * share:.0f} % of its time")
                )
            rows.append(
                (
                    one.label,
                    worker.name,
                    NONE if share is None else f"{100 * share:.1f} %",
                    f"{worker.busy_s:.1f}",
                    f"{worker.idle_s:.1f}",
                    *(f"{worker.waits_s.get(cause, 0.0):.1f}" for cause in causes),
                    f"{worker.rows:,}",
                    f"{worker.batches:,}",
                    f"{worker.stolen:,}",
                )
            )
        groups.append(svg.Group(label=one.label, style=one.style, bars=marks))
    waits = [f"waits: {cause}, s" for cause in causes]
    head = ["strategy", "worker", "idle", "busy, s", "idle, s", *waits, "rows", "batches", "taken over"]
    title = "Idle share of each worker"
    return [_figure(title, svg.grouped(title, "share of its time", groups), head, rows)]


def staleness_plots(shown: Sequence[Shown]) -> list[Markup]:
    """A histogram for each strategy, all over the same columns; the last one holds all that is staler."""
    with_staleness = [one for one in shown if sum(one.trial.staleness.values())]
    if not with_staleness:
        return []
    # A few very stale micro-batches must not squeeze all others into one column.
    span = max(one.trial.staleness_at(0.99) or 0 for one in with_staleness) + 1
    most = max(max(at for at, count in one.trial.staleness.items() if count) for one in with_staleness)
    width = -(-span // COLUMNS)
    count = max(-(-span // width), 2)
    texts = [
        str(index * width) if width == 1 else f"{index * width}–{(index + 1) * width - 1}"
        for index in range(count)
    ]
    starts = [str(index * width) for index in range(count)]
    if most >= count * width:
        texts.append(f"{count * width} or more")
        starts.append(f"≥{count * width}")
    shares: list[list[float]] = []
    for one in with_staleness:
        bins = [0] * len(texts)
        for at, times in one.trial.staleness.items():
            bins[min(at // width, len(bins) - 1)] += times
        shares.append([times / sum(bins) for times in bins])
    high = next(top for top in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if max(map(max, shares)) <= top + 1e-9)
    plots, rows = [], []
    for one, share in zip(with_staleness, shares, strict=True):
        marks = [
            (start, part, f"{one.label}, staleness {text}: {100 * part:.1f} % of micro-batches")
            for start, text, part in zip(starts, texts, share, strict=True)
        ]
        plot = svg.histogram(f"Staleness under {one.label}", one.style, high, "updates behind", marks)
        plots.append(element("div", element("h3", escaped(one.label)), plot))
        rows += [(one.label, str(at), f"{times:,}") for at, times in sorted(one.trial.staleness.items())]
    title = "Staleness of micro-batches"
    note = "Share of micro-batches by how many updates were applied between their pull and their push."
    head = ("strategy", "updates behind", "micro-batches")
    return [_figure(title, element("div", *plots, class_="multiples"), head, rows, note=note)]


def _figure(
    title: str,
    plot: Markup,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    note: str = "",
) -> Markup:
    """A plot under its title, and its numbers."""
    table = element(
        "table",
        element("thead", element("tr", *(element("th", escaped(name), scope="col") for name in head))),
        element("tbody", *(element("tr", *(element("td", escaped(cell)) for cell in row)) for row in rows)),
    )
    box = element("div", table, class_="box", tabindex=0, role="region", aria_label=f"Numbers: {title}")
    return element(
        "figure",
        element("h3", escaped(title)),
        *([element("p", escaped(note), class_="note")] if note else []),
        plot,
        element("details", element("summary", escaped("The numbers")), box),
    )


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"
