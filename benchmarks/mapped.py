"""A model whose rows stay in a file: what a server takes of memory, and what a request then costs.

A row of 39 features a request, one after the other: by rows in memory; by the mapped file when nothing of it is in
memory (the first requests after a start), and when what they touch is.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Goal, Options, Result, machine, table
from benchmarks.serving import bodies_file, model_folder, serving_process

__all__ = ["run"]


def run(options: Options) -> Result:
    """Of each size, each server in turn, started anew."""
    sizes = (200_000,) if options.quick else (1_000_000, 10_000_000, 30_000_000)
    requests = 1_000 if options.quick else 2_000
    repetitions = 1 if options.quick else 3
    result = Result(
        name="mapped",
        options=options,
        conditions={
            "model_rows": list(sizes),
            "requests": requests,
            "repetitions": repetitions,
            **machine("uvicorn"),
        },
        goals=(
            Goal(what="10m_private_over_in_memory", most=0.6),
            Goal(what="30m_private_over_in_memory", most=0.3),
        ),
    )
    bodies = bodies_file().read_text().splitlines()[:requests]
    rows = []
    for size in sizes:
        found = _of_size(size, bodies, repetitions)
        name = f"{size / 1e6:g}m"
        result.figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        rows += [
            (f"{name}, {how.replace('_', ' ')}", *(f"{found[f'{how}_{figure}']:.2f}" for figure in _COLUMNS))
            for how in ("in_memory", "mapped")
        ]
        result.text.append(
            f"{name}: the file has {found['index_mb']:,.0f} MB; to make it, and start, took "
            f"{found['index_built_and_started_s']:.1f} s"
        )
    heads = ("started s", "private MB", "of the file MB", "first p50 ms", "p99", "again p50 ms", "p99")
    result.text.insert(0, table(("rows, and where they are", *heads), rows))
    return result


_COLUMNS = (
    "started_s",
    "private_mb",
    "mapped_mb",
    "first_p50_ms",
    "first_p99_ms",
    "again_p50_ms",
    "again_p99_ms",
)


def _of_size(rows: int, bodies: list[str], repetitions: int) -> dict[str, float]:
    folder = model_folder(rows)
    shutil.rmtree(folder / "index", ignore_errors=True)
    command = ("-m", "penstock.cli.main", "serve", str(folder), "--port", "0")
    built = _measure((*command, "--mapped"), bodies, None)
    [index] = (folder / "index").iterdir()
    runs: dict[str, list[dict[str, float]]] = {"in_memory": [], "mapped": []}
    for _ in range(repetitions):
        runs["in_memory"].append(_measure(command, bodies, None))
        runs["mapped"].append(_measure((*command, "--mapped"), bodies, index))
    found = {"index_mb": index.stat().st_size / 1e6, "index_built_and_started_s": built["started_s"]}
    for name, of_name in runs.items():
        for figure in of_name[0]:
            found[f"{name}_{figure}"] = float(np.median([one[figure] for one in of_name]))
    found["private_over_in_memory"] = found["mapped_private_mb"] / found["in_memory_private_mb"]
    return found


def _measure(command: tuple[str, ...], bodies: list[str], cold: Path | None) -> dict[str, float]:
    """``cold`` is a file of which nothing is to be in memory at first."""
    if cold is not None:
        with cold.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began_s = time.perf_counter()
    with serving_process(*command) as (process, port):
        started_s = time.perf_counter() - began_s
        first = _ask(port, bodies)
        _ask(port, bodies)
        again = _ask(port, bodies)
        private, mapped = _memory(process.pid)
    return {
        "started_s": started_s,
        "private_mb": private / 1e6,
        "mapped_mb": mapped / 1e6,
        "first_p50_ms": float(np.percentile(first, 50)),
        "first_p99_ms": float(np.percentile(first, 99)),
        "again_p50_ms": float(np.percentile(again, 50)),
        "again_p99_ms": float(np.percentile(again, 99)),
    }


def _ask(port: int, bodies: list[str]) -> list[float]:
    """Milliseconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took = []
    for body in bodies:
        began_s = time.perf_counter()
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began_s) * 1000)
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}")
    connection.close()
    return took


def _memory(pid: int) -> tuple[int, int]:
    """Private bytes, and bytes of index files, of a process."""
    private = mapped = 0
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line
        elif line.startswith(("Private_Clean:", "Private_Dirty:")) and not name.endswith(".index"):
            private += int(line.split()[1]) * 1024
        elif line.startswith("Rss:") and name.endswith(".index"):
            mapped += int(line.split()[1]) * 1024
    return private, mapped
