"""Parquet columns that are read page by page against Arrow's reader, and what damage does to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.data import open_source, pages
from penstock.data.pages import IndexedColumn, indexed_column
from penstock.errors import DataError
from penstock.kernels.parquet import HEADER, list_pages

CODECS = ["NONE", "SNAPPY", "GZIP", "ZSTD"]
VERSIONS = ["1.0", "2.0"]
ALL_NULL_CODECS = [*CODECS, "BROTLI", "LZ4"]
RAW_NBYTES, BODY_AT, BODY_NBYTES = 2, 90, 91
TEXT = [pa.string(), pa.large_string(), pa.string_view()]
BINARY = [pa.binary(), pa.large_binary(), pa.binary_view()]


def read(path: Path, columns: list[str] | None = None, batch_rows: int = 7) -> list[dict[str, Any]]:
    source = open_source(path)
    names = source.schema.names if columns is None else columns
    rows = []
    for chunk in source.chunks():
        for batch in chunk.batches(names, batch_rows):
            batch.validate(full=True)
            rows += batch.to_pylist()
    return rows


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, IndexedColumn | None]]:
    """Each column chunk that was looked at, with what reads it if Arrow does not."""
    looked_at = []

    def spy(file: Any, group: Any, column: int, *rest: Any) -> IndexedColumn | None:
        looked_at.append((group.column(column).path_in_schema, indexed_column(file, group, column, *rest)))
        return looked_at[-1][1]

    monkeypatch.setattr(pages, "indexed_column", spy)
    return looked_at


def words(n: int = 500, distinct: int = 40, nulls: float = 0.1) -> pa.Array:
    rng = np.random.default_rng(n)
    made = [f"wörd {i}" if i else "" for i in rng.integers(0, distinct, n)]
    return pa.array(made, pa.string(), mask=rng.random(n) < nulls)


def many_pages(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **{"data_page_size": 64, "write_batch_size": 32, **options})
    return path


# What a writer may write.


@st.composite
def columns(draw: st.DrawFn, n: int, row_group: int) -> tuple[pa.Field, pa.Array]:
    kind = draw(st.sampled_from(["text", "binary", "dictionary", "number", "nested"]))
    if kind == "number":
        return pa.field("", pa.int64()), pa.array(range(n), pa.int64())
    entry = st.binary(max_size=12) if kind == "binary" else st.text(max_size=12)
    pool = draw(st.lists(entry, min_size=1, max_size=draw(st.sampled_from([1, 2, 40])), unique=True))
    if draw(st.booleans()):
        # Enough of them for indices of 8 bits and more.
        pool += [f"é{i}".encode() if kind == "binary" else f"é{i}" for i in range(300)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chosen = rng.integers(0, len(pool), n)
    if draw(st.booleans()):
        chosen = np.sort(chosen)
    missing = rng.random(n) < draw(st.sampled_from([0, 0, 0.1, 0.5, 0.99]))
    nullable = bool(missing.any()) or draw(st.booleans())
    values = pa.array([pool[i] for i in chosen], pa.binary() if kind == "binary" else pa.string(), mask=missing)
    if kind == "dictionary":
        values = values.dictionary_encode()
        value_type = draw(st.sampled_from([pa.string(), pa.large_string()]))
        indices = values.indices.cast(draw(st.sampled_from([pa.int16(), pa.int32(), pa.int64()])))
        values = pa.DictionaryArray.from_arrays(indices, values.dictionary.cast(value_type))
    elif kind == "nested":
        below = pa.field("x", pa.string(), nullable=bool(missing.any()))
        values = pa.StructArray.from_arrays([values], fields=[below])
    else:
        values = values.cast(draw(st.sampled_from(BINARY if kind == "binary" else TEXT)))
    return pa.field("", values.type, nullable), values


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, dict[str, Any]]:
    """A table, and how it is written."""
    n = draw(st.one_of(st.integers(1, 20), st.integers(1, 700)))
    row_group = draw(st.sampled_from([3, 64, 250, 1000])) if n > 20 else draw(st.integers(1, 20))
    made = [draw(columns(n, row_group)) for _ in range(draw(st.integers(1, 4)))]
    schema = pa.schema([field.with_name(f"c{i}") for i, (field, _) in enumerate(made)])
    options = {
        "row_group_size": row_group,
        "data_page_version": draw(st.sampled_from(VERSIONS)),
        "compression": draw(st.sampled_from([*CODECS, "LZ4"])),
        "data_page_size": draw(st.sampled_from([1, 64, 1 << 20])),
        "write_batch_size": draw(st.sampled_from([1, 10, 1024])),
        "dictionary_pagesize_limit": draw(st.sampled_from([30, 1 << 20, 1 << 20])),
        "use_dictionary": draw(st.sampled_from([True, True, ["c0"]])),
        "write_statistics": draw(st.booleans()),
        "write_page_index": draw(st.booleans()),
        "write_page_checksum": draw(st.booleans()),
        "store_schema": draw(st.booleans()),
    }
    return pa.table([array for _, array in made], schema=schema), options


@settings(deadline=None, max_examples=120)
@given(made=tables(), batch_rows=st.integers(1, 150), decoded_rows=st.integers(1, 300))
def test_whatever_arrow_writes_is_read_as_arrow_reads_it(made, batch_rows, decoded_rows):
    table, options = made
    with TemporaryDirectory() as folder, mock.patch("penstock.data.parquet.DECODED_ROWS", decoded_rows):
        path = Path(folder, "a.parquet")
        pq.write_table(table, path, **options)
        assert read(path, batch_rows=batch_rows) == pq.read_table(path).to_pylist()


@settings(deadline=None, max_examples=40)
@given(made=tables(), batch_rows=st.integers(1, 90), data=st.data())
def test_some_columns_in_any_order_from_any_row_on(made, batch_rows, data):
    table, options = made
    with TemporaryDirectory() as folder, mock.patch("penstock.data.parquet.DECODED_ROWS", 50):
        path = Path(folder, "a.parquet")
        pq.write_table(table, path, **options)
        names = data.draw(st.lists(st.sampled_from(table.column_names), min_size=1, unique=True))
        chunk = data.draw(st.sampled_from(list(open_source(path).chunks())))
        skip = batch_rows * data.draw(st.integers(0, chunk.size // batch_rows))
        rows = [row for batch in chunk.batches(names, batch_rows, skip) for row in batch.to_pylist()]
        expected = table.select(names).slice(chunk.first_row, chunk.size).slice(skip)
        assert rows == expected.to_pylist()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("nulls", [0.0, 0.1])
def test_columns_of_texts_are_read_page_by_page(codec, version, nulls, tmp_path, found):
    texts = words(nulls=nulls)
    table = pa.table({"word": texts, "bytes": texts.cast(pa.binary()), "large": texts.cast(pa.large_string())})
    if not nulls:
        fields = [field.with_nullable(False) for field in table.schema]
        table = table.cast(pa.schema(fields))
    options = {"compression": codec, "data_page_version": version, "row_group_size": 300}
    many_pages(tmp_path / "a.parquet", table, **options)
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert [name for name, _ in found] == [*table.column_names] * 2
    assert all(column is not None for _, column in found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("codec", CODECS)
def test_pages_that_compress_well(codec, version, tmp_path, found):
    table = pa.table({"word": ["a", "b", None, "c", "b", "a", "c"] * 600})
    path = many_pages(
        tmp_path / "a.parquet", table, compression=codec, data_page_version=version, data_page_size=300
    )
    assert read(path) == table.to_pylist()
    assert found[0][1] is not None
    _, *data_pages = headers_of(path)
    assert len(data_pages) > 1
    if codec != "NONE":
        # Writers leave a page as it is where compression gains nothing; here it does.
        assert all(header[RAW_NBYTES] > header[BODY_NBYTES] for header in data_pages)


def test_other_columns_are_left_to_arrow(tmp_path, found):
    texts = words(nulls=0)
    distinct = pa.array([f"{i:09}" for i in range(len(texts))])
    table = pa.table(
        {
            "word": texts,
            "number": np.arange(len(texts)),
            "given_up": distinct,
            "list": pa.array([[text] for text in texts.to_pylist()]),
            "struct": pa.StructArray.from_arrays([texts], ["x"]),
            "decimal": pa.array(range(len(texts))).cast(pa.decimal128(38, 0)),
        }
    )
    many_pages(tmp_path / "a.parquet", table, dictionary_pagesize_limit=900)
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert {name: column is not None for name, column in found} == {
        "word": True,
        "number": False,
        "given_up": False,
        "decimal": False,
    }


def test_a_codec_that_is_not_known_here_is_left_to_arrow(tmp_path, found):
    table = pa.table({"word": words()})
    many_pages(tmp_path / "a.parquet", table, compression="LZ4")
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert found == [("word", None)]


def test_columns_without_a_dictionary_are_left_to_arrow(tmp_path, found):
    table = pa.table({"word": words()})
    many_pages(tmp_path / "a.parquet", table, use_dictionary=False)
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert found == [("word", None)]


def test_columns_of_very_many_pages_are_left_to_arrow(tmp_path, found, monkeypatch):
    table = pa.table({"word": words()})
    many_pages(tmp_path / "a.parquet", table, data_page_size=1, write_batch_size=1)
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    monkeypatch.setattr(pages, "PAGES_MAX", 200)
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert [column is not None for _, column in found] == [True, False]
    assert len(headers_of(tmp_path / "a.parquet")) == 501


def test_batches_share_the_dictionary_as_it_stands_in_the_file(tmp_path):
    table = pa.table({"word": ["b", "a", None, "b", "c", "a"] * 50})
    many_pages(tmp_path / "a.parquet", table)
    (chunk,) = open_source(tmp_path / "a.parquet").chunks()
    dictionaries = [batch["word"].dictionary for batch in chunk.batches(["word"], 16)]
    assert dictionaries[0].to_pylist() == ["b", "a", "c"]
    assert len({array.buffers()[2].address for array in dictionaries}) == 1


def test_a_column_of_one_value_takes_no_bits(tmp_path, found):
    for value in ("", "one"):
        table = pa.table({"word": [value] * 400, "gaps": [value, None] * 200})
        many_pages(tmp_path / "a.parquet", table, row_group_size=150)
        assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert all(column is not None for _, column in found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("codec", ALL_NULL_CODECS)
def test_columns_and_row_groups_may_be_all_null(codec, version, tmp_path):
    nothing = pa.nulls(100, pa.string())
    table = pa.table({"never": pa.concat_arrays([nothing] * 2), "later": pa.concat_arrays([nothing, words(100)])})
    many_pages(tmp_path / "a.parquet", table, row_group_size=100, compression=codec, data_page_version=version)
    assert read(tmp_path / "a.parquet") == table.to_pylist()


def test_a_sample_has_the_types_of_the_schema(tmp_path):
    coded = words().dictionary_encode()
    coded = pa.DictionaryArray.from_arrays(coded.indices.cast(pa.int8()), coded.dictionary)
    table = pa.table({"view": words().cast(pa.string_view()), "coded": coded, "bytes": words().cast(pa.binary())})
    many_pages(tmp_path / "a.parquet", table)
    source = open_source(tmp_path / "a.parquet")
    assert source.sample(20).schema.equals(source.schema)
    assert source.sample(20).to_pylist() == table.slice(0, 20).to_pylist()


# Damage.


def chunk_of(path: Path, column: int = 0) -> tuple[int, int]:
    """Where the first row group's column begins in the file, and its length."""
    part = pq.read_metadata(path).row_group(0).column(column)
    return part.dictionary_page_offset, part.total_compressed_size


