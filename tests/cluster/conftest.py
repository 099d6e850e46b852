"""A small click log; clusters of threads and of processes; and after each test a look that nothing is left."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.data.clicks import ClickLog, write_clicks

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "models"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import harness  # noqa: E402

ROWS = 24_000


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of these tests, in every process that a test starts."""
    before = os.environ.get("PYTHONPATH")
    paths = [str(HERE), str(HERE.parent / "models"), *([before] if before else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Every thread that a test started has ended."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before]
    for thread in left:
        thread.join(10.0)
    assert not [t.name for t in left if t.is_alive()]


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24,000 rows in 12 row groups: 96 micro-batches of 256 rows."""
    folder = tmp_path_factory.mktemp("clicks") / "log"
    spec = ClickLog(rows=ROWS, numeric=2, categorical=4, distinct=5_000, row_group_rows=2048, events_per_s=1)
    write_clicks(spec, folder)
    return folder / "clicks-00000.parquet"


@pytest.fixture
def threads() -> Iterator[Callable[..., harness.Threads]]:
    """Makes engines whose roles are threads of this process."""
    made: list[harness.Threads] = []

    def make(**options: Any) -> harness.Threads:
        made.append(harness.Threads(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.check_gone()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., harness.Processes]]:
    """Makes engines whose roles are processes; faults come within hundredths of a second of what they wait for."""
    monkeypatch.setattr("penstock.engine.local.POLL_S", 0.02)
    made: list[harness.Processes] = []

    def make(**options: Any) -> harness.Processes:
        made.append(harness.Processes(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.check_gone()


@pytest.fixture
def roles(tmp_path: Path) -> Iterator[harness.Commands]:
    """``penstock`` commands in the background; what is still there when the test ends is an error."""
    commands = harness.Commands(tmp_path)
    yield commands
    commands.close()
