"""Spark Structured Streaming: impressions and clicks, two streams, joined into training examples.

``PYTHON benchmarks/spark_stream.py INPUT_FOLDER OUTPUT_FOLDER`` is a program of its own: it needs PySpark and Java
alone, and prints one JSON object as its last line. ``run_peer`` starts it in the environment that has them.

The input has ``impressions/*.parquet`` (ts, request_id, any other columns) and ``clicks/*.parquet`` (ts,
request_id), files in order of time by name. An example is an impression and whether a click on it came from its
time to a day after: a left outer join with watermarks, appended to Parquet, with checkpoints. Two clicks on an
impression make two examples, as Spark's join has it.

An impression without a click comes out when the watermark is a day past it. So of a log of a day the unclicked are
still in the state at the end, and what comes out are the clicked. ``--flush`` ends each stream with an event more
than a day after all others, and everything comes out; ``--inner`` joins the clicked ones alone.

The output folder gets ``examples`` and ``checkpoints``. A copy of the input is beside them while it runs, since
Spark takes files in order of their modification times.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MISSING", "PYTHON", "interpreter", "run_peer"]

PYTHON = "PENSTOCK_SPARK_PYTHON"
"""Environment variable that names the Python with PySpark, where it is not this one."""
MISSING = f"pyspark is not installed (pip install pyspark, or {PYTHON}=its/bin/python): nothing to compare with"

_LATENESS = {"impressions": "2 minutes", "clicks": "30 minutes"}
_WITHIN = "i.request_id = c.request_id AND c.ts >= i.ts AND c.ts <= i.ts + INTERVAL 1 DAY"
_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_WARM_UP_FILES = 2


def run_peer(
    source: Path,
    output: Path,
    *,
    cores: int = 2,
    memory: str = "8g",
    flush: bool = False,
    files_per_trigger: int = 0,
    python: Path | None = None,
    timeout_s: float = 3600.0,
) -> dict[str, Any] | None:
    """One run in a process of its own, with the best settings; None where PySpark is missing.

    Args:
        source: the folder with ``impressions`` and ``clicks``.
        output: a folder that is empty or not there yet.
        cores: of the one process, Spark's driver, which does all the work.
        memory: of its heap, as Java writes it.
        flush: end the streams so late that every impression comes out.
        files_per_trigger: of each stream in a micro-batch; 0 is all there are.
        python: the interpreter with PySpark; else the one that PENSTOCK_SPARK_PYTHON names, else this one.

    Returns:
        What the program prints: see ``_measure``.

    Raises:
        FileNotFoundError: the interpreter that was named is not there, or has no PySpark.
        RuntimeError: the run failed; there may be no Java.
        subprocess.TimeoutExpired: it took longer than ``timeout_s``.
    """
    program = interpreter(python)
    if program is None:
        return None
    arguments = [str(source), str(output), "--cores", str(cores), "--memory", memory]
    arguments += ["--files-per-trigger", str(files_per_trigger), *(["--flush"] if flush else [])]
    run = subprocess.run(
        [program, str(Path(__file__).resolve()), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if run.returncode:
        raise RuntimeError(f"spark_stream {' '.join(arguments)}: {run.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def interpreter(named: Path | None) -> str | None:
    """The Python with PySpark; None where there is none."""
    path = str(named or os.environ.get(PYTHON, ""))
    if not path:
        return sys.executable if importlib.util.find_spec("pyspark") else None
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pyspark') is None)"
    if subprocess.run([path, "-c", question], check=False).returncode:
        raise FileNotFoundError(f"{path} has no pyspark (from {'python' if named else PYTHON})")
    return path


@dataclass(frozen=True, kw_only=True)
class _How:
    """How the query is run; ``conf`` is added to Spark's settings, and goes before ours."""

    cores: int = 2
    memory: str = "8g"
    join: str = "left_outer"
    flush: bool = False
    files_per_trigger: int = 0
    conf: Mapping[str, str] = field(default_factory=dict)

    def settings(self, scratch: Path) -> dict[str, str]:
        """Spark's, as they were fastest.

        Tried on a million events of a day (96 files a stream, 2 cores, Spark 4.3, with a flush), in thousands of
        events a second and seconds of processor time, as the machine had other work as well:

        - Micro-batches: one of all files 115 (16 s), 32 files each 75 (23 s), 8 files each 41 (39 s). So all files
          are one micro-batch: the fastest way to catch up, but nothing comes out before the end.
        - State: in the heap, Spark's default, 115 (16 s). RocksDB: format 2 48 (39 s), format 3 41 (41 s), and
          with changelogs, buffers of 256 MB and no counts of rows 52 (28 s), format 4 with changelogs 36 (50 s).
          At 8 files each: in the heap 41 (39 s), RocksDB with changelogs, format 4 37 (48 s), format 2 32 (55 s).
        - Heap: parallel collector, all of it from the start and half of it for what is new 119 (14 s), without
          these two 115 (16 s), G1 106 (18 s).
        - At 32 files each, as many partitions as cores 75 (23 s), twice as many 72 (23 s), four times 68 (23 s).
        - Within the noise, so as Spark has it: Kryo 116 (14 s), state compressed by zstd 131 (14 s), examples by
          zstd 143 (13 s), a single version of the state in memory and no check of its format 134 (14 s).
        - The watermark of the later stream, 129 (14 s), is no choice: it may drop clicks that are in time.

        Spark turns adaptive execution off for queries with state.
        """
        return {
            "spark.master": f"local[{self.cores}]",
            "spark.driver.memory": self.memory,
            "spark.driver.extraJavaOptions": f"-XX:+UseParallelGC -Xms{self.memory} -XX:NewRatio=1",
            "spark.sql.shuffle.partitions": str(self.cores),
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
            "spark.sql.streaming.numRecentProgressUpdates": "100000",
            "spark.ui.enabled": "false",
            "spark.local.dir": str(scratch / "local"),
            "spark.sql.warehouse.dir": str(scratch / "warehouse"),
            **self.conf,
        }


