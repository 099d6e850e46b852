"""The programs in ``examples/`` run as they are, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120


def run(name: str, folder: Path) -> str:
    """Standard output of an example; whatever it leaves behind must be in its temporary folder."""
    # Coverage of warnings as errors ends here: it is a program of its own.
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, str(ROOT / "examples" / name)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stderr
    assert not list(folder.iterdir())
    return ended.stdout


def test_parameter_server(tmp_path: Path) -> None:
    out = run("parameter_server.py", tmp_path)
    best = float(re.findall(r"best possible log loss is (\S+)", out)[0])
    rows = re.findall(r"^(bsp|asp) +[\d,]+ +(\d\.\d+) +(\d\.\d+) +(\d+)$", out, re.MULTILINE)
    assert [name for name, *_ in rows] == ["bsp", "asp"], out
    for name, logloss, auc, stalest in rows:
        assert best < float(logloss) < 0.55 and float(auc) > 0.7
        assert name == "asp" or stalest == "0"


def test_own_model(tmp_path: Path) -> None:
    out = run("own_model.py", tmp_path)
    rows = re.findall(r"^(Online|ParameterServer) +log loss (\S+), AUC (\S+)$", out, re.MULTILINE)
    assert [name for name, *_ in rows] == ["Online", "ParameterServer"], out
    (_, alone, _), (_, together, _) = rows
    assert 0.45 < float(alone) < 0.56 and abs(float(alone) - float(together)) < 0.01


def test_from_events(tmp_path: Path) -> None:
    out = run("from_events.py", tmp_path)
    [auc] = re.findall(r"^50,000 examples, AUC (\S+)$", out, re.MULTILINE)
    assert 0.72 < float(auc) < 0.8
    assert "{'first': 50000, 'retraction': 500, 'correction': 500}" in out


def test_live_features(tmp_path: Path) -> None:
    out = run("live_features.py", tmp_path)
    scores = [float(score) for score in re.findall(r"^\d clicks: (\S+)$", out, re.MULTILINE)]
    assert len(scores) == 4 and scores == sorted(set(scores)), out
    assert scores[0] < 0.05 < 0.3 < scores[3]


def test_examples_are_short() -> None:
    programs = sorted((ROOT / "examples").glob("*.py"))
    assert len(programs) >= 2
    assert all(len(program.read_text().splitlines()) < 60 for program in programs)
