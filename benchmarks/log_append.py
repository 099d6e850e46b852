"""Events into a log: JSON lines of 200 bytes and Parquet, beside deltalake alone, which gives no places."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.json
import pyarrow.parquet as pq

from benchmarks.events import impressions
from benchmarks.harness import ROOT, Goal, Options, Result, in_turn, machine, note, table, timed
from penstock.log import Log
from penstock.log.sources.files import NewStream, append_file, find
from penstock.log.sources.pump import Delivery

__all__ = ["run"]

_AGENT = "Mozilla/5.0 (X11; Linux x86_64)"


def _files(events: int) -> tuple[Path, Path]:
    folder = ROOT / "bench-data" / f"append-{events}"
    lines, columns = folder / "events.jsonl", folder / "events.parquet"
    if not columns.exists():
        note(f"making {folder} ...")
        folder.mkdir(parents=True, exist_ok=True)
        made = impressions(0, events, events)
        with lines.open("w") as file:
            for row in made.to_pylist():
                row["ts"] = row["ts"].isoformat()
                file.write(json.dumps({**row, "agent": _AGENT, "page": row["user"] % 997}) + "\n")
        pq.write_table(made, columns, compression="zstd")
    return lines, columns


def run(options: Options) -> Result:
    """Both formats, fresh streams each time."""
    from deltalake import write_deltalake

    events = 200_000 if options.quick else 2_000_000
    lines, columns = _files(events)
    place = ROOT / "bench-data" / "append-log"

    def ours(path: Path) -> dict[str, float]:
        shutil.rmtree(place, ignore_errors=True)
        log = Log(str(place))
        [(found, format_)] = find([str(path)], None)
        seconds = timed(
            lambda: append_file(
                log,
                "impressions",
                found,
                format_,
                Delivery(),
                NewStream(id="request_id"),
                lambda share, done: None,
            )
        )
        assert log.stream("impressions").end == events
        return {"events_per_s": events / seconds}

    def plain() -> dict[str, float]:
        shutil.rmtree(place, ignore_errors=True)
        return {
            "events_per_s": events / timed(lambda: write_deltalake(str(place), pyarrow.json.read_json(str(lines))))
        }

    found = in_turn(
        {"json": lambda: ours(lines), "parquet": lambda: ours(columns), "deltalake alone, json": plain},
        min(options.repetitions, 3),
    )
    shutil.rmtree(place, ignore_errors=True)
    result = Result(
        name="log-append",
        options=options,
        conditions={
            "events": events,
            "json_bytes_per_event": round(lines.stat().st_size / events),
            "repetitions": min(options.repetitions, 3),
            **machine("deltalake"),
        },
        goals=(
            Goal(what="json_events_per_s", least=150_000),
            Goal(what="parquet_events_per_s", least=1_000_000),
        ),
    )
    for name, figures in found.items():
        result.figures[f"{name.replace(', ', '_').replace(' ', '_')}_events_per_s"] = figures[
            "events_per_s"
        ].median
    result.text.append(
        table(
            ("", "events/s", "least", "most"),
            [
                (
                    name,
                    *(
                        f"{value:,.0f}"
                        for value in (f["events_per_s"].median, f["events_per_s"].least, f["events_per_s"].most)
                    ),
                )
                for name, f in found.items()
            ],
        )
    )
    return result