def headers_of(path: Path, column: int = 0) -> list[list[int]]:
    begin, nbytes = chunk_of(path, column)
    headers = np.empty((1000, HEADER), np.int64)
    n_values = pq.read_metadata(path).row_group(0).column(column).num_values
    data = np.fromfile(path, np.uint8)[begin : begin + nbytes]
    return headers[: list_pages(data, n_values, headers)].tolist()


def overwrite(path: Path, page: int, at: int, data: bytes) -> None:
    """Other bytes ``at`` of the body of the first column's page, or before it."""
    body_at = chunk_of(path)[0] + headers_of(path)[page][BODY_AT]
    whole = bytearray(path.read_bytes())
    assert whole[body_at + at : body_at + at + len(data)] != data
    whole[body_at + at : body_at + at + len(data)] = data
    path.write_bytes(whole)


def message_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("codec", ["NONE", "ZSTD", "LZ4"])
@pytest.mark.parametrize("texts", [[b"a", b"b\xff"], [b"\xc3", b"\xa9"]], ids=["no text", "a letter cut in two"])
def test_a_dictionary_that_is_not_utf8_names_the_file(texts, codec, tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"word": pa.array(texts * 50, pa.binary()).view(pa.string())})
    many_pages(path, table, compression=codec)
    assert str(path) in message_of(path)


