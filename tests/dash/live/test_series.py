"""Curves of bounded length, and readers that are given the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.dash.live.series import Cursor, Series

# A point is a run of numbers: first and last.
Run = tuple[int, int]


def runs(most: int) -> Series[Run]:
    return Series(lambda a, b: (a[0], b[1]), most)


@given(added=st.integers(0, 300), most=st.sampled_from([2, 4, 16]))
def test_points_cover_everything_in_order_and_are_few(added: int, most: int) -> None:
    series = runs(most)
    for n in range(added):
        series.add((n, n))
    assert len(series) <= most
    edges = [edge for run in series.items for edge in run]
    assert edges == sorted(edges)
    assert [run[0] for run in series.items] == [0, *(run[1] + 1 for run in series.items[:-1])][: len(series)]
    assert series.last is None or series.last[1] == added - 1
    if added >= most:
        assert len(series) >= most // 2
        # All but the last are of the same length: thinned evenly.
        assert len({b - a for a, b in series.items[:-1]}) <= 1


@given(
    steps=st.lists(st.one_of(st.integers(1, 9), st.just("read"), st.just("cut"), st.just("clear")), max_size=40)
)
def test_a_reader_that_replaces_from_begin_has_what_there_is(steps: list[int | str]) -> None:
    series, n = runs(8), 0
    cursor: Cursor | None = None
    has: list[Run] = []
    for step in [*steps, "read"]:
        if step == "read":
            found = series.since(cursor)
            if found is not None:
                cursor, begin, points = found
                has = [*has[:begin], *points]
            assert has == series.items
            assert series.since(cursor) is None
        elif step == "cut":
            middle = n // 2
            series.keep(lambda run, middle=middle: run[1] < middle)  # type: ignore[misc]
        elif step == "clear":
            series.clear()
        else:
            assert isinstance(step, int)
            for _ in range(step):
                series.add((n, n))
                n += 1


def test_only_what_is_new_is_given() -> None:
    series = runs(100)
    for n in range(50):
        series.add((n, n))
    first = series.since(None)
    assert first is not None and first[1] == 0 and len(first[2]) == 50
    series.add((50, 50))
    second = series.since(first[0])
    # The last one again, since it may have become another, and the new one.
    assert second is not None and second[1] == 49 and second[2] == [(49, 49), (50, 50)]


def test_a_cursor_that_nobody_gave_is_harmless() -> None:
    series = runs(4)
    series.add((0, 0))
    for cursor in ((0, 99, 5), (0, -3, 5), (7, 1, 1), (-1, 0, -1)):
        found = series.since(cursor)
        assert found is not None and found[2] == [(0, 0)]
