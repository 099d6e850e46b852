"""Kernels of Parquet pages against plain Python, on what a writer may write and on bytes that none would."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.parquet import (
    HEADER,
    MALFORMED,
    decode_dictionary,
    decode_hybrid,
    decode_indices,
    list_pages,
    read_header,
)

ABSENT = -1
BODY_AT, BODY_NBYTES = 90, 91
GUARD = 171
"""What outputs are surrounded by, and must still be after a kernel ran."""


def as_bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


class Guarded:
    """An array to be filled, with items on both sides that are not the kernel's to write."""

    def __init__(self, n: int, dtype: type) -> None:
        self.memory = np.full(n + 32, GUARD, dtype)
        self.out = self.memory[16 : 16 + n]

    def values(self) -> list[int]:
        assert (self.memory[:16] == GUARD).all()
        assert (self.memory[16 + len(self.out) :] == GUARD).all()
        return self.out.tolist()


# Thrift's compact protocol.


def varint(value: int, nbytes: int = 1) -> bytes:
    """At least ``nbytes`` long: the protocol allows zeros on top."""
    groups = [value >> shift & 127 for shift in range(0, max(7 * nbytes, value.bit_length()), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def unsigned(value: int) -> int:
    return (value << 1 ^ value >> 63) & (1 << 64) - 1


def coded_field(number: int, before: int, value: object, kind: int, far: bool) -> bytes:
    body = b""
    if isinstance(value, bool):
        kind = 1 if value else 2
    elif isinstance(value, int):
        body = bytes([value & 255]) if kind == 3 else varint(unsigned(value))
    elif isinstance(value, float):
        kind, body = 7, bytes(8)
    elif isinstance(value, bytes):
        kind, body = 8, varint(len(value)) + value
    else:
        kind, body = 12, coded_struct(value)
    if 0 < number - before < 16 and not far:
        return bytes([number - before << 4 | kind]) + body
    return bytes([kind]) + varint(unsigned(number)) + body


def coded_struct(fields: list) -> bytes:
    """Of (number, value, kind of its integers, whether its number is spelled out)."""
    befores = [0, *(number for number, *_ in fields)]
    return (
        b"".join(coded_field(n, before, *rest) for (n, *rest), before in zip(fields, befores, strict=False))
        + b"\0"
    )


def expected_header(fields: list) -> list[int]:
    found = [ABSENT] * HEADER
    for number, value, kind, _ in fields:
        if isinstance(value, list):
            for inner, inner_value, inner_kind, _ in value:
                if 1 <= number <= 8 and 1 <= inner <= 9 and not isinstance(inner_value, list):
                    found[10 * number + inner] = kept(inner_value, inner_kind)
        elif 1 <= number <= 9:
            found[number] = kept(value, kind)
    return found


def kept(value: object, kind: int) -> int:
    return int(value) if isinstance(value, int) and (kind != 3 or isinstance(value, bool)) else ABSENT


def plain(value: object) -> list:
    """Fields of kind i32, as the examples need them: a dict of numbers, and of dicts of numbers."""
    return [(n, plain(each) if isinstance(each, dict) else each, 5, False) for n, each in sorted(value.items())]


integers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5))
scalars = st.one_of(integers, st.booleans(), st.floats(), st.binary(max_size=20))


def structs(values: st.SearchStrategy) -> st.SearchStrategy:
    numbers = st.one_of(st.integers(1, 9), st.integers(1, 32767))
    field = st.tuples(numbers, values, st.sampled_from([3, 4, 5, 6]), st.booleans())
    fields = st.lists(field, max_size=6, unique_by=lambda each: each[0])
    return fields.map(lambda made: sorted(made, key=lambda each: each[0]))


headers = structs(st.one_of(scalars, structs(st.one_of(scalars, structs(scalars)))))


def header_of(data: bytes, at: int = 0) -> tuple[int, list[int]]:
    header = Guarded(HEADER, np.int64)
    end = read_header(as_bytes(data), at, header.out)
    return end, header.values()


