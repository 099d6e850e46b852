"""Kernels are plain Python as well: the tests on tiny examples pass with ``NUMBA_DISABLE_JIT=1``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SMALL = (
    "docstring or tiny or never_change or canonical or cross_parts or by_hand or validity or cache_line or states"
)


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="runs without JIT already")
def test_tiny_examples_give_the_same_as_plain_python():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", SMALL, str(HERE)],
        cwd=HERE.parents[1],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = set(re.findall(r"kernels/test_(\w+)\.py::\S+ PASSED", done.stdout))
    assert ran >= {"hashing", "linear", "optimizer", "rows"}
