"""Vowpal Wabbit, run over a file by its own driver and parser thread, in a process of its own.

``python -m benchmarks.vw ARGUMENTS`` is that process: it prints one JSON object. VW is not told to do anything
that a user would not: no predictions are written, no model is saved, and it prints nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import ROOT, note

__all__ = ["HUGE_PAGES", "PACKAGE", "cache_of", "learn"]

PACKAGE = "vowpalwabbit"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment that lets VW's weights lie in huge pages, as our tables do; it does not ask for them itself."""

_BITS = 24


def learn(
    *,
    rows: int,
    alpha: float,
    beta: float,
    text: str | None = None,
    cache: str | None = None,
    environment: dict[str, str] | None = None,
) -> dict[str, float]:
    """One pass of FTRL logistic regression over a text file or a cache file; with both it writes the cache.

    Seconds are from opening the file to the model in memory; the log loss is progressive.

    Raises:
        RuntimeError: VW failed, or it did not learn ``rows`` examples.
    """
    arguments = ["--ftrl", "-b", str(_BITS), "--ftrl_alpha", str(alpha), "--ftrl_beta", str(beta)]
    arguments += ["--loss_function", "logistic", "--link", "logistic", "--quiet", "--passes", "1"]
    arguments += ["-d", text] if text else []
    arguments += ["--cache_file", cache] if cache else []
    arguments += ["-k"] if text and cache else []
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.vw", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"vw {' '.join(arguments)}: {run.stderr.strip()[-2000:]}")
    found = json.loads(run.stdout.splitlines()[-1])
    if found["examples"] != rows:
        raise RuntimeError(f"vw {' '.join(arguments)}: learnt {found['examples']} examples of {rows}")
    return {"seconds": found["seconds"], "rows_per_s": rows / found["seconds"], "logloss": found["logloss"]}


def cache_of(text: str, rows: int) -> str:
    """VW's cache file of a text file, made by VW."""
    path = Path(text).with_suffix(".cache")
    if not path.exists() or path.stat().st_mtime_ns < Path(text).stat().st_mtime_ns:
        note(f"making {path} ...")
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        learn(rows=rows, alpha=0.1, beta=1.0, text=text, cache=str(temporary))
        temporary.replace(path)
    return str(path)


def _main() -> None:
    from vowpalwabbit import Workspace

    began = time.perf_counter()
    workspace = Workspace(arg_list=sys.argv[1:])
    seconds = time.perf_counter() - began
    examples = workspace.get_weighted_examples()
    print(json.dumps({"seconds": seconds, "examples": examples, "logloss": workspace.get_sum_loss() / examples}))


if __name__ == "__main__":
    _main()
