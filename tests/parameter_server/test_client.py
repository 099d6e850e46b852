"""A worker's machine: deadlines and what they say, refusals, lost answers."""

from __future__ import annotations

import numpy as np

from penstock.parameter_server.client import Client, Timing
from penstock.parameter_server.effects import Compute, Discard, Effect, End, Read, Rejoin, Send
from penstock.parameter_server.messages import (
    Ack,
    BatchName,
    Beat,
    Expelled,
    Failure,
    Grant,
    Held,
    Leave,
    Message,
    Nudge,
    Pull,
    Push,
    Refused,
    Report,
    Rows,
    Stop,
    Work,
)

NAME = BatchName(0, 0)


def make(depth: int = 1, servers: int = 1) -> Client:
    return Client(
        "worker-0",
        incarnation=5,
        servers=[f"server-{i}" for i in range(servers)],
        owners=np.array([i % servers for i in range(16)], np.uint16),
        routing=3,
        dims={"w": 1},
        depth=depth,
        timing=Timing(retry_s=1.0, silence_s=5.0, wait_s=30.0, poll_s=0.5),
    )


def messages(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def grant(batch: int = 0, clock: int = 0) -> Grant:
    return Grant(name=BatchName(0, batch), lane=0, clock=clock, final=True)


def granted(client: Client, *grants: Grant, now: float = 0.0) -> list[Effect]:
    (report,) = messages(client.start(now))
    assert isinstance(report, Report)
    return client.handle("coordinator", Work(number=report.number, grants=list(grants), finished=False), now)


def pulling(client: Client, now: float = 0.0) -> Pull:
    assert Read(grant()) in granted(client, grant(), now=now)
    (pull,) = messages(client.batch_ready(NAME, {"w": np.array([2], np.uint64)}, True, 1, now))
    assert isinstance(pull, Pull)
    client.validate()
    return pull


def rows(pull: Pull) -> Rows:
    return Rows(id=pull.id, version=4, tables={"w": np.ones((1, 1), np.float32)})


def tick(client: Client, *, until: float, begin: float = 0.0) -> list[Effect]:
    """As often as it must be."""
    effects: list[Effect] = []
    for step in range(int(begin * 4) + 1, int(until * 4) + 1):
        effects = client.tick(step / 4)
        if any(isinstance(effect, End) for effect in effects):
            return effects
    return effects


def test_one_micro_batch_from_grant_to_report() -> None:
    client = make()
    pull = pulling(client)
    (compute,) = client.handle("server-0", rows(pull), 1.0)
    assert isinstance(compute, Compute) and compute.rows["w"].tolist() == [[1]]
    (push,) = messages(client.computed(NAME, {"w": np.full((1, 1), 2, np.float32)}, None, 2.0))
    assert isinstance(push, Push) and push.ends and push.version == 4 and push.name == NAME and push.routing == 3
    effects = client.handle("server-0", Ack(id=push.id), 3.0)
    (report,) = messages(effects)
    assert effects[0] == Discard(grant(), True)
    assert isinstance(report, Report) and report.done == [NAME] and report.lengths == {0: 1} and report.want == 1
    assert client.handle("server-0", Ack(id=push.id), 3.0) == [] and client.under_way == 0
    assert client.handle("server-0", rows(pull), 3.0) == []


def test_a_dead_server_ends_it_with_its_name_and_heartbeat() -> None:
    client = make()
    pulling(client)
    client.handle("coordinator", Beat(silent={"server-0": 7.2}), 1.0)
    effects = tick(client, until=9.0)
    says = "worker-0: server-0 did not answer a pull within 5.0 s; last heartbeat 7.2 s ago"
    assert effects == [Send("coordinator", Leave(incarnation=5, error=says)), End(says)]
    assert client.tick(20.0) == [] and client.handle("coordinator", Stop(error=None), 20.0) == []


def test_a_held_pull_has_a_deadline_too() -> None:
    client = make()
    pull = pulling(client)
    for second in range(30):
        held = Held(id=pull.id, clock=0, lanes=[1, 2])
        assert not any(isinstance(e, End) for e in tick(client, begin=second, until=second + 0.75))
        client.handle("server-0", held, second + 0.75)
    (end,) = [e for e in tick(client, begin=29.75, until=40.0) if isinstance(e, End)]
    assert end.error is not None and "a pull for clock 0 waited 30.0 s at server-0" in end.error
    assert "clocks below 0 in lanes 1, 2" in end.error


def test_who_was_stopped_accuses_nobody() -> None:
    client = make()
    pull = pulling(client)
    (again,) = messages(client.tick(60.0))[:1]
    assert again == pull or isinstance(again, Report)
    assert not any(isinstance(e, End) for e in client.tick(61.0))


def test_requests_are_sent_again_until_answered() -> None:
    client = make()
    pull = pulling(client)
    assert pull not in messages(client.tick(0.75))
    assert pull in messages(client.tick(1.25))
    assert pull not in messages(client.tick(1.75))
    assert messages(client.reconnected("server-0", 1.8)) == [pull]
    assert messages(client.reconnected("server-1", 1.8)) == []


def test_a_report_is_sent_again_with_its_number_and_answered_once() -> None:
    client = make()
    (report,) = messages(client.start(0.0))
    assert isinstance(report, Report)
    assert messages(client.reconnected("coordinator", 0.5)) == [report]
    assert messages(client.tick(1.5)) == [report]
    work = Work(number=report.number, grants=[grant()], finished=False)
    assert client.handle("coordinator", Work(number=1, grants=[grant(7)], finished=False), 2.0) == []
    assert Read(grant()) in client.handle("coordinator", work, 2.0)
    assert Read(grant()) not in client.handle("coordinator", work, 2.0)


def test_answers_to_another_incarnation_do_not_fit() -> None:
    assert pulling(make()).id > 5 << 32


def test_what_is_refused_for_good_fails_the_run_and_old_routing_means_joining_again() -> None:
    client = make()
    pull = pulling(client)
    assert client.handle("server-0", Refused(id=0, error="no", fatal=True), 0.0) == []
    effects = client.handle("server-0", Refused(id=pull.id, error="nan", fatal=True), 0.0)
    assert messages(effects) == [Failure(incarnation=5, error="nan")]
    effects = client.handle("server-0", Refused(id=pull.id, error="routing", fatal=False), 0.0)
    assert effects == [Discard(grant(), False), Rejoin()]


def test_expelled_forgets_everything_but_only_if_it_is_meant() -> None:
    client = make()
    pulling(client)
    assert client.handle("coordinator", Expelled(incarnation=4), 0.0) == []
    assert client.handle("coordinator", Expelled(incarnation=5), 0.0) == [Discard(grant(), False), Rejoin()]
    assert client.tick(90.0) == []


def test_leaving_on_purpose() -> None:
    assert make().leave(None) == [Send("coordinator", Leave(incarnation=5, error=None)), End(None)]


def test_who_waits_with_all_it_has_asks_for_what_is_below() -> None:
    client = make()
    granted(client, grant(clock=3))
    (pull,) = messages(client.batch_ready(NAME, {"w": np.array([2], np.uint64)}, True, 1, 0.0))
    assert isinstance(pull, Pull)
    client.handle("server-0", Held(id=pull.id, clock=3, lanes=[1]), 0.1)
    reports = [m for m in messages(client.tick(0.75)) if isinstance(m, Report)]
    assert [(r.want, r.below) for r in reports] == [(1, 3)]


def test_a_chunk_that_ended_before_is_told_at_once() -> None:
    client = make(depth=2)
    effects = granted(client, grant(2))
    (report,) = [m for m in messages(effects) if isinstance(m, Report)]
    client.handle("coordinator", Work(number=report.number, grants=[], finished=False), 0.0)
    effects = client.batch_missing(BatchName(0, 2), 1, 0.1)
    (report,) = [m for m in messages(effects) if isinstance(m, Report)]
    assert effects[0] == Discard(grant(2), False) and report.lengths == {0: 1} and report.want == 2
    assert client.handle("coordinator", Nudge(), 0.2) == [], "a report is under way"


def test_a_micro_batch_without_keys_is_pushed_to_all_servers() -> None:
    client = make(servers=2)
    granted(client, grant())
    pulls = messages(client.batch_ready(NAME, {"w": np.empty(0, np.uint64)}, True, 1, 0.0))
    assert [p.tables for p in pulls if isinstance(p, Pull)] == [{}, {}]
    for number, pull in enumerate(pulls):
        assert isinstance(pull, Pull)
        client.handle(f"server-{number}", Rows(id=pull.id, version=0, tables={}), 0.1)
    pushes = messages(client.computed(NAME, {"w": np.empty((0, 1), np.float32)}, None, 0.2))
    assert [p.tables for p in pushes if isinstance(p, Push)] == [{}, {}]
