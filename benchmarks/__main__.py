"""``python -m benchmarks`` lists the benchmarks, ``python -m benchmarks NAME`` runs one."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.harness import Options, show

BENCHMARKS = {
    "online": "logistic regression in one pass over 1 M rows of Parquet, beside Vowpal Wabbit",
    "online-tsv": "the same from TSV text",
    "ps-train": "the same on a parameter server of local processes, beside TensorFlow's",
    "ps-pull-push": "pull and push alone, over loopback TCP",
    "ps-straggler": "what a slow worker costs under each consistency",
    "ps-skew": "rows and bytes of 8 servers",
    "log-append": "events into a log, from JSON lines and from Parquet",
    "replay": "a log to examples, a join of two streams, beside Spark and DuckDB",
    "kappa": "live: from an event's arrival to a model that has learnt it; and what an overload does",
    "prove": "batch = stream = Lambda on 10 M events",
    "sync": "a delta of 1 % of a model, from a trainer to a server under load",
    "fresh": "from an event in the log to a prediction over HTTP that it has changed",
    "soak": "minutes of load while the trainer publishes, is killed and leaves torn files",
    "mapped": "a model whose rows stay in a file: memory, and what a request costs",
    "serve-http": "a row a request over HTTP, beside FastAPI and scikit-learn",
    "serve-bulk": "Arrow bodies over HTTP",
    "score": "an exported model in NumPy alone, beside a server's scorer",
    "windows": "aggregates in memory: events taken in, look-ups, bytes, beside DuckDB",
    "kernel": "learning alone, on hashed batches in memory, beside scikit-learn and the memory's limit",
    "quality": "AUC and accuracy on a9a, beside scikit-learn",
    "startup": "the command line: --help, and a run of 10,000 rows",
}


def main() -> None:
    """Run one benchmark, or list all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="which; none lists them")
    parser.add_argument("--quick", action="store_true", help="less work, for a look while developing")
    parser.add_argument("--data", type=Path, help="folder of a9a and a9a.t, for `quality`")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, what in BENCHMARKS.items():
            print(f"{name:12} {what}")
        return
    module = importlib.import_module(f"benchmarks.{arguments.name.replace('-', '_')}")
    options = Options(quick=arguments.quick, data=arguments.data)
    try:
        show(module.run(options))
    except FileNotFoundError as error:
        sys.exit(f"{arguments.name}: {error}")


if __name__ == "__main__":
    main()
