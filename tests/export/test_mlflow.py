"""MLflow loads what was saved, and gives the bits of ``predict`` for data frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import penstock as ps
from penstock.errors import ConfigError, DataError
from penstock.export import mlflow as flavor
from tests.score.conftest import Exported, as_rows
from tests.serve.conftest import rows_of_all_kinds

mlflow = pytest.importorskip("mlflow", reason="needs penstock-ml[mlflow]")
pyfunc = pytest.importorskip("mlflow.pyfunc", reason="needs penstock-ml[mlflow]")


def frame(table: pa.Table) -> pd.DataFrame:
    """A data frame as programs make it: missing integers are NaN, maps are dicts."""
    found = table.drop_columns(["clicked"]).to_pandas()
    found["words"] = [dict(x) if x is not None else None for x in found["words"]]
    return found


@pytest.fixture(scope="module")
def saved(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "model"
    flavor.save_model(exported.model, path)
    return path


def test_scores_have_the_bits_of_predict(exported: Exported, saved: Path) -> None:
    unseen = rows_of_all_kinds(800, seed=3)
    scores = pyfunc.load_model(str(saved)).predict(frame(unseen))
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float32
    np.testing.assert_array_equal(scores, exported.model.predict(unseen))


def test_no_object_is_pickled_and_the_model_is_a_folder(exported: Exported, saved: Path) -> None:
    files = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib"))]
    assert "data/penstock/manifest.json" in files
    loaded = ps.load(saved / "data" / "penstock")  # type: ignore[arg-type]
    np.testing.assert_array_equal(loaded.predict(exported.table), exported.model.predict(exported.table))
    requirements = (saved / "requirements.txt").read_text().split()
    assert f"penstock-ml=={ps.__version__}" in requirements
    about = mlflow.models.Model.load(str(saved))
    assert about.flavors["python_function"]["loader_module"] == "penstock.export.mlflow"


def test_the_signature_is_that_of_the_plan(exported: Exported, saved: Path) -> None:
    signature = mlflow.models.Model.load(str(saved)).signature
    assert signature.inputs.input_names() == exported.model.plan.inputs  # type: ignore[union-attr]
    types = {name: str(spec.type) for name, spec in signature.inputs.input_dict().items()}
    assert types["site"] == "DataType.string" and types["price"] == types["width"] == "DataType.double"
    assert types["user"] == types["tags"] == "Any"
    assert not any(spec.required for spec in signature.inputs)


def test_columns_may_be_missing_and_types_be_mixed(exported: Exported, saved: Path) -> None:
    loaded, predict = pyfunc.load_model(str(saved)), exported.scorer.predict
    rows = as_rows(exported.table.slice(0, 50))
    part = [{name: row[name] for name in ("site", "price", "words")} for row in rows]
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame(part)), predict(part))
    mixed: list[dict[str, Any]] = [
        {"user": 17, "mobile": True},
        {"user": "17", "mobile": "true"},
        {"user": None, "mobile": None},
    ]
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame(mixed)), predict(mixed))
    nothing = [{"tags": None, "site": None, "width": None}] * 2
    expected = predict(nothing)
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame(nothing).astype({"width": float})), expected)


def test_an_f32_column_may_come_as_f64(exported: Exported, saved: Path) -> None:
    # As JSON brings it: the shortest text of the f32.
    rows = [{"width": float(str(np.float32(x)))} for x in np.random.default_rng(1).random(50)]
    np.testing.assert_array_equal(
        pyfunc.load_model(str(saved)).predict(pd.DataFrame(rows)), exported.scorer.predict(rows)
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"other": 1}, "has none of the model's columns"),
        ({"mobile": ["x"], "user": 1}, "column 'mobile'"),
        ({"words": ["x"]}, "column 'words'"),
        ({"seen": "x"}, "column 'seen' must be numeric"),
        ({"price": math.inf}, "column 'price' is inf"),
    ],
)
def test_what_is_wrong_is_said(exported: Exported, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        flavor.DataFrameScorer(exported.model).predict(pd.DataFrame([row]))


def test_mixed_categories_that_are_none(exported: Exported) -> None:
    with pytest.raises(DataError, match=r"^row 1: column 'user' is b'x'; allowed: text, a number or a boolean"):
        flavor.DataFrameScorer(exported.model).predict(pd.DataFrame({"user": [1, b"x", "a"]}))


def test_a_model_is_logged_to_a_run(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The only store of runs that MLflow's small distribution has.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    with mlflow.start_run():
        info = flavor.log_model(exported.model, "ctr")
    rows = frame(exported.table)
    np.testing.assert_array_equal(
        pyfunc.load_model(info.model_uri).predict(rows), exported.model.predict(exported.table)
    )


def test_a_model_that_was_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not been fitted"):
        flavor.save_model(ps.Linear(), tmp_path / "m")