def test_the_example_of_read_header_in_its_docstring():
    data = bytes.fromhex("15 00 15 0a 00")
    assert data == coded_struct(plain({1: 0, 2: 5}))
    end, header = header_of(data)
    assert (end, header[1], header[2], set(header[3:])) == (5, 0, 5, {ABSENT})


@settings(deadline=None, max_examples=150)
@given(fields=headers, before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_headers_are_read_as_they_were_written(fields, before, after):
    data = before + coded_struct(fields)
    assert header_of(data + after, len(before)) == (len(data), expected_header(fields))


def zigzag_values() -> list[int]:
    edges = [0, 1, 63, 64, 8191, 8192, 2**31 - 1, 2**31, 2**62, 2**63 - 1]
    return [*edges, *(-edge for edge in edges), -(2**63)]


@pytest.mark.parametrize("value", zigzag_values())
def test_an_integer_of_any_length_is_read_with_its_sign(value):
    for nbytes in range(1, 11):
        data = b"\x16" + varint(unsigned(value), nbytes) + b"\0"
        assert header_of(data) == (len(data), expected_header([(1, value, 6, False)]))


def test_an_integer_of_more_than_10_bytes_is_malformed():
    assert header_of(b"\x16" + b"\x80" * 9 + b"\x01\0")[0] == 12
    assert header_of(b"\x16" + b"\x80" * 10 + b"\x01\0")[0] == MALFORMED


def test_structs_may_be_8_deep_and_no_deeper():
    for depth in range(1, 12):
        data = b"\x1c" * (depth - 1) + b"\x15\x02" + b"\0" * depth
        assert header_of(data)[0] == (len(data) if depth <= 8 else MALFORMED)


@pytest.mark.parametrize("kind", [0, 9, 10, 11, 13, 14, 15])
def test_what_no_header_has_is_malformed(kind):
    assert header_of(bytes([0x10 | kind]) + b"\0" * 20)[0] == MALFORMED


@pytest.mark.parametrize("nbytes", [3, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_text_longer_than_what_is_left_is_malformed(nbytes):
    assert header_of(b"\x18" + varint(2) + b"a\0")[0] == MALFORMED
    assert header_of(b"\x18" + varint(nbytes) + b"a\0")[0] == MALFORMED


@settings(deadline=None, max_examples=50)
@given(fields=headers)
def test_every_truncation_of_a_header_is_malformed(fields):
    data = coded_struct(fields)
    for end in range(len(data)):
        assert header_of(data[:end])[0] == MALFORMED


@settings(deadline=None, max_examples=150)
@given(data=st.binary(max_size=60), at=st.integers(0, 60))
def test_a_header_of_any_bytes_ends_within_them(data, at):
    end, _ = header_of(data, at)
    assert end == MALFORMED or at < end <= len(data)


# Pages.


def page(nbytes: int, **struct: int) -> bytes:
    """A page with a body of ``nbytes``; ``v1=7``: of 7 values."""
    kinds = {"v1": (0, 5), "index": (1, 6), "dictionary": (2, 7), "v2": (3, 8)}
    ((name, n_values),) = struct.items()
    kind, place = kinds[name]
    return coded_struct(plain({1: kind, 2: nbytes + 1, 3: nbytes, place: {1: n_values, 2: 8}})) + bytes(nbytes)


def pages_of(data: bytes, n_values: int, room: int) -> tuple[int, list[list[int]]]:
    listed = Guarded(room * HEADER, np.int64)
    found = list_pages(as_bytes(data), n_values, listed.out.reshape(room, HEADER))
    listed.values()
    return found, listed.out.reshape(room, HEADER).tolist()


SHAPES = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["v1", "v2", "dictionary", "index"]), st.integers(0, 100)),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=100)
@given(shapes=SHAPES, after=st.binary(max_size=5), room=st.integers(1, 9))
def test_pages_are_listed_until_all_values_are_there(shapes, after, room):
    parts = [page(nbytes, **{name: n_values}) for nbytes, name, n_values in shapes]
    values = [n_values if name in ("v1", "v2") else 0 for _, name, n_values in shapes]
    n_values = max(1, sum(values))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    enough = [i + 1 for i in range(len(parts)) if sum(values[: i + 1]) >= n_values]
    found, listed = pages_of(b"".join(parts) + after, n_values, room)
    if enough and enough[0] <= room:
        assert found == enough[0]
    elif room <= len(parts):
        assert found == room
    else:
        # Only what is behind the pages could have had more, and that is no page.
        assert sum(values) == 0
        return
    for (nbytes, name, count), end, header in zip(shapes[:found], ends, listed, strict=False):
        place = {"v1": 51, "v2": 81, "dictionary": 71, "index": 61}[name]
        assert (header[BODY_AT], header[BODY_NBYTES], header[3]) == (end - nbytes, nbytes, nbytes)
        assert (header[2], header[place]) == (nbytes + 1, count)


