"""Event logs and pipelines from the command line, as a user meets them."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from penstock.models import read_manifest
from tests.cli.test_commands import Penstock, fails, penstock

__all__ = ["penstock"]

JOB = """
[streams]
impressions = { time = "ts", id = "request_id", lateness = "2m", idle = "1s" }
clicks = { time = "ts", id = "click_id", lateness = "30m", idle = "1s", within = "1d" }

[pipeline]
window = "5m"
label_wait = "10m"
query = \"\"\"
  select i.*, c.click_id is not null as clicked from impressions i left join clicks c
  on c.request_id = i.request_id and c.ts between i.ts and i.ts + interval 1 day
\"\"\"

[features]
label = "clicked"
categorical = ["site"]

[output]
publish_every_s = 0.1

[[views]]
name = "by_site"
by = "site"
sums = { clicks = "clicked" }
"""
EVENTS = 600
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def log(penstock: Penstock, tmp_path: Path) -> Path:
    """A log of two hours, all of it sealed by silence."""
    rng = random.Random(5)
    clicks = []
    with (tmp_path / "impressions.jsonl").open("w") as file:
        for n in range(EVENTS):
            at = BEGIN + timedelta(seconds=12 * n)
            event = {"ts": at.isoformat(), "request_id": f"r{n}", "site": f"s{n % 3}"}
            file.write(json.dumps(event) + "\n")
            if rng.random() < 0.2:
                clicks.append(
                    {"ts": (at + timedelta(seconds=40)).isoformat(), "click_id": f"c{n}", "request_id": f"r{n}"}
                )
        file.write("{broken\n")
    (tmp_path / "clicks.jsonl").write_text("".join(json.dumps(click) + "\n" for click in clicks))
    (tmp_path / "job.toml").write_text(JOB)
    for name in ("impressions", "clicks"):
        assert penstock("log", "append", "events", name, f"{name}.jsonl")[0] == 0
    return tmp_path


def test_append_again_tail_and_streams(penstock: Penstock, log: Path) -> None:
    status, out, _ = penstock("log", "append", "events", "clicks", "clicks.jsonl")
    assert status == 0 and "0 events appended" in out
    status, out, _ = penstock("log", "tail", "events", "impressions", "-n", "2")
    assert [json.loads(line)["request_id"] for line in out.splitlines()] == [f"r{EVENTS - 2}", f"r{EVENTS - 1}"]
    status, out, _ = penstock("log", "streams", "events")
    assert "clicks" in out and f"{EVENTS}" in out
    status, out, _ = penstock("log", "quarantine", "events", "impressions")
    assert "malformed" in out and "{broken" in out


def test_examples_of_a_day_and_as_a_live_run_learns_them(penstock: Penstock, log: Path) -> None:
    arguments = ("examples", "job.toml", "--from", "2026-11-01", "--to", "2026-11-02")
    status, out, err = penstock(*arguments, "--window", "1d", "-o", "day")
    assert status == 0 and f"{EVENTS:,} examples" in out, err
    day = pq.read_table(log / "day")
    assert {"request_id", "site", "clicked", "_time"} <= set(day.column_names)
    assert "_kind" not in day.column_names
    fails(penstock(*arguments, "-o", "day"), "has examples", "--overwrite")
    assert penstock(*arguments, "-o", "day", "--overwrite")[0] == 0
    assert pq.read_table(log / "day").sort_by("request_id").equals(day.sort_by("request_id"))
    status, out, _ = penstock(*arguments, "--changes", "-o", "changes")
    changes = pq.read_table(log / "changes")
    assert set(changes["_kind"].to_pylist()) == {"first"}
    (log / "mine").mkdir()
    (log / "mine/file").touch()
    fails(penstock(*arguments, "-o", "mine"), "has something else than examples (file)")
    fails(
        penstock("examples", "job.toml", "--from", "2026-11-02", "--to", "2026-11-01", "-o", "x"), "must be after"
    )


def test_examples_and_models_do_not_replace_each_other(penstock: Penstock, log: Path) -> None:
    arguments = ("--from", "2026-11-01", "--to", "2026-11-01T02:00")
    assert penstock("examples", "job.toml", *arguments, "-o", "examples")[0] == 0
    fails(penstock("train", "job.toml", *arguments, "-o", "examples"), "examples: has examples of a pipeline")
    assert penstock("train", "job.toml", *arguments, "-o", "model")[0] == 0
    before = sorted(each.name for each in (log / "model").iterdir())
    fails(penstock("examples", "job.toml", "-o", "model", "--overwrite"), "has something else than examples")
    assert sorted(each.name for each in (log / "model").iterdir()) == before


def test_a_range_is_cut_to_windows(penstock: Penstock, log: Path) -> None:
    inside = ("--from", "2026-11-01T00:03", "--to", "2026-11-01T00:14")
    status, out, err = penstock("examples", "job.toml", *inside, "-o", "some")
    assert status == 0 and "50 examples" in out, err  # from 00:00 and 00:05, one event in 12 seconds
    times = pq.read_table(log / "some")["_time"].to_pylist()
    assert (min(times), max(times)) == (BEGIN, BEGIN + timedelta(minutes=10, seconds=-12))
    none = ("--window", "1d", "--from", "2026-11-01T01:00", "--to", "2026-11-01T02:00", "-o", "none")
    fails(penstock("examples", "job.toml", *none), "lie in one window of 1d, and the window of --to is left out")


def test_the_quarantine_of_nothing(penstock: Penstock, log: Path) -> None:
    fails(penstock("log", "quarantine", "events", "nothing"), "there is no stream 'nothing'; streams: clicks")
    status, _, err = penstock("log", "quarantine", "events", "clicks", "--reason", "wrong")
    assert status == 2 and "'wrong' is not one of" in err
    fails(penstock("log", "tail", "elsewhere", "clicks"), "elsewhere: there is no log, or no stream in it yet")


def test_what_is_not_sealed_is_said(penstock: Penstock, log: Path) -> None:
    (log / "never.toml").write_text(JOB.replace('idle = "1s"', 'idle = "never"'))
    status, out, err = penstock("examples", "never.toml", "-o", "some")
    assert status == 0 and "0 examples" not in out
    assert "windows that still wait are left out" in err and "never idle" in err
    status, out, _ = penstock("why-waiting", "never.toml")
    assert status == 0 and "impressions" in out and "files" in out and "never idle" in out


def test_train_on_the_log_and_prove(penstock: Penstock, log: Path) -> None:
    status, out, err = penstock("train", "job.toml", "--from", "2026-11-01", "--to", "2026-11-01T02:00", "-o", "m")
    assert status == 0 and f"{EVENTS} rows" in out, err
    manifest = read_manifest(log / "m")
    assert manifest["lineage"]["position"]["ends"]["impressions"] == EVENTS
    assert {column["name"] for column in manifest["features"]["columns"]} == {"site"}
    status, out, _ = penstock("prove", "job.toml")
    assert status == 0 and "no row differs" in out
    fails(penstock("train", "job.toml", "--passes", "2"), "--passes", "job file")
    fails(penstock("train", "events", "--once"), "--once", "pipeline")


def test_servers_and_workers_learn_what_is_sealed(penstock: Penstock, log: Path) -> None:
    (log / "ps.toml").write_text(JOB.replace("[output]", "[train]\nservers = 1\nworkers = 1\n\n[output]"))
    fails(penstock("train", "ps.toml", "-o", "m"), "give --once or --to")
    status, _out, err = penstock("train", "ps.toml", "--to", "2026-11-01T02:00", "-o", "m", "-q")
    assert status == 0, err
    assert read_manifest(log / "m")["lineage"]["rows"] > EVENTS // 2


def test_views(penstock: Penstock, log: Path) -> None:
    assert penstock("view", "follow", "job.toml", "--once")[0] == 0
    _, followed, _ = penstock("view", "show", "job.toml", "by_site", "--json")
    assert penstock("view", "batch", "job.toml")[0] == 0
    _, computed, _ = penstock("view", "show", "job.toml", "by_site", "--json")
    assert computed == followed and len(computed.splitlines()) == 3
    _status, out, _ = penstock("view", "show", "job.toml", "by_site")
    assert "batch view up to step" in out
    fails(penstock("view", "show", "job.toml", "by_user"), "there is no view 'by_user'")


def test_feed_another_pipeline(penstock: Penstock, log: Path) -> None:
    assert penstock("examples", "job.toml", "--to", "2026-11-01T02:00", "-o", "sealed")[0] == 0
    status, out, _ = penstock("feed", "job.toml", "--once")
    assert status == 0 and "examples appended to examples" in out and not out.startswith("0 ")
    assert penstock("feed", "job.toml", "--once")[1].startswith("0 examples")
    second = """
        [streams]
        examples = { idle = "1s" }
        [pipeline]
        name = "second"
        window = "1h"
        query = "select e.site, e.clicked from examples e where e.example_kind = 'first'"
    """
    (log / "second.toml").write_text(second)
    status, out, err = penstock("examples", "second.toml", "--to", "2026-11-01T02:00", "-o", "again")
    assert status == 0, err
    assert pq.read_table(log / "again").num_rows == EVENTS


def test_late_events_are_quarantined_and_readmitted(penstock: Penstock, log: Path) -> None:
    assert penstock("examples", "job.toml", "--to", "2026-11-01T02:00", "-o", "first")[0] == 0
    late = {"ts": BEGIN.isoformat(), "request_id": "late", "site": "s0"}
    (log / "late.jsonl").write_text(json.dumps(late) + "\n")
    assert penstock("log", "append", "events", "impressions", "late.jsonl")[0] == 0
    assert penstock("examples", "job.toml", "-o", "second")[0] == 0
    assert "late" not in pq.read_table(log / "second")["request_id"].to_pylist()
    status, out, _ = penstock("log", "quarantine", "events", "impressions", "--reason", "late", "--json")
    assert "behind the watermark" in json.loads(out)["detail"]
    status, out, _ = penstock("readmit", "events", "impressions", "--reason", "late")
    assert status == 0 and "1 events of impressions count from step" in out
    assert "nothing to readmit" in penstock("readmit", "events", "impressions", "--reason", "late")[1]
    assert penstock("examples", "job.toml", "--changes", "-o", "third")[0] == 0
    third = pq.read_table(log / "third").to_pylist()
    assert [row["_kind"] for row in third if row["request_id"] == "late"] == ["late"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("select i.*,", "selec i.*,", ["pipeline.query"]),
        ("from impressions i", "from impresions i", ["impresions"]),
        ("c.click_id is not null", "now() > c.ts", ["now"]),
        ('window = "5m"', 'window = "5 fortnights"', ["pipeline.window", "5 fortnights", "5m"]),
        ('lateness = "2m"', "patience = 2", ["streams.impressions.patience", "lateness"]),
        ('time = "ts", id = "request_id"', 'time = "when", id = "request_id"', ["'when'", "'ts'"]),
        ("impressions = {", "impresions = {", ["impresions"]),
        ('label = "clicked"', 'label = "bought"', ["bought"]),
        (
            'label = "clicked"',
            'label = "request_id"',
            ["features.label: column 'request_id' is of type string; allowed: 0 or 1"],
        ),
        ("[features]", "[feature]", ["feature is not known; allowed: aggregates, features, optimizer"]),
        ('id = "click_id"', 'id = "clickid"', ["streams.clicks.id: got 'clickid'", "ts, click_id, request_id"]),
        ('idle = "1s"', 'idle = "nevr"', ["streams.impressions.idle: got 'nevr'", "or never"]),
        ("label_wait", 'late_positives = "duplicate"\nlabel_wait', ["pipeline.on_time is missing", "label-delay"]),
        ("select i.*,", "select i.*, cast(i.site as int) as n,", ["Could not convert string 's"]),
    ],
)
def test_bad_jobs_are_one_clear_line(penstock: Penstock, log: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in JOB
    (log / "bad.toml").write_text(JOB.replace(old, new))
    fails(penstock("train", "bad.toml", "--once", "-o", "m"), *parts)
    assert not (log / "m/manifest.json").exists()


def test_a_run_says_where_each_stream_stands(penstock: Penstock, log: Path) -> None:
    assert penstock("train", "job.toml", "--once", "-o", "m")[0] == 0
    last = json.loads((log / "m" / "progress.jsonl").read_text().splitlines()[-1])
    found = last["pipeline"]
    assert found["streams"].keys() == {"impressions", "clicks"} and found["quarantined"] == 0
    for stream in found["streams"].values():
        assert stream["events"] > 0 and stream["lag_s"] >= 0 and stream["watermark"].endswith("Z")
        assert "lateness" in stream["why"]


def test_a_fork_takes_the_place_of_a_run_that_follows(log: Path) -> None:
    def begin(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "penstock.cli.main", "train", "job.toml", "-o", "m", *more]
        return subprocess.Popen(command, cwd=log, stderr=subprocess.PIPE, text=True)

    def until(condition: Any, what: str) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    def version() -> int:
        with contextlib.suppress(Exception):
            return int(read_manifest(log / "m")["version"])
        return 0

    def is_refused(*more: str) -> bool:
        with begin(*more) as other:
            assert other.wait(90) == 2 and other.stderr is not None
            return "another run writes here (process" in other.stderr.read()

    with begin() as first:
        until(lambda: version() > 0, "the first run publishes no model")
        assert is_refused() and is_refused("--resume")
        with begin("--fork", "--from", "2026-11-01T01:00") as fork:
            assert first.wait(90) == 130, "the first run is asked to stop, and leaves a checkpoint"
            until(lambda: read_manifest(log / "m")["lineage"]["settings"]["strategy"]["from"], "no swap")
            fork.terminate()
            assert fork.wait(90) == 130 and fork.stderr is not None
            assert "the fork has caught up, and has taken the place of the model in m" in fork.stderr.read()
    assert read_manifest(log / "m")["lineage"]["rows"] == EVENTS // 2
    assert (log / "m/checkpoint/manifest.json").exists()
    assert not (log / "m/fork/manifest.json").exists()
