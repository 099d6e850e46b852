"""A source of files as plain JSON values, so that another process can open the same one.

What it describes is cut into the same chunks there, since the cutting depends on the data alone. Files must be
reachable by the same names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.data.delimited import CsvOptions, DelimitedSource
from penstock.data.ipc import IpcSource
from penstock.data.parquet import ParquetSource
from penstock.data.source import Source
from penstock.errors import ConfigError

__all__ = ["describe", "open_described"]


def describe(source: Source) -> dict[str, Any]:
    """Format, files and options of ``source``; not what ``read_as`` made of it.

    Raises:
        ConfigError: the data is in memory.
    """
    if not source.files:
        raise ConfigError("other processes can read files alone, got data in memory; write it to Parquet files")
    spec: dict[str, Any] = {"format": "", "files": list(source.files)}
    if isinstance(source, ParquetSource):
        spec["format"] = "parquet"
    elif isinstance(source, IpcSource):
        spec["format"] = "arrow"
    elif isinstance(source, DelimitedSource):
        spec |= {"format": "csv", "csv": dataclasses.asdict(source.options)}
    else:
        from penstock.data.libsvm import LibsvmSource

        if not isinstance(source, LibsvmSource):
            raise ConfigError(f"other processes can read files of our own formats, got {type(source).__name__}")
        spec["format"] = "libsvm"
    return spec


def open_described(spec: Mapping[str, Any]) -> Source:
    """The source that ``describe`` was given.

    Raises:
        DataError: a file is missing or was changed into something else.
    """
    files = list(spec["files"])
    if spec["format"] == "parquet":
        return ParquetSource(files)
    if spec["format"] == "arrow":
        return IpcSource(files)
    if spec["format"] == "csv":
        options = msgspec.convert(spec["csv"], CsvOptions)
        assert options.delimiter is not None
        return DelimitedSource(files, options, options.delimiter)
    from penstock.data.libsvm import LibsvmSource

    return LibsvmSource(files)
