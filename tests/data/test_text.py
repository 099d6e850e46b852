"""Where rows end, against a state machine that reads one byte after the other, and against Python's csv."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.data import open_source, text
from penstock.data.text import Quoting, TextFile, TextRange, blocks, compression_of, line_ends, line_of
from penstock.errors import DataError


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


PACKERS = {"gzip": gzip.compress, "zstd": zstd, "bz2": bz2.compress}
QUOTED = Quoting(quote='"')
# Mostly what decides, so that quotes meet delimiters, line ends and one another.
TEXTS = st.text(st.sampled_from(',";"\n\r\nab'), max_size=60).map(str.encode)
QUOTINGS = st.sampled_from(
    [Quoting(), QUOTED, Quoting(delimiter=";", quote='"'), Quoting(delimiter=",", quote="a")]
)
FIELDS = st.text(st.sampled_from('",\n\r xé'), max_size=6)


def naive_ends(data: bytes, quoting: Quoting) -> list[int]:
    """RFC 4180 as a state machine: a quote opens at the begin of a field, and doubled it does not close."""
    quote = ord(quoting.quote) if quoting.quote is not None else -1
    ends = []
    inside, begins = False, True
    at = 0
    while at < len(data):
        c = data[at]
        if inside and c == quote and data[at + 1 : at + 2] == bytes([quote]):
            at += 1
        elif inside:
            inside = c != quote
        elif begins and c == quote:
            inside, begins = True, False
        else:
            begins = c in (ord(quoting.delimiter), *b"\r\n")
            if c == ord("\n"):
                ends.append(at + 1)
        at += 1
    return ends


def closed(data: bytes, quoting: Quoting) -> bytes:
    """The same without a quote left open at its end, which is a mistake of its own."""
    if quoting.quote is not None and len(naive_ends(data + b"\n", quoting)) == len(naive_ends(data, quoting)):
        return data + quoting.quote.encode()
    return data


def written(rows: list[list[str]], line_end: str, quote_all: bool) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=line_end, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL).writerows(
        rows
    )
    return out.getvalue().encode()


def read(data: bytes) -> list[list[str]]:
    """Rows by Python's csv, which hands out empty lines as empty rows."""
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def text_file(path: Path, begin: int = 0, quoting: Quoting = QUOTED) -> TextFile:
    return TextFile(path=str(path), nbytes=path.stat().st_size - begin, begin=begin, quoting=quoting)


def ranges(file: TextFile, block_nbytes: int) -> list[tuple[TextRange, int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_NBYTES", block_nbytes)
        return list(file.ranges())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example of a test writes anew."""
    return tmp_path_factory.mktemp("text") / "a.csv"


def test_the_example_of_the_docstring() -> None:
    assert line_ends(b'a\n"b\nc"\nd', QUOTED).tolist() == [2, 8]
    assert line_ends(b'a\n"b\nc"\nd', Quoting()).tolist() == [2, 5, 8]


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        (b"", []),
        (b"a", []),
        (b"\n\n", [1, 2]),
        (b'""\n', [3]),
        (b'"a""\nb"\nc\n', [8, 10]),
        (b'""""\n"""\n"\n', [5, 11]),
        (b'a"\n"b\n', [3]),
        (b'5" disk,x\n6" disk,"y\nz"\n', [10, 24]),
        (b'a,"b"c"\n"d\n', [8]),
        (b'a,b"\n","c\nd"\n', [5, 10, 13]),
        (b'a,b"\n,"c\nd"\n', [5, 12]),
        (b'a\r\n"b\r\nc"\r\n', [3, 11]),
        (b'a\r"b\nc"\n', [8]),
        (b'"open\n1\n2\n', []),
        (b'a;"b\n', [5]),
    ],
)
def test_rows_end_at_newlines_outside_quotes(data: bytes, ends: list[int]) -> None:
    assert line_ends(data, QUOTED).tolist() == ends == naive_ends(data, QUOTED)


@settings(deadline=None, max_examples=1000)
@given(TEXTS, QUOTINGS)
def test_rows_end_where_the_state_machine_says(data: bytes, quoting: Quoting) -> None:
    assert line_ends(data, quoting).tolist() == naive_ends(data, quoting)