def test_bytes_need_not_be_utf8(tmp_path):
    table = pa.table({"bytes": pa.array([b"\xff", b"", b"\xc3"] * 50)})
    many_pages(tmp_path / "a.parquet", table)
    assert read(tmp_path / "a.parquet") == table.to_pylist()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_damaged_page_is_named_with_its_file_row_group_and_column(version, tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"word": words(nulls=0), "number": np.arange(500)})
    table = table.cast(pa.schema([pa.field("word", pa.string(), nullable=False), table.schema.field("number")]))

    def expect_damage(page: int, at: int, data: bytes) -> None:
        options = {"compression": "NONE", "data_page_version": version}
        many_pages(path, table, **options)
        overwrite(path, page, at, data)
        assert message_of(path) == f"{path}: row group 0, column word has a damaged page"

    expect_damage(0, 0, b"\xff\xff\xff\x7f")  # the length of an entry
    expect_damage(0, 0, b"\x09")
    expect_damage(1, 0, b"\x21")  # the width of indices
    expect_damage(4, 1, b"\xfe\x01\xff")  # a run of 127 times an index that is not there
    expect_damage(3, 1, b"\x02")  # a run of one value instead of groups


@pytest.mark.parametrize("nbytes", [0, 1 << 20, 2**32 - 1])
def test_levels_that_are_not_within_their_page_are_damage(nbytes, tmp_path):
    path = many_pages(tmp_path / "a.parquet", pa.table({"word": words()}), compression="NONE")
    overwrite(path, 2, 0, nbytes.to_bytes(4, "little"))
    assert message_of(path) == f"{path}: row group 0, column word has a damaged page"


