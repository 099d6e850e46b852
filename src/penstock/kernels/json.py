"""Where the items of a JSON array end, without reading them: one pass over the bytes, beside other threads.

A text that is no JSON is cut somewhere, or is said to have no end; whoever reads the pieces finds the fault there.
Source: RFC 8259.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.compile import kernel

__all__ = ["cut_array"]

COMMA, QUOTE, ESCAPE, OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = b',"\\[]{}'
FIRST_PRINTED = 0x21
"""All space is below."""


@kernel
def cut_array(text: Any, nbytes: Any, items: Any, cuts: Any) -> Any:
    """Cut ``[a, b, c, d]`` at commas between items, into pieces of so many bytes or more, or of so many items.

    ``b"[1, [2, 3], 4]", 99, 2, cuts[9] -> 14, 3, 1, 7, 1`` and ``cuts[0] = 10``: the array ends before byte 14
    and has 3 items, of which item 1 is the longest, of 7 bytes; it is cut once. The end is 0 where there is none.
    The array begins with the text. ``cuts`` (i64) has room for ``len(text) // min(nbytes, items) + 1``.
    """
    depth, cut, count, piece = 0, 0, 0, 0
    begin = item = 1
    longest, longest_at = 0, 0
    blank = True
    quoted = False
    at = 0
    while at < text.size:
        c = text[at]
        at += 1
        if quoted:
            if c == ESCAPE:
                at += 1
            elif c == QUOTE:
                quoted = False
            continue
        if c == QUOTE:
            quoted = True
        elif c in (OPEN_LIST, OPEN_OBJECT):
            depth += 1
            if depth == 1:
                continue
        elif c in (CLOSE_LIST, CLOSE_OBJECT):
            depth -= 1
            if depth == 0:
                if at - 1 - item > longest:
                    longest, longest_at = at - 1 - item, count
                if count or not blank:
                    count += 1
                return np.int64(at), count, longest_at, longest, cut
        elif c == COMMA and depth == 1:
            if at - 1 - item > longest:
                longest, longest_at = at - 1 - item, count
            count += 1
            piece += 1
            item = at
            if piece == items or at - begin >= nbytes:
                cuts[cut] = at - 1
                cut += 1
                begin, piece = at, 0
            continue
        if c >= FIRST_PRINTED:
            blank = False
    return np.int64(0), count, longest_at, longest, cut
