"""Every error that Penstock raises on purpose, in one tree.

    PenstockError
    ├── InputError                  something that the user gave is wrong (exit status 2)
    │   ├── DataError               a file, a column, a row
    │   │   └── RowError            a row of a record batch, before it is known where that stands
    │   ├── ConfigError             an option, a job file, a feature spec
    │   └── ModelError              a model folder that is missing, damaged or newer than this code
    ├── FolderBusy                  another run writes to the same folder (exit status 2)
    ├── StorageError                a disk is full or refuses to be written (exit status 1)
    └── Interrupted                 Ctrl-C, after the checkpoint was written (exit status 130)

Messages are one line: what, where, got, allowed. Errors of other libraries are mapped to these at the
boundary where they appear, and nowhere else.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "FolderBusy",
    "InputError",
    "Interrupted",
    "ModelError",
    "PenstockError",
    "RowError",
    "StorageError",
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


class StorageError(PenstockError):
    """Writing failed: the disk is full, or the folder may not be written."""


class Interrupted(PenstockError):
    """The user pressed Ctrl-C; the message says what was saved and how to go on."""

    exit_status = 130