@pytest.mark.parametrize("more", [1, 2, 3, 4])
def test_levels_that_end_just_behind_their_page_are_damage(more, tmp_path):
    # Of a page that is all null no index is missed.
    table = pa.table({"word": ["a"] * 32 + [None] * 32})
    path = many_pages(tmp_path / "a.parquet", table, compression="NONE", data_page_size=1)
    body_nbytes = headers_of(path)[2][BODY_NBYTES]
    overwrite(path, 2, 0, (body_nbytes - 4 + more).to_bytes(4, "little"))
    assert message_of(path) == f"{path}: row group 0, column word has a damaged page"


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_page_that_cannot_be_decompressed_is_damage(codec, tmp_path):
    path = many_pages(tmp_path / "a.parquet", pa.table({"word": words()}), compression=codec)
    overwrite(path, 0, 0, b"\xff" * 12)
    assert message_of(path) == f"{path}: row group 0, column word has a damaged page"


def test_what_was_read_before_a_damaged_page_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.data.parquet.DECODED_ROWS", 50)
    table = pa.table({"word": words()})
    path = many_pages(tmp_path / "a.parquet", table, compression="NONE")
    overwrite(path, len(headers_of(path)) - 1, 0, b"\xff\xff\xff\xff")
    (chunk,) = open_source(path).chunks()
    rows = []
    with pytest.raises(DataError, match="damaged page"):
        for batch in chunk.batches(["word"], 10):
            rows += batch.to_pylist()
    assert len(rows) >= 400
    assert rows == table.slice(0, len(rows)).to_pylist()


@pytest.mark.parametrize(
    ("page", "at", "byte"),
    [(0, 1, 0), (1, 1, 2), (1, 1, 4), (1, 0, 0x19), (1, 0, 0)],
    ids=["no dictionary", "an index page", "two dictionaries", "a list", "an empty header"],
)
def test_headers_that_are_not_as_expected_are_left_to_arrow(page, at, byte, tmp_path):
    path = many_pages(tmp_path / "a.parquet", pa.table({"word": words()}))
    # Headers begin with `15`, of a number in field 1, and the page's type.
    begin, headers = chunk_of(path)[0], headers_of(path)
    header_at = begin + (headers[page - 1][BODY_AT] + headers[page - 1][BODY_NBYTES] if page else 0)
    whole = bytearray(path.read_bytes())
    assert whole[header_at : header_at + 2] == (b"\x15\x00" if page else b"\x15\x04")
    whole[header_at + at] = byte
    path.write_bytes(whole)
    assert first_column(path) is None


def first_column(path: Path) -> IndexedColumn | None:
    footer = pq.read_metadata(path)
    with pa.memory_map(str(path)) as file:
        return indexed_column(file, footer.row_group(0), 0, footer.schema.to_arrow_schema().field(0).type, True)


def test_a_column_has_no_more_rows_than_were_written(tmp_path):
    path = many_pages(tmp_path / "a.parquet", pa.table({"word": words()}))
    column = first_column(path)
    assert column.read(499).to_pylist() == words().to_pylist()[:499]
    assert column.read(0).to_pylist() == []
    assert column.read(1).to_pylist() == words().to_pylist()[499:]
    with pytest.raises(DataError, match="column word has a damaged page"):
        column.read(1)
    with pytest.raises(DataError, match="column word has a damaged page"):
        first_column(path).read(501)


FUZZ = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from penstock.data import open_source
from penstock.errors import PenstockError

folder, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(seed)

