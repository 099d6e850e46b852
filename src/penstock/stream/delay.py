"""How long labels take: when examples turned positive after they happened, and what each ``label_wait`` costs.

A label is what the query says it is, so it is the query that is asked. Each event of another stream has a moment
at which it is known, which stands in for ``_step``: its own time, or its arrival if that is later. An example's
label can change only at the moments of the events that may concern it (``Query.affected``); there it is evaluated,
so all delays are exact, whatever the query is.

An example is given out when the watermark of the primary stream passes its window's end and ``label_wait``, at
which time its stream has come ``lateness`` further. So what is known *on time* is more than what is known
``label_wait`` after the event; both are told.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.errors import ConfigError, DataError
from penstock.log import Log
from penstock.log.times import DAY_US, SECOND_US, format_duration, format_time, now_us
from penstock.stream.changes import one_each
from penstock.stream.delay_costs import NEVER_ENDS, Costs, Wait, cost, ladder, rounds
from penstock.stream.evaluator import Evaluator
from penstock.stream.labels import check_label
from penstock.stream.scan import Range
from penstock.stream.spec import Pipeline
from penstock.stream.sql import identifier
from penstock.stream.timeline import NEVER

__all__ = ["TARGETS", "Choice", "Delays", "measure"]

SAMPLE = 200_000
"""Examples that are followed, about; of more, some are drawn by their places in the stream."""
TARGETS = (0.9, 0.95, 0.99)
_FEW = 100
"""Positives below which shares are rough."""
_DIFFERS = 0.005

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The shortest round ``label_wait`` by which a share of positives is on time; None where none is."""

    share: float
    wait: Wait | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """What was measured of a pipeline's labels."""

    pipeline: Pipeline
    label: str
    examples: int
    """That are old enough for their labels to be final."""
    measured: int
    """Of these, followed."""
    positives: int
    """Of the measured, in the end."""
    young: int
    """Events of the primary stream that were left out, as their labels are not final yet."""
    first_us: int
    last_us: int
    """Event times of the measured."""
    final_us: int
    """So long after an example its label is taken as final."""
    basis: Literal["event time", "arrival"]
    """By which costs are counted."""
    waits: tuple[Wait, ...]
    """By length; round ones, those of ``choices``, and the current one."""
    current: Wait
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]

    def choice(self, share: float) -> Wait | None:
        """What reaches this share."""
        return next((choice.wait for choice in self.choices if choice.share == share), None)

    def toml(self, wait: Wait) -> tuple[str, ...]:
        """The lines of [pipeline] for a wait; of late positives only where some are late and some are not."""
        lines = [f'label_wait = "{format_duration(wait.wait_us)}"']
        on_time = f"{wait.on_time:.3f}"
        if on_time not in ("0.000", "1.000"):
            mode = self.pipeline.late.mode
            given = mode if mode in ("duplicate", "importance") else "duplicate"
            lines += [f'late_positives = "{given}"', f"on_time = {on_time.rstrip('0')}"]
        return tuple(lines)


def measure(
    pipeline: Pipeline,
    *,
    from_us: int | None = None,
    to_us: int | None = None,
    final_after_us: int | None = None,
    tick_us: int | None = None,
    sample: int = SAMPLE,
    threads: int | None = None,
) -> Delays:
    """Measure the examples of event times [from, to) whose labels are final. Nothing is written.

    Args:
        pipeline: whose log is read.
        from_us: event time of the first.
        to_us: event time after the last.
        final_after_us: take labels as final so long after an example, instead of after the longest ``within``.
        tick_us: the clock by which sources are idle; now where None.
        sample: how many examples are followed, about.
        threads: of the database; all cores where None.

    Raises:
        ConfigError: there is no label, or none that another stream changes.
        DataError: no example is old enough, none is positive, or a label is not 0 or 1.
    """
    label = pipeline.label
    if label is None:
        raise ConfigError("features.label is missing; it names the column of the query that turns positive")
    if final_after_us is not None:
        streams = {
            name: dataclasses.replace(spec, within_us=min(spec.within_us, final_after_us))
            for name, spec in pipeline.streams.items()
        }
        followed = dataclasses.replace(pipeline, streams=streams)
    else:
        followed = pipeline
    replay = _Followed(Log(pipeline.log), followed, threads=threads)
    try:
        return replay.delays(
            pipeline,
            label,
            from_us=from_us,
            to_us=to_us,
            tick_us=now_us() if tick_us is None else tick_us,
            sample=sample,
        )
    finally:
        replay.close()


