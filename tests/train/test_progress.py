"""What a run tells: lines, JSON lines, a bar that fits its terminal, and each at its own pace."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.metrics import BinaryMetrics, Scores
from penstock.train import progress
from penstock.train.progress import Bar, JsonLines, Lines, Progress, Report, human, memory_nbytes, reporter_for


def metrics_of(rows: int, seed: int = 0) -> BinaryMetrics:
    random = np.random.default_rng(seed)
    metrics = BinaryMetrics()
    labels = random.integers(0, 2, rows).astype(np.float32)
    metrics.update((0.3 * labels + 0.6 * random.random(rows)).astype(np.float32), labels)
    return metrics


def scores_of(**some: float) -> Scores:
    names = Scores.__dataclass_fields__
    return Scores(**{**dict.fromkeys(names, 0.5), "rows": 10, **some})


def report_of(**some: object) -> Report:
    scores = scores_of(logloss=0.123456, auc=0.76543)
    report = {
        "seconds": 2.0,
        "rows": 1_234_567,
        "done": 0.25,
        "scores": scores,
        "recent": scores,
        "features": 12_345,
        "table_nbytes": 1 << 20,
        "at_s": 1_700_000_000.25,
    }
    return Report(**{**report, **some})


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "memory_nbytes", lambda: 345_678_901)


# Numbers for people.


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "", "0"),
        (7, "", "7"),
        (999, "", "999"),
        (0.25, "", "0.25"),
        (1000, "", "1 k"),
        (1234, "", "1.23 k"),
        (12_345, "", "12.3 k"),
        (123_456, "", "123 k"),
        (1_000_000, "", "1 M"),
        (1.5e9, "", "1.5 G"),
        (123e9, "", "123 G"),
        (-1234, "", "-1.23 k"),
        (7, "B", "7 B"),
        (1234, "B", "1.23 kB"),
        (345_678_901, "B", "346 MB"),
    ],
)
def test_numbers_for_people(number: float, unit: str, text: str) -> None:
    assert human(number, unit) == text


def test_mean_speed() -> None:
    assert report_of(seconds=2.0, rows=10).rows_per_s == 5.0
    assert report_of(seconds=0.0, rows=10).rows_per_s == 0.0


@pytest.mark.parametrize(("platform", "nbytes"), [("linux", 7_168), ("darwin", 7)])
def test_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch, platform: str, nbytes: int) -> None:
    # Linux counts in KiB, macOS in bytes.
    usage = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=7), RUSAGE_SELF=0)
    monkeypatch.setattr(progress, "resource", usage)
    monkeypatch.setattr(progress.sys, "platform", platform)
    assert memory_nbytes() == nbytes


def test_memory_of_this_process_is_plausible() -> None:
    assert 10 << 20 < memory_nbytes() < 1 << 40


# Lines.


def test_lines_are_a_table(memory: None) -> None:
    stream = io.StringIO()
    with Lines(stream) as lines:
        lines.report(report_of())
        lines.report(
            report_of(seconds=3600.0, rows=12_345_678_901, scores=scores_of(logloss=math.nan, auc=math.nan))
        )
    assert stream.getvalue() == (
        " seconds         rows   rows/s  logloss     AUC  features   memory\n"
        "     2.0    1,234,567    617 k  0.12346  0.7654    12.3 k   346 MB\n"
        "  3600.0 12,345,678,901   3.43 M      nan     nan    12.3 k   346 MB\n"
    )


def test_while_nothing_is_learnt_there_is_a_line_a_minute() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for seconds, rows in ((2.0, 5), (4.0, 5), (61.0, 5), (63.0, 5), (65.0, 6), (124.0, 6), (126.0, 6)):
        lines.report(report_of(seconds=seconds, rows=rows))
    assert [float(line.split()[0]) for line in stream.getvalue().splitlines()[1:]] == [2.0, 63.0, 65.0, 126.0]


def test_lines_are_seen_at_once() -> None:
    class Buffered(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Buffered()
    Lines(stream).report(report_of())
    assert stream.flushed == 1


# JSON lines.


def test_json_lines_are_appended(tmp_path: Path, memory: None) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"rows": 0}\n')
    with JsonLines(path) as lines:
        lines.report(report_of())
        # Another program may read what is there so far.
        assert len(path.read_text().splitlines()) == 2
        lines.report(report_of(done=None, recent=scores_of(auc=math.nan)))
    _, first, second = map(json.loads, path.read_text().splitlines())
    assert first == {
        "at": 1_700_000_000.25,
        "seconds": 2.0,
        "rows": 1_234_567,
        "done": 0.25,
        "rows_per_s": 617_283.5,
        "features": 12_345,
        "table_nbytes": 1 << 20,
        "memory_nbytes": 345_678_901,
        "progressive": scores_of(logloss=0.123456, auc=0.76543).to_json(),
        "recent": scores_of(logloss=0.123456, auc=0.76543).to_json(),
    }
    # JSON has no nan.
    assert second["done"] is None and second["recent"]["auc"] is None
    assert "NaN" not in path.read_text()


def test_the_longer_a_run_the_rarer_are_its_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "progress.jsonl")
    found = []
    for seconds in (1.0, 1000.0, 2000.0, 10_000.0, 100_000.0):
        lines.report(report_of(seconds=seconds))
        found.append(lines.interval_s)
    assert found == [0.5, 0.5, 1.0, 5.0, 10.0]
    assert JsonLines(tmp_path / "other.jsonl").interval_s == 0.5


def test_where_streams_stand_is_for_programs_alone(tmp_path: Path) -> None:
    pipeline = {"streams": {"clicks": {"lag_s": 1.5}}}
    JsonLines(tmp_path / "progress.jsonl").report(report_of(pipeline=pipeline))
    assert json.loads((tmp_path / "progress.jsonl").read_text())["pipeline"] == pipeline
    stream = io.StringIO()
    Lines(stream).report(report_of(pipeline=pipeline))
    assert "clicks" not in stream.getvalue()


def test_a_run_goes_on_where_its_progress_cannot_be_written(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "nowhere" / "progress.jsonl") as lines:
        lines.report(report_of())
    assert not list(tmp_path.iterdir())


# The bar.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> Terminal:
    """Make standard error a terminal that understands cursor movement.

    Called by a test, not a fixture: pytest puts its own standard error in place between the two.
    """
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def lines_on(terminal: Terminal) -> list[str]:
    """What was drawn, line by line, without its colours and movements."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (120, "1.23 M rows  617 k/s  logloss 0.1235  AUC 0.7654  12.3 k features  346 MB"),
        (90, "1.23 M rows  617 k/s  logloss 0.1235  AUC 0.7654  346 MB"),
        (80, "1.23 M rows  617 k/s  logloss 0.1235  AUC 0.7654"),
        (60, "1.23 M rows  617 k/s  346 MB"),
        (42, "1.23 M rows"),
    ],
)
def test_the_bar_fits_its_terminal(
    memory: None, monkeypatch: pytest.MonkeyPatch, columns: int, shown: str
) -> None:
    terminal = on_terminal(monkeypatch, columns)
    with Bar() as bar:
        bar.report(report_of(done=0.25))
        bar.report(report_of(done=1.0))
    drawn = lines_on(terminal)
    assert max(map(len, drawn)) <= columns
    assert drawn[-1].startswith("train ") and "100%" in drawn[-1]
    assert drawn[-1].rstrip().endswith(shown)


