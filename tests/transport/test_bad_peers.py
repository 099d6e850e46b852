"""Peers that lie, stall and send noise: each loses its own connection, with a logged reason, and nobody else's."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from penstock.errors import ConnectionClosed, FrameError, HandshakeError, TransportError, TransportTimeout
from penstock.transport import (
    Codec,
    Connection,
    Identity,
    TcpConnection,
    client_tls,
    connect,
    listener,
    parse_address,
    server_tls,
)
from penstock.transport.handshake import HANDSHAKE_CODEC, Connecting, Greeting, Refused
from penstock.transport.tcp import shake_hands

SOON_S = 20.0
WORKER = Identity(role="worker", name="worker-3")


def prefix(header_nbytes: int, payload_nbytes: int = 0, *, version: int = 1) -> bytes:
    return b"PSTK" + struct.pack("<HHIQ", version, 0, header_nbytes, payload_nbytes)


def frame(header: object, payload: bytes = b"") -> bytes:
    packed = msgspec.msgpack.encode(header)
    return prefix(len(packed), len(payload)) + packed + payload


@contextlib.contextmanager
def raw_socket(address: str) -> Iterator[socket.socket]:
    with socket.create_connection(parse_address(address), timeout=SOON_S) as sock:
        yield sock


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the other side closes, within the deadline."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(65536):
            got += more
    return got


def member(cluster: Any) -> tuple[TcpConnection, socket.socket]:
    """A connection that has proved itself, and its socket to write nonsense to."""
    connection = cluster.connect()
    return connection, connection._stream.wire._socket


class Impostor:
    """A listener of one connection that runs ``act`` on the socket it accepts."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._act = act
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        sock, _ = self._socket.accept()
        sock.settimeout(SOON_S)
        with sock:
            self._act(sock)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(SOON_S)
        self._socket.close()

    def connect(self, timeout_s: float = SOON_S) -> Connection:
        return connect(
            self.address,
            me=WORKER,
            cluster="a",
            token=b"correct horse battery staple",
            codec=Codec(Greeting),
            timeout_s=timeout_s,
        )


