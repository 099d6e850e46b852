"""A server as a state machine: holds rows, answers pulls, applies each push once, and saves.

It reads no clock and no socket. Under BSP it holds the pushes of a clock until all are there; under SSP(s) it
holds pulls that would see too old rows. Waiting pulls are answered when what they wait for arrives.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from penstock.batch import Floats, Keys
from penstock.parameter_server.arrays import first_bad_key, first_not_finite, restore_rows, sum_parts
from penstock.parameter_server.clocks import LaneClocks
from penstock.parameter_server.consistency import Consistency
from penstock.parameter_server.effects import Effect, End, Owners, Send, WriteRows
from penstock.parameter_server.functions import call_function
from penstock.parameter_server.history import History
from penstock.parameter_server.load import Load
from penstock.parameter_server.messages import (
    Ack,
    BatchName,
    Call,
    Committed,
    Expelled,
    Held,
    LaneStart,
    Message,
    Part,
    Pull,
    Push,
    Record,
    Refused,
    Result,
    Rows,
    Save,
    SaveAccepted,
    Saved,
    Stop,
)

__all__ = ["RowStore", "Server"]

PULLS_WAITING_MAX = 4096
"""More are not those of our workers."""
PULLS_KEPT = 64
"""Of one peer; more than a worker may have under way."""
CALLS_KEPT = 256
_OVER = "the run is over, and its rows are being saved"
_STALENESS_SHOWN = 1 << 16


class RowStore(Protocol):
    """What a server needs of a table; ``table.Table`` is one."""

    dim: int
    segments: int

    def __len__(self) -> int: ...

    def pull(self, keys: Keys) -> Floats:
        """f32[n, dim]."""

    def push(self, keys: Keys, gradients: Floats) -> None:
        """Apply f32[n, dim]."""

    def copy_all(self) -> tuple[Keys, Floats]:
        """All keys, rising, and their words; what had changed counts as unchanged from now on."""

    def copy_changed(self) -> tuple[Keys, Floats]:
        """The same of the rows changed since either was last called."""

    def touch(self, keys: Keys) -> None:
        """Count these rows as changed."""

    def take_removed(self) -> Keys:
        """Keys whose rows went since this was last called."""


@dataclass(slots=True)
class _Saving:
    """A checkpoint that is not committed yet."""

    save: Save
    coordinator: str
    copied: dict[str, Keys] | None = None
    """Keys that were taken as changed; they count as changed again if the checkpoint fails."""
    names: list[dict[str, Any]] | None = None
    answer: Saved | None = None


class Server:
    """Rows of the segments that ``owners`` gives to server number ``index``."""

    def __init__(
        self,
        name: str,
        *,
        index: int,
        incarnation: int,
        tables: Mapping[str, RowStore],
        consistency: Consistency,
        owners: Owners,
        routing: int,
        lanes: Sequence[LaneStart],
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.tables = tables
        self.version = 0
        """Updates applied: micro-batches, or under BSP clocks."""
        self.staleness: Counter[int] = Counter()
        """Of micro-batches, by updates applied between their pull and their push."""
        self.duplicates = 0
        """Pushes that were not applied, since they had been before."""
        self.index = index
        self._owners, self._routing = owners, routing
        self._consistency = consistency
        self._clocks = LaneClocks(lanes)
        self._histories = [History()]
        self._history_of = np.zeros(len(owners), np.uint16)
        self._waiting: dict[tuple[str, int], Pull] = {}
        self._load = Load()
        self._called: dict[tuple[str, int], Result | Refused] = {}
        """Answers of the last calls."""
        self._pulled: dict[str, dict[int, Mapping[str, Keys]]] = {}
        """Keys of the last pulls of each peer, for their pushes."""
        self._held: dict[int, Push] = {}
        """Pushes of the clock at hand, by lane."""
        self._before: dict[str, tuple[Keys, Floats]] = {}
        """Under BSP, by table: the rows that the last clock changed, as they were before it."""
        self._keep_before = consistency.together and len(np.unique(owners)) > 1
        self._saving: _Saving | None = None
        self._checkpoint = 0
        """The last one of which it is known how it ended."""

    def restore(self, record: Record, names: Sequence[tuple[Sequence[int], History]]) -> None:
        """Take up what a checkpoint's rows have applied: ``names`` of groups of segments, besides the record."""
        groups = [(set(segments), history) for segments, history in names]
        self._histories, distinct = [], list[History]()
        mine = np.flatnonzero(self._owners == self.index).tolist()
        for segment in mine:
            history = next((history for segments, history in groups if segment in segments), History())
            if history not in distinct:
                distinct.append(history)
            self._history_of[segment] = distinct.index(history)
        for history in distinct or [History()]:
            own = History.from_state(history.to_state())
            own.learnt(record)
            self._histories.append(own)

    def handle(self, sender: str, message: Message, now: float) -> list[Effect]:
        """Take a message; ``now`` is in seconds of any clock that only rises."""
        match message:
            case Pull():
                return self._pull(sender, message)
            case Push():
                return self._push(sender, message)
            case Save():
                return self._save(sender, message)
            case Committed():
                return self._committed(message)
            case Call():
                return self._call(sender, message)
            case Stop():
                return [End(message.error)]
            case Expelled() if message.incarnation == self.incarnation:
                return [End(f"{self.name} is no server of this run")]
        return []

    def forget(self, sender: str) -> None:
        """A worker is gone: its waiting pulls are dropped."""
        for key in [key for key in self._waiting if key[0] == sender]:
            del self._waiting[key]
        self._pulled.pop(sender, None)

    def written(self, checkpoint: int, files: dict[str, Any], error: str | None) -> list[Effect]:
        """The rows of a ``WriteRows`` are on disk, or could not be written."""
        saving = self._saving
        if saving is None or saving.save.checkpoint != checkpoint or saving.names is None:
            return []
        saving.answer = Saved(
            checkpoint=checkpoint, incarnation=self.incarnation, files=files, names=saving.names, error=error
        )
        return [Send(saving.coordinator, saving.answer)]

    def figures(self) -> dict[str, Any]:
        """What there is to know, for people: plain values."""
        return {
            "rows": {name: len(table) for name, table in self.tables.items()},
            "version": self.version,
            "complete": self._clocks.complete,
            "waiting": len(self._waiting),
            "duplicates": self.duplicates,
            **self._load.figures(),
            "staleness": {str(updates): n for updates, n in sorted(self.staleness.items())},
        }

    def validate(self) -> None:
        """Check that the state fits together."""
        self._clocks.validate()
        for history in self._histories:
            history.validate()
        assert int(np.max(self._history_of, initial=0)) < len(self._histories)
        assert all(push.clock == self._clocks.complete for push in self._held.values())
        assert self._saving is None or self._saving.save.checkpoint > self._checkpoint
        for pull in self._waiting.values():
            assert not self._is_due(pull), "a pull waits for nothing"

    @property
    def _final(self) -> bool:
        """Whether rows are read where they are: nobody may change them any more."""
        return self._saving is not None and self._saving.save.final

    # Pulls.

    def _pull(self, sender: str, pull: Pull) -> list[Effect]:
        wrong = self._wrong_routing(pull.routing) or self._wrong_keys(pull.tables)
        if wrong is not None:
            return [Send(sender, Refused(id=pull.id, error=wrong[0], fatal=wrong[1]))]
        if self._is_due(pull):
            return [self._rows(sender, pull)]
        assert pull.clock is not None and self._consistency.bound is not None
        if len(self._waiting) >= PULLS_WAITING_MAX and (sender, pull.id) not in self._waiting:
            error = f"{self.name}: more than {PULLS_WAITING_MAX} pulls are waiting"
            return [Send(sender, Refused(id=pull.id, error=error, fatal=True))]
        self._waiting[sender, pull.id] = pull
        needed = pull.clock - self._consistency.bound
        return [Send(sender, Held(id=pull.id, clock=needed, lanes=self._clocks.behind(needed)))]

    def _is_due(self, pull: Pull) -> bool:
        bound = self._consistency.bound
        return pull.clock is None or bound is None or self._clocks.complete >= pull.clock - bound

    def _rows(self, sender: str, pull: Pull) -> Send:
        pulled = self._pulled.setdefault(sender, {})
        pulled[pull.id] = pull.tables
        while len(pulled) > PULLS_KEPT:
            del pulled[next(iter(pulled))]
        self._load.pulled(pull.tables)
        tables = {name: self.tables[name].pull(keys) for name, keys in pull.tables.items()}
        if not self._consistency.together or pull.clock is None or pull.clock >= self._clocks.complete:
            return Send(sender, Rows(id=pull.id, version=self.version, tables=tables))
        # The clock is applied here, but a server may still lack this micro-batch, whose worker died: its gradient
        # must be the same again. No server is further than one clock ahead of another, since the pulls of a clock
        # wait for all servers; with a pull of an earlier clock nothing is done any more.
        for name, rows in tables.items():
            if name in self._before:
                restore_rows(pull.tables[name], rows, *self._before[name])
        return Send(sender, Rows(id=pull.id, version=self.version - 1, tables=tables))

    def _answer_waiting(self) -> list[Effect]:
        due = [key for key, pull in self._waiting.items() if self._is_due(pull)]
        return [self._rows(sender, self._waiting.pop((sender, id_))) for sender, id_ in due]

    def _call(self, sender: str, call: Call) -> list[Effect]:
        """Run a function once, however often it is asked for: some of them change rows."""
        answer = self._called.get((sender, call.id))
        if answer is None and self._final:
            return [Send(sender, Refused(id=call.id, error=f"{self.name}: {_OVER}", fatal=True))]
        if answer is None:
            answer = self._called[sender, call.id] = call_function(self.tables, call)
            while len(self._called) > CALLS_KEPT:
                del self._called[next(iter(self._called))]
        return [Send(sender, answer)]

    # Pushes.

    def _push(self, sender: str, push: Push) -> list[Effect]:
        if push.pulled is not None:
            keys = self._pulled.get(sender, {}).pop(push.pulled, None)
            if keys is None:
                return []  # it is sent again, with its keys
            empty = np.empty(0, np.uint64)
            tables = {
                name: Part(keys=keys.get(name, empty), gradients=part.gradients)
                for name, part in push.tables.items()
            }
            push = msgspec.structs.replace(push, pulled=None, tables=tables)
        wrong = self._wrong_routing(push.routing) or self._wrong_push(push)
        if wrong is not None:
            return [Send(sender, Refused(id=push.id, error=wrong[0], fatal=wrong[1]))]
        if push.lane is None:
            if self._final:
                return [Send(sender, Refused(id=push.id, error=f"{self.name}: {_OVER}", fatal=True))]
            self._apply(push)
            return [Send(sender, Ack(id=push.id))]
        before = self._clocks.complete
        if self._consistency.together:
            if push.clock > before:
                error = f"{self.name}: a push of clock {push.clock} while clock {before} is not applied"
                return [Send(sender, Refused(id=push.id, error=error, fatal=True))]
            self._hold(push, push.lane)
        else:
            self._apply(push)
            self._clocks.arrive(push.lane, push.clock, push.ends)
        effects: list[Effect] = [Send(sender, Ack(id=push.id))]
        if self._clocks.complete > before:
            effects += self._save_if_due()
            effects += self._answer_waiting()
        return effects

    def _apply(self, push: Push) -> None:
        new = self._new_parts(push.name, push.tables)
        if new is None:
            self.duplicates += 1
            return
        for name, part in new.items():
            self.tables[name].push(part.keys, part.gradients)
        for history in self._histories:
            if push.name not in history:
                history.add(push.name)
        self._count(push)

    def _hold(self, push: Push, at: int) -> None:
        """Keep the push until all of its clock are there; then sum them in the order of lanes and apply once."""
        if push.clock < self._clocks.complete or at in self._held:
            self.duplicates += 1
            return
        self._held[at] = push
        self._clocks.arrive(at, push.clock, push.ends)
        if self._clocks.complete == push.clock:
            return
        parts: dict[str, list[Part]] = defaultdict(list)
        for lane in sorted(self._held):
            for name, part in self._held[lane].tables.items():
                parts[name].append(part)
        self._before.clear()
        for name, of_lanes in parts.items():
            keys, gradients = sum_parts([(part.keys, part.gradients) for part in of_lanes])
            if self._keep_before:
                self._before[name] = keys, self.tables[name].pull(keys)
            self.tables[name].push(keys, gradients)
        for push_ in self._held.values():
            for history in self._histories:
                history.add(push_.name)
            self.staleness[self.version - push_.version] += 1
        self.version += 1
        self._held.clear()

    def _new_parts(self, name: BatchName, tables: Mapping[str, Part]) -> Mapping[str, Part] | None:
        """What of a push is not applied yet; None where all is."""
        applied = [name in history for history in self._histories]
        if all(applied):
            return None
        if not any(applied):
            return tables
        # Rows of several servers were loaded from a checkpoint, and they had come to different pushes.
        left = {}
        is_applied = np.array(applied)[self._history_of]
        shift = np.uint64(64 - (len(self._owners).bit_length() - 1))
        for table, part in tables.items():
            new = ~is_applied[(part.keys >> shift).astype(np.int64)]
            left[table] = Part(keys=part.keys[new], gradients=part.gradients[new])
        return left

    def _count(self, push: Push) -> None:
        if push.lane is not None:
            self.staleness[min(self.version - push.version, _STALENESS_SHOWN)] += 1
        self.version += 1

    # Saving.

    def _save(self, sender: str, save: Save) -> list[Effect]:
        accepted = Send(sender, SaveAccepted(checkpoint=save.checkpoint, incarnation=self.incarnation))
        saving = self._saving
        if save.checkpoint <= self._checkpoint:
            return []
        if saving is not None and saving.save.checkpoint >= save.checkpoint:
            if saving.save.checkpoint == save.checkpoint and saving.answer is not None:
                return [accepted, Send(sender, saving.answer)]
            return [accepted]
        if save.clock is not None and self._clocks.complete > save.clock:
            error = f"{self.name}: clock {self._clocks.complete} is applied, a save of {save.clock} comes too late"
            answer = Saved(
                checkpoint=save.checkpoint, incarnation=self.incarnation, files={}, names=[], error=error
            )
            return [accepted, Send(sender, answer)]
        if saving is not None:
            self._give_up(saving)
        self._saving = _Saving(save, sender)
        return [accepted, *self._save_if_due()]

    def _save_if_due(self) -> list[Effect]:
        saving = self._saving
        if saving is None or saving.names is not None:
            return []
        save = saving.save
        if save.clock is not None and not self._clocks.reached(save.clock):
            return []
        rows: dict[str, tuple[Keys, Floats]] | None = None
        if not save.final:
            rows = {name: t.copy_all() if save.full else t.copy_changed() for name, t in self.tables.items()}
            saving.copied = {name: keys for name, (keys, _) in rows.items()}
        saving.names = [self._names_of(h, history) for h, history in enumerate(self._histories)]
        removed = {name: table.take_removed() for name, table in self.tables.items()}
        counts = {name: len(table) for name, table in self.tables.items()}
        return [WriteRows(save.checkpoint, save.folder, save.full, rows, removed, counts)]

    def _names_of(self, number: int, history: History) -> dict[str, Any]:
        mine = np.flatnonzero((self._history_of == number) & (self._owners == self.index))
        return {"segments": mine.tolist(), "names": history.to_state()}

    def _committed(self, committed: Committed) -> list[Effect]:
        saving = self._saving
        self._checkpoint = max(self._checkpoint, committed.checkpoint)
        if saving is not None and saving.save.checkpoint <= committed.checkpoint:
            self._saving = None
            if saving.save.checkpoint < committed.checkpoint or committed.record is None:
                self._give_up(saving)
        if committed.record is not None:
            for history in self._histories:
                history.condense(committed.record)
        return []

    def _give_up(self, saving: _Saving) -> None:
        for name, keys in (saving.copied or {}).items():
            self.tables[name].touch(keys)

    # What is refused.

    def _wrong_routing(self, routing: int) -> tuple[str, bool] | None:
        if routing == self._routing:
            return None
        return f"{self.name}: routing version {routing} is not {self._routing}", False

    def _wrong_keys(self, tables: Mapping[str, Keys]) -> tuple[str, bool] | None:
        for name, keys in tables.items():
            if name not in self.tables:
                known = ", ".join(sorted(self.tables))
                return f"{self.name}: table {name!r} is not known; allowed: {known}", True
            bad = first_bad_key(keys, self._owners, self.index) if keys.ndim == 1 else 0
            if bad >= 0:
                key = int(keys[bad]) if keys.ndim == 1 else 0
                return (
                    f"{self.name}: table {name!r}: key {key:#x} at place {bad} of {len(keys)}; allowed: keys in "
                    "rising order, even, not 0, of this server's segments",
                    True,
                )
        return None

    def _wrong_push(self, push: Push) -> tuple[str, bool] | None:
        where = f"{self.name}: push of chunk {push.name.chunk}, batch {push.name.batch}"
        wrong = self._wrong_keys({name: part.keys for name, part in push.tables.items()})
        if wrong is not None:
            return wrong
        if push.lane is not None and not (0 <= push.lane < self._clocks.lanes and push.clock >= 0):
            return f"{where}: lane {push.lane}, clock {push.clock}; allowed: {self._clocks.lanes} lanes", True
        for name, part in push.tables.items():
            dim = self.tables[name].dim
            if part.gradients.shape != (len(part.keys), dim):
                shape = list(part.gradients.shape)
                return f"{where}: gradients of table {name!r} are f32{shape}, not [{len(part.keys)}, {dim}]", True
            bad = first_not_finite(part.gradients)
            if bad >= 0:
                key, value = int(part.keys[bad // dim]), part.gradients.reshape(-1)[bad]
                return (
                    f"{where}: gradient of key {key:#x} in table {name!r} is {value}; allowed: finite numbers; "
                    "lower the learning rate, or standardise numbers",
                    True,
                )
        return None
