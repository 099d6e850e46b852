"""The plots, as inline SVG: lines, bars, groups of bars, histograms.

A plot has a title for screen readers, colours by class (the page's style sheet has them, for light and dark),
and ``data-tip`` on each mark, which the page's script shows. Sizes are in units of about a pixel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.dash.markup import Markup, element, escaped, joined
from penstock.dash.scale import Axis, written

__all__ = ["Bar", "Group", "Line", "bars", "grouped", "histogram", "key", "lines"]

DASHES = (None, "7 3", "2 3", "9 3 2 3", "14 4", "5 2 1 2 1 2")
COLOURS = 6


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve; ``style`` is the place of its strategy, and sets colour, dashes and mark."""

    label: str
    style: int
    points: Sequence[tuple[float, float]]
    tips: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Stacked parts, from the axis on; the second and further ones are paler."""

    label: str
    style: int
    parts: Sequence[float]
    text: str
    tip: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Bars beside each other, as (name, value, tip)."""

    label: str
    style: int
    bars: Sequence[tuple[str, float, str]]


def _svg(title: str, width: int, height: int, *children: Markup) -> Markup:
    return element(
        "svg",
        element("title", escaped(title)),
        *children,
        view_box=f"0 0 {width} {height}",
        role="img",
        aria_label=title,
    )


