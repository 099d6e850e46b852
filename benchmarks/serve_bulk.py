"""Many rows a request: Arrow bodies over HTTP, one connection, as a batch job would score a table."""

from __future__ import annotations

import http.client
import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import penstock as ps
from benchmarks.harness import Goal, Options, Result, in_turn, machine, table
from benchmarks.serving import model_folder, serving, table_of

__all__ = ["run"]

_ARROW = "application/vnd.apache.arrow.stream"
_BODY_ROWS = 50_000


def run(options: Options) -> Result:
    """Over HTTP, and beside it the model alone, in this process: the limit."""
    model_rows = 200_000 if options.quick else 10_000_000
    rows = 100_000 if options.quick else 1_000_000
    folder = model_folder(model_rows)
    data = pq.read_table(table_of(1_000_000)).slice(0, rows).drop_columns(["clicked", "time"])
    parts = [data.slice(begin, _BODY_ROWS).combine_chunks() for begin in range(0, rows, _BODY_ROWS)]
    bodies = [_encoded(part) for part in parts]
    model = ps.load(folder)
    expected = model.predict(parts[0])

    def alone() -> dict[str, float]:
        began = time.perf_counter()
        for part in parts:
            model.predict(part)
        return {"rows_per_s": rows / (time.perf_counter() - began)}

    def over_http(port: int) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        began = time.perf_counter()
        scores = []
        for body in bodies:
            connection.request("POST", "/predict", body, {"content-type": _ARROW})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(content[:500].decode(errors="replace"))
            scores.append(pa.ipc.open_stream(content).read_all()["score"])
        seconds = time.perf_counter() - began
        connection.close()
        if not np.array_equal(scores[0].to_numpy(), expected):
            raise RuntimeError("the server's scores are not those of predict")
        return {"rows_per_s": rows / seconds}

    with serving("-m", "penstock.cli.main", "serve", str(folder), "--port", "0") as port:
        found = in_turn({"over HTTP": lambda: over_http(port), "in this process": alone}, options.repetitions)
    result = Result(
        name="serve-bulk",
        options=options,
        conditions={"model_rows": model_rows, "rows": rows, "body_rows": _BODY_ROWS, **machine("uvicorn")},
        goals=(Goal(what="http_rows_per_s", least=500_000),),
    )
    result.figures["http_rows_per_s"] = found["over HTTP"]["rows_per_s"].median
    result.figures["alone_rows_per_s"] = found["in this process"]["rows_per_s"].median
    result.ratios["of_alone"] = result.figures["http_rows_per_s"] / result.figures["alone_rows_per_s"]
    result.text.append(
        table(("", "rows/s"), [(name, f"{f['rows_per_s'].median:,.0f}") for name, f in found.items()])
    )
    return result


def _encoded(part: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part)
    return sink.getvalue()