@contextmanager
def _session(how: _How, scratch: Path) -> Iterator[Any]:
    """A session in a virtual machine that was started for it."""
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("penstock-benchmark")
    for key, value in how.settings(scratch).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        spark.stop()


def _staged(source: Path, target: Path, files: int | None = None) -> Path:
    """Copies of each stream's first files, or of all of them, with modification times in the order of names."""
    for stream in _LATENESS:
        found = sorted((source / stream).glob("*.parquet"))[:files]
        if not found:
            raise FileNotFoundError(f"no Parquet files in {source / stream}")
        (target / stream).mkdir(parents=True)
        for second, path in enumerate(found):
            copy = target / stream / path.name
            shutil.copyfile(path, copy)
            os.utime(copy, (1_000_000_000 + second,) * 2)
    return target


def _add_flush(spark: Any, folder: Path) -> None:
    """End each stream with a file of one event, a day and an hour after all others, that joins with none."""
    from pyspark.sql import functions as F

    frames = {stream: spark.read.parquet(str(folder / stream)) for stream in _LATENESS}
    last = F.unix_micros(F.max("ts").cast("timestamp"))
    late = max(frame.agg(last).first()[0] for frame in frames.values()) + _DAY_US + _HOUR_US
    for stream, frame in frames.items():
        event = frame.limit(1).withColumns(
            {
                "ts": F.timestamp_micros(F.lit(late)).cast(frame.schema["ts"].dataType),
                "request_id": F.lit(f"flush of {stream}"),
            }
        )
        written = folder / f"flush-{stream}"
        event.coalesce(1).write.parquet(str(written))
        [part] = written.glob("*.parquet")
        file = part.rename(folder / stream / "flush.parquet")
        os.utime(file, (1_100_000_000,) * 2)
        shutil.rmtree(written)


def _join(spark: Any, source: Path, target: Path, how: _How) -> tuple[float, Sequence[Mapping[str, Any]]]:
    """Run the query over all files; returns its seconds, from start to end, and a report of each micro-batch."""
    from pyspark.sql import functions as F

    def stream(name: str) -> Any:
        folder = str(source / name)
        reader = spark.readStream.schema(spark.read.parquet(folder).schema)
        if how.files_per_trigger:
            reader = reader.option("maxFilesPerTrigger", how.files_per_trigger)
        events = reader.parquet(folder)
        return events.withColumn("ts", F.col("ts").cast("timestamp")).withWatermark("ts", _LATENESS[name])

    impressions = stream("impressions").alias("i")
    clicks = stream("clicks").select("ts", "request_id").alias("c")
    examples = impressions.join(clicks, F.expr(_WITHIN), how.join).selectExpr("i.*", "c.ts IS NOT NULL AS clicked")
    writer = (
        examples.writeStream.format("parquet")
        .outputMode("append")
        .option("path", str(target / "examples"))
        .option("checkpointLocation", str(target / "checkpoints"))
        .trigger(availableNow=True)
    )
    began = time.perf_counter()
    query = writer.start()
    query.awaitTermination()
    return time.perf_counter() - began, query.recentProgress


