"""Messages over pipes: what is sent arrives, and what is no message is refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from penstock.train.tree.pipes import Message, Pipes, Silence, pack, unpack

Ends = tuple[Pipes, Pipes]


@pytest.fixture
def ends() -> Iterator[Ends]:
    there, back = os.pipe(), os.pipe()
    files = [os.fdopen(fd, mode, buffering=0) for fd, mode in ((back[0], "rb"), (there[1], "wb"))]
    others = [os.fdopen(fd, mode, buffering=0) for fd, mode in ((there[0], "rb"), (back[1], "wb"))]
    driver, worker = Pipes(*files, silence_s=5.0), Pipes(*others)  # type: ignore[arg-type]
    yield driver, worker
    driver.close()
    worker.close()


def test_what_is_sent_arrives(ends: Ends) -> None:
    driver, worker = ends
    arrays = [
        np.arange(300_000, dtype=np.uint64),
        np.zeros((0, 3), np.float32),
        np.arange(12, dtype=np.float32).reshape(4, 3)[::2],
    ]
    sender = threading.Thread(target=driver.send, args=("map", {"numbers": [1, 2], "x": 0.1}, arrays))
    sender.start()
    message, got = worker.receive()
    sender.join()
    assert (message.kind, message.body) == ("map", {"numbers": [1, 2], "x": 0.1})
    for sent, array in zip(arrays, got, strict=True):
        assert array.dtype == sent.dtype
        np.testing.assert_array_equal(array, sent)


def test_silence_and_the_end_are_told_apart(ends: Ends) -> None:
    driver, worker = ends
    driver.silence_s = 0.01
    with pytest.raises(Silence):
        driver.receive()
    with pytest.raises(Silence):
        driver.send("map", {}, [np.zeros(1 << 20, np.uint64)])
    worker.close()
    with pytest.raises(EOFError):
        driver.receive()
    with pytest.raises(BrokenPipeError):
        driver.send("map")


@pytest.mark.parametrize(
    "shapes", [[("object", [1])], [("uint64", [-1])], [("uint64", [1, 1, 1])], [("uint64", [1 << 60])]]
)
def test_arrays_that_cannot_be_are_refused(ends: Ends, shapes: list[tuple[str, list[int]]]) -> None:
    driver, worker = ends
    header = msgspec.msgpack.encode(Message(kind="map", shapes=shapes))
    driver._write(b"pst1" + len(header).to_bytes(4, "little") + header)
    with pytest.raises(ValueError, match="array"):
        worker.receive()


def test_other_bytes_are_refused(ends: Ends) -> None:
    driver, worker = ends
    driver._write(b"GET / HTTP/1.1")
    with pytest.raises(ValueError, match="not a message"):
        worker.receive()


def test_packing() -> None:
    a, b, c = (np.full(n, n, np.float32) for n in (1, 2, 3))
    parts = {3: {"weights": [a, b], "factors": [c]}, 5: None, 7: {}}
    layout, arrays = pack(parts)
    layout = msgspec.msgpack.decode(msgspec.msgpack.encode(layout))
    assert unpack(layout, arrays) == parts and list(unpack(layout, arrays)) == [3, 5, 7]
