"""``penstock export``: what it writes scores as ``penstock predict`` does, and what it says is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from penstock.score import Scorer
from tests.cli.test_commands import Penstock, fails, penstock

__all__ = ["penstock"]


@pytest.fixture
def model(penstock: Penstock, clicks: Path) -> str:
    status, _, err = penstock("train", clicks, "--label", "clicked", "--ignore", "time", "-o", "model", "-q")
    assert status == 0, err
    return "model"


def predicted(penstock: Penstock, clicks: Path) -> np.ndarray:
    status, _, err = penstock("predict", "model", clicks, "-o", "scores.parquet")
    assert status == 0, err
    scores: np.ndarray = pq.read_table("scores.parquet")["score"].to_numpy()
    return scores


def test_to_npz(penstock: Penstock, clicks: Path, model: str) -> None:
    status, out, err = penstock("export", model, "m.npz")
    assert status == 0, err
    found = re.fullmatch(r"version 1, ([\d,]+) features, [\d.]+ k?M?B in m\.npz\n", out)
    scorer = Scorer.load("m.npz")
    assert found is not None and int(found[1].replace(",", "")) == len(scorer) and scorer.version == "1"
    rows = pq.read_table(clicks).to_pylist()
    np.testing.assert_array_equal(scorer.predict(rows), predicted(penstock, clicks))


def test_to_onnx(penstock: Penstock, clicks: Path, model: str) -> None:
    pytest.importorskip("onnx", reason="needs penstock-ml[onnx]")
    status, out, err = penstock("export", model, "m.onnx")
    assert status == 0, err
    assert out.splitlines()[1:] == [
        "inputs int64 [rows, keys]: keys",
        "inputs float32 [rows, keys]: values",
        "output float32 [rows, 1]: score",
    ]
    status, out, err = penstock("export", model, "columns", "--to", "onnx", "--vocabulary", clicks)
    assert status == 0, err
    assert "the vocabulary covers" in out and "(100.0%)" in out
    assert "inputs string [rows, 1]: c1, c2, c3, c4, c5\n" in out
    assert Path("m.onnx").stat().st_size and Path("columns").stat().st_size


def test_to_mlflow(penstock: Penstock, clicks: Path, model: str) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="needs penstock-ml[mlflow]")
    status, out, err = penstock("export", model, "folder", "--to", "mlflow")
    assert status == 0 and "features in folder\n" in out and not err
    assert pyfunc.load_model("folder").metadata.metadata == {"penstock_model_version": 1}
    frame = pq.read_table(clicks).drop_columns(["clicked", "time"]).to_pandas()
    np.testing.assert_array_equal(pyfunc.load_model("folder").predict(frame), predicted(penstock, clicks))
    fails(penstock("export", model, "folder", "--to", "mlflow"), "folder: is there already; name a new folder")


@pytest.mark.parametrize(("output", "to", "package"), [("m.onnx", "onnx", "onnx"), ("m", "mlflow", "mlflow")])
def test_a_package_that_is_not_there(
    penstock: Penstock, model: str, monkeypatch: pytest.MonkeyPatch, output: str, to: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    fails(penstock("export", model, output, "--to", to), f"pip install 'penstock-ml[{package}]'")
    assert not Path(output).exists()


def test_what_cannot_be_exported(penstock: Penstock, model: str) -> None:
    fails(penstock("export", model, "m.bin"), "m.bin: got no --to, and an unknown ending; allowed: .npz, .onnx")
    fails(penstock("export", "none", "m.npz"), "none: no model there")
    fails(penstock("export", model, "nowhere/m.npz"), "nowhere/m.npz: there is no folder nowhere")
    fails(penstock("export", model, "m.npz", "--vocabulary", "x"), "--vocabulary is for onnx")
    assert sorted(path.name for path in Path().iterdir()) == ["model"]