def damaged(whole, end):
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at, n = int(rng.integers(4, end)), int(rng.integers(1, 9))
        how = rng.integers(0, 5)
        if how == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif how == 1:
            data[at : at + n] = rng.bytes(len(data[at : at + n]))
        elif how == 2:
            data[at : at + n] = bytes([int(rng.choice([0, 127, 128, 255]))]) * len(data[at : at + n])
        elif how == 3:
            other = int(rng.integers(4, end))
            data[at : at + n] = whole[other : other + n]
        elif rng.random() < 0.3:
            del data[at : at + n]
    if rng.random() < 0.03:
        del data[int(rng.integers(0, len(data))) :]
    return bytes(data)

def outcome(path):
    try:
        source = open_source(path)
        for chunk in source.chunks():
            for batch in chunk.batches(source.schema.names, 77):
                batch.validate(full=True)
    except PenstockError as error:
        message = str(error)
        assert str(path) in message and "\\n" not in message, message
        return "damaged page" if "damaged page" in message else "error"
    return "table"

n, outcomes = 200, []
words = np.array(["", "a", "caf\\u00e9", "a text that is longer than eight bytes", "word"])
fields = [pa.field("word", pa.string()), pa.field("bytes", pa.binary(), nullable=False)]
for round in range(rounds):
    if round % 40 == 0:
        table = pa.table(
            [
                pa.array(rng.choice(words, n), mask=rng.random(n) < 0.2),
                pa.array(rng.choice(words[:2], n)).cast(pa.binary()),
            ],
            schema=pa.schema(fields),
        )
        options = dict(data_page_size=64, write_batch_size=50, row_group_size=120)
        options["compression"] = ["NONE", "SNAPPY", "GZIP", "NONE", "ZSTD", "BROTLI"][round // 40 % 6]
        options["data_page_version"] = ["1.0", "2.0"][round // 240 % 2]
        pq.write_table(table, folder / "whole.parquet", **options)
        whole = (folder / "whole.parquet").read_bytes()
        footer_at = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    # A name of its own: footers are remembered by name, time and length.
    path = folder / f"{round}.parquet"
    path.write_bytes(damaged(whole, footer_at))
    print("round", round, file=sys.stderr, flush=True)
    outcomes.append(outcome(path))
    path.unlink()
print(*(outcomes.count(each) for each in ("table", "damaged page", "error")))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_anywhere_in_the_pages_is_an_error_or_some_table(seed, tmp_path):
    # In a process of its own: one that dies by a signal, or never ends, is a failure of this test alone.
    command = [sys.executable, "-X", "faulthandler", "-c", FUZZ, str(tmp_path), str(seed), "960"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    # All three do happen, or the damage was not where it should be.
    assert min(map(int, done.stdout.split())) > 20, done.stdout


# Files that change.


def test_a_file_of_other_rows_after_it_was_opened_is_noticed(tmp_path):
    path = many_pages(tmp_path / "a.parquet", pa.table({"word": words(500)}))
    (chunk,) = open_source(path).chunks()
    many_pages(path, pa.table({"word": words(400)}))
    with pytest.raises(DataError, match=r"a\.parquet was changed after it was opened"):
        next(chunk.batches(["word"], 10))
    many_pages(path, pa.table({"other": words(500)}))
    with pytest.raises(DataError, match=r"a\.parquet has no column 'word'"):
        next(chunk.batches(["word"], 10))
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet does not exist"):
        next(chunk.batches(["word"], 10))


def test_a_file_of_the_same_shape_is_read_as_it_stands_when_a_chunk_is_begun(tmp_path):
    path = many_pages(tmp_path / "a.parquet", pa.table({"word": words(), "number": np.arange(500)}))
    (chunk,) = open_source(path).chunks()
    assert next(chunk.batches(["word"], 1)).to_pylist() == [{"word": words()[0].as_py()}]
    new = pa.table({"word": ["new", None] * 250, "number": -np.arange(500)})
    many_pages(tmp_path / "b.parquet", new, compression="ZSTD")
    (tmp_path / "b.parquet").replace(path)
    batches: Iterator[pa.RecordBatch] = chunk.batches(["word", "number"], 100)
    assert [row for batch in batches for row in batch.to_pylist()] == new.to_pylist()


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.data.parquet.DECODED_ROWS", 50)
    old = pa.table({"word": words(), "number": np.arange(500)})
    path = many_pages(tmp_path / "a.parquet", old)
    (chunk,) = open_source(path).chunks()
    batches = chunk.batches(["number", "word"], 10)
    rows = next(batches).to_pylist()
    many_pages(tmp_path / "b.parquet", pa.table({"word": ["new"] * 500, "number": np.arange(500)}))
    (tmp_path / "b.parquet").replace(path)
    rows += [row for batch in batches for row in batch.to_pylist()]
    assert rows == old.select(["number", "word"]).to_pylist()
