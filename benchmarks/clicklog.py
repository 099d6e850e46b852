"""The click log that the benchmarks read: our Parquet, and the same rows as TSV and as VW text.

Made once in ``bench-data`` of the checkout (``make clean`` removes it).
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

import penstock as ps
from benchmarks.harness import ROOT, note
from penstock.data import CsvOptions, Source

__all__ = ["CATEGORICAL", "LABEL", "NUMERIC", "Clicks", "features", "open_tsv"]

LABEL = "clicked"
NUMERIC = [f"n{i + 1}" for i in range(13)]
CATEGORICAL = [f"c{i + 1}" for i in range(26)]


def features(*, how: str = "raw", bias: bool = True) -> ps.Features:
    """13 numbers, used as ``how`` says, and 26 categories."""
    numeric = [ps.Numeric(name=name, how=how) for name in NUMERIC]  # type: ignore[arg-type]
    return ps.Features(label=LABEL, numeric=numeric, categorical=CATEGORICAL, bias=bias)


@dataclass(frozen=True)
class Clicks:
    """Files of one click log without missing values; each is made when it is first asked for."""

    rows: int

    @property
    def folder(self) -> Path:
        return ROOT / "bench-data" / f"clicks-{self.rows}"

    @property
    def parquet(self) -> list[str]:
        """The log as ``make-clicks`` writes it."""
        log = ps.ClickLog(rows=self.rows, missing=0.0, numeric=len(NUMERIC), categorical=len(CATEGORICAL))
        summary = self.folder / "_clicks.json"
        if not summary.exists() or json.loads(summary.read_text()).get("spec") != asdict(log):
            note(f"making {self.folder} ...")
            ps.write_clicks(log, self.folder, overwrite=True)
        return sorted(map(str, self.folder.glob("*.parquet")))

    @property
    def tsv(self) -> str:
        """The Criteo layout: label, 13 numbers, 26 categories; tabs, no header."""
        return self._derived("clicks.tsv", _write_tsv)

    @property
    def vw(self) -> str:
        """Text of Vowpal Wabbit, in the form that it reads fastest (see ``_vw_lines``)."""
        return self._derived("clicks.vw", _write_vw)

    def _derived(self, name: str, write: Callable[[pa.RecordBatch, BinaryIO], Any]) -> str:
        parquet, path = self.parquet, self.folder / name
        newest = max(Path(file).stat().st_mtime_ns for file in parquet)
        if not path.exists() or path.stat().st_mtime_ns < newest:
            note(f"making {path} ...")
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as out:
                for batch in _batches(parquet):
                    write(batch, out)
            temporary.replace(path)
        return str(path)


def open_tsv(path: str) -> Source:
    """Our reader on ``Clicks.tsv``, which has no quotes, as the Criteo layout and VW's text have none."""
    columns = (LABEL, *NUMERIC, *CATEGORICAL)
    return ps.open_source(path, csv=CsvOptions(header=False, columns=columns, quote=None))


def _batches(parquet: list[str]) -> Iterator[pa.RecordBatch]:
    for path in parquet:
        yield from pq.ParquetFile(path).iter_batches(65_536, columns=[LABEL, *NUMERIC, *CATEGORICAL])


def _write_tsv(batch: pa.RecordBatch, out: BinaryIO) -> None:
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pyarrow.csv.write_csv(batch, out, options)


def _write_vw(batch: pa.RecordBatch, out: BinaryIO) -> None:
    """``-1 |f A:0.25 B:3 ... ab8561dee b5dda0cd5 ...``: a letter says which column.

    One namespace, and one letter as a column's name, is what VW 9.11 reads fastest: 1 M rows took 2.55 s; with
    names as ``c1=`` 2.7 s; with a namespace for each column 4.1 s; with integers for the hex digits no less.
    """
    parts: list[Any] = [pc.if_else(pc.equal(batch.column(LABEL), 1), "1", "-1"), " |f"]
    for letter, name in zip(string.ascii_uppercase, NUMERIC, strict=False):
        parts += [f" {letter}:", batch.column(name).cast(pa.string())]
    for letter, name in zip(string.ascii_lowercase, CATEGORICAL, strict=True):
        parts += [f" {letter}", batch.column(name)]
    lines = pc.binary_join_element_wise(*parts, "")
    out.write(("\n".join(lines.to_pylist()) + "\n").encode())
