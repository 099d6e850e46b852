"""Connections over TCP on loopback, plain and by TLS: their usual life and ends."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import (
    ConfigError,
    ConnectionClosed,
    FrameError,
    HandshakeError,
    TransportError,
    TransportTimeout,
)
from penstock.transport import Codec, Connection, Identity, Listener, client_tls, connect, server_tls
from penstock.version import __version__


class Push(msgspec.Struct, tag=True):
    number: int
    keys: NDArray[np.uint64]
    grads: NDArray[np.float32]
    more: list[NDArray[np.float32]] = []
    text: str = ""


class Ack(msgspec.Struct, tag=True):
    number: int = 0


CODEC = Codec(Push, Ack)
SOON_S = 20.0
EMPTY = np.zeros(0, np.uint64)


@pytest.fixture(params=["plain", "tls1.2", "tls1.3"])
def secured(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of listener and connect."""
    if request.param == "plain":
        return {"codec": CODEC}, {"codec": CODEC}
    authority = request.getfixturevalue("authority")
    server = server_tls(*authority.sign("server"), authority.ca)
    client = client_tls(*authority.sign("client"), authority.ca)
    version = {"tls1.2": ssl.TLSVersion.TLSv1_2, "tls1.3": ssl.TLSVersion.TLSv1_3}[request.param]
    client.maximum_version = client.minimum_version = version
    return {"codec": CODEC, "tls": server}, {"codec": CODEC, "tls": client}


def a_push(number: int, rows: int, more: int = 0) -> Push:
    random = np.random.default_rng(number)
    keys = random.integers(0, 1 << 63, rows, dtype=np.uint64)
    parts = [random.random(n % 5, dtype=np.float32) for n in range(more)]
    return Push(number, keys, random.random((rows, 3), dtype=np.float32), parts)


def same(one: Push, other: Push) -> bool:
    pairs = [(one.keys, other.keys), (one.grads, other.grads), *zip(one.more, other.more, strict=True)]
    return one.number == other.number and one.text == other.text and all(np.array_equal(*pair) for pair in pairs)


def test_what_is_sent_comes_back(new_cluster: Callable[..., Any], secured: Any) -> None:
    cluster = new_cluster(**secured[0])
    with cluster.connect(**secured[1]) as connection:
        for rows in (0, 1, 100, 300_000):
            sent = a_push(rows, rows)
            connection.send(sent, SOON_S)
            assert same(connection.receive(SOON_S), sent)
        assert connection.bytes_in == connection.bytes_out > 300_000 * 20
        assert connection.wire_s > 0
        assert connection.peer.role == "server" and connection.peer.address == cluster.address
        assert connection.peer.version == __version__
        assert cluster.seen[0].peer.name == "worker-3"


def test_headers_larger_than_the_buffer_and_very_many_arrays(
    new_cluster: Callable[..., Any], secured: Any
) -> None:
    with new_cluster(**secured[0]).connect(**secured[1]) as connection:
        for sent in (a_push(1, 10, more=3000), Push(2, EMPTY, np.zeros(0, np.float32), text="x" * 200_000)):
            connection.send(sent, SOON_S)
            assert same(connection.receive(SOON_S), sent)


def test_small_frames_in_one_go_are_taken_apart(new_cluster: Callable[..., Any], secured: Any) -> None:
    """More than the receiving buffer holds, in sizes that put prefixes and headers across its end."""
    with new_cluster(**secured[0]).connect(**secured[1]) as connection:
        sent = [a_push(n, n % 40) for n in range(500)]

        def send_all() -> None:
            for message in sent:
                connection.send(message, SOON_S)

        thread = threading.Thread(target=send_all)
        thread.start()
        assert all(same(connection.receive(SOON_S), message) for message in sent)
        thread.join(SOON_S)


