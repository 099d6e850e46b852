"""CSV and TSV files: what was written is what is read, and what cannot be read is named with its line."""

from __future__ import annotations

import bz2
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.data import CsvOptions, Source, delimited, open_source, text
from penstock.errors import ConfigError, DataError


def rows_of(source: Source, columns: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
    names = source.schema.names if columns is None else list(columns)
    return [
        tuple(row[name] for name in names)
        for chunk in source.chunks()
        for batch in chunk.batches(names, 4)
        for row in batch.to_pylist()
    ]


def read(path: Path, data: bytes, **options: Any) -> list[tuple[Any, ...]]:
    path.write_bytes(data)
    return rows_of(open_source(path, csv=CsvOptions(**options) if options else None))


def fails(path: Path, data: bytes, message: str, **options: Any) -> None:
    """Reading ends with one line: the file, and then this."""
    with pytest.raises(DataError) as caught:
        read(path, data, **options)
    assert str(caught.value) == f"{path}{message}"


@pytest.fixture
def a_csv(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every example of a test writes to anew."""
    return tmp_path_factory.mktemp("delimited")


# What was written is what is read.


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file, the rows in it, and the lines that they begin at."""

    data: bytes
    rows: list[tuple[str | None, ...]]
    lines: list[int]


NASTY = st.text(st.sampled_from("\",;\t|\n\r 'aé漢😀\0"), max_size=8)
FIELDS = st.one_of(
    NASTY, st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.sampled_from(["NA", "1"])
)


def as_field(value: str, delimiter: str, quoted: bool) -> str:
    """Quoted where it must be, and where it is asked for; a quote within a bare field stands as it is."""
    if quoted or value[:1] == '"' or any(c in value for c in (delimiter, "\r", "\n")):
        return '"' + value.replace('"', '""') + '"'
    return value


@st.composite
def files(draw: st.DrawFn, delimiter: str, names: Sequence[str], header: bool = True) -> Written:
    """A file of these columns, with blank lines and line ends of both kinds."""
    rows = draw(st.lists(st.tuples(*(FIELDS for _ in names)), min_size=1, max_size=6))
    ends = st.sampled_from(["\n", "\r\n"])
    data, lines = "", []
    for row in [tuple(names), *rows] if header else rows:
        data += draw(st.sampled_from(["", "", "", "\n", "\r\n\n"])) if data else ""
        lines.append(data.count("\n") + 1)
        # A line of one empty field would be a blank one.
        fields = [as_field(field, delimiter, quoted=draw(st.booleans()) or len(row) == 1) for field in row]
        data += delimiter.join(fields) + draw(ends)
    if len(rows) + header > 1 and draw(st.booleans()):
        data = data.removesuffix("\n").removesuffix("\r")
    # A byte order mark; before a quote it is for a test of its own.
    mark = draw(st.sampled_from(["", "\ufeff"])) if data[0] != '"' else ""
    return Written(
        data=(mark + data).encode(),
        rows=[tuple(field or None for field in row) for row in rows],
        lines=lines[header:],
    )


def names_of(n: int) -> st.SearchStrategy[list[str]]:
    # A number is no name, nor is what comes after a blank line where a name is empty.
    name = NASTY.map(lambda part: f"c{part}")
    return st.lists(name, min_size=n, max_size=n, unique=True)


@st.composite
def delimited_files(draw: st.DrawFn) -> tuple[str, list[str], list[Written]]:
    """Up to three files of the same columns in other orders; rows are in the order of the first."""
    delimiter = draw(st.sampled_from(",\t;|"))
    names = draw(names_of(draw(st.integers(1, 3))))
    written = [draw(files(delimiter, names))]
    for _ in range(draw(st.integers(0, 2))):
        order = draw(st.permutations(names))
        other = draw(files(delimiter, order))
        rows = [tuple(row[order.index(name)] for name in names) for row in other.rows]
        written.append(Written(data=other.data, rows=rows, lines=other.lines))
    return delimiter, names, written


PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}


@settings(deadline=None, max_examples=250)
@given(delimited_files(), st.integers(1, 80), st.sampled_from(list(PACKERS)))
@example(
    given_files=(",", ["c"], [Written(data=b"c\na\n\n\n\n\n\n\n\nb\n", rows=[("a",), ("b",)], lines=[2, 10])]),
    block_nbytes=2,
    suffix="",
)
def test_texts_are_read_as_they_were_written_and_found_where_they_stand(
    scratch: Path, given_files: tuple[str, list[str], list[Written]], block_nbytes: int, suffix: str
) -> None:
    delimiter, names, written = given_files
    paths = [scratch / f"{i}.csv{suffix}" for i in range(len(written))]
    for path, part in zip(paths, written, strict=True):
        path.write_bytes(PACKERS[suffix](part.data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_NBYTES", block_nbytes)
        source = open_source(paths, csv=CsvOptions(delimiter=delimiter)).read_as(dict.fromkeys(names, pa.string()))
        assert source.schema == pa.schema([(name, pa.string()) for name in names])
        assert rows_of(source) == [row for part in written for row in part.rows]
        places = []
        for chunk in source.chunks():
            n_rows = sum(batch.num_rows for batch in chunk.batches(names, 4))
            places += [chunk.locate(row) for row in range(n_rows)]
    assert places == [
        f"{path} line {line}" for path, part in zip(paths, written, strict=True) for line in part.lines
    ]


@settings(deadline=None)
@given(st.data(), st.integers(1, 40), st.booleans())
def test_files_without_a_header_are_read_as_they_were_written(
    scratch: Path, draw: st.DataObject, block_nbytes: int, named: bool
) -> None:
    n = draw.draw(st.integers(1, 3))
    written = draw.draw(files(",", ["x"] * n, header=False))
    names = tuple(draw.draw(names_of(n))) if named else None
    (scratch / "a.csv").write_bytes(written.data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_NBYTES", block_nbytes)
        source = open_source(scratch / "a.csv", csv=CsvOptions(header=False, columns=names))
        assert source.schema.names == (list(names) if names else [f"f{i}" for i in range(n)])
        assert rows_of(source.read_as(dict.fromkeys(source.schema.names, pa.string()))) == written.rows


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | FLOATS, st.none() | st.booleans()),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 40),
)
def test_numbers_are_read_as_they_were_written(scratch: Path, rows: list[Any], block_nbytes: int) -> None:
    # The first row fixes the types.
    rows = [(1, 0.5, True), *rows]
    lines = [",".join("" if field is None else str(field).lower() for field in row) for row in rows]
    path = scratch / "numbers.csv"
    path.write_text("\n".join(["i,f,b", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_NBYTES", block_nbytes)
        source = open_source(path)
        assert source.schema.types == [pa.int64(), pa.float64(), pa.bool_()]
        got = rows_of(source)
    assert got == rows
    assert [math.copysign(1, row[1]) for row in got if row[1] == 0] == [
        math.copysign(1, row[1]) for row in rows if row[1] == 0
    ]


# Headers, or none.


def test_a_byte_order_mark_is_no_part_of_a_name(a_csv: Path) -> None:
    for data in (b"a,b\n1,2\n", b'"a","b"\n1,2\n', b"\n\r\na,b\n1,2\n"):
        a_csv.write_bytes(b"\xef\xbb\xbf" + data)
        source = open_source(a_csv)
        assert source.schema.names == ["a", "b"]
        assert rows_of(source) == [(1, 2)]


def test_a_byte_order_mark_is_no_part_of_a_field(a_csv: Path) -> None:
    assert read(a_csv, b"\xef\xbb\xbf1,2\n3,4\n", header=False) == [(1, 2), (3, 4)]


def test_names_that_repeat(a_csv: Path) -> None:
    hint = "if the file has no header, say so with header=False (--no-header)"
    fails(a_csv, b"a,b,a,a\n1,2,3,4\n", f" line 1: got 3 columns named 'a', allowed: distinct names; {hint}")
    fails(a_csv, b"\n\n7,7\n", f" line 3: got 2 columns named '7', allowed: distinct names; {hint}")


def test_a_first_row_of_numbers_is_no_header(a_csv: Path) -> None:
    hint = "if the file has no header, say so with header=False (--no-header)"
    fails(a_csv, b"a,0.5\nb,0.7\n", f" line 1: got '0.5' in the header, allowed: column names; {hint}")
    fails(a_csv, b"\n7,a\n8,b\n", f" line 2: got '7' in the header, allowed: column names; {hint}")
    assert read(a_csv, b"a,0.5\nb,0.7\n", header=False) == [("a", 0.5), ("b", 0.7)]


def test_names_that_number_the_columns_are_names(a_csv: Path) -> None:
    assert read(a_csv, b"0,1\n5,6\n") == [(5, 6)]
    assert read(a_csv, b",0,1\n0,5,6\n1,7,8\n") == [(0, 5, 6), (1, 7, 8)]


def test_a_name_may_hold_what_a_field_may(a_csv: Path) -> None:
    a_csv.write_bytes('"a ""b""\n,c",d é,"",x"y\n1,2,3,4\n'.encode())
    assert open_source(a_csv).schema.names == ['a "b"\n,c', "d é", "", 'x"y']


def test_names_that_are_no_utf8(a_csv: Path) -> None:
    fails(a_csv, b"\na,\xff\n1,2\n", r" line 2: got 'a,\\xff\n', allowed: column names in UTF-8")
    fails(
        a_csv,
        "a,b\n".encode("utf-16"),
        r" line 1: got '\\xff\\xfea\x00,\x00b\x00\n', allowed: column names in UTF-8",
    )


@pytest.mark.parametrize("data", [b"a,b\n", b"a,b\n\n\r\n", b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_no_rows(tmp_path: Path, data: bytes, suffix: str) -> None:
    fails(tmp_path / f"a.csv{suffix}", PACKERS[suffix](data), " has no rows")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("body", [b"", b"\n\n", b"\r\n"])
def test_a_file_of_a_header_among_others_adds_nothing(tmp_path: Path, suffix: str, body: bytes) -> None:
    paths = [tmp_path / f"{name}.csv{suffix}" for name in "abc"]
    for path, data in zip(paths, (b"x,y\n" + body, b"y,x\n2,1\n", b"x,y\n" + body), strict=True):
        path.write_bytes(PACKERS[suffix](data))
    source = open_source(paths)
    assert source.schema.types == [pa.int64(), pa.int64()]
    assert rows_of(source, ["x", "y"]) == [(1, 2)]
    assert source.sample(5).to_pylist() == [{"x": 1, "y": 2}]


def test_files_with_other_columns(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_bytes(b"x,y\n1,2\n")
    for data, message in (
        (b"x\n1\n", f"{second} has no column 'y', {first} has"),
        (b"y,z,x\n1,2,3\n", f"{second} has an extra column 'z', {first} has not"),
        (b"y,X\n1,2\n", f"{second} has an extra column 'X', {first} has not"),
    ):
        second.write_bytes(data)
        with pytest.raises(DataError) as caught:
            open_source([first, second])
        assert str(caught.value) == message


def test_blank_lines_are_no_rows_but_for_their_number(a_csv: Path) -> None:
    assert read(a_csv, b'\r\n\na\n\n1\n""\n\r\n \n\n2') == [("1",), (None,), (" ",), ("2",)]
    fails(a_csv, b"\n\na,b\n\n1,2\n\r\n\n3\n", " line 8: got 1 fields, allowed: 2")


def test_a_chunk_of_blank_lines_has_no_rows(a_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_NBYTES", 4)
    assert read(a_csv, b"a,b\n1,2\n" + b"\n" * 20 + b"3,4\n" + b"\r\n" * 20) == [(1, 2), (3, 4)]


# Options.


def test_texts_that_stand_for_null(a_csv: Path) -> None:
    data = b'a,b\n1,NA\nNA,-\n-,"NA"\n,N/A\n'
    assert read(a_csv, data, null_values=("NA", "-")) == [(1, None), (None, None), (None, None), (None, "N/A")]
    assert read(a_csv, data) == [("1", "NA"), ("NA", "-"), ("-", "NA"), (None, "N/A")]


def test_a_quote_of_another_kind(a_csv: Path) -> None:
    assert read(a_csv, b"a,b\n'x,\n''y',2\n\"z\",3\n", quote="'") == [("x,\n'y", 2), ('"z"', 3)]


def test_without_quotes_every_newline_ends_a_row(a_csv: Path) -> None:
    assert read(a_csv, b'a,b\n"x,1\n"",2\n', quote=None) == [('"x', 1), ('""', 2)]
    fails(a_csv, b'a,b\n"x\ny",1\n', " line 2: got 1 fields, allowed: 2", quote=None)


def test_tabs_are_for_tsv_and_commas_for_csv_unless_it_is_said(tmp_path: Path) -> None:
    assert read(tmp_path / "a.tsv", b"a\tb\n1,2\t3\n") == [("1,2", 3)]
    assert read(tmp_path / "a.TAB", b"a\tb\n1,2\t3\n") == [("1,2", 3)]
    assert read(tmp_path / "a.tsv", b"a;b\n1,2;3\n", delimiter=";") == [("1,2", 3)]
    assert read(tmp_path / "a.csv", b"a\tb\n1,2\t3\n", delimiter="\t") == [("1,2", 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "csv delimiter: got ''"),
        ({"delimiter": ",,"}, "csv delimiter: got ',,'"),
        ({"delimiter": "\n"}, r"csv delimiter: got '\n'"),
        ({"delimiter": "§"}, "csv delimiter: got '§'"),
        ({"quote": "''"}, "csv quote: got \"''\""),
        ({"quote": "\r"}, r"csv quote: got '\r'"),
        ({"quote": ""}, "csv quote: got ''"),
        ({"delimiter": '"'}, "csv delimiter and quote are both '\"'"),
        ({"columns": ("a",)}, "set header to false"),
        ({"columns": (), "header": False}, "allowed: distinct names, at least one"),
        ({"columns": ("a", "b", "a"), "header": False}, "csv columns: got 'a' 2 times"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CsvOptions(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_given_for_another_number_of_columns(a_csv: Path) -> None:
    fails(a_csv, b"1,2\n", " line 1: got 2 fields, allowed: 3", header=False, columns=("a", "b", "c"))
    fails(a_csv, b"1,2\n", " line 1: got 2 fields, allowed: 1", header=False, columns=("a",))


# Bad rows. Before each stand a quoted newline and a blank line, so that rows are no lines.

HEAD = b'i,f,t\n1,0.5,"x\r\n\ny"\n\n2,1e3,"""z\n"\r\n'
LINE = 8
BAD_ROWS = [
    (b"3,4", ": got 2 fields, allowed: 3"),
    (b'3,"4,5\n6",7,8', ": got 4 fields, allowed: 3"),
    (b"3", ": got 1 fields, allowed: 3"),
    (b"x,0,z", ", column i: got 'x', allowed: a whole number (int64)"),
    (b"1.5,0,z", ", column i: got '1.5', allowed: a whole number (int64)"),
    (b"9223372036854775808,0,z", ", column i: got '9223372036854775808', allowed: a whole number (int64)"),
    (b'"3,\n",0,z', r", column i: got '3,\n', allowed: a whole number (int64)"),
    (b"\xff,0,z", r", column i: got '\\xff', allowed: a whole number (int64)"),
    (b"3,0.5.5,z", ", column f: got '0.5.5', allowed: a number (double)"),
    (b"3,1_000,z", ", column f: got '1_000', allowed: a number (double)"),
    (b"3,4,z\xff\xc3z", r", column t: got 'z\\xff\\xc3z', allowed: text in UTF-8"),
    (b"3," + b"9x" * 200 + b",z", f", column f: got '{'9x' * 27}9...', allowed: a number (double)"),
    # Two mistakes: the number of fields first, then the first column.
    (b"x,y", ": got 2 fields, allowed: 3"),
    (b"x,y,\xff", ", column i: got 'x', allowed: a whole number (int64)"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
@pytest.mark.parametrize("after", [b"", b"\n", b"\r\n3,4,z\n", b"\n\n5,6\nx,x,x\n"])
@pytest.mark.parametrize("block_nbytes", [1, 30, 1 << 20])
def test_a_bad_row_is_one_line_with_its_place(
    a_csv: Path, monkeypatch: pytest.MonkeyPatch, row: bytes, message: str, after: bytes, block_nbytes: int
) -> None:
    monkeypatch.setattr(text, "BLOCK_NBYTES", block_nbytes)
    monkeypatch.setattr(delimited, "SAMPLE_NBYTES", 20)
    fails(a_csv, HEAD + row + after, f" line {LINE}{message}")


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_of_a_compressed_file_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: bytes, message: str
) -> None:
    monkeypatch.setattr(delimited, "SAMPLE_NBYTES", 20)
    fails(tmp_path / "a.csv.gz", gzip.compress(HEAD + row + b"\n"), f" line {LINE}{message}")


def test_a_row_with_a_wrong_number_of_fields_is_found_when_a_file_is_opened(a_csv: Path) -> None:
    a_csv.write_bytes(HEAD + b"3,4\n")
    with pytest.raises(DataError, match=rf"a\.csv line {LINE}: got 2 fields, allowed: 3$"):
        open_source(a_csv)


def test_the_first_of_many_bad_rows_is_named(a_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "SAMPLE_NBYTES", 20)
    good = [b"%d,text\n" % i for i in range(300)]
    for bad in (3, 100, 297):
        rows = list(good)
        rows[bad :: max(1, (300 - bad) // 3)] = [b"x\n"] * len(rows[bad :: max(1, (300 - bad) // 3)])
        fails(a_csv, b"i,t\n" + b"".join(rows), f" line {bad + 2}: got 1 fields, allowed: 2")


def test_a_bad_row_of_a_later_file_has_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"i,t\n1,x\n")
    (tmp_path / "b.csv").write_bytes(b"t,i\nx,1\n\ny,z\n")
    with pytest.raises(DataError, match=r"b\.csv line 4, column i: got 'z', allowed: a whole number \(int64\)$"):
        rows_of(open_source(tmp_path))


def test_only_columns_that_are_asked_for_are_looked_at(a_csv: Path) -> None:
    a_csv.write_bytes(b"i,t\n1,x\n2,\xff\n")
    source = open_source(a_csv)
    assert rows_of(source, ["i"]) == [(1,), (2,)]
    with pytest.raises(DataError, match=r"line 3, column t: got '\\\\xff', allowed: text in UTF-8"):
        rows_of(source, ["t"])


# Other types than those that fit.


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.string(), ["007", None, "1"]),
        (pa.large_string(), ["007", None, "1"]),
        (pa.dictionary(pa.int32(), pa.string()), ["007", None, "1"]),
        (pa.binary(), [b"007", None, b"1"]),
        (pa.int8(), [7, None, 1]),
        (pa.float32(), [7.0, None, 1.0]),
        (pa.decimal128(9, 1), [Decimal("7.0"), None, Decimal("1.0")]),
    ],
    ids=str,
)
def test_read_as(a_csv: Path, type_: pa.DataType, values: list[Any]) -> None:
    a_csv.write_bytes(b"i,t\n007,x\n,y\n1,z\n")
    source = open_source(a_csv)
    other = source.read_as({"i": type_})
    assert other.schema == pa.schema([("i", type_), ("t", pa.string())])
    assert rows_of(other, ["i"]) == [(value,) for value in values]
    assert other.sample(3).schema == other.schema
    assert source.schema.field("i").type == pa.int64()
    assert rows_of(source, ["i"]) == [(7,), (None,), (1,)]


@pytest.mark.parametrize(
    ("type_", "allowed"),
    [
        (pa.int8(), "a whole number (int8)"),
        (pa.float32(), "a number (float)"),
        (pa.decimal128(9, 1), "a number (decimal128(9, 1))"),
        (pa.bool_(), "true or false"),
        (pa.date32(), "a date32[day]"),
        (pa.timestamp("s"), "a timestamp[s]"),
    ],
    ids=str,
)
def test_a_field_that_is_not_as_it_was_to_be_read(a_csv: Path, type_: pa.DataType, allowed: str) -> None:
    a_csv.write_bytes(b'i,t\n,"x\n"\n3OO,y\n')
    with pytest.raises(DataError) as caught:
        rows_of(open_source(a_csv).read_as({"i": type_}))
    assert str(caught.value) == f"{a_csv} line 4, column i: got '3OO', allowed: {allowed}"


def test_read_as_of_a_column_that_is_not_there(a_csv: Path) -> None:
    a_csv.write_bytes(b"i,t\n1,x\n")
    with pytest.raises(DataError, match=r"a\.csv has no column 'z', it has i, t$"):
        open_source(a_csv).read_as({"z": pa.string()})


def test_types_are_those_of_the_first_rows(a_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_csv.write_bytes(b"i,f,b,d,t,n\n1,1,true,2024-05-06,a,\n2,1.5,false,2024-05-07,1,\n")
    assert [str(type_) for type_ in open_source(a_csv).schema.types] == [
        "int64",
        "double",
        "bool",
        "date32[day]",
        "string",
        "string",
    ]
    a_csv.write_bytes(b"i\n" + b"1\n" * 20 + b"2.5\n")
    assert str(open_source(a_csv).schema.field("i").type) == "double"
    monkeypatch.setattr(delimited, "SAMPLE_NBYTES", 10)
    source = open_source(a_csv)
    assert str(source.schema.field("i").type) == "int64"
    with pytest.raises(DataError, match=r"line 22, column i: got '2\.5', allowed: a whole number \(int64\)"):
        rows_of(source)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize(
    ("data", "line"),
    [(b'a,b\n1,x\n2,"y\n3,z\n4,w\n', 3), (b'a,b\n1,x\n2,y\n3,"z', 4), (b'a,b\n1,"x"\n"2', 3), (b'a,"b\n1,x\n', 1)],
)
def test_a_quote_that_is_never_closed_does_not_swallow_the_rest(
    tmp_path: Path, name: str, data: bytes, line: int
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=rf"line {line}: got a quote that is never closed"):
        rows_of(open_source(tmp_path / name))


def test_one_row_without_a_newline(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b"1,2", header=False) == [(1, 2)]
    fails(tmp_path / "b.csv", b"a,b", " has no rows")


def test_a_quoted_name_behind_a_byte_order_mark(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b'\xef\xbb\xbf"a\n"\n""\n5\n') == [(None,), (5,)]


@pytest.mark.parametrize("header", [True, False])
def test_lines_that_end_as_on_an_old_macintosh(tmp_path: Path, header: bool) -> None:
    message = ": lines end with a carriage return alone, allowed: LF or CR LF"
    fails(tmp_path / "a.csv", b"a,b\r1,x\r2,y\r", message, header=header)


def test_a_quote_that_is_the_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(ConfigError, match="delimiter and quote are both ','"):
        open_source(tmp_path / "a.csv", csv=CsvOptions(quote=","))


def test_columns_come_in_the_order_of_the_first_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x,y\n")
    (tmp_path / "b.csv").write_bytes(b"y,x\n1,2\n")
    assert open_source(tmp_path).schema.names == ["x", "y"]
