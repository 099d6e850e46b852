"""The in-memory carrier: as the wire, without one."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import ConnectionClosed, FrameError, TransportTimeout
from penstock.transport import Codec, Identity, MemoryConnection, memory_pair


class Push(msgspec.Struct, tag=True):
    keys: NDArray[np.uint64]


class Ack(msgspec.Struct, tag=True):
    number: int = 0


SOON_S = 10.0


def pair(capacity: int = 64) -> tuple[MemoryConnection, MemoryConnection]:
    ends = Identity(role="worker", name="worker-1"), Identity(role="server", name="server-0")
    return memory_pair(Codec(Push, Ack), *ends, capacity=capacity)


def test_messages_are_copied_and_counted() -> None:
    worker, server = pair()
    keys = np.arange(3, dtype=np.uint64)
    worker.send(Push(keys), SOON_S)
    keys[:] = 0
    assert server.receive(SOON_S).keys.tolist() == [0, 1, 2]
    assert worker.bytes_out == server.bytes_in > 24
    assert str(worker.peer) == "server-0 (memory:0)" and server.peer.role == "worker"


def test_types_are_checked() -> None:
    worker, _ = pair()
    with pytest.raises(FrameError, match=r"Push.keys"):
        worker.send(Push(np.zeros(1, np.float32)), SOON_S)
    worker.send(Ack(), SOON_S)


def test_deadlines() -> None:
    worker, server = pair(capacity=2)
    with pytest.raises(TransportTimeout, match=r"server-0 .*sent no whole message within 0 s"):
        worker.receive(0)
    for _ in range(2):
        worker.send(Ack(), 0)
    with pytest.raises(TransportTimeout, match=r"server-0 .*did not take Ack of \d+ bytes within 0 s"):
        worker.send(Ack(), 0)
    assert worker.closed
    assert server.receive(0) == server.receive(0) == Ack()
    with pytest.raises(ConnectionClosed, match=r"worker-1 .*closed the connection"):
        server.receive(0)


def test_close_wakes_both_ends_and_keeps_what_was_sent() -> None:
    worker, server = pair()
    worker.send(Ack(1), SOON_S)
    worker.close()
    worker.close()
    assert server.receive(SOON_S) == Ack(1)
    with pytest.raises(ConnectionClosed, match="worker-1"):
        server.receive(SOON_S)
    with pytest.raises(ConnectionClosed, match="worker-1"):
        server.send(Ack(), SOON_S)
    with pytest.raises(ConnectionClosed, match="on this side"):
        worker.send(Ack(), SOON_S)


def test_close_wakes_a_waiting_receive() -> None:
    for closer in (0, 1):
        ends = pair()
        raised = threading.Event()

        def wait(end: MemoryConnection = ends[0], raised: threading.Event = raised) -> None:
            with pytest.raises(ConnectionClosed):
                end.receive()
            raised.set()

        thread = threading.Thread(target=wait)
        thread.start()
        ends[closer].close()
        assert raised.wait(SOON_S)
        thread.join(SOON_S)
