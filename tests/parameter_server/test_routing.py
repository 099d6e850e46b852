"""Where segments go: evenly, and few of them move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.parameter_server.arrays import Split, first_bad_key, restore_rows
from penstock.parameter_server.routing import place

SEGMENTS = 1024


def names(n: int) -> list[str]:
    return [f"server-{i}" for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 31, 64])
def test_servers_have_even_shares_of_segments_and_keys(n: int) -> None:
    owners = place(names(n), SEGMENTS)
    counts = np.bincount(owners, minlength=n)
    assert counts.max() <= 1.2 * SEGMENTS / n and counts.min() > 0
    keys = np.random.default_rng(1).integers(0, 1 << 63, 200_000, dtype=np.uint64) * np.uint64(2)
    rows = np.bincount(owners[keys >> np.uint64(54)], minlength=n)
    assert rows.max() <= 1.2 * len(keys) / n


@pytest.mark.parametrize("n", [1, 2, 4, 8, 32, 63])
def test_a_new_server_moves_few_segments(n: int) -> None:
    before = np.array(names(n))[place(names(n), SEGMENTS)]
    after = np.array(names(n + 1))[place(names(n + 1), SEGMENTS)]
    moved = (before != after).sum()
    # The new one's share must move; since loads are bounded, some more do.
    share = SEGMENTS / (n + 1)
    assert 0.8 * share <= moved <= 1.3 * share + 0.04 * SEGMENTS


def test_order_of_servers_changes_only_their_numbers() -> None:
    one, other = names(5), names(5)[::-1]
    assert (np.array(one)[place(one, 64)] == np.array(other)[place(other, 64)]).all()


@pytest.mark.parametrize(
    ("servers", "segments"), [([], 16), (["a", "a"], 16), (names(17), 16), (names(1025), 2048)]
)
def test_what_cannot_be_placed_is_refused(servers: list[str], segments: int) -> None:
    with pytest.raises(ConfigError, match="servers"):
        place(servers, segments)


@settings(max_examples=60, deadline=None)
@given(keys=st.sets(st.integers(1, (1 << 63) - 1), max_size=30), n=st.integers(1, 5), seed=st.integers(0, 9))
def test_split_takes_apart_and_puts_together(keys: set[int], n: int, seed: int) -> None:
    rising = np.array(sorted(2 * key for key in keys), np.uint64)
    owners = np.random.default_rng(seed).integers(0, n, 16).astype(np.uint16)
    split = Split(rising, owners, n)
    values = np.arange(2 * len(rising), dtype=np.float32).reshape(-1, 2)
    back = np.full_like(values, -1)
    for server in range(n):
        own = split.of(server)
        mine = owners[rising >> np.uint64(60)] == server if len(rising) else np.zeros(0, bool)
        assert (own == rising[mine]).all() and first_bad_key(own, owners, server) == -1
        split.put(server, split.take(server, values), back)
    assert (back == values).all()


@settings(max_examples=60, deadline=None)
@given(keys=st.sets(st.integers(0, 20)), before=st.sets(st.integers(0, 20)))
def test_restore_rows_sets_what_is_in_both(keys: set[int], before: set[int]) -> None:
    asked, kept = np.array(sorted(keys), np.uint64), np.array(sorted(before), np.uint64)
    rows = np.zeros((len(asked), 2), np.float32)
    old = np.stack([kept, kept], axis=1).astype(np.float32) + 1 if len(kept) else np.empty((0, 2), np.float32)
    restore_rows(asked, rows, kept, old)
    assert rows[:, 1].tolist() == [key + 1 if key in before else 0 for key in sorted(keys)]