def test_threads_send_at_the_same_time_as_one_receives(new_cluster: Callable[..., Any], secured: Any) -> None:
    with new_cluster(**secured[0]).connect(**secured[1]) as connection:

        def send(first: int) -> None:
            for n in range(first, first + 30):
                connection.send(a_push(n, 2000), SOON_S)

        threads = [threading.Thread(target=send, args=(first,)) for first in (0, 100, 200)]
        for thread in threads:
            thread.start()
        got = [connection.receive(SOON_S) for _ in range(90)]
        for thread in threads:
            thread.join(SOON_S)
        assert sorted(each.number for each in got) == [*range(30), *range(100, 130), *range(200, 230)]
        assert all(same(each, a_push(each.number, 2000)) for each in got)


def test_many_connections(new_cluster: Callable[..., Any], secured: Any) -> None:
    cluster = new_cluster(**secured[0], handshakes=2)
    wrong: list[object] = []

    def work(number: int) -> None:
        me = Identity(role="worker", name=f"worker-{number}")
        with cluster.connect(me=me, **secured[1]) as connection:
            for n in range(20):
                connection.send(Ack(number * 100 + n), SOON_S)
                got = connection.receive(SOON_S)
                if got.number != number * 100 + n:
                    wrong.append(got)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert not wrong and len(cluster.seen) == 8


def test_a_message_that_cannot_be_sent_leaves_the_connection_open(new_cluster: Callable[..., Any]) -> None:
    with new_cluster(codec=CODEC).connect(codec=CODEC) as connection:
        with pytest.raises(FrameError, match=r"Push.keys: expected an array of uint64, got float32"):
            connection.send(Push(1, np.zeros(1, np.float32), np.zeros(1, np.float32)), SOON_S)
        connection.send(Ack(1), SOON_S)
        assert connection.receive(SOON_S) == Ack(1)


def test_the_peer_closes(new_cluster: Callable[..., Any], secured: Any) -> None:
    cluster = new_cluster(**secured[0], serve=lambda connection: None)
    with cluster.connect(**secured[1]) as connection:
        with pytest.raises(ConnectionClosed, match=r"server-0 \(127.0.0.1:\d+\): "):
            connection.receive(SOON_S)
        with pytest.raises(ConnectionClosed):
            connection.send(Ack(), SOON_S)
        assert connection.closed


def test_close_wakes_a_waiting_receive(new_cluster: Callable[..., Any], secured: Any) -> None:
    connection = new_cluster(**secured[0]).connect(**secured[1])
    connection.send(Ack(), SOON_S)
    raised: list[Exception] = []
    receiving = threading.Event()

    def wait() -> None:
        connection.receive()
        receiving.set()
        try:
            connection.receive()
        except ConnectionClosed as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert receiving.wait(SOON_S)
    connection.close()
    connection.close()
    thread.join(SOON_S)
    assert "closed on this side" in str(raised[0])


def test_receive_has_a_deadline_and_can_be_tried_again(new_cluster: Callable[..., Any], secured: Any) -> None:
    with new_cluster(**secured[0]).connect(**secured[1]) as connection:
        with pytest.raises(TransportTimeout, match=r"server-0 .*: sent no whole message within 0.01 s"):
            connection.receive(0.01)
        connection.send(Ack(5), SOON_S)
        assert connection.receive(SOON_S) == Ack(5)


def test_a_peer_that_does_not_read(new_cluster: Callable[..., Any], secured: Any) -> None:
    over = threading.Event()
    cluster = new_cluster(**secured[0], serve=lambda connection: over.wait(SOON_S))
    connection = cluster.connect(**secured[1])
    # No system's socket buffers hold this much.
    large = Push(1, np.zeros(5_000_000, np.uint64), np.zeros(0, np.float32))
    with pytest.raises(TransportTimeout, match=r"server-0 \(.*\): did not take Push of [\d,]+ bytes within 0.2 s"):
        connection.send(large, 0.2)
    assert connection.closed
    with pytest.raises(ConnectionClosed, match="on this side"):
        connection.send(Ack(), 0.2)
    over.set()


