"""Typed messages between processes: frames over TCP, with a cluster token and optional mutual TLS; or in memory.

Knows nothing of what the messages mean: their types are given to a ``Codec`` by the room above.
"""

from penstock.transport.addresses import format_address, is_loopback, parse_address
from penstock.transport.connection import Connection, Identity, Peer
from penstock.transport.frames import PREFIX_NBYTES, PROTOCOL_VERSION, Codec
from penstock.transport.listener import Listener
from penstock.transport.memory import MemoryConnection, memory_pair
from penstock.transport.security import client_tls, new_token, read_token, server_tls
from penstock.transport.tcp import TcpConnection, connect

__all__ = [
    "PREFIX_NBYTES",
    "PROTOCOL_VERSION",
    "Codec",
    "Connection",
    "Identity",
    "Listener",
    "MemoryConnection",
    "Peer",
    "TcpConnection",
    "client_tls",
    "connect",
    "format_address",
    "is_loopback",
    "memory_pair",
    "new_token",
    "parse_address",
    "read_token",
    "server_tls",
]
