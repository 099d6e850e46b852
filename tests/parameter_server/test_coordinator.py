"""The coordinator's machine, and how a role takes part: deadlines, refusals, saves and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.errors import ModelError
from penstock.parameter_server.consistency import ASP, BSP, SSP, Consistency
from penstock.parameter_server.coordinator import Coordinator, Patience
from penstock.parameter_server.effects import Commit, Effect, End, Prepare, Rejoin, Send
from penstock.parameter_server.member import Manners, Member
from penstock.parameter_server.messages import (
    BatchName,
    Beat,
    Committed,
    Expelled,
    Failure,
    Figures,
    Grant,
    Heartbeat,
    Join,
    Leave,
    Message,
    Nudge,
    Ready,
    Record,
    Report,
    Save,
    SaveAccepted,
    Saved,
    Status,
    StatusQuery,
    Stop,
    StopRequest,
    Welcome,
    Work,
)
from penstock.parameter_server.work import WorkQueue

PATIENCE = Patience(retry_s=1.0, silence_s=5.0, gone_s=1.5, gather_s=20.0, load_s=30.0, save_s=40.0)


class Sink:
    def __init__(self) -> None:
        self.rows: list[int] = []

    def add(self, figures: Figures) -> None:
        self.rows.append(figures.rows)

    def state(self) -> list[int]:
        return list(self.rows)


class Run:
    """A coordinator, and its clock, which ticks as often as it must."""

    def __init__(
        self,
        lengths: list[int | None],
        consistency: Consistency | None = None,
        *,
        servers: int = 1,
        every_s: float | None = None,
        record: Record | None = None,
        lanes: int = 2,
    ) -> None:
        consistency = consistency if consistency is not None else ASP()
        self.queue = WorkQueue(lengths, lanes=lanes, bound=consistency.bound, ahead=1, record=record)
        self.sink, self.now = Sink(), 0.0
        self.it = Coordinator(
            spec={"model": "m"},
            n_servers=servers,
            segments=16,
            consistency=consistency,
            queue=self.queue,
            sink=self.sink,
            routing=77,
            checkpoint_every_s=every_s,
            patience=PATIENCE,
        )
        self.numbers: dict[str, int] = {}

    def say(self, sender: str, message: Message) -> list[Effect]:
        effects = self.it.handle(sender, message, self.now)
        self.it.validate()
        return effects

    def join(self, name: str, incarnation: int, sender: str | None = None) -> list[Effect]:
        role = name.split("-")[0]
        return self.say(sender or name, Join(role=role, name=name, incarnation=incarnation, address="a:1"))

    def train(self, *workers: str) -> Run:
        self.join("server-0", 100)
        for number, worker in enumerate(workers):
            self.join(worker, number + 1)
        self.say("server-0", Ready(incarnation=100))
        assert self.it.phase in ("training", "saving")
        return self

    def report(self, worker: str = "worker-0", incarnation: int = 1, **what: Any) -> Report:
        self.numbers[worker] = self.numbers.get(worker, 0) + 1
        settings = {"done": [], "lengths": {}, "want": 0, "below": None, "waits": {}} | what
        figures = [Figures(rows=10, scored=0, loss=0.0, bins=np.empty(0, np.int64), sums=np.empty(0))]
        return Report(
            incarnation=incarnation,
            number=self.numbers[worker],
            figures=what.pop("figures", figures * len(settings["done"])),
            **settings,
        )

    def work(self, want: int, worker: str = "worker-0", incarnation: int = 1, **what: Any) -> list[Grant]:
        effects = self.say(worker, self.report(worker, incarnation, want=want, **what))
        return next(m for m in messages(effects) if isinstance(m, Work)).grants

    def wait(self, seconds: float, *alive: tuple[str, int]) -> list[Effect]:
        effects: list[Effect] = []
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            for name, incarnation in alive:
                self.say(name, Heartbeat(incarnation=incarnation, figures={}))
            effects += self.it.tick(self.now)
        return effects

    def save(self, effects: list[Effect], *, full: bool = True) -> Save:
        prepare = next(e for e in effects if isinstance(e, Prepare))
        sent = messages(self.it.save(prepare.checkpoint, "f", full=full, now=self.now))
        return next(m for m in sent if isinstance(m, Save))

    def saved(self, save: Save, error: str | None = None, server: int = 0) -> list[Effect]:
        saved = Saved(checkpoint=save.checkpoint, incarnation=100 + server, files={}, names=[], error=error)
        return self.say(f"server-{server}", saved)


def messages(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def ends(effects: list[Effect]) -> list[str | None]:
    return [effect.error for effect in effects if isinstance(effect, End)]


SERVER = ("server-0", 100)


def test_nobody_comes() -> None:
    run = Run([1], servers=2)
    run.join("server-0", 100)
    assert ends(run.wait(21, SERVER)) == ["waited 20 s for 2 servers; came: server-0"]


def test_a_server_that_never_is_ready() -> None:
    run = Run([1])
    run.join("server-0", 100)
    assert ends(run.wait(31, SERVER)) == ["not ready after 30 s: server-0"]


def test_no_worker_comes() -> None:
    assert ends(Run([1]).train().wait(21, SERVER)) == ["no worker took part for 20 s"]


def test_a_dead_server_is_named_within_its_patience() -> None:
    run = Run([1]).train("worker-0")
    (error,) = ends(run.wait(6, ("worker-0", 1)))
    assert error is not None and error.startswith("server-0 (a:1) is gone: 5.0 s without a heartbeat")
    assert run.it.phase == "failed"
    assert messages(run.say("worker-0", Heartbeat(incarnation=1, figures={}))) == [Stop(error=error)]


def test_a_broken_connection_has_less_patience_unless_it_is_heard_of_again() -> None:
    run = Run([1]).train("worker-0")
    run.it.disconnected("server-0", run.now)
    assert not ends(run.wait(4, SERVER, ("worker-0", 1)))
    run.it.disconnected("server-0", run.now)
    assert len(ends(run.wait(2, ("worker-0", 1)))) == 1


def test_a_server_that_comes_back_has_lost_its_rows() -> None:
    run = Run([1]).train()
    assert ends(run.join("server-0", 101)) == ["server-0 (a:1) came back without its rows"]


def test_a_server_too_many_is_sent_away() -> None:
    (stop,) = messages(Run([1]).train().join("server-9", 9))
    assert isinstance(stop, Stop) and "has its 1 servers already" in str(stop.error)


def test_a_server_may_be_replaced_before_all_are_there() -> None:
    run = Run([1], servers=2)
    run.join("server-0", 100)
    assert messages(run.join("server-0", 101)) == [Beat(silent={})]
    assert messages(run.join("server-0", 100)) == [Expelled(incarnation=100)]
    welcomes = messages(run.join("server-1", 102))
    assert [(w.name, w.incarnation) for w in welcomes if isinstance(w, Welcome)] == [
        ("server-0", 101),
        ("server-1", 102),
    ]


def test_workers_are_welcome_when_all_servers_are_ready() -> None:
    run = Run([1])
    assert messages(run.join("worker-0", 1)) == [Beat(silent={})]
    run.join("server-0", 100)
    assert messages(run.join("worker-0", 1)) == [Beat(silent={})]
    assert messages(run.join("worker-1", 2)) == [Beat(silent={})]
    run.say("worker-1", Leave(incarnation=2, error=None))
    (welcome,) = messages(run.say("server-0", Ready(incarnation=100)))
    assert isinstance(welcome, Welcome) and (welcome.name, welcome.routing) == ("worker-0", 77)
    assert messages(run.say("server-0", Ready(incarnation=100))) == []
    assert messages(run.join("worker-0", 1)) == [welcome]


def test_a_coordinator_that_was_stopped_accuses_nobody() -> None:
    run = Run([1]).train("worker-0")
    run.now += 60
    assert run.it.tick(run.now) == [] and not run.it.over


def test_whoever_is_not_known_is_told_so() -> None:
    run = Run([1]).train("worker-0")
    for message in (Heartbeat(incarnation=9, figures={}), run.report(incarnation=9)):
        assert messages(run.say("worker-0", message)) == [Expelled(incarnation=9)]
    assert run.say("worker-0", Failure(incarnation=9, error="x")) == []
    assert run.say("worker-0", Leave(incarnation=9, error="x")) == []


def test_a_silent_workers_micro_batches_go_to_others_and_it_must_join_again() -> None:
    run = Run([2]).train("worker-0", "worker-1")
    (grant,) = run.work(1)
    effects = messages(run.wait(6, SERVER, ("worker-1", 2)))
    assert Expelled(incarnation=1) in effects and Nudge() in effects
    assert messages(run.say("worker-0", run.report(done=[grant.name]))) == [Expelled(incarnation=1)]
    assert messages(run.join("worker-0", 1)) == [Expelled(incarnation=1)]
    assert run.it.rows == 0
    assert run.work(1, "worker-1", 2) == [grant]


def test_a_worker_that_leaves_hands_back_its_work_and_the_last_ones_trouble_is_the_runs() -> None:
    run = Run([2]).train("worker-0", "worker-1")
    grants = run.work(2)
    run.say("worker-0", Leave(incarnation=1, error="worker-0: server-0 did not answer"))
    assert run.work(2, "worker-1", 2) == grants
    assert ends(run.say("worker-1", Leave(incarnation=2, error="worker-1: trouble"))) == ["worker-1: trouble"]


def test_a_failure_that_anybody_would_have_ends_the_run() -> None:
    run = Run([2]).train("worker-0", "worker-1")
    assert ends(run.say("worker-1", Failure(incarnation=2, error="bad row"))) == ["bad row"]


def test_a_report_counts_once_and_its_answer_is_given_again() -> None:
    run = Run([3]).train("worker-0")
    (grant,) = run.work(1)
    report = run.report(done=[grant.name], want=1)
    first = messages(run.say("worker-0", report))
    assert messages(run.say("worker-0", report)) == [m for m in first if isinstance(m, Work)]
    assert run.it.rows == 10 and run.sink.rows == [10]
    run.work(0)
    assert run.say("worker-0", report) == []
    stranger = run.report(done=[BatchName(0, 2)])
    run.say("worker-0", stranger)
    assert run.it.rows == 10, "of what was not granted"


def test_data_that_changed_end_the_run() -> None:
    run = Run([3]).train("worker-0")
    (error,) = ends(run.say("worker-0", run.report(lengths={0: 2})))
    assert error is not None and error.startswith("worker-0: chunk 0 of the data has 2 batches, and had 3")


def test_the_last_save_ends_the_run() -> None:
    run = Run([1]).train("worker-0")
    (grant,) = run.work(1)
    effects = run.say("worker-0", run.report(done=[grant.name]))
    save = run.save(effects)
    assert save.final and save.clock is None
    (commit,) = run.saved(save)
    assert isinstance(commit, Commit) and commit.final and commit.metrics == [10]
    assert commit.record.finished == [(0, 0)]
    effects = run.it.committed(save.checkpoint, None, run.now)
    assert Committed(checkpoint=save.checkpoint, record=commit.record) in messages(effects)
    assert ends(effects) == [None] and run.it.phase == "done"
    assert messages(run.say("worker-0", run.report())) == [Stop(error=None)]


@pytest.mark.parametrize("where", ["prepare", "save", "commit"])
def test_a_checkpoint_that_fails_is_no_end_but_the_last_is(where: str) -> None:
    for final in (False, True):
        run = Run([2], every_s=1.0).train("worker-0")
        grants = run.work(2)
        effects = run.say("worker-0", run.report(done=[g.name for g in grants])) if final else []
        effects = effects or run.wait(1.25, SERVER, ("worker-0", 1))
        if where == "prepare":
            (prepare,) = [e for e in effects if isinstance(e, Prepare)]
            effects = run.it.not_prepared(prepare.checkpoint, "disk full", run.now)
        else:
            save = run.save(effects)
            effects = run.saved(save, "disk full" if where == "save" else None)
            if where == "commit":
                effects = run.it.committed(save.checkpoint, "disk full", run.now)
            assert Committed(checkpoint=save.checkpoint, record=None) in messages(effects)
        assert len(ends(effects)) == final
        run.it.validate()
        if not final:
            assert any(isinstance(e, Prepare) for e in run.wait(1.25, SERVER, ("worker-0", 1)))


def test_a_save_is_sent_again_and_has_a_deadline() -> None:
    run = Run([9], every_s=1.0, servers=1).train("worker-0")
    save = run.save(run.wait(1.25, SERVER, ("worker-0", 1)))
    effects = run.wait(41, SERVER, ("worker-0", 1))
    assert messages(effects).count(save) >= 30
    assert Committed(checkpoint=save.checkpoint, record=None) in messages(effects)
    assert any("not saved after 40 s: server-0" in text for _, text in run.it.events)


def test_a_bsp_save_lists_and_counts_what_is_below_its_clock_alone() -> None:
    run = Run([9, 9], BSP(), every_s=1.0).train("worker-0")
    grants = run.work(4)
    save = run.save(run.wait(1.25, SERVER, ("worker-0", 1)))
    assert save.clock == 2 and run.work(9) == []
    run.say("server-0", SaveAccepted(checkpoint=save.checkpoint, incarnation=100))
    assert run.work(1, done=[g.name for g in grants[:2]])[0].clock == 2
    run.work(0, done=[grants[2].name])
    assert run.saved(save) == [], "a worker has not said yet that all is done"
    (later,) = run.work(1)
    run.work(0, done=[later.name])
    effects = run.say("worker-0", run.report(done=[grants[3].name]))
    (commit,) = [e for e in effects if isinstance(e, Commit)]
    assert commit.record.partial == {0: [0, 1], 1: [0, 1]} and commit.metrics == [10] * 4
    assert run.it.rows == 50 and run.sink.rows == [10] * 5


def test_a_bsp_save_named_beyond_the_end_of_data_is_written() -> None:
    run = Run([None], BSP(), every_s=1.0, lanes=1).train("worker-0")
    grants = run.work(2)
    save = run.save(run.wait(1.25, SERVER, ("worker-0", 1)))
    assert save.clock == 2
    run.say("worker-0", run.report(done=[grants[0].name], lengths={0: 1}))
    (commit,) = [e for e in run.saved(save) if isinstance(e, Commit)]
    assert commit.record.finished == [(0, 0)]
    assert any(isinstance(e, Prepare) and e.final for e in run.it.committed(save.checkpoint, None, run.now))


@pytest.mark.parametrize("consistency", [BSP(), SSP(2), ASP()])
def test_a_stop_request_saves_what_is_done_and_ends(consistency: Consistency) -> None:
    run = Run([9, 9], consistency).train("worker-0")
    (first,) = run.work(1)
    effects = run.say("observer", StopRequest(id=1, reason="Ctrl-C"))
    assert run.say("observer", StopRequest(id=1, reason="Ctrl-C")) == []
    save = run.save(effects)
    run.say("server-0", SaveAccepted(checkpoint=save.checkpoint, incarnation=100))
    more = run.work(9, done=[first.name])
    # Under BSP the other lane's micro-batch of the clock is still needed; otherwise nothing new is begun.
    assert [g.clock for g in more] == ([0] if consistency.together else [])
    run.work(0, done=[g.name for g in more])
    assert any(isinstance(e, Commit) for e in run.saved(save))
    assert (
        ends(run.it.committed(save.checkpoint, None, run.now)) == ["stopped by Ctrl-C"]
        and run.it.phase == "stopped"
    )


def test_bsp_goes_on_only_from_a_clock() -> None:
    record = Record(finished=[], partial={0: [0, 1], 1: [0]}, lengths={}, lanes=2)
    with pytest.raises(ModelError, match="not written by a BSP run"):
        Run([3, 3], BSP(), record=record)
    Run([3, 3], SSP(1), record=record)
    Run([1, 3], BSP(), record=Record(finished=[(0, 0)], partial={1: [0, 1]}, lengths={0: 1}, lanes=2))


def test_a_run_that_was_learnt_already_is_saved_at_once() -> None:
    record = Record(finished=[(0, 0)], partial={}, lengths={0: 1}, lanes=1)
    run = Run([1], record=record, lanes=1)
    run.join("server-0", 100)
    effects = run.say("server-0", Ready(incarnation=100))
    assert [e.final for e in effects if isinstance(e, Prepare)] == [True]


def test_status_is_plain_and_answered_at_any_time() -> None:
    run = Run([2, 2], SSP(4))
    run.train("worker-0").work(1)
    (status,) = messages(run.say("observer", StatusQuery(id=3)))
    assert isinstance(status, Status) and status.id == 3
    assert status.status["consistency"] == "ssp:4" and status.status["servers"][0]["segments"] == 16
    assert status.status["workers"][0]["granted"] == 1
    run.wait(6)
    (status,) = messages(run.say("observer", StatusQuery(id=4)))
    assert isinstance(status, Status) and status.status["phase"] == "failed"


# How a role takes part.


def member(role: str = "worker") -> Member:
    return Member(role=role, name=f"{role}-0", incarnation=5, manners=Manners(join_s=5.0))


def welcome(incarnation: int) -> Welcome:
    return Welcome(
        name="worker-0",
        incarnation=incarnation,
        spec={},
        routing=1,
        servers=[],
        addresses=[],
        owners=np.zeros(0, np.uint16),
        lanes=[],
    )


def test_a_role_joins_until_it_is_welcome_and_then_says_that_it_is_alive() -> None:
    role = member("server")
    join = messages(role.start(0.0))
    assert messages(role.tick({}, 0.5)) == [] and messages(role.tick({}, 1.25)) == join
    role.handle(welcome(4), 1.3)
    assert role.welcome is None
    role.handle(welcome(5), 1.4)
    assert role.welcome is not None and messages(role.tick({}, 1.5)) == []
    assert messages(role.tick({"rows": 1}, 2.0)) == [Heartbeat(incarnation=5, figures={"rows": 1})]
    assert messages(role.ready(2.1)) == [Ready(incarnation=5)]
    assert messages(role.tick({}, 2.6)) == [Heartbeat(incarnation=5, figures={}), Ready(incarnation=5)]


def test_a_silent_coordinator_ends_a_role_unless_the_role_itself_was_stopped() -> None:
    role = member()
    assert not ends(role.tick({}, 60.0))
    effects = [effect for step in range(1, 25) for effect in role.tick({}, 60.0 + step / 4)]
    assert ends(effects) == ["worker-0: the coordinator was silent for 5.0 s"]


def test_a_role_that_is_not_wanted_ends_or_joins_again() -> None:
    role = member()
    assert role.handle(Expelled(incarnation=4), 0.0) == []
    assert role.handle(Expelled(incarnation=5), 0.0) == [Rejoin()]
    assert ends(member().handle(Stop(error="full"), 0.0)) == ["full"]
