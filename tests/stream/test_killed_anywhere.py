"""A process that dies between any two steps of a commit: whoever runs the same again ends with the same.

Every kill point is gone through, one after the other, each in a process of its own that dies there by SIGKILL.
"""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.job.pipeline import PipelineJob
from penstock.log import Log, PositionMoved
from penstock.log.times import TIMESTAMP
from penstock.models import read_manifest, table_files

SECOND = 1_000_000
T0 = 1_793_491_200 * SECOND
STREAMS = ("views", "buys")
PARTS = 6
"""Points are shared out over so many tests, which can run side by side."""
FIELDS = [pa.field("ts", TIMESTAMP), pa.field("id", pa.string()), pa.field("site", pa.string())]


def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stream.preloaded"])
    return context


def add(log: Log, name: str, events: list[tuple[int, str]]) -> None:
    table = pa.table(
        {
            "ts": pa.array(T0 + np.array([t for t, _ in events], np.int64) * SECOND).cast(TIMESTAMP),
            "id": [id_ for _, id_ in events],
            "site": [f"s{t % 3}" for t, _ in events],
        }
    )
    stream = log.stream(name)
    stream.append(table, source="files", arrival=table["ts"].combine_chunks())


def make_log(place: Path) -> None:
    """Three steps, corrections in two of them, a duplicate, a late event; and events that are in no step yet."""
    log = Log(str(place))
    for name in STREAMS:
        log.create(name, FIELDS, id="id")
    add(log, "views", [(n, f"v{n}") for n in range(0, 60, 3)])
    add(log, "buys", [(8, "v6"), (31, "v30")])
    log.step(tick_us=T0 + 60 * SECOND)
    add(log, "views", [(n, f"v{n}") for n in range(60, 100, 3)])
    add(log, "buys", [(40, "v3"), (70, "v33"), (70, "v33")])
    log.step(tick_us=T0 + 100 * SECOND)
    add(log, "buys", [(80, "v9")])
    add(log, "views", [(2, "late"), (120, "v120")])
    log.step(tick_us=T0 + 130 * SECOND)
    add(log, "views", [(200, "v200")])


def job(place: Path) -> PipelineJob:
    return PipelineJob.from_dict(
        {
            "streams": {"views": {"id": "id"}, "buys": {"within": "80s", "lateness": "1m"}},
            "pipeline": {
                "log": str(place),
                "window": "20s",
                "query": "select i.*, b.id is not null as bought from views i left join buys b on b.id = i.id",
            },
            "features": {"label": "bought", "categorical": ["site"]},
            "train": {"checkpoint_every_s": 1e-9},
            "output": {"path": str(place / "model"), "publish_every_s": 1e-9},
        },
        "test",
    )


def train(place: Path, kill_at: int) -> None:
    from penstock import kill

    kill._left = kill_at
    this = job(place)
    source = this.source()
    resume = (place / "model/checkpoint/manifest.json").exists()
    this.run(this.model(source), source, resume=resume, progress=False)


def feed(place: Path, kill_at: int) -> None:
    from penstock import kill
    from penstock.stream.chain import feed_stream

    kill._left = kill_at
    for _ in feed_stream(job(place).pipeline, follow=False):
        pass


def run(what: Callable[[Path, int], None], place: Path, kill_at: int) -> int:
    process = processes().Process(target=what, args=(place, kill_at))
    process.start()
    process.join(120)
    assert process.exitcode is not None, f"{what.__name__} hangs after kill point {kill_at}"
    return process.exitcode


def model_bytes(place: Path) -> dict[str, bytes]:
    root = place / "model"
    manifest = read_manifest(root)
    assert not (root / "checkpoint").exists()
    files = [file["path"] for table in manifest["tables"].values() for file in table_files(table)]
    found = {path.split("/")[1]: (root / path).read_bytes() for path in files}
    position = {k: v for k, v in manifest["lineage"]["position"].items() if k != "watermark"}
    return {**found, "position": repr(position).encode(), "metrics": repr(manifest["metrics"]).encode()}


def recorded(place: Path) -> dict[str, list[Any]]:
    """What is in the log besides the streams: once each."""
    log = Log(str(place))
    found: dict[str, list[Any]] = {}
    for name in STREAMS:
        rows = log.quarantine(name).read().to_pylist()
        found[name] = sorted((row["reason"], row["seq"], row["step"]) for row in rows)
        assert len(set(found[name])) == len(found[name])
    found["steps"] = [dict(step.ends) for step in log.progress.steps()]
    from penstock.log.ledger import Ledger
    from penstock.stream.records import SEALED

    sealed = Ledger(f"{place}/_pipelines/main", SEALED, ordered_by="step").read().to_pylist()
    found["sealed"] = sorted((row["step"], row["window_begin"]) for row in sealed)
    assert len(set(found["sealed"])) == len(found["sealed"])
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("template") / "log"
    make_log(place)
    return place


@pytest.mark.parametrize("first", range(1, 1 + PARTS))
def test_training_killed_at_each_point_ends_with_the_same_model(
    template: Path, tmp_path: Path, first: int
) -> None:
    whole = shutil.copytree(template, tmp_path / "whole")
    assert run(train, whole, 0) == 0
    expected, in_log = model_bytes(whole), recorded(whole)
    assert [reason for reason, *_ in in_log["views"]] == ["late"]
    assert in_log["sealed"]
    for point in itertools.count(first, PARTS):
        place = shutil.copytree(template, tmp_path / f"killed-{point}")
        ended = run(train, place, point)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        assert run(train, place, 0) == 0
        assert model_bytes(place) == expected, f"after kill point {point}"
        assert recorded(place) == in_log, f"after kill point {point}"
    assert point > 20


def test_a_fed_stream_killed_at_each_point_has_each_example_once(template: Path, tmp_path: Path) -> None:
    def examples(place: Path) -> list[dict[str, Any]]:
        import duckdb

        stream = Log(str(place)).stream("examples")
        files = [stream.folder.place(file) for file in stream.files()]
        rows = duckdb.sql(
            f"select * exclude (_arrival, event_date, event_hour) from read_parquet({files!r}) order by _seq"
        )
        return rows.to_arrow_table().to_pylist()

    whole = shutil.copytree(template, tmp_path / "whole")
    assert run(feed, whole, 0) == 0
    expected = examples(whole)
    assert {row["example_kind"] for row in expected} == {"first", "retraction", "correction"}
    for point in itertools.count(1):
        place = shutil.copytree(template, tmp_path / f"killed-{point}")
        if run(feed, place, point) == 0:
            break
        assert run(feed, place, 0) == 0
        assert examples(place) == expected, f"after kill point {point}"
    assert point > 10


def test_a_zombie_that_goes_on_after_its_successor_appends_nothing(tmp_path: Path) -> None:
    """Two who bring the same part of a source: the one that comes second is told so, and where to go on."""
    make_log(tmp_path)
    zombie, successor = Log(str(tmp_path)).stream("views"), Log(str(tmp_path)).stream("views")
    events = pa.table({"ts": pa.array([T0]).cast(TIMESTAMP), "id": ["x"]})
    successor.append(events, producer="broker/0", start=0, end=1)
    end = successor.end
    with pytest.raises(PositionMoved) as caught:
        zombie.append(events, producer="broker/0", start=0, end=1)
    assert caught.value.position == 1
    zombie.append(events, producer="broker/0", start=1, end=2)
    successor.refresh()
    assert successor.end == end + 1