def test_pages_of_more_values_than_the_column_has_do_not_add_up():
    data = page(3, dictionary=2) + page(4, v1=5) + page(2, v2=6)
    assert [pages_of(data, n, 4)[0] for n in (4, 5, 10, 11, 12)] == [MALFORMED, 2, MALFORMED, 3, MALFORMED]


@pytest.mark.parametrize("nbytes", [-1, -(2**31), 1, 2**31 - 1, 2**63 - 1])
def test_a_body_that_is_not_within_the_data_is_malformed(nbytes):
    header = coded_struct(plain({1: 0, 2: 9, 3: nbytes, 5: {1: 4}}))
    assert pages_of(header, 4, 4)[0] == MALFORMED
    if 0 < nbytes < 9:
        assert pages_of(header + bytes(nbytes), 4, 4)[0] == 1


def test_a_page_without_a_length_is_malformed():
    assert pages_of(coded_struct(plain({1: 0, 2: 9, 5: {1: 4}})) + bytes(20), 4, 4)[0] == MALFORMED


def test_pages_of_a_negative_number_of_values_count_for_none():
    assert pages_of(page(3, v1=-5) + page(2, v2=-9) + page(1, v1=5), 5, 4)[0] == 3


@settings(deadline=None, max_examples=40)
@given(shapes=SHAPES)
def test_pages_cut_short_do_not_add_up(shapes):
    shapes = [*shapes, (3, "v1", 1)]
    n_values = sum(n_values for _, name, n_values in shapes if name in ("v1", "v2"))
    data = b"".join(page(nbytes, **{name: n}) for nbytes, name, n in shapes)
    assert pages_of(data, n_values, 8)[0] == len(shapes)
    for end in range(0, len(data), 3):
        assert pages_of(data[:end], n_values, 8)[0] == MALFORMED


@settings(deadline=None, max_examples=150)
@given(shapes=SHAPES, flips=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), max_size=4))
def test_bodies_of_damaged_pages_are_within_the_data(shapes, flips):
    data = bytearray(b"".join(page(nbytes, **{name: n}) for nbytes, name, n in shapes))
    for at, change in flips:
        data[at % len(data)] ^= change
    found, listed = pages_of(bytes(data), sum(n for _, _, n in shapes) or 1, 5)
    assert found == MALFORMED or 1 <= found <= 5
    end = 0
    for header in listed[: max(found, 0)]:
        assert end < header[BODY_AT] <= header[BODY_AT] + header[BODY_NBYTES] <= len(data)
        end = header[BODY_AT] + header[BODY_NBYTES]


# Dictionaries.


def coded_texts(texts: list[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def texts_of(data: bytes, entries: int) -> list[bytes] | int:
    """What ``decode_dictionary`` found, or MALFORMED; it must say rightly whether all is ASCII."""
    text = Guarded(max(0, len(data) - 4 * entries), np.uint8)
    offsets = Guarded(entries + 1, np.int32)
    found = decode_dictionary(as_bytes(data), offsets.out, text.out)
    joined, places = bytes(text.values()), offsets.values()
    if found == MALFORMED:
        return MALFORMED
    assert found == (not joined.isascii())
    assert (places[0], places[-1]) == (0, len(joined))
    return [joined[a:b] for a, b in itertools.pairwise(places)]


def oracle_of_texts(data: bytes, entries: int) -> list[bytes] | int:
    found, at = [], 0
    for _ in range(entries):
        nbytes = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + nbytes > len(data):
            return MALFORMED
        found.append(data[at + 4 : at + 4 + nbytes])
        at += 4 + nbytes
    return found if at == len(data) else MALFORMED


text_lists = st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=12).map(str.encode)), max_size=9)


