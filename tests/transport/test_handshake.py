"""The handshake as two state machines that talk to each other, and to liars."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.transport import Identity
from penstock.transport.handshake import (
    HANDSHAKE_CODEC,
    Accepting,
    Challenge,
    Connecting,
    Greeting,
    Proof,
    Refused,
    Welcome,
)
from penstock.version import __version__

TOKEN = b"correct horse battery staple"
SERVER = Identity(role="server", name="server-0")
WORKER = Identity(role="worker", name="worker-3")


def sides(
    *, clusters: tuple[str, str] = ("a", "a"), tokens: tuple[bytes, bytes] = (TOKEN, TOKEN)
) -> tuple[Connecting, Accepting]:
    return Connecting(WORKER, clusters[0], tokens[0]), Accepting(SERVER, clusters[1], tokens[1])


def talk(
    connecting: Connecting, accepting: Accepting, on_the_way: Callable[[Any], Any] = lambda message: message
) -> list[Any]:
    """Let them talk until one has nothing to say; returns what was said."""
    said: list[Any] = []
    sides_in_turn: list[Connecting | Accepting] = [accepting, connecting]
    message: Any = connecting.start()
    while message is not None:
        said.append(message)
        side = sides_in_turn[(len(said) - 1) % 2]
        if side.peer is not None or side.failure is not None:
            break
        message = side.handle(on_the_way(HANDSHAKE_CODEC.decode(b"".join(HANDSHAKE_CODEC.encode(message)))))
    return said


def test_both_learn_who_the_other_is() -> None:
    connecting, accepting = sides()
    said = talk(connecting, accepting)
    assert [type(each) for each in said] == [Greeting, Challenge, Proof, Welcome]
    assert connecting.peer == SERVER and accepting.peer == WORKER
    assert connecting.peer_version == accepting.peer_version == __version__
    assert connecting.failure is None and accepting.failure is None


def test_the_proof_is_as_documented() -> None:
    """An independent computation: the label, both nonces, the claim."""
    greeting, challenge, proof, _ = talk(*sides())
    claim = {"role": "worker", "name": "worker-3", "cluster": "a", "version": __version__}
    transcript = msgspec.msgpack.encode(["penstock connect", greeting.nonce, challenge.nonce, claim])
    assert proof.mac == hmac.digest(TOKEN, transcript, hashlib.sha256)


def test_the_token_never_crosses_the_wire() -> None:
    for message in talk(*sides()):
        assert TOKEN not in b"".join(HANDSHAKE_CODEC.encode(message))


def test_nonces_are_fresh() -> None:
    first, second = talk(*sides()), talk(*sides())
    assert first[0].nonce != second[0].nonce and first[1].nonce != second[1].nonce


def test_a_wrong_token_is_clear_on_both_sides() -> None:
    connecting, accepting = sides(tokens=(b"x" * 16, TOKEN))
    said = talk(connecting, accepting)
    assert connecting.failure == "the cluster token is wrong"
    assert accepting.failure == "'worker' 'worker-3' has a wrong cluster token"
    assert connecting.peer is None and accepting.peer is None
    assert said[-1] == Refused("token")


def test_the_accepting_side_says_nothing_of_itself_to_strangers() -> None:
    said = talk(*sides(clusters=("a", "secret-cluster"), tokens=(b"x" * 16, TOKEN)))
    answers = b"".join(part for each in said[1::2] for part in HANDSHAKE_CODEC.encode(each))
    assert len(said) == 4
    for secret in (b"server", b"secret-cluster", __version__.encode()):
        assert secret not in answers


def test_another_cluster_is_clear_on_both_sides() -> None:
    connecting, accepting = sides(clusters=("a", "b"))
    talk(connecting, accepting)
    assert connecting.failure == "is a server of cluster 'b', not 'a'"
    assert accepting.failure == "is a worker of cluster 'a', not 'b'"
    assert connecting.peer is None and accepting.peer is None


@pytest.mark.parametrize("field", ["role", "name", "cluster", "version"])
def test_what_a_side_says_of_itself_cannot_be_altered(field: str) -> None:
    def alter(message: Any) -> Any:
        if isinstance(message, liar):
            claim = msgspec.structs.replace(message.claim, **{field: "z"})
            return msgspec.structs.replace(message, claim=claim)
        return message

    for liar in (Proof, Welcome):
        connecting, accepting = sides()
        talk(connecting, accepting, alter)
        victim = accepting if liar is Proof else connecting
        assert victim.peer is None and victim.failure is not None and "token" in victim.failure


def test_nonces_cannot_be_altered() -> None:
    for liar in (Greeting, Challenge):

        def alter(message: Any, liar: Any = liar) -> Any:
            return liar(bytes(32)) if isinstance(message, liar) else message

        connecting, accepting = sides()
        talk(connecting, accepting, alter)
        assert accepting.peer is None and connecting.peer is None


def test_a_proof_cannot_be_replayed() -> None:
    heard = talk(*sides())
    accepting = Accepting(SERVER, "a", TOKEN)
    accepting.handle(heard[0])
    assert accepting.handle(heard[2]) == Refused("token")
    assert accepting.peer is None


def test_a_proof_cannot_be_reflected() -> None:
    """A listener without the token sends back what it got."""
    connecting = Connecting(WORKER, "a", TOKEN)
    greeting = connecting.start()
    proof = connecting.handle(Challenge(greeting.nonce))
    assert isinstance(proof, Proof)
    connecting.handle(Welcome(proof.claim, proof.mac))
    assert connecting.peer is None
    assert connecting.failure == "did not prove that it knows the cluster token"


def test_messages_out_of_turn_end_it() -> None:
    heard = talk(*sides())
    for message in (heard[1], heard[2], heard[3]):
        accepting = Accepting(SERVER, "a", TOKEN)
        assert accepting.handle(message) == Refused("frame")
        assert accepting.peer is None and "out of turn" in str(accepting.failure)
    for message in (heard[0], heard[2], heard[3]):
        connecting = Connecting(WORKER, "a", TOKEN)
        connecting.start()
        assert connecting.handle(message) == Refused("frame")
        assert connecting.peer is None and "out of turn" in str(connecting.failure)
    accepting = Accepting(SERVER, "a", TOKEN)
    accepting.handle(heard[0])
    assert accepting.handle(heard[0]) == Refused("frame")


def test_names_that_would_break_a_log_are_refused() -> None:
    for bad in ("", "x" * 65, "a\nb"):
        with pytest.raises(ConfigError, match="1 to 64 printable"):
            Identity(role="worker", name=bad)
        with pytest.raises(ConfigError, match="cluster"):
            Connecting(WORKER, bad, TOKEN)

    class Forger(Connecting):
        """Knows the token, but not the rules."""

        def __init__(self) -> None:
            super().__init__(WORKER, "a", TOKEN)
            self._claim = msgspec.structs.replace(self._claim, name="a\nb")

    accepting = Accepting(SERVER, "a", TOKEN)
    talk(Forger(), accepting)
    assert accepting.peer is None and accepting.failure == "has a name that is not printable"
