"""The peer TensorFlow: that it is named as missing, checks its files, and learns what FTRL's equations say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import tensorflow_ps
from benchmarks.tensorflow_ps import PYTHON, run_peer

Arrays = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]
SLOTS = 200


def arrays(rows: int) -> Arrays:
    """Ids that repeat in a row and in a batch, numbers, labels."""
    rng = np.random.default_rng(5)
    ids = (rng.zipf(1.5, (rows, 4)) % SLOTS).astype(np.int32)
    values = rng.normal(size=(rows, 3)).astype(np.float32)
    labels = (values[:, 0] + (ids[:, 0] % 2) > 0.3).astype(np.float32)
    return ids, values, labels


def saved(folder: Path, data: Arrays) -> dict[str, Path]:
    files = {name: folder / f"{name}.npy" for name in ("ids", "values", "labels")}
    for file, array in zip(files.values(), data, strict=True):
        np.save(file, array)
    return files


def logloss(data: Arrays, *, batch: int, steps: int, ahead: bool, alpha: float, beta: float) -> float:
    """McMahan et al. 2013, algorithm 1, on summed gradients; a weight may be one step old within a call."""
    ids, values, labels = data
    V = values.shape[1]
    z, n = np.zeros(SLOTS + V + 1), np.zeros(SLOTS + V + 1)
    X = np.zeros((len(ids), SLOTS + V + 1))
    np.add.at(X, (np.arange(len(ids))[:, None], ids), 1)
    X[:, SLOTS : SLOTS + V], X[:, -1] = values, 1
    total, before = 0.0, np.zeros_like(z)
    batches = len(ids) // batch
    for step in range(batches):
        x, y = X[step * batch : (step + 1) * batch], labels[step * batch : (step + 1) * batch]
        weights = -z * alpha / (beta + np.sqrt(n))
        pulled = before if ahead and step % steps else weights
        p = 1 / (1 + np.exp(-x @ pulled))
        total -= np.sum(y * np.log(p) + (1 - y) * np.log(1 - p))
        g = x.T @ (p - y)
        z += g - (np.sqrt(n + g * g) - np.sqrt(n)) / alpha * weights
        n += g * g
        before = weights
    return total / (batches * batch)


@pytest.fixture
def peer() -> None:
    try:
        interpreter = tensorflow_ps._interpreter(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if interpreter is None:
        pytest.skip(tensorflow_ps.MISSING)


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("ahead", [False, True])
def test_it_learns_by_ftrl(tmp_path: Path, ahead: bool) -> None:
    data = arrays(16 * 21 + 5)
    how = {"batch": 16, "steps": 4, "ahead": ahead, "alpha": 0.2, "beta": 0.5}
    found = run_peer(**saved(tmp_path, data), slots=SLOTS, **how)
    assert found is not None
    assert found["rows"] == 16 * 21
    assert found["logloss"] == pytest.approx(logloss(data, **how), rel=1e-4)
    # Whether a batch is pulled ahead is seen at this precision.
    assert found["logloss"] != pytest.approx(logloss(data, **{**how, "ahead": not ahead}), rel=1e-3)


def test_without_tensorflow_there_is_no_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_peer(tmp_path / "ids.npy", tmp_path / "labels.npy") is None


def test_an_interpreter_without_tensorflow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "raise SystemExit(1)"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(interpreter))
    with pytest.raises(FileNotFoundError, match=PYTHON):
        run_peer(tmp_path / "ids.npy", tmp_path / "labels.npy")


def test_a_failed_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="ValueError: ids.npy has ids to 9", stdout="")
    monkeypatch.setattr(tensorflow_ps, "_interpreter", lambda named: sys.executable)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match="ids to 9"):
        run_peer(Path("ids.npy"), Path("labels.npy"))


def test_the_files_are_checked(tmp_path: Path) -> None:
    ids, values, labels = arrays(32)
    good = saved(tmp_path, (ids, values, labels))
    rows = tensorflow_ps._Rows.of(SimpleNamespace(**good, batch=10, slots=SLOTS))  # type: ignore[arg-type]
    assert (rows.rows, rows.fields, rows.numbers) == (30, 4, 3)
    for name, wrong, message in (
        ("ids", ids.astype(np.int64), "ids.npy must be int32"),
        ("ids", ids - SLOTS, "allowed are 0 to 199"),
        ("ids", np.asfortranarray(ids), "row by row"),
        ("labels", labels[:-1], "labels.npy has 31 rows"),
        ("values", values[:, 0].copy(), "values.npy must be float32"),
    ):
        folder = tmp_path / "wrong"
        folder.mkdir(exist_ok=True)
        files = saved(folder, (ids, values, labels))
        np.save(files[name], wrong)
        with pytest.raises(ValueError, match=message):
            tensorflow_ps._Rows.of(SimpleNamespace(**files, batch=10, slots=SLOTS))  # type: ignore[arg-type]


def test_slots_may_be_a_power() -> None:
    assert tensorflow_ps._slots("2^22") == tensorflow_ps._slots("4194304") == 1 << 22
