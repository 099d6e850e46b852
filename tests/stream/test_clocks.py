"""Watermarks, source by source and step by step."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.stream.clocks import Seen, StreamClock
from penstock.stream.spec import StreamSpec

YEAR_9999 = 253_402_300_799_999_999


def clock(lateness: int = 0, idle: int | None = None) -> StreamClock:
    return StreamClock("clicks", StreamSpec(lateness_us=lateness, idle_us=idle))


def seen(source: str, newest: int | None, arrived: int) -> Seen:
    return Seen(source=source, newest_us=newest, arrived_us=arrived)


def test_there_is_no_watermark_before_the_first_event() -> None:
    for idle in (None, 0, 5):
        made = clock(idle=idle)
        assert made.advance(100, []) is None
        assert made.peek(10**15) is None
        assert made.held().policy == "no event yet"
        assert (made.held().source, made.held().mark_us, made.held().since_us) == (None, None, None)


def test_it_is_the_newest_event_less_the_lateness() -> None:
    made = clock(lateness=10)
    assert made.advance(100, [seen("a", 90, 95)]) == 80
    assert made.advance(110, []) == 80
    assert made.advance(120, [seen("a", 70, 119)]) == 80
    assert made.advance(130, [seen("a", 95, 129)]) == 85


def test_the_slowest_source_holds_it() -> None:
    made = clock()
    assert made.advance(1, [seen("fast", 50, 0)]) == 50
    assert made.advance(2, [seen("slow", 20, 0)]) == 50, "never back"
    assert made.advance(3, [seen("fast", 90, 0)]) == 50
    assert (made.held().source, made.held().mark_us, made.held().since_us) == ("slow", 50, 1)
    assert made.advance(4, [seen("slow", 60, 0)]) == 60
    assert (made.held().source, made.held().since_us) == ("slow", 4)
    assert made.advance(5, [seen("slow", 200, 0)]) == 90
    assert made.held().source == "fast"


def test_an_idle_source_does_not_hold_it() -> None:
    made = clock(idle=10)
    assert made.advance(100, [seen("a", 50, 100), seen("b", 80, 100)]) == 50
    assert made.advance(109, [seen("b", 90, 109)]) == 50
    assert made.advance(110, []) == 90, "idle from exactly so long on"
    assert made.held().source == "b"


def test_where_all_are_idle_it_is_the_tick() -> None:
    made = clock(lateness=3, idle=10)
    assert made.advance(100, [seen("a", 50, 100), seen("b", 80, 100)]) == 47
    assert made.advance(109, []) == 47
    assert made.advance(110, []) == 107
    assert made.held().source is None
    assert made.held().policy.startswith("all sources are idle")
    assert made.advance(150, []) == 147


def test_a_source_that_comes_back_below_the_watermark_holds_it_where_it_is() -> None:
    made = clock(idle=10)
    made.advance(100, [seen("a", 50, 100)])
    assert made.advance(200, []) == 200
    assert made.advance(201, [seen("a", 60, 201)]) == 200
    assert (made.held().source, made.held().since_us) == ("a", 200)
    assert made.advance(205, [seen("a", 199, 205)]) == 200
    assert made.advance(206, [seen("a", 204, 206)]) == 204


def test_events_of_wrong_clocks_alone_advance_nothing() -> None:
    made = clock(idle=10)
    assert made.advance(100, [seen("a", None, 100)]) is None
    assert made.advance(109, [seen("a", None, 105)]) is None
    assert made.advance(114, []) is None, "events come, but their clocks are wrong"
    assert made.advance(115, []) == 115, "none comes any more"
    never = clock()
    never.advance(100, [seen("a", None, 100)])
    assert never.advance(10**15, []) is None


def test_events_of_wrong_clocks_keep_a_source_awake() -> None:
    made = clock(idle=10)
    made.advance(100, [seen("a", 50, 100), seen("b", 80, 100)])
    assert made.advance(110, [seen("a", None, 105), seen("b", 90, 109)]) == 50


def test_an_arrival_in_the_future_is_not_idle() -> None:
    made = clock(idle=0)
    assert made.advance(100, [seen("a", 50, 101)]) == 50
    assert made.advance(101, []) == 101


def test_the_far_ends_of_time() -> None:
    made = clock(lateness=7)
    assert made.advance(0, [seen("a", -62_135_596_800_000_000, 0)]) == -62_135_596_800_000_007
    assert made.advance(1, [seen("a", YEAR_9999, 0)]) == YEAR_9999 - 7
    assert made.advance(2, [seen("b", 5, 0)]) == YEAR_9999 - 7


def test_a_look_ahead_changes_nothing() -> None:
    made = clock(lateness=1, idle=10)
    made.advance(100, [seen("a", 50, 100)])
    assert made.peek(109) == 49
    assert made.peek(110) == 109
    assert (made.mark_us, made.held().since_us, made.held().source) == (49, 100, "a")
    assert made.advance(101, []) == 49


SOURCES = st.builds(
    Seen,
    source=st.sampled_from("abc"),
    newest_us=st.none() | st.integers(-20, 60),
    arrived_us=st.integers(-20, 60),
)
STEPS = st.lists(st.tuples(st.integers(0, 15), st.lists(SOURCES, max_size=3)), max_size=8)


def naive(steps: Sequence[tuple[int, Sequence[Seen]]], lateness: int, idle: int | None) -> int | None:
    """The watermark after all of these steps, begun anew at each."""
    mark: int | None = None
    for number in range(len(steps)):
        tick = steps[number][0]
        so_far = [each for _, brought in steps[: number + 1] for each in brought]
        awake = {
            name
            for name in {each.source for each in so_far}
            if idle is None or tick - max(each.arrived_us for each in so_far if each.source == name) < idle
        }
        newest = {
            name: max(each.newest_us for each in so_far if each.source == name and each.newest_us is not None)
            for name in {each.source for each in so_far if each.newest_us is not None}
        }
        found = [newest[name] for name in newest if name in awake]
        now = min(found) if found else tick if so_far and not awake else None
        if now is not None and (mark is None or now - lateness > mark):
            mark = now - lateness
    return mark


@settings(deadline=None, max_examples=300)
@given(STEPS, st.sampled_from([0, 1, 7]), st.sampled_from([None, 0, 1, 5, 20]))
def test_it_is_what_the_naive_one_says_and_never_goes_back(
    increments: list[tuple[int, list[Seen]]], lateness: int, idle: int | None
) -> None:
    made = clock(lateness, idle)
    tick = 0
    steps: list[tuple[int, list[Seen]]] = []
    before: int | None = None
    for more, brought in increments:
        tick += more
        steps.append((tick, brought))
        ahead = made.peek(tick)
        mark = made.advance(tick, brought)
        assert mark == naive(steps, lateness, idle)
        assert before is None or (mark is not None and mark >= before)
        if not brought:
            assert mark == ahead
        held = made.held()
        assert held.mark_us == mark
        assert held.since_us is None or held.since_us <= tick
        before = mark
