"""What a server counts of its pulls."""

from __future__ import annotations

import numpy as np

from penstock.parameter_server.load import EVERY, KEPT, Load


def test_shares_are_of_sampled_pulls() -> None:
    load = Load()
    for number in range(4 * EVERY):
        keys = [2, 4] if number % (2 * EVERY) == 0 else [2]
        load.pulled({"w": np.array(keys, np.uint64), "v": np.array([8], np.uint64)})
    figures = load.figures()
    assert figures["hot"] == [[2, "w", 1.0], [8, "v", 1.0], [4, "w", 0.5]]
    assert figures["pulled_keys"] == 2 * 4 * EVERY + 2


def test_rare_keys_are_forgotten_and_hot_ones_are_not() -> None:
    load = Load()
    for number in range(4 * EVERY):
        rare = np.arange(KEPT // 2, dtype=np.uint64) * np.uint64(2) + np.uint64(10 + number * KEPT)
        load.pulled({"w": np.concatenate([np.array([2], np.uint64), rare])})
    assert len(load._counts["w"]) <= KEPT + 1
    assert load.figures()["hot"] == [[2, "w", 1.0]]


def test_nothing_was_pulled() -> None:
    assert Load().figures() == {"pulled_keys": 0, "hot": []}
