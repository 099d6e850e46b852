"""How long the command line takes: ``penstock --help``, and ``penstock train`` on 10,000 rows.

Whole processes, from start to end. Kernels are in the cache on disk: the warm-up compiles what is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.clicklog import LABEL, Clicks
from benchmarks.harness import ROOT, Goal, Options, Result, in_turn, machine, table

__all__ = ["run"]

ROWS = 10_000


def run(options: Options) -> Result:
    """Two commands in turn."""
    files = Clicks(ROWS).parquet
    result = Result(
        name="startup",
        options=options,
        conditions={"rows": ROWS, "repetitions": options.repetitions, **machine()},
        goals=(Goal(what="help_s", most=0.3), Goal(what="train_s", most=2.5)),
    )
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model")
        commands = {
            "python, and nothing else": ["-c", ""],
            "penstock --help": ["-m", "penstock.cli.main", "--help"],
            "penstock train": [
                *("-m", "penstock.cli.main", "train", *files, "--label", LABEL, "-o", model),
                *("--ignore", "time", "--quiet"),
            ],
        }
        found = in_turn({name: lambda c=c: _run(c) for name, c in commands.items()}, options.repetitions)
    for figure, command in (("python_s", 0), ("help_s", 1), ("train_s", 2)):
        result.figures[figure] = found[[*commands][command]]["seconds"].median
    rows = [
        (name, f"{f['seconds'].median:.3f}", f"{f['seconds'].least:.3f} to {f['seconds'].most:.3f}")
        for name, f in found.items()
    ]
    result.text.append(table(("", "seconds", "from, to"), rows))
    return result


def _run(arguments: list[str]) -> dict[str, float]:
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {"seconds": time.perf_counter() - began}
