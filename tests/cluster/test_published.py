"""Versions that a run of servers and workers publishes while it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Processes
from oracle import assert_same, rows_of

import penstock as ps
from penstock.engine.spec import Slowness
from penstock.models import load_model, read_manifest
from penstock.models.history import list_versions
from penstock.parameter_server import ASP, BSP, Consistency

FEATURES = ps.Features(label="clicked", ignore=["time"])
SLOW = {"*": Slowness(step_s=0.02)}


@pytest.mark.parametrize("consistency", [BSP(), ASP()])
def test_each_version_is_a_checkpoint_that_others_can_load(
    clicks: Path, tmp_path: Path, consistency: Consistency
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    seen: dict[int, Any] = {}

    def look(cluster: Any, status: dict[str, Any]) -> None:
        if (run / "manifest.json").exists():
            version = read_manifest(run)["version"]
            if version not in seen:
                seen[version] = rows_of(load_model(run, version=version))

    engine = Processes(look)
    model = ps.Linear(FEATURES, segments=64)
    strategy = ps.ParameterServer(
        consistency=consistency, servers=2, workers=2, minibatch=256, micro_batches=4, slow=SLOW
    )
    publish = ps.Publish(every_s=0.3, to=f"file://{copy}")
    ps.fit(
        model, str(clicks), strategy=strategy, engine=engine, output=run, passes=2, publish=publish, progress=False
    )
    assert len(seen) >= 3
    kept = list_versions(run)
    assert len(kept) >= 4 and kept[0].notes == ["newest"]
    assert {each.changed is None for each in kept} == {True, False}  # some have all rows, others what changed
    for version, rows in seen.items():
        assert_same(rows_of(load_model(run, version=version)), rows)
    assert_same(rows_of(load_model(run)), rows_of(model))
    assert_same(rows_of(load_model(copy)), rows_of(model))
    engine.check_gone()
