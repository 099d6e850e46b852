"""Any model trains by tree aggregate: tables of several dimensions, a dense part, an optimizer for each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.errors import ConfigError
from penstock.train.tree import TreeAggregate, fit_tree

sys.path.append(str(Path(__file__).parents[2] / "models"))

from toy_model import Toy


def rows_of(model: Any) -> dict[str, list[tuple[bytes, bytes]]]:
    return {
        name: [(keys.tobytes(), words.tobytes()) for keys, words in map(table.items, range(table.segments))]
        for name, table in model.tables().items()
    }


def new_toy() -> Toy:
    spec = ps.Features(label="clicked", categorical=["c1", "c2"])
    return Toy(spec, segments=8, dense_optimizer=ps.SGD(alpha=1e-3))


def test_it_learns_every_table_as_in_mini_batches(clicks: Path) -> None:
    tree = fit_tree(new_toy(), str(clicks), strategy=TreeAggregate(partitions=1, batch_rows=1000))
    online = ps.fit(new_toy(), str(clicks), strategy=ps.Online(minibatch=1000))
    assert rows_of(tree.model) == rows_of(online.model)
    assert tree.metrics.auc == online.metrics.auc > 0.55


def test_partitions_share_nothing(clicks: Path) -> None:
    runs = [
        fit_tree(new_toy(), str(clicks), strategy=TreeAggregate(partitions=5, executors=n, batch_rows=1000))
        for n in (1, 5)
    ]
    assert rows_of(runs[0].model) == rows_of(runs[1].model)


def test_a_class_that_processes_do_not_know_is_named(clicks: Path) -> None:
    strategy = TreeAggregate(partitions=1, executor="processes")
    with pytest.raises(ConfigError, match="model kind 'toy' is not known"):
        fit_tree(new_toy(), str(clicks), strategy=strategy)
