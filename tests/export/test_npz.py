"""Which models can leave, and which rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_model import Toy

import penstock as ps
from penstock.errors import ConfigError, ModelError
from penstock.export import write_npz
from penstock.export.rows import nonzero_rows
from penstock.features import ColumnPlan, FeaturePlan
from penstock.score import Scorer

PLAN = FeaturePlan(label="y", columns=(ColumnPlan(name="c", kind="categorical", type="string"),))


def with_weights(weights: dict[int, float]) -> ps.Linear:
    """A model of these rows, whose weights are SGD's only state."""
    model = ps.Linear(PLAN, optimizer=ps.SGD(), slots=64, segments=2)
    keys = np.array(list(weights), np.uint64)
    model.table.insert(keys, np.array(list(weights.values()), np.float32)[:, None])
    return model


def test_rows_that_count_leave_by_rising_key() -> None:
    weights = {2**63 + 2: 1.0, 4: 0.0, 2: -0.0, 6: -3.0, 2**64 - 2: 1e-45}
    keys, values = nonzero_rows(with_weights(weights))
    assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == {
        key: np.float32(weight) for key, weight in weights.items() if weight
    }
    assert keys.tolist() == sorted(keys.tolist()) and keys.dtype == np.uint64 and values.dtype == np.float32


def test_a_version_and_names_are_not_needed(tmp_path: Path) -> None:
    assert write_npz(with_weights({2: 1.0}), tmp_path / "m.npz").rows == 1
    scorer = Scorer.load(tmp_path / "m.npz")
    assert scorer.version == "0" and scorer.header["lineage"] is None
    assert scorer.predict([{"c": "a"}]).tolist() == [0.5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(bad: float, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the weight of key 0x0000000000000008 is not finite"):
        write_npz(with_weights({2: 1.0, 8: bad}), tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused(tmp_path: Path) -> None:
    class Other(ps.Linear):
        pass

    with pytest.raises(ConfigError, match="a model of kind 'toy' cannot be exported; allowed: linear"):
        write_npz(Toy(PLAN), tmp_path / "m.npz")
    with pytest.raises(ConfigError, match="cannot be exported; allowed: linear"):
        write_npz(Other(PLAN, slots=64), tmp_path / "m.npz")
    with pytest.raises(ConfigError, match="has not been fitted"):
        write_npz(ps.Linear(), tmp_path / "m.npz")
