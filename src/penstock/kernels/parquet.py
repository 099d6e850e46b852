"""Pages of a Parquet column to arrays: page headers, dictionaries of texts, and indices into them.

What is here is a small part of Parquet: flat columns of texts, of which each page is indices. Which columns
are that, and how pages are decompressed, is decided in ``penstock.data.pages``. Layouts are those of the
Parquet format 2.11 (``parquet.thrift``, ``Encodings.md``). Bytes are not trusted: each length is checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.compile import inlined, kernel, load8, pointer, store8

__all__ = ["HEADER", "MALFORMED", "decode_dictionary", "decode_hybrid", "decode_indices", "list_pages"]

MALFORMED = -1
ABSENT = -1
"""The value of a header's field that was not written."""

HEADER = 92
"""Length of a page's header: field f of struct s is at ``10 * s + f``, of the header itself at ``f``."""
BODY_AT, BODY_NBYTES = 90, 91
TYPE, COMPRESSED_NBYTES = 1, 3
VALUES_OF_V1, VALUES_OF_V2 = 51, 81
DATA_V1, DATA_V2 = 0, 3

# Types of Thrift's compact protocol.
TRUE, FALSE, BYTE, I16, I64, DOUBLE, BINARY, STRUCT = 1, 2, 3, 4, 6, 7, 8, 12
STRUCTS_MAX = 8

U0, U1, U7, U3 = np.uint64(0), np.uint64(1), np.uint64(7), np.uint64(3)
U64 = np.uint64(64)
LOW7, HIGH = np.uint64(0x7F), np.uint64(0x80)
ALL, HIGH_BITS = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0x8080808080808080)
WIDTH_MAX = 32


@inlined
def varint(data: Any, at: Any) -> Any:
    """The LEB128 integer at this offset, and the offset behind it; ``[0x96, 0x01], 0 -> 150, 2``."""
    value, shift = U0, U0
    while at < data.size and shift < U64:
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & LOW7) << shift
        if byte < HIGH:
            return value, at
        shift += U7
    return U0, MALFORMED


@inlined
def zigzag(value: Any) -> Any:
    """The signed integer of an unsigned one; ``0, 1, 2, 3 -> 0, -1, 1, -2``."""
    return np.int64(value >> U1) ^ -np.int64(value & U1)


@kernel
def read_header(data: Any, at: Any, header: Any) -> Any:
    """Read the Thrift struct of a page: integers and booleans go to ``header``, all else is passed over.

    ``15 00 15 0a 00 -> header[1] = 0, header[2] = 5``; returns the offset behind it, MALFORMED if it is none.
    """
    header[:] = ABSENT
    field = np.zeros(STRUCTS_MAX, np.int64)
    depth = 0
    while at < data.size:
        head = data[at]
        at += 1
        if head == 0:
            if depth == 0:
                return at
            depth -= 1
            continue
        kind, delta = head & 15, head >> 4
        if delta:
            field[depth] += delta
        else:
            coded, at = varint(data, at)
            field[depth] = zigzag(coded)
        value = np.int64(ABSENT)
        if at < 0:
            return MALFORMED
        if kind in (TRUE, FALSE):
            value = np.int64(kind == TRUE)
        elif kind == BYTE:
            at += 1
        elif I16 <= kind <= I64:
            coded, at = varint(data, at)
            value = zigzag(coded)
        elif kind == DOUBLE:
            at += 8
        elif kind == BINARY:
            coded, at = varint(data, at)
            if at < 0 or coded > np.uint64(data.size - at):
                return MALFORMED
            at += np.int64(coded)
        elif kind == STRUCT and depth + 1 < STRUCTS_MAX:
            depth += 1
            field[depth] = 0
        else:
            return MALFORMED
        if at < 0:
            return MALFORMED
        slot = field[0] if depth == 0 else 10 * field[0] + field[1]
        if depth < 2 and 0 < field[depth] < 10 and 0 < slot < BODY_AT and kind != STRUCT:
            header[slot] = value
    return MALFORMED


@kernel
def list_pages(data: Any, n_values: Any, headers: Any) -> Any:
    """Headers of a column's pages, with where their bodies are, until they have all of its values.

    Args:
        data: u8[n], from the column's first page on
        n_values: values of the column, nulls included
        headers: i64[pages, HEADER]

    Returns:
        the number of pages, MALFORMED where they do not add up, ``len(headers)`` also where there may be more
    """
    at = 0
    seen: Any = np.int64(0)
    for page in range(len(headers)):
        header = headers[page]
        at = read_header(data, at, header)
        if at < 0:
            return MALFORMED
        nbytes = header[COMPRESSED_NBYTES]
        if nbytes < 0 or nbytes > data.size - at:
            return MALFORMED
        header[BODY_AT], header[BODY_NBYTES] = at, nbytes
        at += nbytes
        values: Any = np.int64(0)
        if header[TYPE] == DATA_V1:
            values = max(header[VALUES_OF_V1], values)
        elif header[TYPE] == DATA_V2:
            values = max(header[VALUES_OF_V2], values)
        if values > n_values - seen:
            return MALFORMED
        seen += values
        if seen == n_values:
            return page + 1
    return len(headers)


