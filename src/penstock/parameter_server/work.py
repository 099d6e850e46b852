"""What is left to learn, and who learns what: one queue of micro-batches for all workers.

Chunks are dealt to lanes (see ``clocks``). A worker keeps to its lanes, so that it reads a chunk once, in order;
where another lane has fallen behind, it takes from there. So the slow worker gets less, and nobody waits for it
longer than for the micro-batches that it holds. Nothing here knows of messages or of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from penstock.errors import DataError, ModelError
from penstock.parameter_server.history import from_runs, to_runs
from penstock.parameter_server.messages import BatchName, Grant, LaneStart, Record

__all__ = ["WorkQueue"]


@dataclass(slots=True)
class _Lane:
    """Where the next micro-batch of a lane is: ``batch`` of ``chunk``, at place ``clock``."""

    index: int
    chunk: int
    batch: int = 0
    clock: int = 0
    owner: str | None = None


@dataclass(slots=True)
class _Given:
    worker: str
    grant: Grant


@dataclass(slots=True)
class _Counts:
    granted: int = 0
    stolen: int = 0
    done: int = 0
    clock: int = 0
    """The clock after the highest that it did."""
    last_lane: int = field(default=-1)


class WorkQueue:
    """Micro-batches of ``passes`` over the chunks of a source, in lanes."""

    def __init__(
        self,
        lengths: Sequence[int | None],
        *,
        passes: int = 1,
        lanes: int = 4,
        bound: int | None = None,
        ahead: int = 2,
        record: Record | None = None,
    ) -> None:
        """``lengths`` are the batches of each chunk, None where only reading will tell.

        ``bound`` is the staleness (None: no clocks to keep); a worker is given micro-batches up to ``ahead``
        clocks before it may pull their rows, to read them meanwhile. ``record`` is what an earlier run had learnt.

        Raises:
            ModelError: the record is of a run with other lanes, passes or data.
        """
        self._chunks = len(lengths)
        self._total = len(lengths) * passes
        self._lengths = {chunk: max(1, length) for chunk, length in enumerate(lengths) if length is not None}
        self._bound, self._ahead = bound, ahead
        self._n_lanes = max(1, min(lanes, self._total))
        self._finished: set[int] = set()
        self._partial: dict[int, set[int]] = {}
        if record is not None:
            self._restore(record)
        self._bases = dict.fromkeys(range(self._n_lanes), 0)
        self._lanes = [_Lane(index=lane, chunk=lane) for lane in range(self._n_lanes)]
        self._given: dict[BatchName, _Given] = {}
        self._returned: dict[BatchName, Grant] = {}
        self._counts: dict[str, _Counts] = {}
        self._here: set[str] = set()
        """Workers that have asked for work, and are not lost."""
        self.ceiling: int | None = None
        """No grant of this clock or later: a save of all earlier ones is being named."""
        for lane in self._lanes:
            self._skip(lane)

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self._n_lanes

    @property
    def finished(self) -> bool:
        """Whether every micro-batch is done."""
        return len(self._finished) == self._total

    @property
    def share(self) -> float:
        """How much is done, 0 to 1, in chunks, counting begun ones by what is known of them."""
        begun = sum(len(batches) / self._length(chunk, 1) for chunk, batches in self._partial.items())
        return min(1.0, (len(self._finished) + begun) / self._total) if self._total else 1.0

    def counts(self) -> dict[str, dict[str, int]]:
        """Micro-batches granted, stolen from another's lane, and done, and the clock it has come to, of each
        worker."""
        return {
            worker: {"granted": c.granted, "stolen": c.stolen, "done": c.done, "clock": c.clock}
            for worker, c in self._counts.items()
        }

    @property
    def frontier(self) -> int:
        """The lowest clock of which something is not done."""
        clocks = [given.grant.clock for given in self._given.values()]
        clocks += [grant.clock for grant in self._returned.values()]
        clocks += [lane.clock for lane in self._lanes if self._more(lane)]
        return min(clocks, default=max(lane.clock for lane in self._lanes))

    @property
    def highest(self) -> int:
        """The clock after the highest that was granted."""
        return max(lane.clock for lane in self._lanes)

    def take(self, worker: str, want: int, below: int | None = None) -> list[Grant]:
        """Grants for a worker, at most ``want``, lowest clocks first; with ``below`` only of earlier clocks."""
        self._here.add(worker)
        counts = self._counts.setdefault(worker, _Counts())
        grants: list[Grant] = []
        while len(grants) < want:
            limit = self._limit() if below is None else min(self._limit(), below)
            grant = self._take_returned(limit) or self._take_from_lane(worker, counts, limit)
            if grant is None:
                break
            self._given[grant.name] = _Given(worker, grant)
            counts.granted += 1
            grants.append(grant)
        return sorted(grants, key=lambda grant: grant.clock)

    def done(self, worker: str, name: BatchName) -> Grant | None:
        """A worker has seen its push applied everywhere; returns what it was granted, if that is news."""
        given = self._given.get(name)
        if given is None or given.worker != worker:
            return None
        del self._given[name]
        counts = self._counts.setdefault(worker, _Counts())
        counts.done, counts.clock = counts.done + 1, max(counts.clock, given.grant.clock + 1)
        self._partial.setdefault(name.chunk, set()).add(name.batch)
        self._finish(name.chunk)
        return given.grant

    def ended(self, chunk: int, length: int) -> None:
        """A worker has read to the end of a chunk: grants beyond it are void.

        Raises:
            DataError: another length was known: the data changed, or differ from host to host.
        """
        length = max(1, length)
        known = self._lengths.get(chunk % self._chunks)
        if known is not None:
            if known != length:
                raise DataError(
                    f"chunk {chunk % self._chunks} of the data has {length} batches, and had {known} before: "
                    "it changed while it was read, or hosts see different files"
                )
            return
        self._lengths[chunk % self._chunks] = length
        for name in [*self._given, *self._returned]:
            if name.chunk % self._chunks == chunk % self._chunks and name.batch >= length:
                self._given.pop(name, None)
                self._returned.pop(name, None)
        for lane in self._lanes:
            if lane.chunk < self._total and lane.chunk % self._chunks == chunk % self._chunks:
                lane.clock = min(lane.clock, self._bases[lane.chunk] + length)
                lane.batch = min(lane.batch, length)
                self._skip(lane)
        for begun in list(self._partial):
            self._finish(begun)

    def lost(self, worker: str) -> int:
        """A worker is gone: what it held goes to others, and its lanes to whoever comes; returns how much."""
        self._here.discard(worker)
        names = [name for name, given in self._given.items() if given.worker == worker]
        for name in names:
            self._returned[name] = self._given.pop(name).grant
        for lane in self._lanes:
            if lane.owner == worker:
                lane.owner = None
        return len(names)

    def held_by(self, lane: int, clock: int) -> str | None:
        """Who has a lane's earliest micro-batch before ``clock``."""
        held = [g for g in self._given.values() if g.grant.lane == lane and g.grant.clock < clock]
        return min(held, key=lambda g: g.grant.clock).worker if held else None

    def record(self) -> Record:
        """What is done by now."""
        return Record(
            finished=to_runs(self._finished),
            partial={chunk: sorted(batches) for chunk, batches in self._partial.items()},
            lengths=dict(self._lengths),
            lanes=self._n_lanes,
        )

    def record_below(self, clock: int) -> Record:
        """All micro-batches of clocks below ``clock``, which must all be done."""
        finished, partial = set(), {}
        for lane in range(self._n_lanes):
            for chunk, base, length in self._walk(lane):
                if base >= clock:
                    break
                if length is not None and base + length <= clock:
                    finished.add(chunk)
                else:
                    partial[chunk] = list(range(clock - base))
        lengths = dict(self._lengths)
        return Record(finished=to_runs(finished), partial=partial, lengths=lengths, lanes=self._n_lanes)

    def starts(self) -> list[LaneStart]:
        """Where each lane stands by what is done; what servers count from."""
        return [self._start(lane) for lane in range(self._n_lanes)]

    def validate(self) -> None:
        """Check that no micro-batch is in two states, and nothing was forgotten."""
        assert not self._given.keys() & self._returned.keys()
        for name in [*self._given, *self._returned]:
            assert not self._is_done(name)
        for chunk, base in self._bases.items():
            lane = self._lanes[chunk % self._n_lanes]
            known = self._lengths.get(chunk % self._chunks)
            granted = lane.batch if lane.chunk == chunk else known
            assert granted is not None
            for batch in range(granted):
                name = BatchName(chunk, batch)
                states = (name in self._given) + (name in self._returned) + self._is_done(name)
                assert states == 1, f"{name} at clock {base + batch} is in {states} states"

    def _restore(self, record: Record) -> None:
        if record.lanes != self._n_lanes:
            raise ModelError(f"the checkpoint is of a run of {record.lanes} lanes, this one has {self._n_lanes}")
        for chunk, length in record.lengths.items():
            known = self._lengths.setdefault(chunk, length)
            if known != length or not 0 <= chunk < self._chunks or length < 1:
                raise ModelError(
                    f"chunk {chunk} of the data had {length} batches when the checkpoint was written, and has "
                    f"{known} now: resume with the same data and batch size"
                )
        self._finished = set(from_runs(record.finished))
        self._partial = {chunk: set(batches) for chunk, batches in record.partial.items()}
        for chunk in [*self._finished, *self._partial]:
            length_ = self._lengths.get(chunk % self._chunks) if 0 <= chunk < self._total else None
            batches = self._partial.get(chunk, ())
            if chunk in self._finished and (length_ is None or batches):
                raise ModelError(f"the checkpoint lists chunk {chunk} as learnt, which this run does not know")
            if length_ is not None and chunk in self._partial and len(batches) >= length_:
                raise ModelError(f"the checkpoint lists {len(batches)} batches of chunk {chunk} of {length_}")

    def _walk(self, lane: int) -> Iterator[tuple[int, int, int | None]]:
        """Chunks of a lane with the clocks that they begin at, and their lengths, as far as these are known."""
        base = 0
        for chunk in range(lane, self._total, self._n_lanes):
            length = self._lengths.get(chunk % self._chunks)
            yield chunk, base, length
            if length is None:
                return
            base += length

    def _start(self, lane: int) -> LaneStart:
        clock, beyond, end = 0, list[int](), None
        for chunk, base, length in self._walk(lane):
            if length is not None and chunk + self._n_lanes >= self._total:
                end = base + length
            if chunk in self._finished and clock == base and length is not None:
                clock = base + length
                continue
            batches = range(length or 0) if chunk in self._finished else sorted(self._partial.get(chunk, ()))
            for place in (base + batch for batch in batches):
                if place == clock:
                    clock += 1
                else:
                    beyond.append(place)
        return LaneStart(clock=clock, beyond=beyond, end=end)

    def _limit(self) -> int:
        """Grants must be of clocks below this."""
        far = 1 << 62
        limit = far if self._bound is None else self.frontier + self._bound + self._ahead + 1
        return limit if self.ceiling is None else min(limit, self.ceiling)

    def _take_returned(self, limit: int) -> Grant | None:
        name = min(self._returned, key=lambda n: (self._returned[n].clock, n), default=None)
        if name is None or self._returned[name].clock >= limit:
            return None
        return self._returned.pop(name)

    def _take_from_lane(self, worker: str, counts: _Counts, limit: int) -> Grant | None:
        open_ = [lane for lane in self._lanes if self._more(lane) and lane.clock < limit]
        near = self._near(worker, open_)
        chosen = min(near, key=lambda lane: self._preference(worker, counts, lane), default=None)
        others = min((lane for lane in open_ if lane not in near), key=lambda lane: lane.clock, default=None)
        if others is not None and (chosen is None or self._fell_behind(others, chosen)):
            counts.stolen += 1
            chosen = others
        elif chosen is not None:
            chosen.owner = worker
        if chosen is None:
            return None
        counts.last_lane = chosen.index
        name = BatchName(chosen.chunk, chosen.batch)
        final = chosen.chunk + self._n_lanes >= self._total
        grant = Grant(name=name, lane=chosen.index, clock=chosen.clock, final=final)
        chosen.batch += 1
        chosen.clock += 1
        self._skip(chosen)
        return grant

    def _near(self, worker: str, open_: Sequence[_Lane]) -> list[_Lane]:
        """The worker's own lanes, and what others do not need while it has less than its share."""
        begun = [lane for lane in self._lanes if self._more(lane)]
        share = -(-len(begun) // len(self._here))
        held = Counter(lane.owner for lane in begun)
        wants = held[worker] < share
        return [
            lane
            for lane in open_
            if lane.owner == worker or (wants and (lane.owner is None or held[lane.owner] > share))
        ]

    def _preference(self, worker: str, counts: _Counts, lane: _Lane) -> tuple[int, bool, bool, int]:
        # Without clocks to keep, one chunk after the other: the fewer are open, the less is in memory.
        clock = lane.clock if self._bound is not None else 0
        return clock, lane.index != counts.last_lane, lane.owner != worker, lane.index

    def _fell_behind(self, lane: _Lane, chosen: _Lane) -> bool:
        """Whether another's lane needs a hand more than the chosen one does."""
        if self._bound is None:
            return False
        runs = self.frontier + self._bound + 1
        if lane.clock < runs <= chosen.clock:
            return True
        # Under BSP nobody takes from another's lane while its own can run: whoever does may be the slow one.
        return self._bound > 0 and lane.clock < chosen.clock - self._bound // 2

    def _skip(self, lane: _Lane) -> None:
        """Move on to the next micro-batch that is not done, at the latest to the end of what is known."""
        while self._more(lane):
            length = self._lengths.get(lane.chunk % self._chunks)
            if length is not None and lane.batch >= length:
                following = lane.chunk + self._n_lanes
                if following >= self._total:
                    lane.chunk = following
                    return
                self._bases[following] = self._bases[lane.chunk] + length
                lane.chunk, lane.batch, lane.clock = following, 0, self._bases[following]
                lane.owner = lane.owner if self._bound is not None else None
            elif self._is_done(BatchName(lane.chunk, lane.batch)):
                lane.batch, lane.clock = lane.batch + 1, lane.clock + 1
            else:
                return

    def _more(self, lane: _Lane) -> bool:
        return lane.chunk < self._total

    def _is_done(self, name: BatchName) -> bool:
        return name.chunk in self._finished or name.batch in self._partial.get(name.chunk, ())

    def _finish(self, chunk: int) -> None:
        length = self._lengths.get(chunk % self._chunks)
        if length is not None and len(self._partial.get(chunk, ())) >= length:
            self._finished.add(chunk)
            del self._partial[chunk]

    def _length(self, chunk: int, least: int) -> int:
        return self._lengths.get(chunk % self._chunks, 0) or max(least, 2 * len(self._partial.get(chunk, ())))
