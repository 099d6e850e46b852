"""Which server has a segment: consistent hashing with virtual nodes and bounded loads.

Karger et al. 1997, "Consistent Hashing and Random Trees"; Mirrokni, Thorup, Zadimoghaddam 2016, "Consistent
Hashing with Bounded Loads". A server that comes or goes moves few segments, and none has more than a twentieth
over its share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from penstock.errors import ConfigError
from penstock.parameter_server.effects import Owners

__all__ = ["SERVERS_MAX", "place"]

SERVERS_MAX = 1024
_VIRTUAL_NODES = 64
_SLACK = 1.05


def place(servers: Sequence[str], segments: int) -> Owners:
    """Number of the server of each segment, u16[segments]; depends on the servers' names alone, not on their order
    but for the numbers.

    Raises:
        ConfigError: no server, too many, two of one name, or more servers than segments.
    """
    if not 1 <= len(servers) <= min(SERVERS_MAX, segments):
        raise ConfigError(f"servers must be 1 to {min(SERVERS_MAX, segments)}, got {len(servers)}")
    if len(set(servers)) != len(servers):
        raise ConfigError(f"two servers have one name: {', '.join(sorted(servers))}")
    nodes = sorted(
        (_point(f"{name}/{node}"), number) for number, name in enumerate(servers) for node in range(_VIRTUAL_NODES)
    )
    points = np.array([point for point, _ in nodes], np.uint64)
    room = [math.ceil(_SLACK * segments / len(servers))] * len(servers)
    owners = np.empty(segments, np.uint16)
    for segment in range(segments):
        at = int(np.searchsorted(points, np.uint64(_point(f"segment {segment}"))))
        while room[nodes[at % len(nodes)][1]] == 0:
            at += 1
        owner = nodes[at % len(nodes)][1]
        room[owner] -= 1
        owners[segment] = owner
    return owners


def _point(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