def test_close_wakes_a_waiting_send(new_cluster: Callable[..., Any]) -> None:
    over, began = threading.Event(), threading.Event()
    cluster = new_cluster(codec=CODEC, serve=lambda connection: over.wait(SOON_S))
    connection = cluster.connect(codec=CODEC)
    raised: list[Exception] = []

    def send() -> None:
        began.set()
        try:
            connection.send(Push(1, np.zeros(5_000_000, np.uint64), np.zeros(0, np.float32)), SOON_S)
        except ConnectionClosed as error:
            raised.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert began.wait(SOON_S)
    connection.close()
    thread.join(SOON_S)
    over.set()
    assert "closed on this side" in str(raised[0])


def test_closing_the_listener_closes_its_connections(new_cluster: Callable[..., Any], secured: Any) -> None:
    cluster = new_cluster(**secured[0])
    connections = [cluster.connect(**secured[1]) for _ in range(3)]
    for each in connections:
        each.send(Ack(), SOON_S)
        each.receive(SOON_S)
    cluster.listener.close()
    cluster.listener.close()
    for each in connections:
        with pytest.raises(ConnectionClosed):
            each.receive(SOON_S)
    with pytest.raises(TransportError, match=f"{cluster.address}: nobody listens there"):
        cluster.connect(**secured[1])
    assert all(each.closed for each in cluster.seen)


