"""Kernels are plain Python as well: their tests pass with ``NUMBA_DISABLE_JIT=1``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
JITLESS = (
    "dedup",
    "finite",
    "hashing",
    "index",
    "json",
    "linear",
    "merge",
    "optimizer",
    "parquet",
    "rows",
    "windows",
)
LARGE = "spread or changes_half or behind_the_data or threads"


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="runs without JIT already")
def test_kernels_give_the_same_as_plain_python():
    modules = [HERE / f"test_{name}.py" for name in JITLESS]
    pytest_options = ["-q", "-p", "no:cacheprovider", "-k", f"not ({LARGE})"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *pytest_options, *map(str, modules)],
        cwd=HERE.parents[1],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 50
