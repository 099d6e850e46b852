"""A log: a folder (or a place in an object store) with a Delta table for each stream of events.

events/impressions/     a stream's events, which DuckDB, Polars and Spark read as they are
events/clicks/
events/_quarantine/…    what could not be taken, by stream
events/_progress/       steps: what was known when
events/_pipelines/…     what pipelines recorded of themselves, by name
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import pyarrow as pa

from penstock.errors import ConfigError, DataError, StorageError
from penstock.log.delta import DeltaFolder
from penstock.log.events import EventStream, StreamSettings
from penstock.log.progress import Progress, Step
from penstock.log.quarantine import Quarantine
from penstock.log.times import now_us

__all__ = ["Log", "check_name"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TIME_COLUMNS = ("ts", "time", "timestamp", "event_time", "at", "created_at")


def check_name(name: str, what: str = "stream") -> str:
    """The name, if SQL and folders can have it.

    Raises:
        ConfigError: they cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what}: got the name {name!r}, allowed: up to 63 small letters, digits and _, a letter first"
        )
    return name


class Log:
    """A log at a place. Opening it touches nothing; a handle is not for several threads at once."""

    def __init__(self, place: str) -> None:
        """Name the place: a path or a URL of fsspec."""
        self.place = str(place).rstrip("/") or "/"
        self.progress = Progress(f"{self.place}/_progress")
        self._streams: dict[str, EventStream] = {}

    def streams(self) -> list[str]:
        """Names of the streams that are there."""
        fs, root = fsspec.core.url_to_fs(self.place)
        try:
            names = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.place}: cannot be read: {error.strerror or error}") from error
        return sorted(name for name in names if _NAME.fullmatch(name) and DeltaFolder.exists(self._uri(name)))

    def check_there(self) -> None:
        """What was open before is still there.

        Raises:
            DataError: the folder is gone. (An object store tells by itself; of a folder that is gone the library
                says that there is nothing new.)
        """
        if "://" not in self.place and not Path(self.place).is_dir():
            raise DataError(f"{self.place}: there is no such folder any more")

    def has(self, name: str) -> bool:
        """Whether there is such a stream."""
        return name in self._streams or DeltaFolder.exists(self._uri(check_name(name)))

    def stream(self, name: str) -> EventStream:
        """A stream at its newest version; the same handle each time.

        Raises:
            DataError: there is none.
        """
        found = self._streams.get(name)
        if found is None:
            check_name(name)
            if not DeltaFolder.exists(self._uri(name)):
                there = ", ".join(self.streams())
                if not there:
                    raise DataError(f"{self.place}: there is no log, or no stream in it yet; looked for {name!r}")
                raise DataError(f"{self.place}: there is no stream {name!r}; streams: {there}")
            found = self._streams[name] = EventStream(name, DeltaFolder(self._uri(name)), self.quarantine(name))
        else:
            found.refresh()
        return found

    def known(self, name: str) -> EventStream:
        """A stream at the version at which this log has it open: for whoever reads events of known places.

        Raises:
            DataError: there is none.
        """
        return self._streams.get(name) or self.stream(name)

    def create(
        self, name: str, fields: Sequence[pa.Field], *, time: str | None = None, id: str | None = None
    ) -> EventStream:
        """Make a stream with these columns, or open it where it is.

        Args:
            time: the column of the event time; one of the usual names where None.
            id: the column that identifies an event.

        Raises:
            DataError: a column is missing, or no time column can be told.
            ConfigError: the stream is there and has another time or id column.
        """
        check_name(name)
        if not DeltaFolder.exists(self._uri(name)):
            names = [field.name for field in fields]
            if time is None:
                time = next((column for column in _TIME_COLUMNS if column in names), None)
            if time is None:
                raise DataError(
                    f"stream {name}: which column is the event time? Say it with time (--time), one of "
                    f"{', '.join(names)}"
                )
            settings = StreamSettings(time=time, id=id)
            self._make_folder()
            made = EventStream.create(name, self._uri(name), fields, settings, self.quarantine(name))
            self._streams[name] = made
            return made
        stream = self.stream(name)
        for what, got, is_ in (("time", time, stream.settings.time), ("id", id, stream.settings.id)):
            if got is not None and got != is_:
                raise ConfigError(f"stream {name}: its {what} column is {is_!r} since it was made, got {got!r}")
        return stream

    def quarantine(self, name: str) -> Quarantine:
        """The quarantine of a stream."""
        return Quarantine(f"{self.place}/_quarantine/{check_name(name)}")

    def step(
        self,
        *,
        tick_us: int | None = None,
        readmit: Mapping[str, Sequence[int]] | None = None,
        unchanged: bool = True,
    ) -> Step:
        """Record what is there now as a step; see ``Progress.take``."""
        return self.progress.take(
            now_us() if tick_us is None else tick_us, self._look, readmit=readmit, unchanged=unchanged
        )

    def _look(self) -> tuple[dict[str, int], dict[str, int]]:
        streams = [self.stream(name) for name in self.streams()]
        return {s.name: s.end for s in streams}, {s.name: s.version for s in streams}

    def _uri(self, name: str) -> str:
        return f"{self.place}/{name}"

    def _make_folder(self) -> None:
        fs, root = fsspec.core.url_to_fs(self.place)
        try:
            fs.makedirs(root, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.place}: cannot be made: {error.strerror or error}") from error
