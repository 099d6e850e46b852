"""Corrections: what new events change in examples of windows that were sealed before.

Which rows of the primary stream new events may concern is found by the query's own joins; each of these is
evaluated as of the step and as of the one before, and where the two differ, the old example is taken back and
the new one given out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.stream.changes import changed, one_each
from penstock.stream.evaluator import Evaluator
from penstock.stream.plan import Piece
from penstock.stream.scan import Range
from penstock.stream.sql import identifier

__all__ = ["Corrections"]

_PAIRS = pa.schema(
    [("_seq", pa.int64()), ("_step", pa.int64()), ("_t", pa.int64()), ("own", pa.int64()), ("late", pa.bool_())]
)


class Corrections:
    """Computes pieces of kind ``corrected``."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def compute(self, pieces: Sequence[Piece]) -> tuple[pa.Table, int]:
        """The examples of these pieces, which follow each other; and how many were ambiguous."""
        if not pieces:
            return self._evaluator.schema.empty_table(), 0
        steps = sorted(piece.step for piece in pieces)
        pairs = self._pairs(steps)
        if not pairs.num_rows:
            return self._evaluator.schema.empty_table(), 0
        self._evaluator.database.register("_pairs", pairs)
        begin, end = pc.min(pairs["_t"]).as_py(), pc.max(pairs["_t"]).as_py() + 1
        self._evaluator.define_primary(begin, end, steps[-1], among="_pairs")
        self._evaluator.define_others(begin, end, steps[-1])
        primary = identifier(self._evaluator.pipeline.primary)
        self._evaluator.aggregate("_primary", begin, end)
        self._evaluator.database.run(
            f"create or replace temp view {primary} as select p.*, v._as_of from _featured p join "
            "(select _seq, _step as _as_of from _pairs union select _seq, _step - 1 from _pairs where not late) v "
            "using (_seq)"
        )
        results = self._evaluator.results(f"select * from ({self._evaluator.versioned}) order by _seq, _as_of")
        results, ambiguous = one_each(results, ["_seq", "_as_of"])
        place = {
            key: row
            for row, key in enumerate(zip(results["_seq"].to_pylist(), results["_as_of"].to_pylist(), strict=True))
        }
        old, new, late, windows, steps_of = [], [], [], [], []
        for pair in pairs.to_pylist():
            new.append(place.get((pair["_seq"], pair["_step"]), -1))
            old.append(-1 if pair["late"] else place.get((pair["_seq"], pair["_step"] - 1), -1))
            late.append(pair["late"])
            windows.append(pair["window"])
            steps_of.append(pair["_step"])
        return self._changes(results, np.array(old), np.array(new), late, windows, steps_of), ambiguous

    def _changes(
        self,
        results: pa.Table,
        old: NDArray[np.int64],
        new: NDArray[np.int64],
        late: list[bool],
        windows: list[int],
        steps: list[int],
    ) -> pa.Table:
        """For each pair a retraction of the old result and a correction with the new one, where they differ."""
        both = (old >= 0) & (new >= 0)
        differ = old != new
        columns = [name for name in results.column_names if name not in ("_seq", "_t", "_as_of")]
        differ[both] = changed(results.take(old[both]), results.take(new[both]), columns)
        rows, kinds, of_windows, of_steps = [], [], [], []
        for n in np.flatnonzero(differ):
            if old[n] >= 0:
                rows.append(old[n])
                kinds.append("retraction")
            if new[n] >= 0:
                rows.append(new[n])
                kinds.append("late" if late[n] else "correction")
            count = int(old[n] >= 0) + int(new[n] >= 0)
            of_windows += [windows[n]] * count
            of_steps += [steps[n]] * count
        taken = results.take(pa.array(rows, pa.int64())).drop_columns(["_as_of"])
        taken = taken.append_column("_as_of", pa.array(of_steps, pa.int64()))
        taken = taken.append_column("_window", pa.array(of_windows, pa.int64()))
        return self._evaluator.examples(taken, pa.array(kinds, pa.string()))

    def _pairs(self, steps: Sequence[int]) -> pa.Table:
        """Which examples may change by which of these steps: ``_seq``, ``_step``, ``_t``, ``window``, ``late``.

        Sorted as their corrections come out: by step, window, time and place.
        """
        found = [self._affected(name, steps) for name in self._evaluator.query.streams[1:]]
        found.append(self._readmitted(steps))
        table = pa.concat_tables(found)
        pairs: set[tuple[int, ...]] = set()
        planner, timeline = self._evaluator.planner, self._evaluator.timeline
        overlap = self._evaluator.pipeline.window_us - planner.slide_us
        t = np.asarray(table["_t"])
        late = np.asarray(table["late"])
        step = np.asarray(table["_step"])
        own = np.asarray(table["own"])
        seq = np.asarray(table["_seq"])
        for shift in range(0, overlap + 1, planner.slide_us):
            begins = t - t % planner.slide_us - shift
            sealed = timeline.sealing_steps(begins)
            take = np.where(late, sealed < step, np.maximum(sealed, own) < step)
            if planner.from_us is not None:
                take &= begins >= planner.from_us
            if planner.to_us is not None:
                take &= begins < planner.to_us
            rows = (step[take], begins[take], t[take], seq[take], late[take])
            pairs.update(zip(*(column.tolist() for column in rows), strict=True))
        ordered = sorted(pairs)
        names = ("_step", "window", "_t", "_seq", "late")
        types = (pa.int64(), pa.int64(), pa.int64(), pa.int64(), pa.bool_())
        return pa.table(
            {
                name: pa.array([row[n] for row in ordered], type_)
                for n, (name, type_) in enumerate(zip(names, types, strict=True))
            }
        )

    def _affected(self, name: str, steps: Sequence[int]) -> pa.Table:
        """Rows of the primary stream that new events of another one may concern, and the steps of these."""
        timeline, spec = self._evaluator.timeline, self._evaluator.pipeline.streams[name]
        first, last = steps[0], steps[-1]
        again = any(first <= step <= last for step in timeline.readmitted(name).values())
        start = timeline.points[first - 1].ends[name] if first and not again else 0
        self._evaluator.as_of(last)
        self._evaluator.define("_new_all", name, Range(first=start))
        self._evaluator.database.run(
            f"create or replace temp table _new as select * from _new_all where _step between {first} and {last}"
        )
        low, high, count = self._evaluator.database.rows("select min(_t), max(_t), count(*) from _new")[0]
        if not count:
            return _PAIRS.empty_table()
        begin, end = low - spec.within_us, high + spec.before_us + 1
        sealed = timeline.sealed_to(last - 1) + self._evaluator.pipeline.window_us
        if self._evaluator.planner.from_us is not None:
            begin = max(begin, self._evaluator.planner.from_us)
        end = min(end, sealed)
        if end <= begin:
            return _PAIRS.empty_table()
        self._evaluator.define_others(begin, end, last)
        # Few rows of many are concerned: these are found first, and then looked at for whether they count.
        primary = self._evaluator.pipeline.primary
        where = Range(from_us=begin, to_us=end, end=timeline.points[last].ends[primary])
        self._evaluator.scanner.define_all(
            primary, primary, where, f", {last}::bigint as _as_of{self._evaluator.no_aggregates()}"
        )
        affected = self._evaluator.query.affected(name, "_new")
        self._evaluator.database.run(f"create or replace temp table _concerned as {affected}")
        self._evaluator.define_primary(begin, end, last, among="_concerned")
        return self._evaluator.database.table(
            "select a._seq, a._step, p._t, p._step as own, false as late from _concerned a "
            "join _primary p on p._seq = a._seq"
        ).cast(_PAIRS)

    def _readmitted(self, steps: Sequence[int]) -> pa.Table:
        """Rows of the primary stream that were quarantined, and count from these steps on."""
        name = self._evaluator.pipeline.primary
        rows = [(seq, step) for seq, step in self._evaluator.timeline.readmitted(name).items() if step in steps]
        if not rows:
            return _PAIRS.empty_table()
        self._evaluator.define_primary(-(1 << 62), 1 << 62, steps[-1])
        listed = ", ".join(f"({seq}, {step})" for seq, step in rows)
        return self._evaluator.database.table(
            "select p._seq, p._step, p._t, p._step as own, true as late from _primary p join "
            f"(values {listed}) r(_seq, _step) on p._seq = r._seq and p._step = r._step"
        ).cast(_PAIRS)