STRANGERS = {
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", r"it starts with b'GET '"),
    "other version": (prefix(10, version=2) + bytes(10), "speaks protocol 2, this one 1"),
    "large header": (prefix(1 << 20), "a header of 1,048,576 bytes; at most 2,048"),
    "payload": (prefix(10, 1), "a payload of 1 bytes; at most 0"),
    "unknown message": (frame({"type": "Push"}), "unknown message type 'Push'"),
    "short nonce": (frame({"type": "Greeting", "nonce": b"x"}), r"at `\$.nonce`"),
    "array": (frame({"type": "Greeting", "nonce": ["<u8", 4]}), r"at `\$.nonce`"),
    "out of turn": (frame({"type": "Challenge", "nonce": bytes(32)}), "sent Challenge out of turn"),
    "gives up": (frame({"type": "Refused", "reason": "token"}), "the cluster token is wrong"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_strangers_are_refused_and_others_go_on(case: str, cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    sent, reason = STRANGERS[case]
    before = cluster.connect()
    with raw_socket(cluster.address) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        answer = read_to_end(sock)
    before.send(cluster.Note(1), SOON_S)
    assert before.receive(SOON_S).number == 1
    before.close()
    cluster.check_alive()
    cluster.listener.close()
    record = next(each for each in caplog.records if "refused" in each.message)
    assert record.name == "penstock.transport"
    assert "\n" not in record.message
    with pytest.raises(FrameError, match=reason):
        raise FrameError(record.message)
    # It learns no more than that it was refused.
    assert answer in (b"", b"".join(HANDSHAKE_CODEC.encode(Refused("frame"))))
    assert len(cluster.seen) == 2


def test_a_peer_of_another_version_learns_ours(cluster: Any) -> None:
    """Though it left bytes that nobody reads: these must not cost it the answer."""
    with raw_socket(cluster.address) as sock:
        sock.sendall(prefix(60_000, version=9) + bytes(60_000))
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock)[:6] == b"PSTK\x01\x00"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (prefix(5, version=2) + bytes(5), "speaks protocol 2, this one 1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not a Penstock frame: it starts with b'SSH-'"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS, and this side does not"),
        (b"", "closed the connection during the handshake; does it expect TLS"),
        (b"PS", "closed the connection during the handshake"),
        (frame({"type": "Refused", "reason": "token"}), "the cluster token is wrong"),
        (frame({"type": "Refused", "reason": "because"}), r"at `\$.reason`"),
        (frame({"type": "Welcome", "claim": {}, "mac": b""}), "missing required field"),
    ],
)
def test_listeners_that_are_none_of_ours(answer: bytes, reason: str) -> None:
    def act(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        read_to_end(sock)

    with Impostor(act) as impostor, pytest.raises(HandshakeError, match=f"{impostor.address}: .*{reason}"):
        impostor.connect()


def test_a_listener_that_does_not_know_the_token_is_not_believed() -> None:
    def act(sock: socket.socket) -> None:
        greeting = HANDSHAKE_CODEC.decode(sock.recv(4096))
        sock.sendall(frame({"type": "Challenge", "nonce": greeting.nonce}))
        proof = HANDSHAKE_CODEC.decode(sock.recv(4096))
        claim = {"role": "server", "name": "server-0", "cluster": "a", "version": "1"}
        sock.sendall(frame({"type": "Welcome", "claim": claim, "mac": proof.mac}))
        read_to_end(sock)

    with Impostor(act) as impostor, pytest.raises(HandshakeError, match="did not prove that it knows"):
        impostor.connect()


def test_a_listener_that_does_not_answer() -> None:
    over = threading.Event()
    with Impostor(lambda sock: over.wait(SOON_S)) as impostor:  # type: ignore[arg-type,return-value]
        with pytest.raises(TransportTimeout, match=f"{impostor.address}: no answer within 0.1 s"):
            impostor.connect(timeout_s=0.1)
        over.set()


@pytest.mark.parametrize("tls", [False, True])
def test_strangers_that_stall_lose_their_place(
    tls: bool,
    new_cluster: Callable[..., Any],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All places are taken by peers that say nothing, or a byte: who knows the token waits for them to be cut."""
    attended: list[int] = []

    def count(wire: Any, *arguments: Any) -> TcpConnection:
        attended.append(len(cluster.listener._strangers))
        return shake_hands(wire, *arguments)

    monkeypatch.setattr(listener, "shake_hands", count)
    options: dict[str, Any] = {}
    if tls:
        authority = request.getfixturevalue("authority")
        options["tls"] = client_tls(*authority.sign("client"), authority.ca)
        secured = server_tls(*authority.sign("server"), authority.ca)
        cluster = new_cluster(handshakes=2, handshake_timeout_s=0.2, tls=secured)
    else:
        cluster = new_cluster(handshakes=2, handshake_timeout_s=0.2)
    with contextlib.ExitStack() as stack:
        loris = [stack.enter_context(raw_socket(cluster.address)) for _ in range(5)]
        for sock in loris:
            sock.sendall(b"\x16" if tls else b"P")
        cluster.check_alive(**options)
        for sock in loris[:2]:
            assert read_to_end(sock) == b""
    cluster.listener.close()
    assert "no handshake in time" in caplog.text
    assert len(attended) >= 3 and max(attended) == 2


def test_closing_the_listener_does_not_wait_for_strangers(new_cluster: Callable[..., Any]) -> None:
    cluster = new_cluster(handshake_timeout_s=3600)
    with raw_socket(cluster.address) as sock:
        sock.sendall(b"".join(HANDSHAKE_CODEC.encode(Connecting(WORKER, "a", b"x" * 16).start())))
        assert sock.recv(4096)  # so it is being attended to
        cluster.listener.close(timeout_s=SOON_S)
        assert read_to_end(sock) == b""


BAD_FRAMES = {
    "noise": (b"\x00" * 64, "not a Penstock frame"),
    "too large a header": (prefix(1 << 30), "a header of 1,073,741,824 bytes"),
    "too large a payload": (prefix(4, 1 << 50), "a payload of 1,125,899,906,842,624 bytes"),
    "absurd array": (frame({"type": "Note", "number": 1, "values": ["<f4", 1 << 50]}), r"at `\$.values`"),
    "unknown message": (frame({"type": "Nope"}), "unknown message type 'Nope'"),
    "wrong dtype": (
        frame({"type": "Note", "number": 1, "values": ["<f8", 1]}, bytes(8)),
        "expected an array of float32, got float64",
    ),
    "too much payload": (frame({"type": "Note", "number": 1}, bytes(8)), "the payload has 8 bytes, its arrays 0"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_close_their_connection_alone(
    case: str, cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sent, reason = BAD_FRAMES[case]
    other = cluster.connect()
    connection, sock = member(cluster)
    tracemalloc.start()
    try:
        sock.sendall(sent)
        with pytest.raises(ConnectionClosed):
            connection.receive(SOON_S)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    other.send(cluster.Note(1), SOON_S)
    assert other.receive(SOON_S).number == 1
    other.close()
    cluster.check_alive()
    cluster.listener.close()
    [record] = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "worker-3 (127.0.0.1:" in record.message
    with pytest.raises(FrameError, match=reason):
        raise FrameError(record.message)


def test_a_frame_cut_anywhere_ends_the_connection(new_cluster: Callable[..., Any]) -> None:
    received: list[Any] = []
    cluster = new_cluster(serve=lambda connection: received.append(connection.receive()))
    whole = frame({"type": "Note", "number": 1, "values": ["<f4", 3]}, bytes(12))
    for end in range(len(whole)):
        connection, sock = member(cluster)
        sock.sendall(whole[:end])
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionClosed):
            connection.receive(SOON_S)
    assert not received


def test_a_bad_frame_closes_the_connection_of_who_got_it(new_cluster: Callable[..., Any]) -> None:
    closed: list[bool] = []

    def serve(connection: Connection) -> None:
        with pytest.raises(FrameError, match=r"worker-3 \(127.0.0.1:\d+\): not a Penstock frame"):
            connection.receive()
        closed.append(connection.closed)

    cluster = new_cluster(serve=serve)
    connection, sock = member(cluster)
    sock.sendall(b"noise")
    with pytest.raises(ConnectionClosed):
        connection.receive(SOON_S)
    cluster.listener.close()
    assert closed == [True]


def test_a_frame_may_come_byte_by_byte(cluster: Any) -> None:
    connection, sock = member(cluster)
    for byte in frame({"type": "Note", "number": 4, "values": ["<f4", 3]}, bytes(12)):
        sock.sendall(bytes([byte]))
    message = connection.receive(SOON_S)
    assert message.number == 4 and message.values.tolist() == [0, 0, 0]
    connection.close()


def test_a_frame_that_stops_in_the_middle_passes_the_deadline(new_cluster: Callable[..., Any]) -> None:
    ended: list[tuple[bool, TransportError]] = []
    over = threading.Event()

    def serve(connection: Connection) -> None:
        try:
            connection.receive(0.1)
        except TransportError as error:
            ended.append((connection.closed, error))
        over.set()

    cluster = new_cluster(serve=serve)
    whole = frame({"type": "Note", "number": 1, "values": ["<f4", 3]}, bytes(12))
    for end in (3, 25, len(whole) - 1):
        connection, sock = member(cluster)
        sock.sendall(whole[:end])
        assert over.wait(SOON_S)
        over.clear()
        connection.close()
    assert all(closed and isinstance(error, TransportTimeout) for closed, error in ended)
    assert len(ended) == 3


@pytest.mark.parametrize("proved", [False, True])
def test_noise_never_hangs_or_harms(proved: bool, cluster: Any) -> None:
    """Frames with bits flipped, cut and glued, as strangers and as members."""
    rng = random.Random(5)
    other = cluster.connect()
    good = frame({"type": "Note", "number": 1, "values": ["<f4", 3]}, bytes(12))
    if not proved:
        good = b"".join(HANDSHAKE_CODEC.encode(Connecting(WORKER, "a", b"x" * 16).start()))
    for _ in range(60):
        noise = bytearray(good * rng.randrange(1, 3))
        for _ in range(rng.randrange(1, 4)):
            noise[rng.randrange(len(noise))] ^= 1 << rng.randrange(8)
        del noise[rng.randrange(len(noise)) :]
        if proved:
            _, sock = member(cluster)
        else:
            sock = socket.create_connection(parse_address(cluster.address), timeout=SOON_S)
        with sock:
            sock.settimeout(SOON_S)
            sock.sendall(noise)
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
    other.send(cluster.Note(1), SOON_S)
    assert other.receive(SOON_S).number == 1
    other.close()
    cluster.check_alive()
