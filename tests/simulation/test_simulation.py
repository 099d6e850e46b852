"""2,000 seeds of the whole cluster, and planted bugs that the same seeds must find."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.simulation import faults
from tests.simulation.checks import Wrong
from tests.simulation.model import make_data
from tests.simulation.planted import PLANTED
from tests.simulation.run import FAMILIES, simulate

SEEDS, PARTS = 2000, 20
PLANTED_SEEDS = 1000


@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part: int) -> None:
    share = SEEDS // PARTS
    for seed in range(part * share, (part + 1) * share):
        simulate(seed)


@pytest.mark.parametrize("bug", PLANTED)
def test_finds_planted_bug(bug: str) -> None:
    """By the check that is for it: that one is not idle."""
    planted = PLANTED[bug]
    found: Counter[str] = Counter()
    for seed in range(PLANTED_SEEDS):
        try:
            simulate(seed, machines=planted.machines, theme=planted.theme)
        except Exception as error:
            found[error.check if isinstance(error, Wrong) else type(error).__name__] += 1
        if planted.found_by & found.keys():
            return
    pytest.fail(f"{bug}: not found by {sorted(planted.found_by)} in {PLANTED_SEEDS} seeds, but by {dict(found)}")


def test_a_seed_replays_exactly() -> None:
    traces: list[list[str]] = []
    for _ in range(2):
        traces.append([])
        simulate(5, trace=traces[-1].append)
    assert traces[0] == traces[1] and len(traces[0]) > 100


def test_a_failing_seed_says_how_to_replay_it() -> None:
    planted = PLANTED["reuses the name of a push"]
    with pytest.raises(Wrong) as raised:
        for seed in range(PLANTED_SEEDS):
            simulate(seed, machines=planted.machines)
    assert "python -m tests.simulation --seed" in raised.value.__notes__[0]


def test_seeds_meet_all_kinds_of_faults_and_ends() -> None:
    kinds = {
        trouble.what for seed in range(300) for trouble in faults.draw(random.Random(seed), last=False).troubles
    }
    assert kinds >= {"crash", "return", "death", "half push", "pause", "partition", "join", "leave", "stop"}
    assert kinds >= {"kill server", "crash all", "pause long", "cut server", "pause coordinator"}
    ends = {life for seed in range(60) for life in simulate(seed).lives}
    assert ends == {"done", "stopped", "failed", "crashed"}


def test_data_are_of_all_kinds() -> None:
    data = [make_data(family) for family in range(FAMILIES)]
    lengths = {len(chunk) for d in data for chunk in d.chunks}
    assert {1, 2, 3, 4} <= lengths
    assert any(batch.rows == 0 for d in data for chunk in d.chunks for batch in chunk)
    assert {d.lanes for d in data} >= {1, 2, 3, 4} and {d.passes for d in data} == {1, 2}