@settings(deadline=None)
@given(
    st.lists(st.lists(FIELDS, min_size=2, max_size=3), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_rows_are_those_of_the_csv_module(rows: list[list[str]], line_end: str, quote_all: bool) -> None:
    data = written(rows, line_end, quote_all=quote_all or line_end == "\n")  # else csv leaves a lone \r bare
    ends = line_ends(data, QUOTED).tolist()
    assert [read(data[a:b]) for a, b in zip([0, *ends], ends, strict=False)] == [[row] for row in rows]
    assert ends[-1] == len(data)


def arrow_rows(data: bytes) -> tuple[list[str], list[tuple[int, str]]]:
    """Rows of one field, and those of more, as Arrow reads them at once."""
    others = []

    def keep(row: Any) -> str:
        others.append((row.actual_columns, row.text))
        return "skip"

    table = pa.csv.read_csv(
        pa.py_buffer(data),
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=["a"]),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep),
        convert_options=pa.csv.ConvertOptions(column_types={"a": pa.string()}),
    )
    return table["a"].to_pylist(), others


@settings(deadline=None, max_examples=500)
@given(TEXTS.filter(lambda data: data.strip(b"\r\n")))
def test_arrow_reads_the_rows_one_by_one_as_it_reads_them_at_once(data: bytes) -> None:
    ends = line_ends(data, QUOTED).tolist()
    fields, others = [], []
    for begin, end in zip([0, *ends], [*ends, len(data)], strict=True):
        if data[begin:end].strip(b"\r\n"):
            one, more = arrow_rows(data[begin:end])
            fields += one
            others += more
    assert (fields, others) == arrow_rows(data)


@settings(deadline=None)
@given(TEXTS, QUOTINGS, st.integers(1, 70), st.sampled_from([None, *PACKERS]))
def test_blocks_are_whole_rows_and_all_of_them(
    scratch: Path, data: bytes, quoting: Quoting, block_nbytes: int, packer: str | None
) -> None:
    data = closed(data, quoting)
    scratch.write_bytes(PACKERS[packer](data) if packer else data)
    ends = naive_ends(data, quoting)
    at = 0
    for offset, block in blocks(TextRange(path=str(scratch), begin=0, end=None), quoting, block_nbytes):
        assert offset == at and block
        at += len(block)
        assert data[offset:at] == block
        assert at in ends or at == len(data)
    assert at == len(data)


@settings(deadline=None)
@given(TEXTS, QUOTINGS, st.data(), st.sampled_from([None, *PACKERS]))
def test_blocks_begin_behind_a_header(
    scratch: Path, data: bytes, quoting: Quoting, draw: st.DataObject, packer: str | None
) -> None:
    data = closed(data, quoting)
    scratch.write_bytes(PACKERS[packer](data) if packer else data)
    begin = draw.draw(st.sampled_from([0, *naive_ends(data, quoting)]))
    got = list(blocks(TextRange(path=str(scratch), begin=begin, end=None), quoting, 7))
    assert b"".join(block for _, block in got) == data[begin:]
    assert [offset for offset, _ in got][:1] in ([begin], [])


def test_a_range_that_was_cut_is_one_block(scratch: Path) -> None:
    scratch.write_bytes(b"a\nb\nc\nd\n")
    assert list(blocks(TextRange(path=str(scratch), begin=2, end=6), Quoting(), 1)) == [(2, b"b\nc\n")]


@settings(deadline=None)
@given(TEXTS.filter(bool), QUOTINGS, st.integers(1, 12), st.data())
@example(data=b'"\n\n\n\n\n\n\n"\nb\n', quoting=QUOTED, block_nbytes=1, draw=None)
def test_ranges_cut_the_file_where_rows_end(
    scratch: Path, data: bytes, quoting: Quoting, block_nbytes: int, draw: st.DataObject | None
) -> None:
    data = closed(data, quoting)
    scratch.write_bytes(data)
    ends = naive_ends(data, quoting)
    begin = draw.draw(st.sampled_from([0, *ends])) if draw is not None else 0
    at = begin
    for text_range, nbytes in ranges(text_file(scratch, begin, quoting), block_nbytes):
        assert text_range.end is not None
        assert (text_range.begin, text_range.end - text_range.begin) == (at, nbytes)
        at = text_range.end
        assert at in ends or at == len(data)
        assert nbytes > 0
        # A range is longer than a block only where its rows are, or where it is the last.
        if nbytes > block_nbytes and at < len(data):
            assert not [end for end in ends if text_range.begin < end <= text_range.begin + block_nbytes]
    assert at == len(data)


def test_ranges_are_as_long_as_a_block_allows(scratch: Path) -> None:
    scratch.write_bytes(b'"a"\n' * 10 + b"bcd\n" * 10)
    assert [nbytes for _, nbytes in ranges(text_file(scratch), 13)] == [12, 12, 12, 12, 12, 12, 8]
    assert [nbytes for _, nbytes in ranges(text_file(scratch), 11)] == [8] * 10
    assert [nbytes for _, nbytes in ranges(text_file(scratch), 80)] == [80]


