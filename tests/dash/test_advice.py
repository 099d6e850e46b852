"""Each rule of the advice, and the edges between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dash import Comparison, Trial, WorkerFigures, advice
from penstock.dash.advice import noise, slow_worker
from penstock.dash.page import to_html

Make = Callable[..., Trial]
Compare = Callable[..., Comparison]

SLOW = (1.0, 0.25, 1.0, 1.0)
WAITING = (0.57, 0.02, 0.56, 0.57)


def test_the_whole_sentence(comparison: Comparison) -> None:
    assert advice(comparison) == (
        "ASP ended 2.1 times sooner than BSP (log loss 0.4793 against 0.4791, within noise), "
        "with the same AUC to 0.001; "
        "tree's log loss is 1.5 % above online's (0.4862 against 0.4789, at updates of 4,096 rows against 1); "
        "BSP's workers were idle 43 % of the time because worker-1 was slow: "
        "choose ASP or SSP(4), or remove the straggler; SSP(64) failed."
    )


def test_nothing_finished(compare: Compare) -> None:
    assert advice(compare()) == "No strategy finished."
    both = compare(Trial(name="bsp", error="server 1 died"), Trial(name="asp", error=""))
    assert advice(both) == "No strategy finished; BSP failed; ASP failed."


def test_one_finished(trial: Make, compare: Compare) -> None:
    one = trial("bsp", seconds=10.0, logloss=0.4791)
    only = "Only BSP finished, at 100 k rows/s with log loss 0.4791: nothing to compare it with"
    assert advice(compare(one)) == f"{only}."
    assert advice(compare(one, Trial(name="asp", error="x"))) == f"{only}; ASP failed."
    unscored = msgspec.structs.replace(one, scores={})
    assert advice(compare(unscored)) == "Only BSP finished, at 100 k rows/s: nothing to compare it with."


def test_too_short(trial: Make, compare: Compare) -> None:
    short = compare(trial("bsp", seconds=1.2), trial("asp", seconds=0.8))
    assert advice(short) == "Too short to tell: ASP took 0.8 s, give each 1 s or more."
    assert advice(compare(trial("bsp", seconds=1.05), trial("asp", seconds=1.0))).startswith("All end")
    few = compare(trial("bsp", rows=9_999), trial("asp", rows=10_000))
    assert advice(few) == "Too short to tell: BSP learnt 9,999 rows, give each 10,000 or more."


def test_other_rows_are_not_compared(trial: Make, compare: Compare) -> None:
    lost = compare(trial("bsp", rows=1_000_000), trial("asp", rows=900_000))
    assert advice(lost) == (
        "Not comparable: ASP learnt 900,000 rows and BSP 1,000,000, "
        "so that their log losses are of different data."
    )
    assert advice(compare(trial("bsp", rows=1_000_000), trial("asp", rows=995_000))).startswith("All end")


def test_no_log_loss(trial: Make, compare: Compare) -> None:
    blind = trial("asp", scores={"logloss": math.nan})
    assert advice(compare(trial("bsp"), blind)) == (
        "Quality cannot be told, since ASP has no log loss; compare the speeds alone."
    )


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("asp", "tree", "ssp:2", "bsp", "online"), "online, which needs no other process"),
        (("asp", "ssp:2", "bsp"), "BSP, whose result does not depend on timing"),
        (("asp", "tree", "ssp:2"), "SSP(2)"),
        (("own", "asp"), "ASP"),
    ],
)
def test_all_the_same(names: tuple[str, ...], chosen: str, trial: Make, compare: Compare) -> None:
    same = compare(*(trial(name, logloss=0.48) for name in names))
    assert advice(same) == (
        f"All end with log loss 0.4800, within noise, in the same time to 10 %: choose {chosen}."
    )


def test_the_same_but_for_one_that_is_worse(trial: Make, compare: Compare) -> None:
    made = compare(trial("bsp"), trial("ssp:4"), trial("tree", logloss=0.49))
    assert advice(made) == (
        "BSP and SSP(4) end with log loss 0.4800, within noise, in the same time to 10 %; "
        "tree's log loss is 2.1 % above BSP's (0.4900 against 0.4800): "
        "choose BSP, whose result does not depend on timing."
    )


def test_quicker_at_equal_quality(trial: Make, compare: Compare) -> None:
    made = compare(trial("bsp", seconds=40.0), trial("asp", seconds=20.0, auc=0.775))
    assert advice(made) == (
        "ASP reached BSP's final log loss (0.4800) 2.0 times sooner, with AUC 0.7750 against 0.7800: choose ASP."
    )


def test_a_loss_that_was_not_reached_is_not_said_to_be(trial: Make, compare: Compare) -> None:
    bsp = trial("bsp", seconds=40.0, logloss=0.4800)
    told = "with the same AUC to 0.001: choose ASP."
    assert advice(compare(bsp, trial("asp", seconds=20.0, logloss=0.4801))) == (
        f"ASP ended 2.0 times sooner than BSP (log loss 0.4801 against 0.4800, within noise), {told}"
    )
    assert advice(compare(bsp, trial("asp", seconds=20.0, logloss=0.4799))) == (
        f"ASP reached BSP's final log loss (0.4800) 2.0 times sooner, {told}"
    )


def test_flat_curves_are_compared_by_their_ends(trial: Make, compare: Compare) -> None:
    flat = [
        msgspec.structs.replace(
            made, curve=tuple(msgspec.structs.replace(point, logloss=0.48) for point in made.curve)
        )
        for made in (trial("bsp", seconds=40.0), trial("asp", seconds=20.0))
    ]
    assert advice(compare(*flat)) == (
        "ASP ended 2.0 times sooner than BSP (log loss 0.4800 against 0.4800, within noise), "
        "with the same AUC to 0.001: choose ASP."
    )


def test_staleness_costs_quality(trial: Make, compare: Compare) -> None:
    bsp = trial("bsp", seconds=30.0, logloss=0.48)
    # So slow to learn that BSP has not come down to its loss by the time it ends.
    asp = trial("asp", seconds=10.0, logloss=0.486, staleness={2: 50, 4: 50})
    assert advice(compare(bsp, asp)) == (
        "ASP was 3.0 times as fast as BSP, but its log loss is 1.2 % above BSP's "
        "(0.4860 against 0.4800, at a mean staleness of 3.0 updates): choose BSP, or ASP where time matters more."
    )


def test_a_loss_that_the_better_one_reaches_sooner_is_no_offer(trial: Make, compare: Compare) -> None:
    bsp = trial("bsp", seconds=30.0, logloss=0.48)
    asp = trial("asp", seconds=20.0, logloss=0.55, staleness={0: 90, 1: 10})
    assert advice(compare(bsp, asp)) == (
        "ASP was 1.5 times as fast as BSP, but its log loss is 14.6 % above BSP's (0.5500 against 0.4800), "
        "which BSP reached sooner: choose BSP."
    )


def test_the_best_is_as_quick_as_any(trial: Make, compare: Compare) -> None:
    made = compare(trial("ssp:4", seconds=20.5), trial("asp", seconds=20.0, logloss=0.49, staleness={5: 9}))
    assert advice(made) == (
        "SSP(4) is as quick as any and ends with the best log loss, ASP's log loss is 2.1 % above SSP(4)'s "
        "(0.4900 against 0.4800, at a mean staleness of 5.0 updates): choose SSP(4)."
    )


def test_the_hold_out_decides_where_everyone_has_one(trial: Make, compare: Compare) -> None:
    bsp = trial("bsp", logloss=0.48, held_out=0.470)
    asp = trial("asp", logloss=0.48, held_out=0.480, staleness={3: 9})
    assert "ASP's log loss is 2.1 % above BSP's (0.4800 against 0.4700" in advice(compare(bsp, asp))
    assert advice(compare(bsp, trial("asp", logloss=0.48))).startswith("All end")


def test_noise_is_wider_where_rows_are_few(trial: Make, compare: Compare) -> None:
    assert noise(1_000_000, 0.48) == pytest.approx(0.00048)
    assert noise(10_000, 0.48) == pytest.approx(0.003)
    for rows, told in ((10_000, "All end"), (1_000_000, "BSP is as quick as any")):
        made = compare(trial("bsp", rows=rows, logloss=0.48), trial("asp", rows=rows, logloss=0.4825))
        assert advice(made).startswith(told)


def test_idle_without_a_slow_worker_names_the_wait(trial: Make, compare: Compare) -> None:
    bsp = trial("bsp", seconds=40.0, idle=(0.4, 0.4, 0.4, 0.4))
    told = advice(compare(bsp, trial("asp")))
    assert "; BSP's workers were idle 40 % of the time, mostly for the servers' rows: choose ASP." in told
    assert "straggler" not in told
    busy = trial("bsp", seconds=40.0, idle=(0.19, 0.19, 0.19, 0.19))
    assert "idle" not in advice(compare(busy, trial("asp")))


def test_idle_of_the_only_one_without_loss(trial: Make, compare: Compare) -> None:
    bsp = trial("bsp", seconds=30.0, paces=SLOW, idle=WAITING)
    asp = trial("asp", seconds=10.0, logloss=0.486, staleness={3: 9})
    assert advice(compare(bsp, asp)).endswith(
        "BSP's workers were idle 43 % of the time because worker-1 was slow: "
        "choose BSP, or ASP where time matters more, or remove the straggler."
    )


def test_slow_worker() -> None:
    def run(*busy_s: float) -> Trial:
        workers = (
            WorkerFigures(name=f"w{index}", rows=100, batches=1, busy_s=seconds, idle_s=0.0)
            for index, seconds in enumerate(busy_s)
        )
        return Trial(name="bsp", by_worker=tuple(workers))

    assert slow_worker(run(1.0, 1.0, 1.5)) == "w2"
    assert slow_worker(run(1.0, 1.0, 1.49)) is None
    assert slow_worker(run(4.0, 1.0)) == "w0"
    assert slow_worker(run(4.0)) is None
    assert slow_worker(run(0.0, 0.0)) is None


def test_two_of_one_name_are_told_apart(trial: Make, compare: Compare) -> None:
    told = advice(compare(trial("bsp", seconds=40.0), trial("bsp", seconds=20.0)))
    assert told.startswith("BSP #2 reached BSP's final log loss")


def test_names_that_would_move_the_cursor(trial: Make, compare: Compare) -> None:
    told = advice(compare(trial("a\x1b[2J\nb\u202e")))
    assert told.startswith("Only a�[2J b� finished")


finite = st.floats(0.0, 1e9)
trials = st.builds(
    Trial,
    name=st.sampled_from(["bsp", "ssp:4", "asp", "tree", "online"]),
    rows=st.integers(0, 10**9),
    seconds=finite,
    scores=st.fixed_dictionaries(
        {"logloss": st.none() | st.floats(0.0, 20.0), "auc": st.none() | st.floats(0, 1)}
    ),
    holdout=st.none() | st.fixed_dictionaries({"logloss": st.floats(0.0, 20.0), "rows": st.integers(0, 1000)}),
    staleness=st.dictionaries(st.integers(0, 1000), st.integers(0, 1000), max_size=4),
    bytes_in=st.integers(0, 10**12),
    error=st.none() | st.text(max_size=20),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(trials, max_size=5))
def test_there_is_a_sentence_and_a_page_for_all_figures(compare: Compare, made: list[Trial]) -> None:
    comparison = compare(*made)
    told = advice(comparison)
    assert told[0].isupper() and told.endswith(".") and "\n" not in told
    assert to_html(comparison).endswith("</html>\n")
