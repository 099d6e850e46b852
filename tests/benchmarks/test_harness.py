"""The harness of the benchmarks: turns, medians, goals, and the line of JSON that other programs read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import harness
from benchmarks.harness import Goal, Options, Result, Spread, in_turn, missing, show, table


def result(**fields: Any) -> Result:
    given: dict[str, Any] = {"name": "n", "options": Options(), "conditions": {"rows": 3}, **fields}
    return Result(**given)


def test_contenders_run_in_turn_after_a_warm_up() -> None:
    ran: list[str] = []

    def contender(name: str) -> Any:
        def run() -> dict[str, float]:
            ran.append(name)
            return {"seconds": float(len(ran))}

        return run

    found = in_turn({"a": contender("a"), "b": contender("b")}, 3)
    assert ran == ["a", "b"] * 4
    # a runs 1st (warm-up), 3rd, 5th, 7th
    assert found["a"]["seconds"] == Spread(median=5.0, least=3.0, most=7.0)
    assert found["b"]["seconds"] == Spread(median=6.0, least=4.0, most=8.0)


def test_without_warm_up_every_run_counts() -> None:
    counts = iter(range(10))
    assert in_turn({"a": lambda: {"n": next(counts)}}, 1, warm_up=False)["a"]["n"].median == 0


def test_at_least_one_repetition() -> None:
    with pytest.raises(ValueError, match="repetitions must be >= 1, got 0"):
        in_turn({}, 0)


def test_median_is_not_moved_by_one_slow_run() -> None:
    assert Spread.of([1.0, 100.0, 1.2]) == Spread(median=1.2, least=1.0, most=100.0)


@pytest.mark.parametrize(
    ("goal", "text", "value", "reached"),
    [
        (Goal(what="vw", least=4), "vw >= 4", 4.0, True),
        (Goal(what="vw", least=3.5), "vw >= 3.5", 3.49, False),
        (Goal(what="s", most=0.3), "s <= 0.3", 0.3, True),
        (Goal(what="s", most=0.3), "s <= 0.3", 0.31, False),
        (Goal(what="s", most=0), "s <= 0", -1.0, True),
        (Goal(what="s", most=0.3), "s <= 0.3", None, None),
    ],
)
def test_goal(goal: Goal, text: str, value: float | None, reached: bool | None) -> None:
    assert str(goal) == text
    assert goal.reached(value) is reached


@pytest.mark.parametrize("bounds", [{}, {"least": 1.0, "most": 2.0}])
def test_goal_has_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give either least or most"):
        Goal(what="x", **bounds)


def test_last_line_is_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    goals = (Goal(what="vw_text", least=4), Goal(what="vw_cache", least=3.5), Goal(what="seconds", most=1))
    show(
        result(
            figures={"seconds": 0.123456789},
            ratios={"vw_text": 3.99999},
            goals=goals,
            text=["a table"],
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a table"
    assert json.loads(lines[-1]) == {
        "name": "n",
        "conditions": {"quick": False, "rows": 3},
        "figures": {"seconds": 0.12346},
        "ratios": {"vw_text": 4.0},
        # by the value itself, not by what is printed of it
        "reached": {"vw_text >= 4": False, "vw_cache >= 3.5": None, "seconds <= 1": True},
    }
    shown = "\n".join(lines[:-1])
    assert "NOT reached" in shown
    assert "not measured" in shown


def test_a_quick_run_reaches_nothing() -> None:
    quick = result(options=Options(quick=True), figures={"seconds": 0.1}, goals=(Goal(what="seconds", most=1),))
    assert quick.reached() == {"seconds <= 1": None}
    assert Options(quick=True).repetitions < Options().repetitions >= 3


def test_table_is_aligned() -> None:
    lines = table(("", "rows/s"), [("penstock", "1,000"), ("vw", 7)]).splitlines()
    assert lines == [
        "          rows/s",
        "--------  ------",
        "penstock   1,000",
        "vw             7",
    ]


def test_a_peer_that_is_not_installed_is_named() -> None:
    assert missing("pytest") is None
    assert "no-such-peer is not installed" in (missing("no-such-peer") or "")
    assert harness.machine("no-such-peer")["versions"]["no-such-peer"] == "missing"