def _text(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Markup:
    return element("text", escaped(text), x=x, y=y, text_anchor=anchor, class_=class_)


def _fit(text: str, width: float) -> str:
    """As much of a label as goes into a width; a character takes about 8 units."""
    most = max(2, int(width / 8))
    return text if len(text) <= most else text[: most - 1] + "…"


def _colour(style: int) -> str:
    return f"c{style % COLOURS}"


def _shape(style: int) -> int:
    """Of dashes and marks: shifted by each round of colours, so that 36 strategies look different."""
    return (style + style // COLOURS) % COLOURS


def _mark(x: float, y: float, style: int) -> Markup:
    """The end of a curve; its shape tells strategies apart where colours do not."""
    shapes = (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
        f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
        f"M{x:.1f} {y + 5:.1f}l5 -9h-10z",
        f"M{x - 5:.1f} {y - 1.5:.1f}h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
    )
    return element("path", d=shapes[_shape(style)], class_=f"mark {_colour(style)}")


def key(style: int) -> Markup:
    """A piece of the line, for the legend."""
    line = element("path", d="M1 7H27", class_=f"line {_colour(style)}", stroke_dasharray=DASHES[_shape(style)])
    return element("svg", line, _mark(34.0, 7.0, style), view_box="0 0 42 14", class_="key", aria_hidden="true")


def _grid(
    x: Axis, y: Axis, x_label: str, y_label: str, marks: Sequence[tuple[float, str]] | None = None
) -> list[Markup]:
    parts = []
    y_ticks, x_ticks = y.ticks(5), x.ticks(6)
    for tick, text in zip(y_ticks, written(y_ticks), strict=True):
        parts.append(element("path", d=f"M{x.start} {y.at(tick):.1f}H{x.end}", class_="grid"))
        parts.append(_text(x.start - 6, y.at(tick) + 4, text, "end", "tick"))
    texts = [f"{tick:g}" if tick < 1000 else text for tick, text in zip(x_ticks, written(x_ticks), strict=True)]
    if marks is None:
        marks = list(zip(x_ticks, texts if x.logarithmic else written(x_ticks), strict=True))
    for tick, text in marks:
        parts.append(element("path", d=f"M{x.at(tick):.1f} {y.start}v4", class_="axis"))
        parts.append(_text(x.at(tick), y.start + 18, text, "middle", "tick"))
    parts.append(element("path", d=f"M{x.start} {y.start}H{x.end}", class_="axis"))
    parts.append(_text((x.start + x.end) / 2, y.start + 37, x_label, "middle", "label"))
    parts.append(_text(2, y.end - 12, y_label, "start", "label"))
    return parts


LINES = (480, 300)


def lines(
    title: str,
    name: str,
    x: Axis,
    y: Axis,
    x_label: str,
    y_label: str,
    shown: Sequence[Line],
    *,
    ticks: Sequence[tuple[float, str]] | None = None,
    upright: tuple[float, str] | None = None,
) -> Markup:
    """Curves over one another; what is out of range is cut off at the frame.

    ``name`` must be the only one of its kind on the page; the axes must run over ``lines_frame()``. ``ticks`` are
    those of x where round numbers will not do, and ``upright`` a place on it that is marked.
    """
    frame = element(
        "clipPath",
        element("rect", x=x.start, y=y.end - 6, width=x.end - x.start + 8, height=y.start - y.end + 6),
        id=name,
    )
    curves, tips = [], []
    for line in shown:
        places = [(x.at(a), y.at(b)) for a, b in line.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        curves.append(
            element(
                "path",
                d=path,
                class_=f"line {_colour(line.style)}",
                stroke_dasharray=DASHES[_shape(line.style)],
            )
        )
        curves.append(_mark(*places[-1], line.style))
        tips += [
            element("circle", cx=a, cy=b, r=7, class_="hit", data_tip=tip)
            for (a, b), tip in zip(places, line.tips, strict=True)
            if x.start - 1 <= a and y.end - 1 <= b <= y.start + 1
        ]
    cut = element("g", *curves, *tips, clip_path=f"url(#{name})")
    marked = [] if upright is None else _upright(x, y, *upright)
    return _svg(title, *LINES, element("defs", frame), *_grid(x, y, x_label, y_label, ticks), *marked, cut)


def _upright(x: Axis, y: Axis, at: float, text: str) -> list[Markup]:
    """A line from the axis to the top, and what it is, on the side that has room."""
    place = x.at(at)
    left = place > (x.start + x.end) / 2
    return [
        element("path", d=f"M{place:.1f} {y.start}V{y.end - 6}", class_="axis", stroke_dasharray="4 3"),
        _text(place - 5 if left else place + 5, y.end - 10, text, "end" if left else "start", "tick"),
    ]


def lines_frame() -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the plot of ``lines``."""
    return 62.0, 456.0, 252.0, 30.0


def bars(title: str, shown: Sequence[Bar]) -> Markup:
    """Horizontal bars from 0, each with its figure at the end."""
    width, left, step = 480, 100.0, 30
    most = max((sum(bar.parts) for bar in shown), default=0.0) or 1.0
    x = Axis(low=0.0, high=most, start=left, end=width - 74.0)
    parts = []
    for row, bar in enumerate(shown):
        y, at = 6.0 + row * step, left
        parts.append(_text(left - 8, y + 15, _fit(bar.label, left - 8), "end", "label"))
        for place, part in enumerate(bar.parts):
            length = x.at(part) - left
            shade = f"bar {_colour(bar.style)}" + (" pale" if place else "")
            parts.append(element("rect", x=at, y=y, width=length, height=20.0, class_=shade, data_tip=bar.tip))
            at += length
        parts.append(_text(at + 6, y + 15, bar.text, "start", "tick"))
    height = 12 + step * len(shown)
    parts.append(element("path", d=f"M{left} 0V{height - 4}", class_="axis"))
    return _svg(title, width, height, *parts)


def grouped(title: str, y_label: str, shown: Sequence[Group]) -> Markup:
    """Shares (0 to 1) as bars, a group for each strategy; bars are numbered where there is room."""
    width, height, left, right, bottom, top = 480, 260, 52.0, 474.0, 212.0, 38.0
    room = (right - left) / max(len(shown), 1)
    # Labels that would run into each other stand aslant.
    slanted = max((8.0 * len(group.label) for group in shown), default=0.0) > room
    height += 50 if slanted else 0
    y = Axis(low=0.0, high=1.0, start=bottom, end=top)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(element("path", d=f"M{left} {y.at(tick):.1f}H{right}", class_="grid"))
        parts.append(_text(left - 6, y.at(tick) + 4, f"{100 * tick:.0f} %", "end", "tick"))
    for place, group in enumerate(shown):
        start = left + place * room + 0.1 * room
        step = min(0.8 * room / max(len(group.bars), 1), 34.0)
        start += (0.8 * room - step * len(group.bars)) / 2
        for index, (name, share, tip) in enumerate(group.bars):
            x, place_y = start + index * step, y.at(min(share, 1.0))
            shape = {"x": x + 0.08 * step, "width": 0.84 * step}
            # A bar of nothing can still be pointed at.
            parts.append(element("rect", y=top, height=bottom - top, class_="hit", data_tip=tip, **shape))
            shade = f"bar through {_colour(group.style)}"
            parts.append(element("rect", y=place_y, height=max(bottom - place_y, 1.0), class_=shade, **shape))
            digits = re.search(r"\d+$", name)
            number = digits[0] if digits else str(index)
            if 6.5 * len(number) + 3 < step:
                parts.append(_text(x + step / 2, bottom + 15, number, "middle", "small"))
        x, y_label_at = left + (place + 0.5) * room, bottom + 34
        if slanted:
            turn = f"rotate(-40 {x + 5:.1f} {y_label_at - 4:.1f})"
            text = escaped(_fit(group.label, 80.0))
            parts.append(
                element("text", text, x=x + 5, y=y_label_at - 4, text_anchor="end", transform=turn, class_="label")
            )
        else:
            parts.append(_text(x, y_label_at, group.label, "middle", "label"))
    parts.append(element("path", d=f"M{left} {bottom}H{right}", class_="axis"))
    parts.append(_text(2, top - 18, y_label, "start", "label"))
    return _svg(title, width, height, *parts)


def histogram(
    title: str, style: int, high: float, x_label: str, shown: Sequence[tuple[str, float, str]]
) -> Markup:
    """Shares as columns (text below, share, tip), up to ``high``; all small multiples have the same columns."""
    width, height, left, right, bottom, top = 220, 150, 48.0, 214.0, 108.0, 12.0
    y = Axis(low=0.0, high=high, start=bottom, end=top)
    parts = []
    for tick in (0.0, high / 2, high):
        parts.append(element("path", d=f"M{left} {y.at(tick):.1f}H{right}", class_="grid"))
        parts.append(_text(left - 5, y.at(tick) + 4, f"{100 * tick:.0f} %", "end", "small"))
    step = (right - left) / max(len(shown), 1)
    longest = max((len(text) for text, _, _ in shown), default=1)
    every = next(n for n in (1, 2, 5, 10, 25, 50, 100) if n * step >= 7.5 * longest + 5)
    for index, (text, share, tip) in enumerate(shown):
        x = left + index * step
        shape = {"x": x + 0.06 * step, "width": 0.88 * step}
        parts.append(element("rect", y=top, height=bottom - top, class_="hit", data_tip=tip, **shape))
        if share > 0:
            tall = max(bottom - y.at(share), 1.0)
            parts.append(
                element("rect", y=bottom - tall, height=tall, class_=f"bar through {_colour(style)}", **shape)
            )
        last = index == len(shown) - 1
        if last or (index % every == 0 and (len(shown) - 1 - index) * step >= 7.5 * longest + 12):
            # The last label must end within the drawing, wherever its column is.
            wide = last and 8.0 * len(text) > step
            parts.append(
                _text(right + 4 if wide else x + step / 2, bottom + 15, text, "end" if wide else "middle", "small")
            )
    parts.append(element("path", d=f"M{left} {bottom}H{right}", class_="axis"))
    parts.append(_text((left + right) / 2, bottom + 34, x_label, "middle", "small"))
    return _svg(title, width, height, joined(*parts))