def test_the_example_of_decode_dictionary_in_its_docstring():
    data = b"\x02\0\0\0ab\x01\0\0\0c"
    offsets, text = np.empty(3, np.int32), np.empty(3, np.uint8)
    assert decode_dictionary(as_bytes(data), offsets, text) == 0
    assert (offsets.tolist(), bytes(text)) == ([0, 2, 3], b"abc")


@settings(deadline=None, max_examples=150)
@given(texts=text_lists)
def test_texts_of_a_dictionary_are_those_that_were_written(texts):
    assert texts_of(coded_texts(texts), len(texts)) == texts


def test_the_one_byte_that_is_not_ascii_is_seen_wherever_it_stands():
    for n in range(1, 28):
        for at in range(n):
            text = bytearray(b"a" * n)
            text[at] = 0x80
            for texts in ([bytes(text)], [b"b", bytes(text), b"c" * 9], [bytes(text), b"c" * 30]):
                assert texts_of(coded_texts(texts), len(texts)) == texts


def test_lengths_are_not_taken_for_text():
    # 200 is not ASCII as a byte, but here it is the length of the text behind the short one.
    texts = [b"ab", b"c" * 200, b"d"]
    assert texts_of(coded_texts(texts), 3) == texts


@settings(deadline=None, max_examples=60)
@given(texts=text_lists, after=st.binary(min_size=1, max_size=9))
def test_a_dictionary_cut_short_or_with_bytes_left_is_malformed(texts, after):
    data = coded_texts(texts)
    for end in range(len(data)):
        assert texts_of(data[:end], len(texts)) == MALFORMED
    assert texts_of(data + after, len(texts)) == MALFORMED


@settings(deadline=None, max_examples=100)
@given(
    texts=text_lists,
    entries=st.integers(0, 10),
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), max_size=3),
)
def test_any_bytes_are_a_dictionary_if_their_lengths_add_up(texts, entries, flips):
    data = bytearray(coded_texts(texts))
    for at, change in flips if data else ():
        data[at % len(data)] ^= change
    assert texts_of(bytes(data), entries) == oracle_of_texts(bytes(data), entries)


