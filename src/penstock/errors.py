"""Every error that Penstock raises on purpose, in one tree.

    PenstockError
    ├── InputError                  something that the user gave is wrong (exit status 2)
    │   ├── DataError               a file, a column, a row
    │   │   └── RowError            a row of a record batch, before it is known where that stands
    │   ├── ConfigError             an option, a job file, a feature spec
    │   └── ModelError              a model folder that is missing, damaged or newer than this code
    ├── FolderBusy                  another run writes to the same folder (exit status 2)
    ├── ExecutorLost                a process that computes for a run died or went silent (exit status 1)
    ├── StorageError                a disk is full or refuses to be written (exit status 1)
    ├── TransportError              a peer cannot be reached, or a message not be sent (exit status 1)
    │   ├── TransportTimeout        a deadline passed
    │   ├── ConnectionClosed        by the peer, by us, or by the network
    │   ├── FrameError              what came is not a message as agreed, or what was to be sent is none
    │   └── HandshakeError          a peer of another cluster, version or token
    └── Interrupted                 Ctrl-C, after the checkpoint was written (exit status 130)

Messages are one line: what, where, got, allowed. Errors of other libraries are mapped to these at the
boundary where they appear, and nowhere else.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ConnectionClosed",
    "DataError",
    "ExecutorLost",
    "FolderBusy",
    "FrameError",
    "HandshakeError",
    "InputError",
    "Interrupted",
    "ModelError",
    "PenstockError",
    "RowError",
    "StorageError",
    "TransportError",
    "TransportTimeout",
]


class PenstockError(Exception):
    """Base of all errors raised on purpose; ``exit_status`` is what the command line ends with."""

    exit_status = 1


class InputError(PenstockError, ValueError):
    """Something that the user gave is wrong; the message says what, where, got and allowed."""

    exit_status = 2


class DataError(InputError):
    """A file, a column or a row is not what it should be."""


class RowError(DataError):
    """Row ``row`` (from 0) of a record batch is bad; whoever knows where the batch stands says so instead."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row = row
        self.message = message


class ConfigError(InputError):
    """An option, a job file or a feature spec is not what it should be."""


class ModelError(InputError):
    """A model folder is missing, damaged, or written by newer code."""


class FolderBusy(PenstockError):
    """Another run holds the folder."""

    exit_status = 2


class ExecutorLost(PenstockError):
    """A process that computes for a run died or went silent; the message names it."""


class StorageError(PenstockError):
    """Writing failed: the disk is full, or the folder may not be written."""


class TransportError(PenstockError):
    """A peer cannot be reached, or a message could not be sent or received; the message names the peer."""


class TransportTimeout(TransportError):
    """A deadline passed while connecting, sending or receiving."""


class ConnectionClosed(TransportError):
    """The connection is closed: by the peer, by this side, or by the network."""


class FrameError(TransportError):
    """A frame is not what the protocol says, or a message cannot be made a frame."""


class HandshakeError(TransportError):
    """The peer is none of this cluster: another token, cluster, protocol version, or no proof at all."""


class Interrupted(PenstockError):
    """The user pressed Ctrl-C; the message says what was saved and how to go on."""

    exit_status = 130