def _measure(source: Path, output: Path, how: _How) -> dict[str, Any]:
    """Start Spark, warm up over the first files, run the query, and count.

    Returns:
        ``seconds`` of the query, from its start until all data was processed, and ``events_per_s`` of both
        streams; ``impressions_in``, ``clicks_in``, ``examples_out``, ``clicked`` of these, ``dropped_late`` by the
        watermark and ``state_rows`` at the end; ``batches``, ``cpu_s`` of the query, ``peak_rss_mb`` of Java;
        ``versions`` and ``settings``.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty")
    from pyspark.sql import functions as F

    scratch = output / "scratch"
    scratch.mkdir(parents=True)
    try:
        with _session(how, scratch) as spark:
            few = _staged(source, scratch / "few", _WARM_UP_FILES)
            _add_flush(spark, few)
            _join(spark, few, scratch / "warm-up", how)

            events = _staged(source, scratch / "events")
            counts = {stream: spark.read.parquet(str(events / stream)).count() for stream in _LATENESS}
            if how.flush:
                _add_flush(spark, events)
            java = int(spark._jvm.java.lang.ProcessHandle.current().pid())
            cpu = _cpu_s(java)
            seconds, batches = _join(spark, events, output, how)
            cpu = _cpu_s(java) - cpu

            examples = spark.read.parquet(str(output / "examples"))
            out, clicked = examples.agg(F.count("*"), F.count_if("clicked")).first()
            state = [operator for batch in batches for operator in batch["stateOperators"]]
            return {
                "seconds": round(seconds, 3),
                "events_per_s": round(sum(counts.values()) / seconds),
                "impressions_in": counts["impressions"],
                "clicks_in": counts["clicks"],
                "examples_out": out,
                "clicked": clicked,
                "dropped_late": sum(operator["numRowsDroppedByWatermark"] for operator in state),
                "state_rows": state[-1]["numRowsTotal"],
                "batches": len(batches),
                "cpu_s": round(cpu, 2),
                "peak_rss_mb": _peak_rss_mb(java),
                "versions": {
                    "spark": spark.version,
                    "java": spark._jvm.java.lang.System.getProperty("java.version"),
                    "python": platform.python_version(),
                },
                "settings": {
                    "join": how.join,
                    "flush": how.flush,
                    "files_per_trigger": how.files_per_trigger or "all",
                    "lateness": _LATENESS,
                    **how.settings(scratch),
                },
            }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cpu_s(pid: int) -> float:
    """Seconds of processor time of a process of ours, or NaN where the system has no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return float("nan")
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _peak_rss_mb(pid: int) -> int | None:
    """Most memory that a process of ours had at once, or None where the system has no /proc."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) // 1024


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    return key, value


def main() -> None:
    """Read the command line, run, and print what was found."""
    best = _How()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder with impressions/*.parquet and clicks/*.parquet")
    parser.add_argument("output", type=Path, help="folder that is empty or not there yet")
    parser.add_argument("--cores", type=int, default=best.cores)
    parser.add_argument("--memory", default=best.memory, help="of Java's heap")
    parser.add_argument("--flush", action="store_true", help="end the streams so late that everything comes out")
    parser.add_argument("--inner", action="store_true", help="clicked impressions alone")
    parser.add_argument(
        "--files-per-trigger",
        type=int,
        default=best.files_per_trigger,
        help="of each stream in a micro-batch; 0 is all there are",
    )
    parser.add_argument("--conf", type=_pair, action="append", default=[], metavar="KEY=VALUE", help="for Spark")
    arguments = parser.parse_args()
    how = _How(
        cores=arguments.cores,
        memory=arguments.memory,
        join="inner" if arguments.inner else "left_outer",
        flush=arguments.flush,
        files_per_trigger=arguments.files_per_trigger,
        conf=dict(arguments.conf),
    )
    try:
        found = _measure(arguments.source.resolve(), arguments.output.resolve(), how)
    except (FileNotFoundError, FileExistsError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