class _Followed(Evaluator):
    """Evaluates the query at moments of time rather than at steps."""

    def delays(
        self,
        asked: Pipeline,
        label: str,
        *,
        from_us: int | None,
        to_us: int | None,
        tick_us: int,
        sample: int,
    ) -> Delays:
        """See ``measure``; ``asked`` is the pipeline with the user's own ``within``."""
        streams = self.query.streams[1:]
        final_us = max((self.pipeline.streams[name].within_us for name in streams), default=0)
        if final_us == 0:
            raise ConfigError(
                "streams: none that the query reads has `within`, so labels come with their examples"
            )
        check_label(label, self.query.columns, self.schema)
        self.timeline.look(tick_us)
        last = len(self.timeline.points) - 1
        begin = -NEVER_ENDS if from_us is None else from_us
        end = NEVER_ENDS if to_us is None else to_us
        ripe = min(self.timeline.mark(last, name) - self.pipeline.streams[name].within_us for name in streams)
        examples, young = self._draw(begin, end, ripe, last, sample)
        if not examples:
            raise DataError(self._nothing(young, final_us, last))
        [(measured, first, final)] = self.database.rows("select count(*), min(_t), max(_t) from _sampled")
        if not measured:
            raise DataError(f"{self.log.place}: of {examples:,} examples none was drawn; measure more of them")
        self._define_events(first, final + 1)
        notes = []
        if examples > measured:
            notes.append(
                f"{measured:,} of {examples:,} examples were followed, drawn by their places in the stream"
            )
        scale = examples / measured / (max(final - first, SECOND_US) / DAY_US)
        table = self._follow(label, "_t")
        by_event = Costs(self.pipeline, table, scale)
        if not by_event.positives:
            raise DataError(
                f"{self.log.place}: none of {measured:,} examples is positive in the end, so there is no delay"
            )
        by_arrival = self._by_arrival(label, final_us, scale, measured, notes)
        current_us = asked.wait_us
        limit = final_us
        if by_arrival is not None:
            limit += max(self.pipeline.streams[name].lateness_us for name in streams)
            asked_of = {current_us, *(at for end in (final_us, limit) for at in (*ladder(end), *rounds(end)))}
            points = np.array(sorted(asked_of), np.int64)
            if np.abs(by_arrival.on_time(points) - by_event.on_time(points)).max() <= _DIFFERS:
                by_arrival, limit = None, final_us
        costs = by_event if by_arrival is None else by_arrival
        choices = []
        for share in TARGETS:
            lengths = np.array(rounds(limit), np.int64)
            enough = np.flatnonzero(costs.on_time(lengths) >= share)
            choices.append((share, int(lengths[enough[0]]) if len(enough) else None))
        shown = {*ladder(limit), current_us, *(wait for _, wait in choices if wait is not None)}
        waits = {length: cost(length, by_event, by_arrival) for length in sorted(shown)}
        if young:
            notes.append(
                f"{young:,} examples were left out: they are younger than {format_duration(final_us)}, "
                "so their labels may still change"
            )
        reach_us = max(asked.streams[name].within_us for name in streams)
        if final_us < reach_us:
            notes.append(
                f"labels were taken as final after {format_duration(final_us)}, although they may change until "
                f"{format_duration(reach_us)}: shares are too high by what still comes"
            )
        if costs.positives < _FEW:
            notes.append(
                f"of {costs.positives:,} positives alone, shares are good to about "
                f"{100 / (2 * np.sqrt(costs.positives)):.0f} points"
            )
        return Delays(
            pipeline=asked,
            label=label,
            examples=examples,
            measured=measured,
            positives=by_event.positives,
            young=young,
            first_us=first,
            last_us=final,
            final_us=final_us,
            basis="event time" if by_arrival is None else "arrival",
            waits=tuple(waits.values()),
            current=waits[current_us],
            choices=tuple(Choice(share=s, wait=None if w is None else waits[w]) for s, w in choices),
            notes=tuple(notes),
        )

    def _draw(self, begin: int, end: int, ripe: int, last: int, sample: int) -> tuple[int, int]:
        """Table ``_sampled`` of the primary stream; how many could be drawn, and how many are too young."""
        self.define_primary(begin, end, last)
        [(examples, young)] = self.database.rows(
            f"select count(*) filter (where _t < {ripe}), count(*) filter (where _t >= {ripe}) from _primary"
        )
        # Multiplicative hashing (Knuth 6.4): neighbours are spread evenly, and every run draws the same.
        below = 1 << 32 if examples <= sample else int((1 << 32) * sample / examples)
        self.database.run(
            f"create or replace temp table _sampled as select * from _primary where _t < {ripe} "
            f"and ((_seq % 2147483648) * 2654435769) % 4294967296 < {below}"
        )
        return examples, young

    def _nothing(self, young: int, final_us: int, last: int) -> str:
        place, primary = self.log.place, self.pipeline.primary
        if not young:
            return f"{place}: stream {primary} has no events there"
        name, mark = min(
            ((name, self.timeline.mark(last, name)) for name in self.query.streams[1:]),
            key=lambda each: each[1] - self.pipeline.streams[each[0]].within_us,
        )
        known = f"{name} has no events yet"
        if mark != NEVER:
            known = f"{name} is complete up to {format_time(mark // SECOND_US * SECOND_US)}"
        return (
            f"{place}: the label of none of {young:,} examples is final, which it is after "
            f"{format_duration(final_us)}; {known}; --final-after takes labels as final sooner"
        )

    def _define_events(self, begin_us: int, end_us: int) -> None:
        """Views ``_all_…`` of the other streams, and ``_featured`` of the drawn events of the primary one."""
        for name in self.query.streams[1:]:
            spec = self.pipeline.streams[name]
            where = Range(from_us=begin_us - spec.before_us, to_us=end_us + spec.within_us)
            self.define(f"_all_{name}", name, where)
        names = [each.name for each in self.pipeline.aggregates]
        if any(re.search(rf"\b{re.escape(name)}\b", self.query.sql, re.I) for name in names):
            self.aggregate("_sampled", begin_us, end_us)
        else:
            self.database.run(
                f"create or replace temp view _featured as select *{self.no_aggregates()} from _sampled"
            )

    def _follow(self, label: str, known: str) -> pa.Table:
        """Labels through time: ``_seq``, ``t``, ``age`` and ``state`` (0, 1, or -1 for no example), sorted.

        ``known`` is SQL of the moment at which an event of another stream is known. A row holds from its age to
        the next one's; each example has one of age 0.
        """
        database, primary = self.database, identifier(self.pipeline.primary)
        for name in self.query.streams[1:]:
            database.run(
                f"create or replace temp view {identifier(name)} as select * replace ({known} as _step) "
                f"from {identifier('_all_' + name)}"
            )
        database.run(
            f"create or replace temp view {primary} as select *, {NEVER_ENDS}::bigint as _as_of from _featured"
        )
        concerned = " union ".join(f"({self.query.affected(name, name)})" for name in self.query.streams[1:])
        database.run(
            "create or replace temp table _moments as "
            "select distinct s._seq, greatest(a._step, s._t) as _as_of "
            f"from ({concerned}) a join _sampled s on s._seq = a._seq union select _seq, _t from _sampled"
        )
        database.run(
            f"create or replace temp view {primary} as "
            "select f.*, m._as_of from _featured f join _moments m on m._seq = f._seq"
        )
        column = identifier(label)
        table = database.table(
            f"with labels as (select _seq, _as_of, min({column}::double) as low, max({column}::double) as high, "
            f"count(*) - count({column}) as missing from ({self.versioned}) group by all) "
            "select m._seq, s._t as t, m._as_of, l.low, l.high, l.missing from _moments m "
            "join _sampled s on s._seq = m._seq "
            "left join labels l on l._seq = m._seq and l._as_of = m._as_of order by m._seq, m._as_of"
        )
        low, high = (np.asarray(table[name].fill_null(-1.0), np.float64) for name in ("low", "high"))
        missing = np.asarray(table["missing"].fill_null(0)) > 0
        seqs, moments, t = (np.asarray(table[name], np.int64) for name in ("_seq", "_as_of", "t"))
        state = low.copy()
        for row in np.flatnonzero((low != high) | missing):
            state[row] = np.nan
        unsure = np.unique(seqs[np.isnan(state)])
        if len(unsure):
            self._settle(label, unsure, seqs, moments, state)
        bad = np.flatnonzero(~np.isin(state, (-1.0, 0.0, 1.0)))
        if len(bad):
            got = "missing" if np.isnan(state[bad[0]]) else f"{state[bad[0]]:g}"
            raise DataError(
                f"label {label!r} of event {seqs[bad[0]]} of {self.pipeline.primary} is {got} "
                f"{format_duration(int(moments[bad[0]] - t[bad[0]]))} after it; allowed: 0 or 1"
            )
        return pa.table({"_seq": seqs, "t": t, "age": moments - t, "state": state.astype(np.int64)})

    def _settle(self, label: str, unsure: _Ints, seqs: _Ints, moments: _Ints, state: NDArray[np.float64]) -> None:
        """Where the query gives several rows that differ, the example is the one that the pipeline takes."""
        self.database.register("_unsure", pa.table({"_seq": unsure}))
        rows = self.database.table(
            f"select * from ({self.versioned}) where _seq in (select _seq from _unsure) order by _seq, _as_of"
        )
        rows, _ = one_each(rows, ["_seq", "_as_of"])
        place = {key: n for n, key in enumerate(zip(seqs.tolist(), moments.tolist(), strict=True))}
        values = rows[label].cast(pa.float64()).to_pylist()
        for seq, moment, value in zip(rows["_seq"].to_pylist(), rows["_as_of"].to_pylist(), values, strict=True):
            state[place[seq, moment]] = np.nan if value is None else value

    def _by_arrival(
        self, label: str, final_us: int, scale: float, measured: int, notes: list[str]
    ) -> Costs | None:
        """Costs by arrival, of examples that came as they happened; None where too few did."""
        [(live,)] = self.database.rows(f"select count(*) from _sampled where _arrived <= _t + {final_us}")
        many = "all" if live == 0 else f"{measured - live:,} of {measured:,}"
        later = f"{many} examples came more than {format_duration(final_us)} after they happened"
        if live:
            self.database.run(
                "create or replace temp table _live as select _seq from _sampled "
                f"where _arrived <= _t + {final_us}"
            )
            table = self._follow(label, "greatest(_t, _arrived)")
            self.database.register("_labels", table)
            table = self.database.table(
                "select l.* from _labels l join _live v on v._seq = l._seq order by l._seq, l.age"
            )
            self.database.unregister("_labels")
            costs = Costs(self.pipeline, table, scale * measured / live)
            if costs.positives and (costs.positives >= _FEW or 2 * live >= measured):
                if live < measured:
                    notes.append(f"{later}, and do not count for delays by arrival")
                return costs
        notes.append(f"{later}, as history that was loaded: delays are by event time, and not by arrival")
        return None