@settings(deadline=None)
@given(
    st.lists(st.lists(FIELDS, min_size=2, max_size=3), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 40),
)
def test_rows_of_ranges_are_the_rows_of_the_file(
    scratch: Path, rows: list[list[str]], line_end: str, last_line_end: bool, block_nbytes: int
) -> None:
    data = written(rows, line_end, quote_all=True)
    data = data if last_line_end else data.removesuffix(line_end.encode())
    scratch.write_bytes(data)
    got = []
    for text_range, _ in ranges(text_file(scratch), block_nbytes):
        for _, block in blocks(text_range, QUOTED):
            got += read(block)
    assert got == rows


def test_only_local_plain_files_are_cut(tmp_path: Path) -> None:
    data = b"1,2\n" * 100
    for name, pack in PACKERS.items():
        packed = tmp_path / name
        packed.write_bytes(pack(data))
        file = text_file(packed)
        assert ranges(file, 16) == [(TextRange(path=str(packed), begin=0, end=None), packed.stat().st_size)]
    with fsspec.open("memory://test_text/a.csv", "wb") as out:
        out.write(data)
    remote = TextFile(path="memory://test_text/a.csv", nbytes=400, begin=4, quoting=QUOTED)
    assert ranges(remote, 16) == [(TextRange(path=remote.path, begin=4, end=None), 400)]


def test_compression_is_told_by_the_first_bytes() -> None:
    for name, pack in PACKERS.items():
        assert compression_of(pack(b"a\n")[:4]) == name
    assert compression_of(b"a,b\n") is compression_of(b"") is None


@pytest.mark.parametrize("name", PACKERS)
def test_members_of_a_compressed_file_are_read_on(tmp_path: Path, name: str) -> None:
    pack = PACKERS[name]
    path = tmp_path / "a"
    path.write_bytes(pack(b"a,b\n1,") + pack(b"2\n3,4\n") + pack(b"5,6"))
    got = list(blocks(TextRange(path=str(path), begin=0, end=None), QUOTED, 4))
    assert b"".join(block for _, block in got) == b"a,b\n1,2\n3,4\n5,6"


@pytest.mark.parametrize("name", PACKERS)
def test_a_compressed_file_that_was_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv.x"
    packed = PACKERS[name](b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(5000)))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"a\.csv\.x cannot be read: ") as caught:
        for chunk in open_source(path, format="csv").chunks():
            list(chunk.batches(["a"], 100))
    assert "\n" not in str(caught.value)


# The lines of messages.


@settings(deadline=None)
@given(TEXTS.filter(bool), st.data(), st.integers(1, 20), st.sampled_from([None, *PACKERS]))
def test_line_numbers_count_newlines_before_an_offset(
    scratch: Path, data: bytes, draw: st.DataObject, block_nbytes: int, packer: str | None
) -> None:
    scratch.write_bytes(PACKERS[packer](data) if packer else data)
    offset = draw.draw(st.integers(0, len(data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "blocks", functools.partial(blocks, block_nbytes=block_nbytes))
        assert line_of(str(scratch), offset) == 1 + data.count(b"\n", 0, offset)


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows of more than 100 bytes are too long."""
    monkeypatch.setattr(text, "ROW_NBYTES_MAX", 100)
    monkeypatch.setattr(text, "BLOCK_NBYTES", 16)
    yield


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("packer", [None, *PACKERS])
def test_a_quote_left_open_is_a_row_too_long(scratch: Path, packer: str | None) -> None:
    data = b'a,b\n"1\n",2\n3,"4\n' + b"5,6\n" * 100
    scratch.write_bytes(PACKERS[packer](data) if packer else data)
    message = r"a\.csv line 4: got a row longer than .* is a quote left open\?$"
    with pytest.raises(DataError, match=message):
        for text_range, _ in text_file(scratch).ranges():
            list(blocks(text_range, QUOTED, 16))


@pytest.mark.usefixtures("short_rows")
def test_rows_of_the_greatest_length_pass(scratch: Path) -> None:
    data = b'a,"' + b"x\n" * 48 + b'"\n' + b"5,6\n" * 100
    assert data.index(b"5") == 101
    scratch.write_bytes(data)
    got = b"".join(block for part, _ in text_file(scratch).ranges() for _, block in blocks(part, QUOTED))
    assert got == data
    assert (
        b"".join(block for _, block in blocks(TextRange(path=str(scratch), begin=0, end=None), QUOTED, 16)) == data
    )
