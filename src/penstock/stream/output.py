"""Examples to a folder: Parquet files that any reader takes, and a manifest that comes last.

A folder is written whole or not at all: files go to a new folder beside it, which takes its place in one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.data import BATCH_ROWS, Source
from penstock.data.ahead import ahead
from penstock.data.dictionaries import repeating_columns
from penstock.errors import ConfigError, StorageError
from penstock.log.times import format_time
from penstock.models.commit import EXAMPLES
from penstock.stream.evaluator import EXTRA
from penstock.stream.replay import Examples, Replay
from penstock.version import __version__

__all__ = ["Wrote", "write_chunks", "write_examples"]

_MANIFEST = EXAMPLES
_FILE_ROWS = 1 << 20
_TELLING_ROWS = 256
_PARQUET: dict[str, Any] = {"compression": "zstd", "compression_level": 1}


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """What was written."""

    rows: int
    files: int
    first_us: int | None
    last_us: int | None
    """Where the first and the last window begin that have examples."""
    ambiguous: int


def write_examples(
    replay: Replay,
    found: Iterable[Examples],
    folder: str | Path,
    *,
    changes: bool,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Wrote:
    """Write examples; without ``changes`` the columns of ``EXTRA`` are left out but for the event time.

    Raises:
        ConfigError: the folder is there, and is not ours to replace.
        StorageError: the disk is full; an older folder is unharmed.
    """
    path = Path(folder)
    _check_ours(path)
    if (path / _MANIFEST).exists() and not overwrite:
        raise ConfigError(f"{path}: has examples; --overwrite replaces them")
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        wrote = _write(replay, found, beside, changes, on_progress)
        manifest = {
            "penstock": __version__,
            "pipeline": replay.pipeline.name,
            "fingerprint": replay.pipeline.fingerprint,
            "changes": changes,
            "step": len(replay.timeline.points) - 1,
            "ends": dict(replay.timeline.points[-1].ends) if replay.timeline.points else {},
            "rows": wrote.rows,
            "first_window": None if wrote.first_us is None else format_time(wrote.first_us),
            "last_window": None if wrote.last_us is None else format_time(wrote.last_us),
        }
        (beside / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            beside.rename(path)
            shutil.rmtree(old)
        else:
            beside.rename(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return wrote


def _check_ours(path: Path) -> None:
    """Nothing but examples is there, as all of it would be replaced.

    Raises:
        ConfigError: something else is.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path}: is a file; the examples need a folder, new or with examples")
    for each in sorted(path.iterdir()):
        if each.name != _MANIFEST and not re.fullmatch(r"examples-\d+\.parquet", each.name):
            raise ConfigError(f"{path}: has something else than examples ({each.name}); name another folder")


def write_chunks(source: Source, folder: Path) -> int:
    """Write a source's rows as Parquet, in order, in place of what was there; how many rows.

    Raises:
        StorageError: the disk is full.
    """
    beside = folder.with_name(f".{folder.name}.new")
    rows = 0
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with pq.ParquetWriter(beside / "examples.parquet", source.schema, **_PARQUET) as writer:
            for chunk in source.chunks():
                for batch in chunk.batches(source.schema.names, BATCH_ROWS):
                    writer.write_batch(batch)
                    rows += batch.num_rows
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return rows


def _write(
    replay: Replay,
    found: Iterable[Examples],
    folder: Path,
    changes: bool,
    on_progress: Callable[[int], None] | None,
) -> Wrote:
    left_out = [] if changes else [name for name in EXTRA.names if name != "_time"]
    schema = pa.schema([field for field in replay.schema if field.name not in left_out])
    rows = files = in_file = ambiguous = 0
    windows: list[int] = []
    writer: pq.ParquetWriter | None = None
    try:
        # The next ones are computed while these are written.
        for examples in ahead(found):
            ambiguous += examples.ambiguous
            table = examples.rows
            if table.num_rows:
                ends = pa.compute.min_max(table["_window"].cast(pa.int64()))
                windows = [min([*windows[:1], ends["min"].as_py()]), max([*windows[1:], ends["max"].as_py()])]
                if writer is None:
                    # A small first part does not say which values repeat.
                    repeating = repeating_columns(table) if table.num_rows >= _TELLING_ROWS else True
                    writer = pq.ParquetWriter(
                        folder / f"examples-{files:05d}.parquet", schema, use_dictionary=repeating, **_PARQUET
                    )
                    files, in_file = files + 1, 0
                writer.write_table(table.drop_columns(left_out))
                rows, in_file = rows + table.num_rows, in_file + table.num_rows
                if in_file >= _FILE_ROWS:
                    writer.close()
                    writer = None
            if on_progress is not None:
                on_progress(rows)
    finally:
        if writer is not None:
            writer.close()
    if not files:
        pq.write_table(schema.empty_table(), folder / "examples-00000.parquet")
        files = 1
    first, last = windows or (None, None)
    return Wrote(rows=rows, files=files, first_us=first, last_us=last, ambiguous=ambiguous)
