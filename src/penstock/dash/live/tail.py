"""Reads files of JSON lines as they grow: each line once and whole, a file that was replaced from its start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Tail"]

_PIECE = 4 << 20
LINE_NBYTES = 4 << 20
"""A longer line is none of ours, and is left out."""


class Tail:
    """One file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        """Device and inode."""
        self._offset = 0
        self._rest = b""
        self._skipping = False

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file is another than before, or begins anew; and its lines since then, or the last read.

        Lines that are no JSON objects are left out: a run that was killed may have left half of one.
        """
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                fresh = self._file != (stat.st_dev, stat.st_ino) or stat.st_size < self._offset
                if fresh:
                    self._file = stat.st_dev, stat.st_ino
                    self._offset, self._rest, self._skipping = 0, b"", False
                file.seek(self._offset)
                lines: list[dict[str, Any]] = []
                while piece := file.read(_PIECE):
                    self._offset += len(piece)
                    self._take(piece, lines)
                return fresh, lines
        except OSError:
            gone = self._file is not None
            self._file, self._offset, self._rest, self._skipping = None, 0, b"", False
            return gone, []

    def _take(self, piece: bytes, lines: list[dict[str, Any]]) -> None:
        *whole, rest = piece.split(b"\n")
        for n, text in enumerate(whole):
            if n == 0:
                text, skip = self._rest + text, self._skipping
                self._rest, self._skipping = b"", False
                if skip:
                    continue
            try:
                line = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(line, dict):
                lines.append(line)
        self._rest += rest
        if len(self._rest) > LINE_NBYTES:
            self._rest, self._skipping = b"", True