def test_the_bar_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), Bar() as bar:
        bar.report(report_of())
        raise KeyboardInterrupt
    drawn = terminal.getvalue()
    assert "\x1b[?25l" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert " 25%" in lines_on(terminal)[-1]


def test_a_bar_of_work_that_is_not_known_stays_at_0(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with Bar() as bar:
        bar.report(report_of(done=None))
    assert "  0%" in lines_on(terminal)[-1]


@pytest.mark.parametrize("scores", [scores_of(logloss=math.nan, auc=math.nan), scores_of(logloss=12.5, auc=1.0)])
def test_a_bar_of_any_scores_is_one_line(monkeypatch: pytest.MonkeyPatch, scores: Scores) -> None:
    terminal = on_terminal(monkeypatch)
    with Bar() as bar:
        bar.report(report_of(scores=scores, rows=123_456_789_012, seconds=0.001, features=123_456_789))
    assert all(line.startswith("train ") and len(line) <= 80 for line in lines_on(terminal))


def test_a_reporter_for_terminal_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    assert isinstance(reporter_for(True), Bar) and isinstance(reporter_for(None), Bar)
    assert reporter_for(False) is None
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert reporter_for(None) is None and reporter_for(False) is None
    shown = reporter_for(True)
    assert isinstance(shown, Lines)
    shown.report(report_of())
    assert len(file.getvalue().splitlines()) == 2


# Pace.


class Recorder:
    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.reports: list[Report] = []

    def report(self, report: Report) -> None:
        self.reports.append(report)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``clock.now`` is the time that progress sees."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_each_reporter_has_its_own_pace(clock: SimpleNamespace) -> None:
    fast, slow = Recorder(0.5), Recorder(2.0)
    run = Progress([fast, slow], BinaryMetrics(), size=None)
    for step in range(17):
        clock.now = 1000 + step / 4
        run.rows = step
        run.tick(0.0, 0, 0)
    assert [report.seconds for report in fast.reports] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert [report.seconds for report in slow.reports] == [0, 2, 4]
    assert [report.rows for report in slow.reports] == [0, 8, 16]


def test_a_pause_is_made_up_for_by_one_report(clock: SimpleNamespace) -> None:
    reporter = Recorder(1.0)
    run = Progress([reporter], BinaryMetrics(), size=None)
    for now in (1000.0, 1000.9, 1007.3, 1007.4, 1008.2, 1008.4):
        clock.now = now
        run.tick(0.0, 0, 0)
    assert [round(report.seconds, 6) for report in reporter.reports] == [0, 7.3, 8.4]


def test_the_final_report_comes_to_all_whatever_the_time(clock: SimpleNamespace) -> None:
    reporters = [Recorder(0.5), Recorder(1e9)]
    run = Progress(reporters, BinaryMetrics(), size=4.0)
    run.tick(1.0, 10, 100)
    clock.now += 0.01
    run.tick(2.0, 20, 200)
    run.tick(4.0, 30, 300, final=True)
    for reporter in reporters:
        assert reporter.reports[-1].done == 1.0
        assert (reporter.reports[-1].features, reporter.reports[-1].table_nbytes) == (30, 300)
    assert [report.done for report in reporters[0].reports] == [0.25, 1.0]


def test_nothing_is_computed_where_nobody_is_told(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = BinaryMetrics()
    run = Progress([Recorder(10.0)], metrics, size=None)
    run.tick(0.0, 0, 0)
    monkeypatch.setattr(BinaryMetrics, "scores", None)
    for _ in range(9):
        clock.now += 1
        run.tick(0.0, 0, 0)
    clock.now += 1
    with pytest.raises(TypeError):
        run.tick(0.0, 0, 0)


@pytest.mark.parametrize(
    ("work", "size", "done"), [(0.0, 8, 0.0), (2.0, 8, 0.25), (9.0, 8, 1.0), (5.0, None, None)]
)
def test_the_share_that_is_done(
    clock: SimpleNamespace, work: float, size: float | None, done: float | None
) -> None:
    reporter = Recorder(1.0)
    Progress([reporter], BinaryMetrics(), size=size).tick(work, 0, 0)
    assert reporter.reports[0].done == done


def test_recent_is_since_the_report_before(clock: SimpleNamespace) -> None:
    reporter, metrics = Recorder(1.0), BinaryMetrics()
    run = Progress([reporter], metrics, size=None)
    run.tick(0.0, 0, 0)
    parts = [metrics_of(rows, seed=rows) for rows in (100, 20, 300)]
    for part, seconds in zip(parts, (0.5, 0.5, 1.0), strict=True):
        metrics.merge(part)
        clock.now += seconds
        run.tick(0.0, 0, 0)
    assert [report.scores.rows for report in reporter.reports] == [0, 120, 420]
    assert [report.recent.rows for report in reporter.reports] == [0, 120, 300]
    assert reporter.reports[2].recent.logloss == pytest.approx(parts[2].scores().logloss, rel=1e-9)
    assert reporter.reports[2].recent.auc == parts[2].scores().auc
    assert reporter.reports[2].scores == metrics.scores()


def test_recent_windows_of_each_reporter_follow_each_other(clock: SimpleNamespace) -> None:
    fast, slow = Recorder(1.0), Recorder(3.0)
    metrics = BinaryMetrics()
    run = Progress([fast, slow], metrics, size=None)
    for rows in (10, 20, 30, 40, 50, 60, 70):
        metrics.merge(metrics_of(rows))
        run.tick(0.0, 0, 0)
        clock.now += 1
    assert [report.recent.rows for report in fast.reports] == [10, 20, 30, 40, 50, 60, 70]
    assert [report.recent.rows for report in slow.reports] == [10, 20 + 30 + 40, 50 + 60 + 70]


def test_a_resumed_run_counts_on(clock: SimpleNamespace) -> None:
    reporter = Recorder(1.0)
    run = Progress([reporter], metrics_of(50), size=100)
    run.rows, run.seconds_before = 500, 40.0
    clock.now += 10
    run.rows += 500
    run.tick(50.0, 0, 0)
    assert run.seconds == reporter.reports[0].seconds == 50.0
    assert reporter.reports[0].rows_per_s == 20.0
    # What the interrupted run saw is not recent.
    assert (reporter.reports[0].scores.rows, reporter.reports[0].recent.rows) == (50, 0)