@pytest.mark.parametrize("nbytes", [5, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_length_of_more_than_what_is_left_is_malformed(nbytes):
    assert texts_of(nbytes.to_bytes(4, "little") + b"abcd", 1) == MALFORMED
    assert texts_of(coded_texts([b"abcdefgh"]) + nbytes.to_bytes(4, "little") + b"abcd", 2) == MALFORMED


# Runs and groups.


def coded_run(value: int, n: int, width: int) -> bytes:
    return varint(n << 1) + value.to_bytes((width + 7) // 8, "little")


def coded_groups(values: list[int], width: int) -> bytes:
    """Of 8 values each, padded with ones, which must not be seen."""
    groups = -(-len(values) // 8)
    bits = sum(value << i * width for i, value in enumerate(values))
    bits |= (1 << 8 * groups * width) - (1 << len(values) * width)
    return varint(groups << 1 | 1) + bits.to_bytes(groups * width, "little")


def oracle_of_hybrid(data: bytes, width: int, n: int) -> list[int] | None:
    """The first ``n`` values, None if there are not so many; groups may be cut behind the last one wanted."""
    values, at, mask = [], 0, (1 << width) - 1
    while len(values) < n:
        head, shift = 0, 0
        while True:
            if at == len(data) or shift == 70:
                return None
            head |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                break
        head &= (1 << 64) - 1
        wanted = min((head >> 1) * (8 if head & 1 else 1), n - len(values))
        if head & 1:
            if at + -(-wanted * width // 8) > len(data):
                return None
            bits = int.from_bytes(data[at : at + -(-wanted * width // 8)], "little")
            values += [bits >> i * width & mask for i in range(wanted)]
            at += (head >> 1) * width
        else:
            nbytes = (width + 7) // 8
            if at + nbytes > len(data):
                return None
            values += [int.from_bytes(data[at : at + nbytes], "little") & mask] * wanted
            at += nbytes
        at = min(at, len(data))
    return values


def hybrid_of(data: bytes, width: int, n: int, dtype: type = np.uint32) -> list[int] | None:
    filled = Guarded(n, dtype)
    found = decode_hybrid(as_bytes(data), width, filled.out)
    values = filled.values()
    return values if found else None


@st.composite
def hybrids(draw: st.DrawFn, width_max: int = 32) -> tuple[bytes, int, list[int]]:
    width = draw(st.integers(0, width_max))
    number = st.one_of(st.integers(0, (1 << width) - 1), st.just((1 << width) - 1))
    data, values = b"", []
    parts = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    for i, packed in enumerate(parts):
        if packed:
            n = draw(st.integers(1, 40)) if i == len(parts) - 1 else 8 * draw(st.integers(0, 5))
            group = draw(st.lists(number, min_size=n, max_size=n))
            data, values = data + coded_groups(group, width), values + group
        else:
            value, n = draw(number), draw(st.integers(0, 300))
            data, values = data + coded_run(value, n, width), values + [value] * n
    return data, width, values


def test_the_example_of_decode_hybrid_in_its_docstring():
    assert hybrid_of(bytes([6, 5]), 3, 3) == [5, 5, 5]


def test_the_example_of_groups_in_the_format_s_description():
    # 0 to 7 of 3 bits each, from Encodings.md.
    packed = bytes([0b10001000, 0b11000110, 0b11111010])
    assert hybrid_of(b"\x03" + packed, 3, 8) == list(range(8))
    assert coded_groups(list(range(8)), 3) == b"\x03" + packed


@pytest.mark.parametrize("width", range(33))
def test_runs_and_groups_of_every_width(width):
    rng = np.random.default_rng(width)
    values = rng.integers(0, 1 << width, 48, dtype=np.uint64).tolist()
    top = (1 << width) - 1
    data = coded_run(top, 5, width) + coded_groups(values, width) + coded_run(0, 300, width)
    data += coded_groups([top] * 16, width) + coded_groups(values[:3], width)
    expected = [top] * 5 + values + [0] * 300 + [top] * 16 + values[:3]
    for after in (b"", bytes(20)):
        assert hybrid_of(data + after, width, len(expected)) == expected
    for n in range(0, len(expected), 7):
        assert hybrid_of(data, width, n) == expected[:n]


@settings(deadline=None, max_examples=150)
@given(made=hybrids(), after=st.binary(max_size=9), data=st.data())
def test_values_are_those_that_were_written_whatever_is_behind_them(made, after, data):
    coded, width, values = made
    n = data.draw(st.integers(0, len(values)))
    assert hybrid_of(coded, width, len(values)) == values
    assert hybrid_of(coded + after, width, n) == values[:n]


@settings(deadline=None, max_examples=40)
@given(made=hybrids(width_max=8))
def test_values_come_in_the_type_of_the_output(made):
    coded, width, values = made
    for dtype in (np.uint8, np.int32, np.uint32):
        assert hybrid_of(coded, width, len(values), dtype) == values


@settings(deadline=None, max_examples=50)
@given(made=hybrids())
def test_every_truncation_has_the_values_that_are_left(made):
    coded, width, values = made
    for end in range(len(coded)):
        assert hybrid_of(coded[:end], width, len(values)) == oracle_of_hybrid(coded[:end], width, len(values))


@settings(deadline=None, max_examples=200)
@given(
    made=hybrids(),
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), min_size=1, max_size=3),
    more=st.integers(0, 20),
)
def test_damaged_values_are_what_the_bytes_say(made, flips, more):
    coded, width, values = made
    data = bytearray(coded)
    for at, change in flips:
        data[at % len(data)] ^= change
    n = len(values) + more
    assert hybrid_of(bytes(data), width, n) == oracle_of_hybrid(bytes(data), width, n)


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=40), width=st.integers(0, 32), n=st.integers(0, 100))
def test_any_bytes_have_the_values_that_they_say(data, width, n):
    assert hybrid_of(data, width, n) == oracle_of_hybrid(data, width, n)


@pytest.mark.parametrize("width", [0, 1, 8, 32])
@pytest.mark.parametrize("n", [2**31 - 1, 2**32, 2**61, 2**62, 2**63 - 1])
def test_a_count_of_far_too_many_is_as_good_as_enough(width, n):
    assert hybrid_of(coded_run(0, n, width), width, 9) == [0] * 9
    groups = varint(n << 1 | 1) + bytes(9 * width // 8 + 1)
    assert hybrid_of(groups, width, 9) == [0] * 9
    assert hybrid_of(groups[: -(9 * width // 8 + 1)], width, 9) == ([0] * 9 if width == 0 else None)


def test_runs_and_groups_of_no_values_are_passed_over():
    empty = coded_run(3, 0, 2) + coded_groups([], 2)
    assert hybrid_of(empty * 3 + coded_run(1, 4, 2) + empty, 2, 4) == [1] * 4
    assert hybrid_of(empty * 3, 2, 1) is None


# Indices.


def indices_of(levels: bytes, items: bytes, entries: int, n: int) -> tuple[int, list[int], list[int]] | None:
    """Nulls, indices and what is there; None where it is malformed."""
    out, valid = Guarded(n, np.uint32), Guarded(n, np.uint8)
    found = decode_indices(as_bytes(levels), as_bytes(items), entries, out.out, valid.out)
    indices, there = out.values(), valid.values()
    return None if found == MALFORMED else (found, indices, there)


def oracle_of_indices(levels: bytes, items: bytes, entries: int, n: int):
    there = oracle_of_hybrid(levels, 1, n) if levels else [1] * n
    if there is None:
        return None
    numbers: list[int] | None = []
    if any(there):
        if not items or items[0] > 32:
            return None
        numbers = oracle_of_hybrid(items[1:], items[0], sum(there))
        if numbers is None or max(numbers) >= entries:
            return None
    rest = iter(numbers)
    return n - sum(there), [next(rest) if each else 0 for each in there], there


@st.composite
def index_pages(draw: st.DrawFn) -> tuple[bytes, bytes, int, list[int | None]]:
    """Levels, items, entries of the dictionary, and the values; no levels where none is null."""
    entries = draw(st.one_of(st.integers(1, 9), st.integers(1, 100_000)))
    width = draw(st.integers((entries - 1).bit_length(), 32))
    there = draw(st.lists(st.booleans(), max_size=60))
    if draw(st.booleans()):
        there += [draw(st.booleans())] * draw(st.integers(0, 200))
    nullable = draw(st.booleans())
    there = [int(each or not nullable) for each in there]
    values = draw(st.lists(st.integers(0, entries - 1), min_size=sum(there), max_size=sum(there)))
    rest = iter(values)
    levels = coded_levels(draw, there) if nullable else b""
    items = bytes([width]) + coded_groups(values, width)
    if values and draw(st.booleans()):
        values = values[:1] * len(values)
        items, rest = bytes([width]) + coded_run(values[0], len(values), width), iter(values)
    return levels, items, entries, [next(rest) if each else None for each in there]


def coded_levels(draw: st.DrawFn, there: list[int]) -> bytes:
    """As one sequence of groups, or groups and then runs."""
    split = 8 * draw(st.integers(0, len(there) // 8))
    data = coded_groups(there[:split], 1)
    if draw(st.booleans()):
        return data + coded_groups(there[split:], 1)
    return data + b"".join(coded_run(each, 1, 1) for each in there[split:])


def test_the_example_of_decode_indices_in_its_docstring():
    levels, items = coded_groups([1, 0, 1], 1), b"\x03" + coded_groups([4, 7], 3)
    assert indices_of(levels, items, 8, 3) == (1, [4, 0, 7], [1, 0, 1])


@settings(deadline=None, max_examples=150)
@given(made=index_pages())
def test_indices_stand_where_values_are_there(made):
    levels, items, entries, values = made
    expected = [each or 0 for each in values], [int(each is not None) for each in values]
    assert indices_of(levels, items, entries, len(values)) == (values.count(None), *expected)


def test_all_null_needs_no_items():
    for items in (b"", b"\0", b"\xff\xff\xff"):
        assert indices_of(coded_run(0, 9, 1), items, 0, 9) == (9, [0] * 9, [0] * 9)


def test_no_values_need_nothing():
    assert indices_of(b"", b"", 0, 0) == (0, [], [])


def test_a_width_of_0_is_the_first_entry():
    assert indices_of(b"", b"\0" + coded_run(0, 5, 0), 1, 5) == (0, [0] * 5, [1] * 5)
    assert indices_of(b"", b"\0" + coded_run(0, 5, 0), 0, 5) is None


def test_an_index_outside_of_the_dictionary_is_malformed():
    for index in (5, 6, 2**31, 2**32 - 1):
        items = b"\x20" + coded_groups([0, index, 1], 32)
        assert indices_of(b"", items, 5, 3) is None
        assert indices_of(b"", items, index + 1, 3) == (0, [0, index, 1], [1] * 3)
    # One that is not wanted does not matter: groups are padded.
    assert indices_of(b"", b"\x20" + coded_groups([4, 3, 99], 32), 5, 2) == (0, [4, 3], [1, 1])


def test_a_width_of_more_than_32_is_malformed():
    for width in (33, 64, 255):
        assert indices_of(b"", bytes([width]) + coded_run(0, 5, width), 9, 5) is None
    assert indices_of(b"", b"", 9, 5) is None


@settings(deadline=None, max_examples=40)
@given(made=index_pages())
def test_every_truncation_of_a_page_is_what_its_bytes_say(made):
    levels, items, entries, values = made
    cuts = [(levels[:end], items) for end in range(1, len(levels))]
    cuts += [(levels, items[:end]) for end in range(len(items))]
    for cut in cuts[:: 1 + len(cuts) // 60]:
        assert indices_of(*cut, entries, len(values)) == oracle_of_indices(*cut, entries, len(values))


@settings(deadline=None, max_examples=150)
@given(
    made=index_pages(),
    flips=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), min_size=1, max_size=3),
    more=st.integers(-2, 20),
)
def test_a_damaged_page_is_what_its_bytes_say(made, flips, more):
    levels, items, entries, values = made
    data = bytearray(levels + items)
    for at, change in flips:
        data[at % len(data)] ^= change
    parts = bytes(data[: len(levels)]), bytes(data[len(levels) :])
    n = max(0, len(values) + more)
    assert indices_of(*parts, entries, n) == oracle_of_indices(*parts, entries, n)


OVER_READ = """
import ctypes, mmap
import numpy as np
from penstock.kernels import parquet

page = mmap.PAGESIZE

def pages(n):
    # The one behind them may be neither read nor written.
    data = np.frombuffer(mmap.mmap(-1, (n + 1) * page), np.uint8)
    address = data.ctypes.data + n * page
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), page, 0) == 0
    return data[: n * page]

sources = [pages(1), pages(1)]
targets = [pages(1), pages(1)]
rng = np.random.default_rng(7)

def at_end(data, source=0):
    end = sources[source][page - len(data) :]
    end[:] = np.frombuffer(data, np.uint8)
    return end

def output(n, dtype, target=0):
    nbytes = n * np.dtype(dtype).itemsize
    targets[target][:] = 171
    return targets[target][page - nbytes :].view(dtype)

def unharmed(out, target=0):
    assert (targets[target][: page - out.nbytes] == 171).all()

def varint(value):
    return (bytes([value & 127 | 128]) + varint(value >> 7)) if value > 127 else bytes([value])

for width in range(33):
    for groups in range(1, 4):
        whole = varint(groups << 1 | 1) + rng.bytes(groups * width)
        for n in range(8 * groups + 1):
            # Groups may end where the last value that is wanted does.
            needed = 1 + (n * width + 7) // 8
            for nbytes in {0, 1, needed - 1, needed, min(needed + 7, len(whole)), len(whole)}:
                out = output(n, np.uint32)
                found = parquet.decode_hybrid(at_end(whole[:nbytes]), width, out)
                assert found == (nbytes >= needed or n == 0)
                unharmed(out)
    for n in range(1, 9):
        run = varint(n << 1) + rng.bytes((width + 7) // 8)
        for nbytes in range(len(run) + 1):
            out = output(n, np.uint8)
            assert parquet.decode_hybrid(at_end(run[:nbytes]), width, out) == (nbytes == len(run))
            unharmed(out)

for lengths in [(n,) for n in range(30)] + [(a, b) for a in range(18) for b in range(18)]:
    whole = b"".join(n.to_bytes(4, "little") + rng.bytes(n) for n in lengths)
    entries = len(lengths)
    for nbytes in {len(whole), *rng.integers(4 * entries, len(whole) + 1, 3).tolist()}:
        # Neither more room than the texts need nor more entries than there are lead behind the data.
        for room, more in ((0, 0), (20, 0), (20, 1)):
            offsets = output(entries + more + 1, np.int32, 0)
            text = output(nbytes - 4 * entries + room, np.uint8, 1)
            found = parquet.decode_dictionary(at_end(whole[:nbytes]), offsets, text)
            assert (found != parquet.MALFORMED) == (nbytes == len(whole) and not more)
            unharmed(offsets, 0)
            unharmed(text, 1)

def random_bytes():
    # Small bytes are short runs and groups, and small widths.
    top = int(rng.choice([4, 12, 40, 256]))
    return rng.integers(0, top, rng.integers(0, 40), np.uint8).tobytes()

fine = 0
for _ in range(20_000):
    n = int(rng.integers(0, 90))
    out, valid = output(n, np.uint32, 0), output(n, np.uint8, 1)
    levels, items = at_end(random_bytes(), 0), at_end(random_bytes(), 1)
    entries = int(rng.integers(0, 3000))
    found = parquet.decode_indices(levels, items, entries, out, valid)
    unharmed(out, 0)
    unharmed(valid, 1)
    if found != parquet.MALFORMED:
        fine += 1
        assert found == np.count_nonzero(valid == 0) and valid.max(initial=0) <= 1
        assert n == found or out.max() < entries
assert fine > 500

def random_struct(depth):
    kinds = [0x11, 0x15, 0x16, 0x18, 0x17, 0x13, 0x25] + [0x1C, 0x2C] * (depth < 3)
    found = b""
    for kind in rng.choice(kinds, rng.integers(0, 5)).tolist():
        found += bytes([kind])
        if kind in (0x15, 0x16, 0x25):
            found += varint(int(rng.integers(0, 60)))
        found += {0x17: bytes(8), 0x13: bytes(1), 0x18: b"\\3abc"}.get(kind, b"")
        found += random_struct(depth + 1) if kind in (0x1C, 0x2C) else b""
    return found + b"\\0"

ends = 0
for _ in range(10_000):
    data = b"".join(random_struct(0) + bytes(rng.integers(0, 4)) for _ in range(rng.integers(1, 4)))
    data = data[: rng.integers(0, len(data) + 1)]
    if rng.random() < 0.5:
        # A length, in field 3, that leads near the end.
        data = b"\\x15\\0\\x25" + varint(int(rng.integers(0, 60))) + b"\\x2c\\x15\\4\\0\\0" + data
    end = at_end(data)
    header = output(parquet.HEADER, np.int64)
    found = parquet.read_header(end, 0, header)
    assert found <= len(data)
    unharmed(header)
    headers = output(3 * parquet.HEADER, np.int64).reshape(3, parquet.HEADER)
    found = parquet.list_pages(end, int(rng.integers(1, 9)), headers)
    unharmed(headers)
    for header in headers[: max(found, 0)]:
        assert header[90] + header[91] <= len(data)
    ends += found != parquet.MALFORMED
assert ends > 100
print("no over-read")
"""


def test_no_byte_behind_the_data_or_the_outputs_is_touched():
    # The pages behind them may not be: the process would die by a signal.
    done = subprocess.run([sys.executable, "-c", OVER_READ], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("no over-read\n", 0), done.stderr
