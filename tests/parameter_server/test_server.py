"""A server's machine: what it refuses, holds, applies once and saves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.batch import Floats, Keys
from penstock.parameter_server.consistency import ASP, BSP, SSP, Consistency
from penstock.parameter_server.effects import Effect, End, Send, WriteRows
from penstock.parameter_server.functions import Answer, ServerFunction, register_function
from penstock.parameter_server.history import History
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
    Rows,
    Save,
    SaveAccepted,
    Saved,
    Stop,
)
from penstock.parameter_server.server import PULLS_WAITING_MAX, Server

HALF = 1 << 63
OWNERS = np.array([0] * 8 + [1] * 8, np.uint16)


class Store:
    """Counts: a push adds to rows."""

    def __init__(self, dim: int = 1) -> None:
        self.dim, self.segments = dim, 16
        self.rows: dict[int, Floats] = {}
        self.touched: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def pull(self, keys: Keys) -> Floats:
        zero = np.zeros(self.dim, np.float32)
        return np.array([self.rows.get(k, zero) for k in keys.tolist()], np.float32).reshape(-1, self.dim)

    def push(self, keys: Keys, gradients: Floats) -> None:
        for key, gradient in zip(keys.tolist(), gradients, strict=True):
            self.rows[key] = self.rows.get(key, np.zeros(self.dim, np.float32)) + gradient

    def copy_all(self) -> tuple[Keys, Floats]:
        keys = np.array(sorted(self.rows), np.uint64)
        return keys, self.pull(keys)

    copy_changed = copy_all

    def take_removed(self) -> Keys:
        return np.empty(0, np.uint64)

    def touch(self, keys: Keys) -> None:
        self.touched += keys.tolist()


def make(consistency: Consistency, lanes: int = 1, owners: Any = OWNERS) -> Server:
    starts = [LaneStart(clock=0, beyond=[], end=None) for _ in range(lanes)]
    return Server(
        "server-0",
        index=0,
        incarnation=7,
        tables={"w": Store(), "v": Store(2)},
        consistency=consistency,
        owners=owners,
        routing=3,
        lanes=starts,
    )


def keys(*numbers: int) -> Keys:
    return np.array(numbers, np.uint64)


def pull(id_: int = 1, clock: int | None = 0, routing: int = 3, **tables: Any) -> Pull:
    return Pull(id=id_, clock=clock, routing=routing, tables=tables or {"w": keys(2, 4)})


def push(
    batch: int = 0, *, id_: int = 5, lane: int = 0, clock: int = 0, ends: bool = False, **tables: Any
) -> Push:
    parts = tables or {"w": Part(keys=keys(2), gradients=np.ones((1, 1), np.float32))}
    return Push(
        id=id_,
        name=BatchName(lane, batch),
        lane=lane,
        clock=clock,
        ends=ends,
        version=0,
        routing=3,
        tables=parts,
    )


def sent(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def say(server: Server, message: Message) -> list[Message]:
    answers = sent(server.handle("worker-0", message, 0.0))
    server.validate()
    return answers


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"u": keys(2)}, "table 'u' is not known; allowed: v, w"),
        ({"w": keys(4, 2)}, "key 0x2 at place 1 of 2"),
        ({"w": keys(4, 4)}, "key 0x4 at place 1 of 2"),
        ({"w": keys(3)}, "key 0x3 at place 0 of 1"),
        ({"w": keys(0, 2)}, "key 0x0 at place 0 of 2"),
        ({"w": keys(2, HALF)}, "key 0x8000000000000000 at place 1 of 2"),
        ({"w": keys(2, 4).reshape(1, 2)}, "key 0x0 at place 0"),
    ],
)
def test_wrong_keys_are_refused_in_pulls_and_pushes(wrong: dict[str, Keys], says: str) -> None:
    server = make(ASP())
    (answer,) = say(server, pull(**wrong))
    assert isinstance(answer, Refused) and answer.fatal and says in answer.error and answer.id == 1
    parts = {t: Part(keys=k, gradients=np.ones((len(k), 1), np.float32)) for t, k in wrong.items()}
    (answer,) = say(server, push(**parts))
    assert isinstance(answer, Refused) and answer.fatal and says in answer.error and "server-0" in answer.error
    assert not len(server.tables["w"]) and server.version == 0


@pytest.mark.parametrize(
    ("gradients", "says"),
    [
        (np.ones((2, 2), np.float32), r"gradients of table 'w' are f32[2, 2], not [2, 1]"),
        (np.ones((1, 1), np.float32), r"f32[1, 1], not [2, 1]"),
        (np.ones(2, np.float32), r"f32[2], not [2, 1]"),
        (np.array([[1], [np.nan]], np.float32), "gradient of key 0x4 in table 'w' is nan"),
        (np.array([[np.inf], [1]], np.float32), "gradient of key 0x2 in table 'w' is inf"),
    ],
)
def test_wrong_gradients_are_refused_and_nothing_is_applied(gradients: Floats, says: str) -> None:
    server = make(ASP())
    good = Part(keys=keys(2), gradients=np.ones((1, 2), np.float32))
    (answer,) = say(server, push(3, v=good, w=Part(keys=keys(2, 4), gradients=gradients)))
    assert isinstance(answer, Refused) and answer.fatal and says in answer.error
    assert "chunk 0, batch 3" in answer.error
    assert not len(server.tables["v"])
    assert isinstance(say(server, push(3))[0], Ack) and server.duplicates == 0


def test_old_routing_is_refused_but_not_for_good() -> None:
    (answer,) = say(make(ASP()), pull(routing=2))
    assert isinstance(answer, Refused) and not answer.fatal
    assert "routing version 2 is not 3" in answer.error


def test_a_push_is_applied_once() -> None:
    server = make(ASP())
    for _ in range(3):
        assert say(server, push()) == [Ack(id=5)]
    assert server.tables["w"].pull(keys(2)).item() == 1 and server.duplicates == 2
    assert server.figures()["staleness"] == {"0": 1} and server.figures()["version"] == 1


def test_ssp_holds_a_pull_until_its_clock_is_there() -> None:
    server = make(SSP(1), lanes=2)
    assert isinstance(say(server, pull(clock=1))[0], Rows)
    assert say(server, pull(2, clock=2)) == [Held(id=2, clock=1, lanes=[0, 1])]
    assert say(server, pull(2, clock=2)) == [Held(id=2, clock=1, lanes=[0, 1])]
    assert say(server, push(lane=0)) == [Ack(id=5)]
    ack, rows = say(server, push(lane=1))
    assert ack == Ack(id=5) and isinstance(rows, Rows) and rows.id == 2
    assert rows.tables["w"].tolist() == [[2], [0]] and rows.version == 2


def test_a_worker_that_is_gone_gets_no_rows_later() -> None:
    server = make(SSP(0))
    say(server, pull(clock=1))
    server.forget("worker-0")
    assert say(server, push()) == [Ack(id=5)]


def test_waiting_pulls_are_bounded() -> None:
    server = make(SSP(0))
    for id_ in range(PULLS_WAITING_MAX):
        server.handle("worker-0", pull(id_, clock=1), 0.0)
    (answer,) = say(server, pull(PULLS_WAITING_MAX, clock=1))
    assert isinstance(answer, Refused) and answer.fatal and "4096 pulls are waiting" in answer.error
    assert isinstance(say(server, pull(0, clock=1))[0], Held)


def test_bsp_applies_a_clock_at_once_and_keeps_rows_for_whoever_must_repeat_it() -> None:
    server = make(BSP(), lanes=2)
    assert say(server, push(lane=1)) == [Ack(id=5)]
    assert server.tables["w"].pull(keys(2)).item() == 0
    say(server, push(lane=1))
    assert say(server, push(lane=0)) == [Ack(id=5)]
    assert server.tables["w"].pull(keys(2)).item() == 2 and server.duplicates == 1 and server.version == 1
    (old,), (new,) = say(server, pull(clock=0)), say(server, pull(clock=1))
    assert isinstance(old, Rows) and isinstance(new, Rows)
    assert (old.tables["w"].tolist(), old.version) == ([[0], [0]], 0)
    assert (new.tables["w"].tolist(), new.version) == ([[2], [0]], 1)
    assert say(server, push(lane=0)) == [Ack(id=5)] and server.duplicates == 2


def test_bsp_refuses_a_push_that_is_ahead() -> None:
    (answer,) = say(make(BSP()), push(clock=1))
    assert isinstance(answer, Refused) and answer.fatal
    assert "a push of clock 1 while clock 0 is not applied" in answer.error


def save(checkpoint: int = 1, *, clock: int | None = None, final: bool = False) -> Save:
    return Save(checkpoint=checkpoint, folder="f", full=True, final=final, clock=clock)


RECORD = Record(finished=[(0, 0)], partial={}, lengths={0: 1}, lanes=1)


def test_a_save_has_rows_and_names_and_its_answer_is_given_again() -> None:
    server = make(ASP())
    say(server, push())
    effects = server.handle("coordinator", save(), 0.0)
    write = effects[-1]
    assert sent(effects) == [SaveAccepted(checkpoint=1, incarnation=7)] and isinstance(write, WriteRows)
    assert write.rows is not None and write.rows["w"][0].tolist() == [2]
    say(server, push(1))
    (answer,) = sent(server.written(1, {"w": "file"}, None))
    assert isinstance(answer, Saved) and answer.files == {"w": "file"} and answer.error is None
    (group,) = answer.names
    assert group["segments"] == list(range(8)) and History.from_state(group["names"]).to_state()["partial"] == {
        "0": [[0, 0]]
    }
    assert say(server, save()) == [SaveAccepted(checkpoint=1, incarnation=7), answer]
    say(server, Committed(checkpoint=1, record=RECORD))
    assert say(server, push(9)) == [Ack(id=5)] and server.duplicates == 1, "of a finished chunk"
    assert say(server, save()) == [], "it is over"
    assert server.written(1, {}, None) == []


def test_a_save_that_failed_leaves_its_rows_to_the_next() -> None:
    server = make(ASP())
    say(server, push())
    server.handle("coordinator", save(), 0.0)
    assert isinstance(sent(server.written(1, {}, "disk full"))[0], Saved)
    say(server, Committed(checkpoint=1, record=None))
    assert server.tables["w"].touched == [2]  # type: ignore[attr-defined]
    server.handle("coordinator", save(2), 0.0)
    server.handle("coordinator", save(3), 0.0)
    assert server.tables["w"].touched == [2, 2]  # type: ignore[attr-defined]
    say(server, Committed(checkpoint=4, record=None))
    assert server.tables["w"].touched == [2, 2, 2]  # type: ignore[attr-defined]
    server.handle("coordinator", save(5), 0.0)
    say(server, Committed(checkpoint=6, record=RECORD))
    assert server.tables["w"].touched == [2] * 4, "how 5 ended was never heard"  # type: ignore[attr-defined]


def test_a_save_whose_end_comes_first_is_not_begun() -> None:
    server = make(ASP())
    say(server, Committed(checkpoint=2, record=None))
    assert server.handle("coordinator", save(2), 0.0) == []
    assert server.handle("coordinator", save(1), 0.0) == []


def test_a_bsp_save_waits_for_its_clock_or_the_end() -> None:
    server = make(BSP())
    assert say(server, save(1, clock=1)) == [SaveAccepted(checkpoint=1, incarnation=7)]
    assert isinstance(server.handle("worker-0", push(), 0.0)[-1], WriteRows)
    say(server, Committed(checkpoint=1, record=RECORD))
    _, late = say(server, save(2, clock=0))
    assert isinstance(late, Saved) and "clock 1 is applied, a save of 0 comes too late" in str(late.error)
    say(server, save(3, clock=9))
    assert isinstance(server.handle("worker-0", push(1, clock=1, ends=True), 0.0)[-1], WriteRows)


def test_the_last_save_reads_rows_where_they_are() -> None:
    write = make(ASP()).handle("coordinator", save(final=True), 0.0)[-1]
    assert isinstance(write, WriteRows) and write.rows is None


def test_rows_of_servers_that_had_come_to_different_pushes_are_taken_apart() -> None:
    one, other = History(), History()
    one.add(BatchName(0, 0))
    server = make(ASP(), owners=np.zeros(16, np.uint16))
    server.restore(
        Record(finished=[(9, 9)], partial={}, lengths={}, lanes=1), [(range(8), one), (range(8, 16), other)]
    )
    part = Part(keys=keys(2, HALF), gradients=np.ones((2, 1), np.float32))
    say(server, push(0, w=part))
    assert server.tables["w"].pull(keys(2, HALF)).tolist() == [[0], [1]]
    say(server, push(0, w=part))
    assert server.duplicates == 1
    late = push(3)
    late.name = BatchName(9, 3)
    say(server, late)
    assert server.duplicates == 2, "of a chunk that the record lists"


def test_functions_stop_and_expulsion() -> None:
    server = make(ASP())
    (answer,) = say(server, Call(id=3, function="nothing", table="w", arguments={}))
    assert isinstance(answer, Refused) and "'nothing' is not known" in answer.error
    assert say(server, Call(id=3, function="nothing", table="w", arguments={})) == [answer]
    (answer,) = say(server, Call(id=4, function="nothing", table="u", arguments={}))
    assert isinstance(answer, Refused) and "table 'u' is not known; allowed: v, w" in answer.error
    assert server.handle("coordinator", Stop(error="why"), 0.0) == [End("why")]
    assert server.handle("coordinator", Expelled(incarnation=8), 0.0) == []
    assert server.handle("coordinator", Expelled(incarnation=7), 0.0) == [End("server-0 is no server of this run")]


def test_a_call_that_is_asked_for_twice_runs_once() -> None:
    runs: list[int] = []

    def run(table: Any, by: int) -> Answer:
        runs.append(by)
        return Answer(value={"by": by})

    register_function("tests-run-once", ServerFunction(run=run, merge=lambda answers: answers[0]))
    server = make(ASP())
    call = Call(id=1, function="tests-run-once", table="w", arguments={"by": 2})
    (first,), (again,) = say(server, call), say(server, call)
    assert runs == [2] and first is again
    other = Call(id=2, function="tests-run-once", table="w", arguments={"by": 3})
    say(server, other)
    assert runs == [2, 3]


def test_a_push_may_leave_its_keys_out_while_the_server_has_them() -> None:
    server = make(ASP())
    (rows,) = say(server, pull(7, w=keys(2, 4)))
    part = Part(keys=keys(), gradients=np.ones((2, 1), np.float32))
    light = push(0, w=part)
    light.pulled = 7
    assert isinstance(rows, Rows) and len(say(server, light)) == 1
    assert server.tables["w"].pull(keys(2, 4)).tolist() == [[1], [1]]
    light.name = BatchName(0, 1)
    assert say(server, light) == [], "used up: it is sent again, with its keys"
    say(server, pull(8, w=keys(2, 4)))
    server.forget("worker-0")
    light.pulled = 8
    assert say(server, light) == []
