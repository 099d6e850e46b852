"""The queue of micro-batches against a plain set of them, under any order of what workers do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.errors import DataError, ModelError
from penstock.parameter_server.history import from_runs
from penstock.parameter_server.messages import BatchName, Record
from penstock.parameter_server.work import WorkQueue

WORKERS = ("a", "b", "c")


def places_of(lengths: list[int], passes: int, lanes: int) -> dict[BatchName, tuple[int, int]]:
    """Lane and clock of each micro-batch."""
    lanes = max(1, min(lanes, len(lengths) * passes))
    next_ = [0] * lanes
    places = {}
    for chunk in range(len(lengths) * passes):
        for batch in range(max(1, lengths[chunk % len(lengths)])):
            places[BatchName(chunk, batch)] = chunk % lanes, next_[chunk % lanes]
            next_[chunk % lanes] += 1
    return places


def listed(record: Record, lengths: list[int]) -> set[BatchName]:
    names = {BatchName(chunk, batch) for chunk, batches in record.partial.items() for batch in batches}
    for chunk in from_runs(record.finished):
        names |= {BatchName(chunk, batch) for batch in range(max(1, lengths[chunk % len(lengths)]))}
    return names


class Queue(RuleBasedStateMachine):
    @initialize(
        lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6),
        known=st.lists(st.booleans(), min_size=6, max_size=6),
        passes=st.integers(1, 2),
        lanes=st.integers(1, 4),
        bound=st.sampled_from([None, 0, 1, 3]),
        ahead=st.integers(0, 2),
    )
    def begin(
        self, lengths: list[int], known: list[bool], passes: int, lanes: int, bound: int | None, ahead: int
    ) -> None:
        self.lengths, self.bound, self.ahead = lengths, bound, ahead
        told = [n if k else None for n, k in zip(lengths, known, strict=False)]
        self.told: list[int | None] = told
        self.settings: dict[str, Any] = {"passes": passes, "lanes": lanes, "bound": bound, "ahead": ahead}
        self.queue = WorkQueue(told, **self.settings)
        self.places = places_of(lengths, passes, lanes)
        self.given: dict[BatchName, str] = {}
        self.done: set[BatchName] = set()

    @property
    def frontier(self) -> int:
        return min(clock for name, (_, clock) in self.places.items() if name not in self.done)

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(0, 4), below=st.none() | st.integers(0, 6))
    def take(self, worker: str, want: int, below: int | None) -> None:
        grants = self.queue.take(worker, want, below)
        assert len(grants) <= want
        for grant in grants:
            assert grant.name not in self.done and grant.name not in self.given
            assert below is None or grant.clock < below
            if grant.name in self.places:
                assert (grant.lane, grant.clock) == self.places[grant.name]
                last = grant.name.chunk + self.queue.lanes >= len(self.lengths) * self.settings["passes"]
                assert grant.final == last
                if self.bound is not None:
                    assert grant.clock <= self.frontier + self.bound + self.ahead
            self.given[grant.name] = worker

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """A worker is done with a micro-batch, or finds that there is none."""
        name = data.draw(st.sampled_from(sorted(self.given)))
        worker = self.given.pop(name)
        length = max(1, self.lengths[name.chunk % len(self.lengths)])
        if name.batch >= length - 1:
            self.queue.ended(name.chunk, self.lengths[name.chunk % len(self.lengths)])
            self.given = {n: w for n, w in self.given.items() if n in self.places or not self._same(n, name)}
        if name not in self.places:
            return
        assert self.queue.done("nobody", name) is None
        grant = self.queue.done(worker, name)
        assert grant is not None and (grant.lane, grant.clock) == self.places[name]
        assert self.queue.done(worker, name) is None
        self.done.add(name)

    def _same(self, one: BatchName, other: BatchName) -> bool:
        return one.chunk % len(self.lengths) == other.chunk % len(self.lengths)

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        held = [name for name, holder in self.given.items() if holder == worker]
        assert self.queue.lost(worker) == len(held)
        for name in held:
            del self.given[name]

    @rule()
    def resume(self) -> None:
        self.queue = WorkQueue(self.told, **self.settings, record=self.queue.record())
        self.given.clear()
        for lane, start in enumerate(self.queue.starts()):
            done = {clock for name, (of, clock) in self.places.items() if of == lane and name in self.done}
            assert done == set(range(start.clock)) | set(start.beyond)
            end = 1 + max(clock for of, clock in self.places.values() if of == lane)
            assert start.end in (None, end)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.validate()
        assert self.queue.finished == (self.done == set(self.places))
        assert listed(self.queue.record(), self.lengths) == self.done
        if not self.queue.finished:
            assert self.queue.frontier <= self.frontier

    def teardown(self) -> None:
        """One worker alone learns all that is left: nothing is forgotten, nothing waits for ever."""
        if not hasattr(self, "queue"):
            return
        for worker in WORKERS:
            self.lose(worker)
        for _ in range(1000):
            if self.queue.finished:
                return
            self.take("a", 1, None)
            for name in list(self.given):
                length = self.lengths[name.chunk % len(self.lengths)]
                if name.batch >= max(1, length) - 1:
                    self.queue.ended(name.chunk, length)
                if name in self.places:
                    assert self.queue.done("a", name) is not None
                    self.done.add(name)
            self.given.clear()
        raise AssertionError("does not come to an end")


Queue.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueue = Queue.TestCase


def test_record_below_lists_a_prefix_of_each_lane() -> None:
    queue = WorkQueue([2, 1, 3, 2], lanes=2, bound=0, ahead=9)
    for grant in queue.take("a", 8):
        if grant.clock < 3:
            queue.done("a", grant.name)
    record = queue.record_below(3)
    names = listed(record, [2, 1, 3, 2])
    places = places_of([2, 1, 3, 2], 1, 2)
    assert names == {name for name, (_, clock) in places.items() if clock < 3}
    assert record.lanes == 2


def test_ceiling_stops_grants_and_highest_is_past_all_of_them() -> None:
    queue = WorkQueue([4, 4], lanes=2, bound=0, ahead=2)
    assert {grant.clock for grant in queue.take("a", 3)} == {0, 1}
    queue.ceiling = queue.highest
    assert queue.highest == 2
    assert [grant.clock for grant in queue.take("b", 8)] == [1]
    queue.ceiling = None
    assert [grant.clock for grant in queue.take("b", 8)] == [2, 2]


def test_grants_beyond_an_end_leave_no_trace_in_clocks() -> None:
    queue = WorkQueue([None], bound=0, ahead=3)
    assert len(queue.take("a", 9)) == 4 and queue.highest == 4
    queue.ended(0, 2)
    assert queue.highest == 2 and queue.take("b", 9) == []


def test_data_that_changed_are_named() -> None:
    queue = WorkQueue([3, None])
    with pytest.raises(DataError, match="chunk 0 of the data has 2 batches, and had 3 before"):
        queue.ended(0, 2)
    queue.ended(1, 5)
    with pytest.raises(DataError, match="chunk 1 "):
        queue.ended(3, 4)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Record(finished=[], partial={}, lengths={}, lanes=3), "3 lanes, this one has 2"),
        (Record(finished=[], partial={}, lengths={0: 4}, lanes=2), "had 4 batches .* has 3 now"),
        (Record(finished=[], partial={}, lengths={7: 4}, lanes=2), "chunk 7"),
        (Record(finished=[(1, 1)], partial={}, lengths={}, lanes=2), "lists chunk 1 as learnt"),
        (Record(finished=[(0, 0)], partial={0: [1]}, lengths={}, lanes=2), "lists chunk 0 as learnt"),
        (Record(finished=[(5, 5)], partial={}, lengths={}, lanes=2), "lists chunk 5 as learnt"),
        (Record(finished=[], partial={0: [0, 1, 2]}, lengths={}, lanes=2), "3 batches of chunk 0 of 3"),
    ],
)
def test_record_of_another_run_is_refused(record: Record, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        WorkQueue([3, None], lanes=2, record=record)


def test_who_holds_a_lane_and_what_each_did() -> None:
    queue = WorkQueue([2, 2], lanes=2, bound=0, ahead=5)
    (first,) = queue.take("a", 1)
    assert queue.held_by(first.lane, 1) == "a" and queue.held_by(first.lane, 0) is None
    queue.take("b", 3)
    assert queue.share == 0.0
    queue.done("a", first.name)
    assert queue.share == 0.25
    assert queue.counts()["a"] == {"granted": 1, "stolen": 0, "done": 1, "clock": 1}
    assert queue.counts()["b"] == {"granted": 3, "stolen": 1, "done": 0, "clock": 0}
