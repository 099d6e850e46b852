"""Two peers prove to each other that they know the cluster's token. State only: messages in, messages out.

connecting side                              accepting side
Greeting(nonce)                    ──►
                                   ◄──       Challenge(nonce)
Proof(claim, mac)                  ──►
                                   ◄──       Welcome(claim, mac), or Refused

A mac is HMAC-SHA256 by the token over a label for the direction, both nonces and all that was said by then, so it
cannot be replayed, reflected or altered; the token itself never crosses the wire. The accepting side says nothing
of itself before the peer has proved that it knows the token, except its protocol version. Secrecy, and protection
against someone between the two, are the part of TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from penstock.transport.connection import NAME_LIMIT, Identity, check_name
from penstock.transport.frames import Codec
from penstock.version import __version__

__all__ = ["HANDSHAKE_CODEC", "Accepting", "Challenge", "Connecting", "Greeting", "Proof", "Refused", "Welcome"]

NONCE_NBYTES: Final = 32
Nonce: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=NONCE_NBYTES, max_length=NONCE_NBYTES)]
Mac: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LIMIT)]


class Greeting(msgspec.Struct, tag=True, frozen=True):
    """The connecting side's first words."""

    nonce: Nonce


class Challenge(msgspec.Struct, tag=True, frozen=True):
    """The accepting side's answer to anybody."""

    nonce: Nonce


class Claim(msgspec.Struct, frozen=True):
    """What a side says of itself; ``version`` is the package's."""

    role: Name
    name: Name
    cluster: Name
    version: Name


class Proof(msgspec.Struct, tag=True, frozen=True):
    """Who connects, and that it knows the token."""

    claim: Claim
    mac: Mac


class Welcome(msgspec.Struct, tag=True, frozen=True):
    """Who accepts, and that it knows the token."""

    claim: Claim
    mac: Mac


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Why a side gives up, where the other may know."""

    reason: Literal["token", "frame", "busy"]


HANDSHAKE_CODEC: Final = Codec(Greeting, Challenge, Proof, Welcome, Refused, header_limit=2048, payload_limit=0)

_REFUSALS: Final = {
    "token": "the cluster token is wrong",
    "frame": "did not understand this side's handshake",
    "busy": "is closing",
}


class _Side:
    """``handle`` takes what came and returns what to send; then either ``peer`` or ``failure`` is set, or neither.

    ``failure`` is the rest of a sentence that begins with the peer's address.
    """

    def __init__(self, me: Identity, cluster: str, token: bytes) -> None:
        check_name("cluster", cluster)
        self._claim = Claim(role=me.role, name=me.name, cluster=cluster, version=__version__)
        self._token = token
        self._nonce = secrets.token_bytes(NONCE_NBYTES)
        self.peer: Identity | None = None
        self.peer_version = ""
        self.failure: str | None = None

    def _mac(self, label: str, connecting: bytes, accepting: bytes, *said: Claim) -> bytes:
        # msgpack is unambiguous: no two different transcripts have the same bytes.
        transcript = msgspec.msgpack.encode([f"penstock {label}", connecting, accepting, *said])
        return hmac.new(self._token, transcript, hashlib.sha256).digest()

    def _refused(self, message: Refused) -> None:
        self.failure = _REFUSALS[message.reason]

    def _out_of_turn(self, message: object) -> Refused:
        self.failure = f"sent {type(message).__name__} out of turn in the handshake"
        return Refused("frame")

    def _believe(self, claim: Claim) -> None:
        """Take a claim whose mac is right; both sides judge the cluster by themselves."""
        if not all(each.isprintable() for each in msgspec.structs.astuple(claim)):
            self.failure = "has a name that is not printable"
        elif claim.cluster != self._claim.cluster:
            self.failure = (
                f"is {article(claim.role)} {claim.role} of cluster {claim.cluster!r}, not {self._claim.cluster!r}"
            )
        else:
            self.peer = Identity(role=claim.role, name=claim.name)
            self.peer_version = claim.version


class Connecting(_Side):
    """The side that connects; ``start`` gives its first message."""

    def __init__(self, me: Identity, cluster: str, token: bytes) -> None:
        super().__init__(me, cluster, token)
        self._challenge: bytes | None = None

    def start(self) -> Greeting:
        """Return what to send first."""
        return Greeting(self._nonce)

    def handle(self, message: object) -> Proof | Refused | None:
        """Take a message of the accepting side, return what to send back."""
        match message:
            case Challenge(nonce) if self._challenge is None:
                self._challenge = nonce
                return Proof(self._claim, self._mac("connect", self._nonce, nonce, self._claim))
            case Welcome(claim, mac) if self._challenge is not None:
                right = self._mac("accept", self._nonce, self._challenge, self._claim, claim)
                if not hmac.compare_digest(mac, right):
                    self.failure = "did not prove that it knows the cluster token"
                    return Refused("token")
                self._believe(claim)
                return None
            case Refused():
                self._refused(message)
                return None
            case _:
                return self._out_of_turn(message)


class Accepting(_Side):
    """The side that accepts."""

    def __init__(self, me: Identity, cluster: str, token: bytes) -> None:
        super().__init__(me, cluster, token)
        self._greeting: bytes | None = None

    def handle(self, message: object) -> Challenge | Welcome | Refused | None:
        """Take a message of the connecting side, return what to send back."""
        match message:
            case Greeting(nonce) if self._greeting is None:
                self._greeting = nonce
                return Challenge(self._nonce)
            case Proof(claim, mac) if self._greeting is not None:
                if not hmac.compare_digest(mac, self._mac("connect", self._greeting, self._nonce, claim)):
                    self.failure = f"{claim.role!r} {claim.name!r} has a wrong cluster token"
                    return Refused("token")
                self._believe(claim)
                return Welcome(self._claim, self._mac("accept", self._greeting, self._nonce, claim, self._claim))
            case Refused():
                self._refused(message)
                return None
            case _:
                return self._out_of_turn(message)


def article(noun: str) -> str:
    """``a`` or ``an``."""
    return "an" if noun[:1].lower() in "aeiou" else "a"
