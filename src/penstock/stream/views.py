"""Lambda: counts and sums over a pipeline's examples, complete up to a step by batch, and by increments since.

The *batch view* is computed anew from the log, as of a step; the *speed view* has what each later step changed,
corrections included (an example that is taken back counts -1). A reader adds the two. Which step the batch view
goes up to is said by one small file that is replaced at once; increments up to that step are left out from then
on. So a cut over has neither gap nor overlap, whoever reads meanwhile (Marz & Warren 2015, "Big Data").
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from penstock.errors import ConfigError, DataError, FolderBusy, StorageError
from penstock.kill import kill_point
from penstock.log import Log
from penstock.log.ledger import Ledger
from penstock.storage import write_atomically
from penstock.stream.evaluator import EXTRA
from penstock.stream.feed import take_step
from penstock.stream.replay import Replay
from penstock.stream.spec import Pipeline, View
from penstock.stream.sql import Database, identifier

__all__ = ["Views"]

_EXACT = "decimal(38, 9)"
_KEY = "speed"


class Views:
    """The views of one pipeline, in a folder of its log. Not for several threads at once."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Bind them to the query's columns; nothing is touched.

        Raises:
            ConfigError: the pipeline has none, a column is not there or not of numbers, or its log is not on a
                local disk.
        """
        if not pipeline.views:
            raise ConfigError("there are no views; a pipeline declares each by [[views]]")
        if "://" in pipeline.log:
            raise ConfigError(f"{pipeline.log}: views are kept on a local disk")
        self.pipeline = pipeline
        self._root = Path(pipeline.log) / "_pipelines" / f"{pipeline.name}-{pipeline.fingerprint}-views"
        self._replay = Replay(Log(pipeline.log), pipeline)
        self._columns = {f.name: f.type for f in self._replay.schema if f.name not in EXTRA.names}
        self._database = Database(threads=1)
        for view in pipeline.views:
            self._check(view)

    def batch(self) -> int:
        """Compute every view anew as of the last step, and cut over to it; the step.

        Raises:
            DataError: there is no step yet.
            FolderBusy: another process does the same.
        """
        replay = Replay(Log(self.pipeline.log), self.pipeline)
        replay.timeline.extend()
        step = len(replay.timeline.points) - 1
        if step < 0:
            raise DataError(f"{self.pipeline.log}: there is no step yet, so no view; append events first")
        folder = self._root / f"batch-{step}"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with _locked(self._root / ".lock"):
                parts: dict[str, list[pa.Table]] = {view.name: [] for view in self.pipeline.views}
                for examples in replay.final(step):
                    for view in self.pipeline.views:
                        parts[view.name].append(self._grouped(view, examples.rows, []))
                folder.mkdir(exist_ok=True)
                for view in self.pipeline.views:
                    pq.write_table(self._summed(view, parts[view.name], []), folder / f"{view.name}.parquet")
                kill_point(f"{folder}: batch view written, not cut over to")
                write_atomically(self._root / "cut.json", json.dumps({"step": step}).encode())
                kill_point(f"{folder}: cut over to, older ones not removed")
                for old in self._root.glob("batch-*"):
                    if old != folder:
                        shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise StorageError(f"{self._root}: cannot be written: {error.strerror or error}") from error
        replay.close()
        return step

    def speed(self) -> int:
        """Take a step if there is reason to, and add what all new steps changed; the step that views go up to."""
        self._replay.timeline.extend()
        take_step(self._replay)
        done, last = self.through(), len(self._replay.timeline.points) - 1
        if last <= done:
            return done
        parts: dict[str, list[pa.Table]] = {view.name: [] for view in self.pipeline.views}
        for examples in self._replay.run(after_step=done):
            for view in self.pipeline.views:
                parts[view.name].append(self._grouped(view, examples.rows, ["_step"]))
        for view in self.pipeline.views:
            rows = self._summed(view, parts[view.name], ["_step"])
            # Where one view was added and another not, the first is passed over the next time.
            self._ledger(view).append(rows, _KEY, last)
        return last

    def through(self) -> int:
        """The step up to which all views are complete; -1 before the first."""
        return max(self.cut(), min(self._ledger(view).number(_KEY) for view in self.pipeline.views))

    def cut(self) -> int:
        """The step up to which the batch view goes; -1 where there is none."""
        try:
            return int(json.loads((self._root / "cut.json").read_text())["step"])
        except FileNotFoundError:
            return -1
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self._root}/cut.json: cannot be read: {error}") from error

    def read(self, name: str) -> tuple[pa.Table, int, int]:
        """A view as it is now; the step of its batch part; and the step that it goes up to.

        Its columns are those that it groups by, ``examples``, and its sums.

        Raises:
            ConfigError: there is no such view.
        """
        view = next((view for view in self.pipeline.views if view.name == name), None)
        if view is None:
            there = ", ".join(view.name for view in self.pipeline.views)
            raise ConfigError(f"there is no view {name!r}; views: {there}")
        while True:
            cut, through = self.cut(), self.through()
            rows = self._ledger(view).read(above=cut)
            # What is added while we read is left out, so that all of a view is of one step.
            parts = [rows.filter(pa.compute.less_equal(rows["_step"], through)).drop_columns(["_step"])]
            try:
                if cut >= 0:
                    parts.append(pq.ParquetFile(self._root / f"batch-{cut}" / f"{name}.parquet").read())
            except FileNotFoundError:
                continue  # a newer batch has taken its place meanwhile
            if self.cut() == cut:
                break
        self._database.register("merged", self._summed(view, parts, []))
        columns = [identifier(column) for column in view.by]
        columns.append("examples::bigint as examples")
        columns += [f"{identifier(sum_)}::double as {identifier(sum_)}" for sum_ in view.sums]
        shown = self._database.table(f"select {', '.join(columns)} from merged where examples != 0 order by all")
        return shown, cut, through

    def _check(self, view: View) -> None:
        for column in [*view.by, *view.sums.values()]:
            if column not in self._columns:
                there = ", ".join(self._columns)
                raise ConfigError(f"views.{view.name}: the query gives no column {column!r}, it gives {there}")
        for column in view.sums.values():
            type_ = self._columns[column]
            number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
            if not (number or pa.types.is_boolean(type_)):
                raise ConfigError(
                    f"views.{view.name}.sums: column {column!r} is {type_}, allowed: numbers, true and false"
                )

    def _schema(self, view: View, more: list[str]) -> pa.Schema:
        by = [(column, self._columns.get(column, pa.int64())) for column in [*view.by, *more]]
        return pa.schema([*by, *((name, pa.decimal128(38, 9)) for name in ["examples", *view.sums])])

    def _grouped(self, view: View, rows: pa.Table, more: list[str]) -> pa.Table:
        """Counts and sums of examples, those taken back with a minus."""
        self._database.register("rows", rows)
        values = {"examples": f"1::{_EXACT}"}
        for name, column in view.sums.items():
            as_number = "::int" if pa.types.is_boolean(self._columns[column]) else ""
            values[name] = f"coalesce({identifier(column)}{as_number}, 0)::{_EXACT}"
        sums = [
            f"sum(case when _kind = 'retraction' then -{value} else {value} end)::{_EXACT} as {identifier(name)}"
            for name, value in values.items()
        ]
        return self._group(view, more, sums, "rows")

    def _summed(self, view: View, parts: list[pa.Table], more: list[str]) -> pa.Table:
        """Several of these as one."""
        schema = self._schema(view, more)
        self._database.register("parts", pa.concat_tables([schema.empty_table(), *parts]))
        names = [identifier(name) for name in ["examples", *view.sums]]
        return self._group(view, more, [f"sum({name})::{_EXACT} as {name}" for name in names], "parts")

    def _group(self, view: View, more: list[str], sums: list[str], relation: str) -> pa.Table:
        columns = [identifier(column) for column in [*view.by, *more]]
        group = ", ".join(columns) or "()"
        table = self._database.table(
            f"select {', '.join([*columns, *sums])} from {relation} group by {group} "
            f"having count(*) > 0 order by {', '.join(columns) or '1'}"
        )
        return table.cast(self._schema(view, more))

    def _ledger(self, view: View) -> Ledger:
        return Ledger(f"{self._root}/{view.name}", self._schema(view, ["_step"]), ordered_by="_step")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise FolderBusy(f"{path.parent}: another process computes the batch views; wait for it") from error
    finally:
        os.close(handle)
