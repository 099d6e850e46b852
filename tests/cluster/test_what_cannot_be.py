"""Runs that are refused, before or as they begin, with one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.engine.fit import fit_cluster
from penstock.engine.observer import Observer
from penstock.errors import ConfigError, Interrupted, ModelError
from penstock.job import parse_straggler, strategies_of

FEATURES = ps.Features(label="clicked", ignore=["time"])
STRATEGY = ps.ParameterServer(servers=1, workers=1, consistency=ps.BSP(), minibatch=256)


def test_a_model_that_has_rows(clicks: Path, tmp_path: Path) -> None:
    model = ps.Linear(FEATURES)
    ps.fit(model, clicks)
    with pytest.raises(ConfigError, match="rows already"):
        ps.fit(model, clicks, strategy=STRATEGY, output=tmp_path / "run")


def test_a_resume_with_another_model(threads: Callable[..., Any], clicks: Path, tmp_path: Path) -> None:
    def stop(engine: Any, status: dict[str, Any]) -> None:
        if status["rows"] and not stopped:
            stopped.append(True)
            with Observer(engine.access, engine.address) as observer:
                observer.stop("the test")

    stopped: list[bool] = []
    same: dict[str, Any] = {"strategy": STRATEGY, "output": tmp_path / "run", "passes": 50}
    with pytest.raises(Interrupted):
        fit_cluster(ps.Linear(FEATURES), clicks, engine=threads(hook=stop), **same)
    others = {
        "optimizer was": ps.Linear(FEATURES, optimizer=ps.SGD(alpha=0.1)),
        "features differ": ps.Linear(ps.Features(label="clicked", ignore=["time", "c1"])),
    }
    for says, other in others.items():
        with pytest.raises(ModelError, match=f"cannot resume: {says}"):
            fit_cluster(other, clicks, engine=threads(), resume=True, **same)


def test_a_straggler_that_there_is_not() -> None:
    assert set(strategies_of(["asp"], servers=1, workers=2, slow=parse_straggler("1=4x"))) == {"asp"}
    with pytest.raises(ConfigError, match="straggler worker-2: there are 2 workers"):
        strategies_of(["asp"], servers=1, workers=2, slow=parse_straggler("2=4x"))
