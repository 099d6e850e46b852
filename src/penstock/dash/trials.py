"""The figures of a comparison: one job trained under several strategies, as ``penstock compare`` measured it.

Plain records that go to JSON and come back equal, so that a page can be drawn again from a file. Nothing here
trains, measures or prints.
"""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import ConfigError, DataError, StorageError
from penstock.storage import write_atomically

__all__ = [
    "Comparison",
    "JobSummary",
    "Machine",
    "Point",
    "Trial",
    "WorkerFigures",
    "load_comparison",
    "save_comparison",
]

FORMAT = 1


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What JSON cannot hold is replaced at once, so that a record read back equals the one written."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            msgspec.structs.force_setattr(self, name, _storable(getattr(self, name)))

    def _expect_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float) or value < 0:
                raise ConfigError(f"{type(self).__name__}: {name} must be finite and >= 0, got {value}")


class Point(_Record, frozen=True):
    """Where a run stood. Scores are None (or nan, which becomes None) where they are not defined."""

    seconds: float
    """Since the run began to learn."""
    rows: int
    logloss: float | None
    """Progressive, of all rows so far; nats."""
    recent_logloss: float | None = None
    """Of the rows since the last point."""
    auc: float | None = None
    """Progressive, of all rows so far."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("seconds", "rows")


class WorkerFigures(_Record, frozen=True):
    """What one worker did."""

    name: str
    rows: int
    batches: int
    busy_s: float
    idle_s: float
    stolen: int = 0
    """Batches taken over from another worker."""
    waits_s: dict[str, float] = {}
    """Idle seconds by cause: "pull", "read", "work" or another word."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("rows", "batches", "busy_s", "idle_s", "stolen")
        if any(not isinstance(seconds, int | float) or seconds < 0 for seconds in self.waits_s.values()):
            raise ConfigError(f"{self.name}: waits_s must be finite and >= 0, got {self.waits_s}")

    @property
    def idle_share(self) -> float | None:
        """0 to 1; None where no time was measured."""
        whole = self.busy_s + self.idle_s
        return self.idle_s / whole if whole > 0 else None


class Trial(_Record, frozen=True):
    """One strategy's run. A failed one has ``error``, and whatever else is known."""

    name: str
    """``bsp``, ``ssp:4``, ``asp``, ``tree``, ``online``."""
    description: str = ""
    """One line."""
    rows: int = 0
    """Learnt."""
    seconds: float = 0.0
    minibatch: int = 1
    """Rows whose gradients are summed before an update."""
    servers: int = 0
    workers: int = 1
    curve: tuple[Point, ...] = ()
    """By rising seconds."""
    scores: dict[str, float | None] = {}
    """Progressive, at the end: ``Scores.to_json()``."""
    holdout: dict[str, float | None] | None = None
    """The same on rows that were not learnt."""
    by_worker: tuple[WorkerFigures, ...] = ()
    staleness: dict[int, int] = {}
    """Number of micro-batches by how many updates were applied between their pull and their push."""
    bytes_in: int = 0
    """Received by the servers, payload and headers."""
    bytes_out: int = 0
    events: tuple[tuple[float, str], ...] = ()
    """Seconds since the run began, and what happened."""
    error: str | None = None
    """Why it failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("rows", "seconds", "minibatch", "servers", "workers", "bytes_in", "bytes_out")
        if any(at < 0 or count < 0 for at, count in self.staleness.items()):
            raise ConfigError(f"trial {self.name!r}: staleness and its counts must be >= 0, got {self.staleness}")

    @property
    def rows_per_s(self) -> float | None:
        """Mean speed; None where no time was measured."""
        return self.rows / self.seconds if self.seconds > 0 else None

    @property
    def logloss(self) -> float | None:
        """Progressive, at the end."""
        return self.scores.get("logloss")

    @property
    def bytes_per_row(self) -> float | None:
        """Both directions; None where nothing went over the wire."""
        whole = self.bytes_in + self.bytes_out
        return whole / self.rows if self.rows and whole else None

    @property
    def idle_shares(self) -> tuple[float, ...]:
        """Of each worker whose time was measured."""
        return tuple(share for worker in self.by_worker if (share := worker.idle_share) is not None)

    def staleness_at(self, quantile: float) -> int | None:
        """The smallest staleness that at least this share of micro-batches does not exceed; None without any."""
        counts = sorted((at, count) for at, count in self.staleness.items() if count)
        need, seen = quantile * sum(count for _, count in counts), 0
        for at, count in counts:
            seen += count
            if seen >= need:
                return at
        return None

    def points(self) -> tuple[Point, ...]:
        """The curve, by rising rows, without undefined points, and through to the final scores."""
        known = [point for point in self.curve if point.logloss is not None]
        if self.logloss is not None and self.rows and (not known or known[-1].rows < self.rows):
            end = Point(seconds=self.seconds, rows=self.rows, logloss=self.logloss, auc=self.scores.get("auc"))
            known.append(end)
        return tuple(known)


class JobSummary(_Record, frozen=True):
    """What was trained."""

    files: tuple[str, ...]
    rows: int | None = None
    """Of the data, where known."""
    features: str = ""
    """In words: ``39 columns, 1.2 M keys``."""
    optimizer: str = ""
    """In words: ``FTRL (alpha 0.1, beta 1)``."""


class Machine(_Record, frozen=True):
    """Where it was trained."""

    cores: int
    python: str
    penstock: str


class Comparison(_Record, frozen=True):
    """One job under several strategies."""

    job: JobSummary
    machine: Machine
    when: datetime
    trials: tuple[Trial, ...]
    straggler: str | None = None
    """The worker that was slowed down on purpose, as the user gave it: ``1=4x``."""
    format: int = FORMAT

    def to_json(self) -> bytes:
        """One object, in UTF-8."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, text: bytes | str) -> Comparison:
        """What ``to_json`` wrote.

        Raises:
            DataError: not JSON, a field is missing, unknown or of another type, or a newer format.
        """
        try:
            version = msgspec.json.decode(text, type=_Version).format
            if version > FORMAT:
                raise DataError(f"comparison: format is {version}, this version reads up to {FORMAT}")
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"comparison: {error}") from None


class _Version(msgspec.Struct):
    format: int


def load_comparison(path: str | Path) -> Comparison:
    """Read what ``save_comparison`` wrote.

    Raises:
        DataError: the file is missing or is no comparison.
    """
    try:
        return Comparison.from_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def save_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write JSON, replacing the file at once.

    Raises:
        StorageError: the disk is full or the folder cannot be written; an older file is unharmed.
    """
    replace_file(Path(path), comparison.to_json())


def replace_file(path: Path, content: bytes) -> None:
    """Write beside the file, then take its place, so that a reader sees the old or the new one, whole.

    Raises:
        StorageError: the disk is full or the folder cannot be written; an older file is unharmed.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _storable(value: Any) -> Any:
    """Numbers that JSON has not become None, lone surrogates (file names of another encoding) a mark."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return tuple(_storable(part) for part in value)
    if isinstance(value, dict):
        return {_storable(key): _storable(part) for key, part in value.items()}
    return value