@kernel
def decode_dictionary(data: Any, offsets: Any, text: Any) -> Any:
    """Texts with their lengths (u32) before them: ``02 00 00 00 'a' 'b' 01 00 00 00 'c' -> [0, 2, 3], 'abc'``.

    Args:
        data: u8[n], of which no byte may be left
        offsets: i32[entries + 1]
        text: u8[n - 4 * entries]

    Returns:
        0, or 1 where a byte is not ASCII, or MALFORMED
    """
    at: Any = np.int64(0)
    k: Any = np.int64(0)
    seen = U0
    source, target = pointer(data), pointer(text)
    offsets[0] = 0
    for entry in range(offsets.size - 1):
        if at + 4 > data.size:
            return MALFORMED
        nbytes: Any = np.int64(0)
        for i in range(4):
            nbytes |= np.int64(data[at + i]) << np.int64(8 * i)
        at += 4
        if nbytes > data.size - at or nbytes > text.size - k:
            return MALFORMED
        copied: Any = np.int64(0)
        # What is copied beyond the text's end is overwritten by the next text.
        while copied < nbytes and at + copied + 8 <= data.size and k + copied + 8 <= text.size:
            word = load8(source, at + copied)
            store8(target, k + copied, word)
            rest = np.uint64(min(np.int64(nbytes - copied), np.int64(8)))
            seen |= word & (ALL >> (U64 - (rest << U3)))
            copied += 8
        for i in range(copied, nbytes):
            seen |= np.uint64(data[at + i])
            text[k + i] = data[at + i]
        at += nbytes
        k += nbytes
        offsets[entry + 1] = k
    if at != data.size:
        return MALFORMED
    return np.int64(seen & HIGH_BITS != U0)


@inlined
def packed(data: Any, at: Any, bit: Any, width: Any) -> Any:
    """``width`` bits from this bit on, least first, byte by byte; ``[0b0110_1001], 0, 3, 4 -> 0b1101``."""
    value = U0
    for i in range(width):
        place = bit + np.uint64(i)
        byte = np.uint64(data[at + np.int64(place >> U3)])
        value |= ((byte >> (place & U7)) & U1) << np.uint64(i)
    return value


@kernel
def decode_hybrid(data: Any, width: Any, out: Any) -> Any:
    """Runs and bit-packed groups of 8, in turn as they come: ``06 05, width 3 -> [5, 5, 5]``.

    Args:
        data: u8[n]; what is behind the last value wanted is not looked at
        width: bits of a value, 0 to 32
        out: u8, i32 or u32[values]; filled

    Returns:
        whether there were so many values
    """
    bits = np.uint64(width)
    mask = (U1 << bits) - U1
    fast = pointer(data)
    at, k = np.int64(0), np.int64(0)
    while k < out.size:
        head, at = varint(data, at)
        if at < 0:
            return False
        length = np.int64(min(head >> U1, np.uint64(out.size)))
        if head & U1:
            n = min(8 * length, out.size - k)
            if (n * width + 7) // 8 > data.size - at:
                return False
            # Those that 8 bytes can be loaded for at once; near the end there are not so many.
            n_fast = np.int64(0)
            if width > 0 and data.size - at >= 8:
                n_fast = min(n, (8 * (data.size - at - 8) + 7) // width + 1)
            bit = U0
            for i in range(n_fast):
                out[k + i] = (load8(fast, at + np.int64(bit >> U3)) >> (bit & U7)) & mask
                bit += bits
            for i in range(n_fast, n):
                out[k + i] = packed(data, at, bit, width)
                bit += bits
            at = min(at + length * width, data.size)
        else:
            n = min(length, out.size - k)
            value_nbytes = (width + 7) // 8
            if value_nbytes > data.size - at:
                return False
            value = packed(data, at, U0, 8 * value_nbytes) & mask
            for i in range(n):
                out[k + i] = value
            at += value_nbytes
        k += n
    return True


@kernel
def decode_indices(levels: Any, items: Any, entries: Any, out: Any, valid: Any) -> Any:
    """A page's indices, with gaps where values are null: ``valid = [1, 0, 1]``, indices 4 and 7 -> ``[4, 0, 7]``.

    Args:
        levels: u8[n], whether each value is there (hybrid, width 1); empty where none can be null
        items: u8[m], a byte with the width, then the indices of those that are there (hybrid)
        entries: length of the dictionary
        out: u32[values]
        valid: u8[values], 0 or 1

    Returns:
        the number of nulls, or MALFORMED
    """
    there = np.int64(out.size)
    if levels.size:
        if not decode_hybrid(levels, 1, valid):
            return MALFORMED
        there = np.int64(0)
        for i in range(out.size):
            there += valid[i]
    else:
        valid[:] = 1
    if there:
        if (
            items.size == 0
            or items[0] > WIDTH_MAX
            or not decode_hybrid(items[1:], np.int64(items[0]), out[:there])
        ):
            return MALFORMED
        greatest = np.uint32(0)
        for i in range(there):
            greatest = max(greatest, out[i])
        if np.int64(greatest) >= entries:
            return MALFORMED
    nulls = out.size - there
    if nulls:
        # From the end, where a value never stands before the place that it goes to.
        k = there - 1
        for i in range(out.size - 1, -1, -1):
            if valid[i]:
                out[i] = out[k]
                k -= 1
            else:
                out[i] = 0
    return nulls
