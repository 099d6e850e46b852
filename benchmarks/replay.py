"""A log to examples: a join of two streams in windows of five minutes, beside Spark and beside DuckDB's plain
join.

Each run is a process of its own, so that its memory can be told. Spark's is run by PENSTOCK_SPARK_PYTHON; it is
given all its input in one micro-batch, where it is fastest, and as a stream, a micro-batch for each two hours
of events.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.eventlog import QUERY, event_files, event_log, pipeline
from benchmarks.harness import ROOT, Goal, Options, Result, in_turn, machine, note, table

__all__ = ["run"]

_OUT = ROOT / "bench-data" / "replay-out"


def run(options: Options) -> Result:
    """Ours to files and to memory, of a log that was loaded at once and of one that was followed live."""
    from benchmarks.spark_stream import MISSING, interpreter, run_peer

    events = 200_000 if options.quick else 10_000_000
    repetitions = 1 if options.quick else 3
    at_once, live, files = event_log(events, steps=False), event_log(events, steps=True), event_files(events)
    memory = "4g" if options.quick else "14g"

    def spark(files_per_trigger: int) -> dict[str, float]:
        shutil.rmtree(_OUT, ignore_errors=True)
        found = run_peer(files, _OUT, memory=memory, flush=True, files_per_trigger=files_per_trigger)
        assert found is not None
        return {
            "events_per_s": events / found["seconds"],
            "examples": found["examples_out"],
            "peak_mb": found["peak_rss_mb"],
        }

    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "penstock": lambda: _ours(at_once, "files", events),
        "penstock, to memory": lambda: _ours(at_once, "memory", events),
        "penstock, log followed live": lambda: _ours(live, "files", events),
        "duckdb, plain join": lambda: _ours(str(files), "duckdb", events),
    }
    has_peer = interpreter(None) is not None
    if has_peer:
        contenders["spark, all at once"] = lambda: spark(0)
    found = in_turn(contenders, repetitions, warm_up=False)
    if has_peer:
        # Once, as it takes minutes.
        found |= in_turn({"spark, as a stream": lambda: spark(8)}, 1, warm_up=False)
    result = Result(
        name="replay",
        options=options,
        conditions={
            "events": events,
            "window": "5m",
            "within": "1d",
            "repetitions": repetitions,
            **machine("duckdb", "deltalake"),
        },
        goals=(
            Goal(what="penstock_events_per_s", least=400_000),
            Goal(what="spark_all_at_once", least=10),
            Goal(what="spark_as_a_stream", least=10),
            Goal(what="impressions_missing", most=0),
            Goal(what="memory_of_5_times_the_events", most=1.05),
        ),
    )
    for name, figures in found.items():
        for figure, spread in figures.items():
            result.figures[f"{_key(name)}_{figure}"] = spread.median
    ours = result.figures["penstock_events_per_s"]
    for name in found:
        if name.startswith(("spark", "duckdb")):
            result.ratios[_key(name)] = ours / result.figures[f"{_key(name)}_events_per_s"]
    result.figures["impressions_missing"] = events * 4 // 5 - result.figures["penstock_examples"]
    if not options.quick:
        note("five times the events, for memory ...")
        more = _ours(event_log(5 * events, steps=False), "memory", 5 * events)
        result.figures["penstock_5_times_events_per_s"] = more["events_per_s"]
        result.figures["penstock_5_times_peak_mb"] = more["peak_mb"]
        less = result.figures["penstock_to_memory_peak_mb"]
        result.ratios["memory_of_5_times_the_events"] = more["peak_mb"] / less
    result.text.append(
        table(
            ("", "events/s", "examples", "peak memory", "penstock is"),
            [
                (
                    name,
                    f"{f['events_per_s'].median:,.0f}",
                    f"{f['examples'].median:,.0f}",
                    f"{f['peak_mb'].median:,.0f} MB",
                    f"{result.ratios[_key(name)]:.2f} x" if _key(name) in result.ratios else "",
                )
                for name, f in found.items()
            ],
        )
    )
    if not has_peer:
        result.text.append(MISSING)
    shutil.rmtree(_OUT, ignore_errors=True)
    return result


def _key(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def _ours(place: str, what: str, events: int) -> dict[str, float]:
    """A run in a process of its own."""
    shutil.rmtree(_OUT, ignore_errors=True)
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.replay", place, what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"replay of {place} failed: {ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return {
        "events_per_s": events / found["seconds"],
        "examples": found["examples"],
        "peak_mb": found["peak_mb"],
    }


def _replay(place: str, *, to_files: bool) -> tuple[float, int]:
    """Seconds, and examples that came out."""
    from penstock.log import Log
    from penstock.stream.output import write_examples
    from penstock.stream.replay import Replay

    began = time.perf_counter()
    replay = Replay(Log(place), pipeline(place))
    if not to_files:
        found = sum(_firsts(examples.rows["_kind"]) for examples in replay.run())
        return time.perf_counter() - began, found
    write_examples(replay, replay.run(), _OUT, changes=True, overwrite=True)
    seconds = time.perf_counter() - began
    import pyarrow.dataset as ds

    return seconds, _firsts(ds.dataset(str(_OUT), format="parquet").to_table(columns=["_kind"])["_kind"])


def _firsts(kinds: Any) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.equal(kinds, "first")).as_py() or 0)


def _duckdb(files: str) -> tuple[float, int]:
    import duckdb

    began = time.perf_counter()
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    for name in ("impressions", "clicks"):
        connection.execute(f"create view {name} as select * from read_parquet('{files}/{name}/*.parquet')")
    found = int(connection.execute(f"select count(*) from ({QUERY})").fetchall()[0][0])
    return time.perf_counter() - began, found


def main() -> None:
    """``python -m benchmarks.replay PLACE files|memory|duckdb``: one run; prints a line of JSON."""
    place, what = sys.argv[1:]
    seconds, examples = _duckdb(place) if what == "duckdb" else _replay(place, to_files=what == "files")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "examples": examples, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
