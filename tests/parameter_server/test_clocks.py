"""Which clocks are complete, against sets of what has arrived."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.parameter_server.clocks import LaneClocks
from penstock.parameter_server.messages import LaneStart


@settings(max_examples=150, deadline=None)
@given(
    ends=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    known=st.lists(st.booleans(), min_size=4, max_size=4),
    order=st.randoms(use_true_random=False),
    before=st.integers(0, 8),
)
def test_against_sets(ends: list[int], known: list[bool], order: object, before: int) -> None:
    arrivals = [(lane, clock) for lane, end in enumerate(ends) for clock in range(end)]
    order.shuffle(arrivals)  # type: ignore[attr-defined]
    there = set(arrivals[:before])
    starts = []
    for lane, end in enumerate(ends):
        clock = next(c for c in range(end + 1) if (lane, c) not in there)
        beyond = [c for c in range(clock, end) if (lane, c) in there]
        # Who begins with the last micro-batch of a lane knows where that ends.
        told = known[lane] or (lane, end - 1) in there
        starts.append(LaneStart(clock=clock, beyond=beyond, end=end if told else None))
    clocks = LaneClocks(starts)
    for lane, clock in [*arrivals[before:], *arrivals]:
        assert clocks.arrive(lane, clock, clock == ends[lane] - 1) == ((lane, clock) not in there)
        there.add((lane, clock))
        missing = [(c, at) for at, end in enumerate(ends) for c in range(end) if (at, c) not in there]
        low = min(missing, default=(max(ends), 0))[0]
        # A lane of which the end is not known may go on.
        assert clocks.complete <= low
        open_ends = [
            at
            for at, end in enumerate(ends)
            if not known[at] and not starts[at].end and (at, end - 1) not in there
        ]
        if not open_ends:
            assert clocks.complete == low
        for needed in range(max(ends) + 2):
            assert clocks.reached(needed) == (clocks.complete >= needed or not missing)
        assert {at for c, at in missing if c < low + 1} <= set(clocks.behind(low + 1))
        clocks.validate()
    assert clocks.over and clocks.complete == max(ends)


def test_a_lane_that_ended_holds_up_nobody() -> None:
    clocks = LaneClocks([LaneStart(clock=0, beyond=[], end=1), LaneStart(clock=0, beyond=[], end=None)])
    clocks.arrive(0, 0, True)
    assert clocks.complete == 0 and clocks.behind(2) == [1]
    clocks.arrive(1, 0, False)
    clocks.arrive(1, 1, False)
    assert clocks.complete == 2 and not clocks.over
