"""The scorer runs where only NumPy is installed: a process that can import nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import penstock
from tests.score.conftest import Exported, as_rows

ALONE = """
import importlib.abc, json, os, sys

allowed = {"numpy", "penstock"} | sys.stdlib_module_names

class NothingElse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, NothingElse())
for name in ("numba", "pyarrow", "msgspec", "fsspec"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} could be imported")

from penstock.score import Scorer

rows = json.load(sys.stdin)
scorer = Scorer.load(sys.argv[1])
scores = scorer.predict(rows)
try:
    scorer.predict([{"price": "x"}])
except ValueError as error:
    message = str(error)
print(json.dumps([scores.tolist(), message, sorted(name for name in sys.modules if name.startswith("penstock"))]))
"""


def test_it_imports_and_scores_with_everything_else_blocked(exported: Exported) -> None:
    table = exported.table.slice(0, 200)
    # Without packages that an environment loads at its start.
    source = str(Path(penstock.__file__).parents[1])
    paths = [source, str(Path(np.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{ALONE}", str(exported.file)],
        input=json.dumps(as_rows(table)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores, message, loaded = json.loads(done.stdout)
    expected = exported.model.predict(table)
    np.testing.assert_array_equal(np.array(scores, np.float32), expected)
    assert message == "row 0: column 'price' is 'x'; allowed: a number, or null"
    parts = ("encode", "file", "hashing", "scorer", "values")
    assert loaded == [
        "penstock",
        "penstock.errors",
        "penstock.score",
        *(f"penstock.score.{part}" for part in parts),
        "penstock.version",
    ]
