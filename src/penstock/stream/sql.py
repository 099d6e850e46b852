"""DuckDB: the one place that imports it. One database in memory for each reader of a pipeline.

Results depend on the data alone: the time zone is UTC, nothing is loaded from the network, and whoever needs an
order asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from penstock.errors import ConfigError, DataError, StorageError
from penstock.version import the_extra

__all__ = ["Database", "identifier", "literal"]

_SETTINGS = (
    "set TimeZone = 'UTC'",
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set enable_progress_bar = false",
    "set preserve_insertion_order = false",
    "set default_null_order = 'nulls_last'",
)


def identifier(name: str) -> str:
    """A name in quotes, as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Text in quotes, as SQL takes it."""
    return "'" + text.replace("'", "''") + "'"


class Database:
    """A connection; not for several threads at once."""

    def __init__(self, *, threads: int | None = None) -> None:
        """Open one in memory, with so many threads (all cores where None).

        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            import duckdb
        except ImportError as error:
            raise ConfigError(f"pipelines need {the_extra('stream')}") from error
        self._duckdb = duckdb
        self.connection = duckdb.connect()
        for setting in _SETTINGS:
            self.connection.execute(setting)
        if threads is not None:
            self.connection.execute(f"set threads = {int(threads)}")

    def run(self, sql: str) -> None:
        """Run a statement.

        Raises:
            DataError: what it reads is damaged, or a value is not as the query wants it.
            StorageError: there is no room for what it must put aside.
        """
        self._fetch(lambda: self.connection.execute(sql))

    def table(self, sql: str) -> pa.Table:
        """The rows of a query."""
        found: pa.Table = self._fetch(lambda: self.connection.sql(sql).to_arrow_table())
        return found

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a small query."""
        found: list[tuple[Any, ...]] = self._fetch(lambda: self.connection.execute(sql).fetchall())
        return found

    def prepare(self, sql: str) -> Any:
        """A statement with parameters ``$1``, ``$2``, ... for ``values``."""
        return self._fetch(lambda: self.connection.extract_statements(sql))[0]

    def values(self, statement: Any, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows of a prepared statement, for few values sooner than ``table``."""
        found: list[tuple[Any, ...]] = self._fetch(
            lambda: self.connection.execute(statement, list(parameters)).fetchall()
        )
        return found

    def register(self, name: str, table: Any) -> None:
        """Make an Arrow table or dataset known under a name, instead of what had it before."""
        self.connection.register(name, table)

    def unregister(self, name: str) -> None:
        """Forget it."""
        self.connection.unregister(name)

    def close(self) -> None:
        """Free everything."""
        self.connection.close()

    def _fetch(self, fetch: Callable[[], Any]) -> Any:
        try:
            return fetch()
        except self._duckdb.OutOfMemoryException as error:
            raise StorageError(f"the query needs more memory than it may have: {_one_line(error)}") from error
        except self._duckdb.Error as error:
            raise DataError(f"the query cannot be computed: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    # What follows shows the SQL as it was rewritten, which nobody has written.
    text = str(error).partition("\nLINE ")[0]
    return " ".join(text.split())[:400] or type(error).__name__
