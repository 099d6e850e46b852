"""Names of applied pushes, against a set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ModelError
from penstock.parameter_server.history import History, from_runs, to_runs
from penstock.parameter_server.messages import BatchName, Record

names = st.builds(BatchName, st.integers(0, 6), st.integers(0, 4))


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 60)))
def test_runs_are_sets(numbers: set[int]) -> None:
    runs = to_runs(numbers)
    assert from_runs(runs) == sorted(numbers)
    assert all(a[1] + 1 < b[0] for a, b in zip(runs, runs[1:], strict=False))


@settings(max_examples=100, deadline=None)
@given(added=st.lists(names), finished=st.sets(st.integers(0, 6)), later=st.lists(names))
def test_against_a_set(added: list[BatchName], finished: set[int], later: list[BatchName]) -> None:
    history = History()
    for name in added:
        history.add(name)
    record = Record(finished=to_runs(finished), partial={}, lengths={}, lanes=1)
    history.condense(record)
    for name in later:
        if name not in history:
            history.add(name)
    history.validate()
    for chunk in range(7):
        for batch in range(6):
            name = BatchName(chunk, batch)
            assert (name in history) == (chunk in finished or name in added or name in later)
    again = History.from_state(history.to_state())
    assert again == history
    again.add(BatchName(9, 9))
    assert again != history


def test_learnt_takes_what_a_record_lists() -> None:
    history = History()
    history.add(BatchName(1, 0))
    history.learnt(Record(finished=[(1, 2)], partial={3: [0, 2]}, lengths={1: 1}, lanes=1))
    assert [BatchName(c, b) in history for c, b in ((1, 5), (2, 0), (3, 0), (3, 1), (3, 2))] == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("state", [{}, {"finished": 3, "partial": {}}, {"finished": [], "partial": {"x": [1]}}])
def test_what_is_no_history_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="names applied"):
        History.from_state(state)
