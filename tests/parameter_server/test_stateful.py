"""Servers under BSP, SSP and ASP against a dict for each: any order of deliveries, repeats and pulls.

Rows count in whole numbers, so that one push that is lost, doubled or applied early shows at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.batch import Keys
from penstock.optim import SGD
from penstock.parameter_server.arrays import Split
from penstock.parameter_server.consistency import ASP, BSP, SSP, Consistency
from penstock.parameter_server.effects import Effect, Send
from penstock.parameter_server.messages import Ack, BatchName, Held, LaneStart, Message, Part, Pull, Push, Rows
from penstock.parameter_server.routing import place
from penstock.parameter_server.server import Server
from penstock.table import Table

SEGMENTS = 16
UNIVERSE: Keys = np.array(
    [(segment << 60) + 2 * (number + 1) for segment in range(SEGMENTS) for number in range(2)], np.uint64
)
places = st.sets(st.integers(0, len(UNIVERSE) - 1), max_size=8).map(sorted)


class Expected:
    """What one server should hold and have seen, by the words of the consistency alone."""

    def __init__(self, lanes: int) -> None:
        self.values: dict[int, int] = {}
        self.before: dict[int, int] = {}
        """Under BSP, of the clock before the last one that was applied."""
        self.arrived: list[dict[int, Push]] = [{} for _ in range(lanes)]
        self.complete = 0
        self.waiting: dict[int, Pull] = {}

    def add(self, push: Push) -> None:
        for part in push.tables.values():
            for key, gradient in zip(part.keys.tolist(), part.gradients[:, 0].tolist(), strict=True):
                self.values[key] = self.values.get(key, 0) - int(gradient)

    def arrive(self, push: Push, together: bool) -> None:
        assert push.lane is not None
        if push.clock in self.arrived[push.lane]:
            return
        self.arrived[push.lane][push.clock] = push
        if not together:
            self.add(push)
        while all(self.complete in lane for lane in self.arrived):
            if together:
                self.before = dict(self.values)
                for lane in self.arrived:
                    self.add(lane[self.complete])
            self.complete += 1

    def rows(self, keys: Keys, values: dict[int, int]) -> list[list[float]]:
        return [[float(values.get(key, 0))] for key in keys.tolist()]


class Servers(RuleBasedStateMachine):
    """One worker's messages, as many as may be under way at once, in any order."""

    @initialize(
        consistency=st.sampled_from([BSP(), SSP(0), SSP(2), ASP()]),
        servers=st.integers(1, 3),
        lanes=st.integers(1, 3),
    )
    def begin(self, consistency: Consistency, servers: int, lanes: int) -> None:
        self.consistency, self.bound = consistency, consistency.bound
        names = [f"server-{number}" for number in range(servers)]
        self.owners = place(names, SEGMENTS)
        self.servers = [
            Server(
                name,
                index=index,
                incarnation=index + 1,
                tables={"w": Table(SGD(alpha=1.0), segments=SEGMENTS, slots=1)},
                consistency=consistency,
                owners=self.owners,
                routing=1,
                lanes=[LaneStart(clock=0, beyond=[], end=None) for _ in range(lanes)],
            )
            for index, name in enumerate(names)
        ]
        self.expected = [Expected(lanes) for _ in names]
        self.next = [0] * lanes
        self.on_the_way: list[tuple[int, Push]] = []
        self.delivered: list[tuple[int, Push]] = []
        self.ids = 0

    @rule(lane=st.integers(0, 2), places=places, data=st.data())
    def push(self, lane: int, places: list[int], data: Any) -> None:
        lane %= len(self.next)
        clock = self.next[lane]
        if self.bound is not None and any(e.complete < clock - self.bound for e in self.expected):
            return  # its pull would not have been answered
        self.next[lane] += 1
        keys = UNIVERSE[places]
        gradients = np.array(
            data.draw(st.lists(st.integers(-9, 9), min_size=len(keys), max_size=len(keys))), np.float32
        ).reshape(-1, 1)
        split = Split(keys, self.owners, len(self.servers))
        for index in range(len(self.servers)):
            part = Part(keys=split.of(index), gradients=split.take(index, gradients))
            message = Push(
                id=self.new_id(),
                name=BatchName(lane, clock),
                lane=lane,
                clock=clock,
                ends=False,
                version=0,
                routing=1,
                tables={"w": part} if len(part.keys) else {},
            )
            self.on_the_way.append((index, message))

    @precondition(lambda self: self.on_the_way)
    @rule(number=st.integers(0, 100))
    def deliver(self, number: int) -> None:
        index, message = self.on_the_way.pop(number % len(self.on_the_way))
        self.delivered.append((index, message))
        self.expected[index].arrive(message, self.consistency.together)
        self.check(index, self.servers[index].handle("worker", message, 0.0), message)

    @precondition(lambda self: self.delivered)
    @rule(number=st.integers(0, 100))
    def deliver_again(self, number: int) -> None:
        index, message = self.delivered[number % len(self.delivered)]
        self.check(index, self.servers[index].handle("worker", message, 0.0), message)

    @rule(server=st.integers(0, 2), places=places, ahead=st.integers(0, 4))
    def pull(self, server: int, places: list[int], ahead: int) -> None:
        index = server % len(self.servers)
        expected = self.expected[index]
        keys = Split(UNIVERSE[places], self.owners, len(self.servers)).of(index)
        message = Pull(id=self.new_id(), clock=expected.complete + ahead, routing=1, tables={"w": keys})
        [answer] = sent(self.servers[index].handle("worker", message, 0.0))
        if self.due(expected, message):
            assert isinstance(answer, Rows) and answer.id == message.id
            assert answer.tables["w"].tolist() == expected.rows(keys, expected.values)
        else:
            assert isinstance(answer, Held) and answer.id == message.id and answer.lanes
            expected.waiting[message.id] = message

    @precondition(lambda self: self.consistency.together and len(self.servers) > 1)
    @rule(server=st.integers(0, 2), places=places)
    def pull_for_the_clock_before(self, server: int, places: list[int]) -> None:
        """As whoever takes over a micro-batch that another server still lacks."""
        index = server % len(self.servers)
        expected = self.expected[index]
        if expected.complete:
            keys = Split(UNIVERSE[places], self.owners, len(self.servers)).of(index)
            message = Pull(id=self.new_id(), clock=expected.complete - 1, routing=1, tables={"w": keys})
            [answer] = sent(self.servers[index].handle("worker", message, 0.0))
            assert isinstance(answer, Rows)
            assert answer.tables["w"].tolist() == expected.rows(keys, expected.before)

    @invariant()
    def rows_are_those_of_the_dict(self) -> None:
        for index, server in enumerate(getattr(self, "servers", [])):
            server.validate()
            keys = Split(UNIVERSE, self.owners, len(self.servers)).of(index)
            held = server.tables["w"].pull(keys).tolist()
            assert held == self.expected[index].rows(keys, self.expected[index].values)

    def check(self, index: int, effects: list[Effect], push: Push) -> None:
        """The push is acknowledged, and the pulls that it makes due are answered, no others."""
        answers, expected = sent(effects), self.expected[index]
        assert [a.id for a in answers if isinstance(a, Ack)] == [push.id]
        rows = {a.id: a for a in answers if isinstance(a, Rows)}
        due = {id_: pull for id_, pull in expected.waiting.items() if self.due(expected, pull)}
        assert rows.keys() == due.keys() and len(answers) == 1 + len(rows)
        for id_, pull in due.items():
            assert rows[id_].tables["w"].tolist() == expected.rows(pull.tables["w"], expected.values)
            del expected.waiting[id_]

    def due(self, expected: Expected, pull: Pull) -> bool:
        assert pull.clock is not None
        return self.bound is None or expected.complete >= pull.clock - self.bound

    def new_id(self) -> int:
        self.ids += 1
        return self.ids


def sent(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


TestServers = Servers.TestCase
TestServers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
