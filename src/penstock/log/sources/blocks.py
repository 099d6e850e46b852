"""Text that comes in pieces of any size, as blocks of whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from penstock.log.sources.decode import BOM, LINE_NBYTES_MAX

__all__ = ["BLOCK_NBYTES", "Block", "Blocks"]

BLOCK_NBYTES = 4 << 20
_SHOWN_NBYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole lines, or the beginning of one that is too long."""

    begin: int
    """Offset of its first byte."""
    end: int
    """Offset behind its last byte, and behind what was left out."""
    text: bytes
    is_too_long: bool = False


class Blocks:
    """Cuts what ``read`` brings into blocks: b"" at the end; None where there is nothing now, as an empty block.

    Args:
        grows: more may come another day; a last line without its newline is taken only if it is whole, as JSON.
    """

    def __init__(self, read: Callable[[int], bytes | None], begin: int, *, grows: bool = False) -> None:
        self._read, self._begin, self._grows = read, begin, grows
        self.unfinished = 0
        """Bytes at the end that were not taken."""

    def __iter__(self) -> Iterator[Block]:
        begin, rest = self._begin, b""
        while True:
            cut = rest.rfind(b"\n") + 1
            if cut:
                yield Block(begin=begin, end=begin + cut, text=rest[:cut])
                begin, rest = begin + cut, rest[cut:]
            if len(rest) > LINE_NBYTES_MAX:
                block, rest = self._skip(begin, rest)
                if block is None:
                    return
                yield block
                begin = block.end
                continue
            piece = self._read(BLOCK_NBYTES)
            if piece is None:
                yield Block(begin=begin, end=begin, text=b"")
            elif piece:
                rest += piece
            else:
                break
        if not rest:
            return
        if self._grows and not _is_whole(rest):
            self.unfinished = len(rest)
            return
        yield Block(begin=begin, end=begin + len(rest), text=rest)

    def _skip(self, begin: int, rest: bytes) -> tuple[Block | None, bytes]:
        """Pass over a line that is too long, without keeping it."""
        head, nbytes = rest[:_SHOWN_NBYTES], len(rest)
        while (piece := self._read(BLOCK_NBYTES)) != b"":
            if piece is None:
                continue
            cut = piece.find(b"\n") + 1
            nbytes += cut or len(piece)
            if cut:
                return Block(begin=begin, end=begin + nbytes, text=head, is_too_long=True), piece[cut:]
        if self._grows:
            self.unfinished = nbytes
            return None, b""
        return Block(begin=begin, end=begin + nbytes, text=head, is_too_long=True), b""


def _is_whole(line: bytes) -> bool:
    text = line.removeprefix(BOM).strip()
    if not text:
        return True
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
