"""Columns, best cells, names, and the time to a common log loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from penstock.dash import Comparison, Point, Trial
from penstock.dash.figures import columns, labels, one_line, seconds_to, times_to_worst

Make = Callable[..., Trial]
Compare = Callable[..., Comparison]


def curve(*losses: float, seconds: float = 10.0) -> Trial:
    """A trial whose points lie evenly in time."""
    step = seconds / len(losses)
    points = [Point(seconds=step * (i + 1), rows=10 * (i + 1), logloss=loss) for i, loss in enumerate(losses)]
    return Trial(
        name="bsp",
        rows=10 * len(losses),
        seconds=seconds,
        curve=tuple(points),
        scores={"logloss": losses[-1]},
    )


@pytest.mark.parametrize(
    ("losses", "target", "seconds"),
    [
        ((0.8, 0.6, 0.4, 0.3, 0.2), 0.5, 5.0),  # halfway between the 2nd point (4 s) and the 3rd (6 s)
        ((0.8, 0.6, 0.4, 0.3, 0.2), 0.6, 4.0),
        ((0.8, 0.6, 0.4, 0.3, 0.2), 0.2, 10.0),
        ((0.8, 0.6, 0.4, 0.3, 0.2), 0.1, None),
        ((0.1, 0.6, 0.4, 0.3, 0.2), 0.5, 5.0),  # luck of the first rows does not count
        ((0.8, 0.3, 0.6, 0.4, 0.2), 0.5, 7.0),  # nor does a crossing that did not last
        ((0.3, 0.3, 0.3), 0.5, 10 / 3),
        ((0.3, 0.3, 0.6), 0.5, None),
    ],
)
def test_seconds_to(losses: Sequence[float], target: float, seconds: float | None) -> None:
    got = seconds_to(curve(*losses), target)
    assert got == (None if seconds is None else pytest.approx(seconds))


def test_seconds_to_without_a_curve() -> None:
    assert seconds_to(Trial(name="bsp", rows=5, seconds=3.0, scores={"logloss": 0.5}), 0.5) == 3.0
    assert seconds_to(Trial(name="bsp", rows=5, seconds=3.0), 0.5) is None


def test_times_to_worst() -> None:
    falling, quick = curve(0.8, 0.6, 0.4), curve(0.8, 0.4, 0.2, seconds=3.0)
    assert times_to_worst([falling, quick]) == pytest.approx((10.0, 2.0))
    # The worst is flat: where it "came down to" its last value is chance.
    assert times_to_worst([curve(0.5, 0.5, 0.5), quick]) is None
    assert times_to_worst([falling, Trial(name="asp", rows=5, seconds=3.0)]) is None
    assert times_to_worst([]) is None


def test_best_of_each_column(comparison: Comparison) -> None:
    best = {
        column.head: [label for label, cell in zip(labels(comparison), column.cells, strict=True) if cell.best]
        for column in columns(comparison)
    }
    assert best == {
        "rows/s": ["ASP"],
        "seconds": ["ASP"],
        "log loss": ["online"],
        "AUC": ["online"],
        "NE": ["online"],
        "idle mean/max": ["ASP"],
        "staleness p50/p99/max": ["BSP"],
        "bytes/row": ["tree"],
        "time to worst loss": ["ASP"],
    }


def test_cells_that_read_the_same_are_equally_good(trial: Make, compare: Compare) -> None:
    made = compare(trial("a", logloss=0.48001), trial("b", logloss=0.48002), trial("c", logloss=0.49))
    [loss] = [column for column in columns(made) if column.head == "log loss"]
    assert [cell.best for cell in loss.cells] == [True, True, False]
    same = compare(trial("a"), trial("b"))
    assert not any(cell.best for column in columns(same) for cell in column.cells)


def test_cells_of_one_trial(trial: Make, compare: Compare) -> None:
    made = compare(
        trial("asp", seconds=2000.0, held_out=0.47, idle=(0.1, 0.3, 0.1, 0.1), staleness={0: 98, 2: 1, 9: 1}),
        Trial(name="bsp", error="died", rows=10, seconds=1.0, scores={"logloss": 0.1}),
    )
    assert {column.head: [cell.text for cell in column.cells] for column in columns(made)} == {
        "rows/s": ["500", "–"],
        "seconds": ["2,000", "–"],
        "log loss": ["0.4800", "–"],
        "AUC": ["0.7800", "–"],
        "NE": ["0.8421", "–"],
        "hold-out log loss": ["0.4700", "–"],
        "idle mean/max": ["15 % / 30 %", "–"],
        "staleness p50/p99/max": ["0 / 2 / 9", "–"],
        "bytes/row": ["400", "–"],
    }


def test_columns_without_a_figure_are_left_out(compare: Compare) -> None:
    assert columns(compare(Trial(name="bsp", error="died"))) == ()
    assert columns(compare()) == ()


def test_relative_time_is_to_the_worst(compare: Compare) -> None:
    made = compare(curve(0.8, 0.6, 0.4), curve(0.8, 0.4, 0.2, seconds=3.0))
    [column] = [column for column in columns(made) if column.head == "time to worst loss"]
    assert [cell.text for cell in column.cells] == ["1.00 ×", "0.20 ×"]


def test_labels(compare: Compare) -> None:
    names = ("bsp", "ssp:4", "asp", "tree", "online", "ssp:x", "bsp", "", "z" * 99)
    assert labels(compare(*(Trial(name=name) for name in names))) == (
        *("BSP", "SSP(4)", "ASP", "tree", "online", "ssp:x", "BSP #2", "unnamed"),
        "z" * 39 + "…",
    )


def test_one_line() -> None:
    assert one_line(" a\n b\tc ") == "a b c"
    assert one_line("\x1b[1m\x00\u202e\u200b") == "�[1m���"
    assert one_line("x" * 10, 5) == "xxxx…" and one_line("x" * 5, 5) == "xxxxx"
    assert len(one_line("y" * 1000)) == 200
