"""Real data, which is not part of the project: skipped where ``PENSTOCK_DATA`` (or shared/data) has it not."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import penstock as ps

FOLDER = Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def file(name: str) -> str:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; name its folder with PENSTOCK_DATA")
    return str(path)


def test_census_income_is_learnt_as_well_as_its_literature_says(tmp_path: Path) -> None:
    train, test = file("a9a"), file("a9a.t")
    run = ps.fit(ps.Linear(), train, passes=3, output=tmp_path / "adult")
    assert run.history[-1].done == 1.0
    scores = ps.evaluate(ps.load(tmp_path / "adult"), ps.open_source(test, format="libsvm")).scores()
    assert scores.rows == 16_281
    assert scores.auc >= 0.902
    assert scores.accuracy >= 0.849


def test_a_csv_with_most_of_its_fields_missing() -> None:
    path = file("criteo_sample.csv")
    features = ps.Features(categorical=[f"C{i}" for i in range(1, 27)], numeric=[f"I{i}" for i in range(1, 14)])
    run = ps.fit(ps.Linear(features), path, passes=3)
    assert (run.rows, run.metrics.rows) == (600, 200)
    table = pd.read_csv(path, dtype={f"C{i}": str for i in range(1, 27)})
    # What pandas calls NaN is what a CSV leaves out.
    predicted = run.model.predict(table)
    assert ps.evaluate(run.model, path).scores().logloss < 0.3
    assert abs(predicted[table.label == 1].mean() - predicted[table.label == 0].mean()) > 0.3


def test_ratings_in_the_order_in_which_they_came() -> None:
    columns = {
        "user_id:token": "user",
        "item_id:token": "item",
        "rating:float": "rating",
        "timestamp:float": "time",
    }
    ratings = (
        pd.read_csv(file("ml-100k.inter"), sep="\t").rename(columns=columns).sort_values("time", kind="stable")
    )
    ratings["label"] = ratings.rating >= 4
    features = ps.Features(categorical=["user", "item"], time="time")
    run = ps.fit(ps.Linear(features), ratings, holdout=ps.Holdout(after=float(ratings.time.quantile(0.8))))
    assert run.metrics.rows + run.holdout.rows == 100_000
    assert run.metrics.auc > 0.7
    assert run.holdout.auc > 0.65