def test_a_thread_that_fails_is_logged_and_harms_nobody(
    new_cluster: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    def serve(connection: Connection) -> None:
        message = connection.receive()
        if message.number == 13:
            raise ZeroDivisionError("bad luck")
        connection.send(message, SOON_S)

    cluster = new_cluster(serve=serve)
    with cluster.connect() as connection:
        connection.send(cluster.Note(13), SOON_S)
        with pytest.raises(ConnectionClosed):
            connection.receive(SOON_S)
    cluster.check_alive()
    cluster.listener.close()
    assert "worker-3" in caplog.text and "bad luck" in caplog.text


def test_a_port_that_is_taken(new_cluster: Callable[..., Any]) -> None:
    cluster = new_cluster()
    with pytest.raises(ConfigError, match=f"{cluster.address}: is taken by another program"):
        Listener.bind(
            cluster.address,
            me=Identity(role="server", name="server-1"),
            cluster="b",
            token=cluster.token,
            codec=CODEC,
        )
    cluster.check_alive()


@pytest.mark.parametrize(
    ("address", "options", "reason"),
    [
        ("0.0.0.0:0", {}, "0.0.0.0:0: can be reached from other machines, and there is no TLS"),
        ("[::]:0", {}, "can be reached from other machines"),
        ("192.0.2.1:0", {"allow_plaintext": True}, "192.0.2.1:0: cannot listen there"),
        ("no-such-host.invalid:0", {"allow_plaintext": True}, "no-such-host.invalid:0: cannot listen there"),
        ("127.0.0.1:0", {"cluster": ""}, "cluster ''"),
    ],
)
def test_addresses_where_one_may_not_listen(address: str, options: dict[str, Any], reason: str) -> None:
    given = {"me": Identity(role="s", name="s"), "cluster": "a", "token": b"x" * 16, "codec": CODEC, **options}
    with pytest.raises(ConfigError, match=reason):
        Listener.bind(address, **given)


def test_plain_text_for_others_needs_a_word() -> None:
    given: dict[str, Any] = {"me": Identity(role="s", name="s"), "cluster": "a", "token": b"x" * 16}
    with Listener.bind("0.0.0.0:0", codec=CODEC, allow_plaintext=True, **given) as listener:
        listener.serve(lambda connection: None)
        port = listener.address.rpartition(":")[2]
        with connect(f"localhost:{port}", codec=CODEC, timeout_s=SOON_S, **given) as connection:
            assert connection.peer.role == "s"


def test_ipv6() -> None:
    given: dict[str, Any] = {
        "me": Identity(role="s", name="s"),
        "cluster": "a",
        "token": b"x" * 16,
        "codec": CODEC,
    }
    try:
        listener = Listener.bind("[::1]:0", **given)
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        listener.serve(lambda connection: None)
        assert listener.address.startswith("[::1]:")
        with connect(listener.address, timeout_s=SOON_S, **given) as connection:
            assert connection.peer.address == listener.address


def test_connect_says_why_it_cannot(new_cluster: Callable[..., Any]) -> None:
    cluster = new_cluster()
    me = Identity(role="worker", name="worker-1")
    given: dict[str, Any] = {"me": me, "cluster": "a", "token": cluster.token, "codec": CODEC, "timeout_s": SOON_S}
    with pytest.raises(TransportError, match=r"no-such-host.invalid:9: host 'no-such-host.invalid' is unknown"):
        connect("no-such-host.invalid:9", **given)
    with pytest.raises(ConfigError, match="cannot connect to port 0"):
        connect("127.0.0.1:0", **given)
    with pytest.raises(HandshakeError, match=f"{cluster.address}: the cluster token is wrong"):
        connect(cluster.address, **given | {"token": b"x" * 16})
    with pytest.raises(HandshakeError, match=f"{cluster.address}: is a server of cluster 'a', not 'b'"):
        connect(cluster.address, **given | {"cluster": "b"})
    cluster.check_alive()


def test_both_sides_must_have_a_certificate_of_the_authority(
    new_cluster: Callable[..., Any], authority: Any, other_authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = new_cluster(tls=server_tls(*authority.sign("server"), authority.ca))
    member = client_tls(*authority.sign("client"), authority.ca)
    bare = ssl.create_default_context(cafile=str(authority.ca))
    stranger = client_tls(*other_authority.sign("stranger"), authority.ca)
    suspicious = client_tls(*authority.sign("client"), other_authority.ca)
    for context, reason in ((bare, "certificate"), (stranger, "ca|certificate"), (suspicious, "not accepted")):
        with pytest.raises(HandshakeError, match=f"{cluster.address}: .*({reason})"):
            cluster.connect(tls=context)
    assert not cluster.seen
    cluster.check_alive(tls=member)
    cluster.listener.close()
    assert "peer did not return a certificate" in caplog.text


def test_the_certificate_must_be_of_the_host(new_cluster: Callable[..., Any], authority: Any) -> None:
    cluster = new_cluster(tls=server_tls(*authority.sign("elsewhere", "DNS:elsewhere.example"), authority.ca))
    files = authority.sign("client")
    with pytest.raises(HandshakeError, match="its certificate is not accepted: IP address mismatch"):
        cluster.connect(tls=client_tls(*files, authority.ca))
    cluster.check_alive(tls=client_tls(*files, authority.ca, check_hostname=False))


def test_one_side_speaks_tls_and_the_other_does_not(
    new_cluster: Callable[..., Any], authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secured = new_cluster(tls=server_tls(*authority.sign("server"), authority.ca))
    with pytest.raises(HandshakeError, match=rf"{secured.address}: (speaks TLS|closed .*; does it expect TLS\?)"):
        secured.connect()
    plain = new_cluster()
    with pytest.raises(HandshakeError, match=f"{plain.address}: TLS: the other side does not speak it"):
        plain.connect(tls=client_tls(*authority.sign("client"), authority.ca))
    plain.listener.close()
    assert "speaks TLS, and this side does not" in caplog.text


def test_a_port_that_connects_to_itself_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        made = socket.socket
        # The system may give the port that is asked for to the socket that asks.
        monkeypatch.setattr(socket, "socket", lambda *_: made(fileno=sock.detach()))
        with pytest.raises(TransportError, match="nobody listens there"):
            connect(
                f"127.0.0.1:{port}",
                me=Identity(role="w", name="w"),
                cluster="a",
                token=b"x" * 16,
                codec=CODEC,
                timeout_s=SOON_S,
            )
