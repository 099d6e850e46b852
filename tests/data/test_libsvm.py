"""libsvm files through ``open_source``, against scikit-learn's reader; how bytes are parsed: tests/kernels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.data import CsvOptions, Source, open_source, text
from penstock.errors import ConfigError, DataError

Row = tuple[float, list[tuple[int, float]]]
COLUMNS = ["label", "features"]


def rows_of(source: Source, batch_rows: int = 3) -> list[Row]:
    return [
        (row["label"], row["features"])
        for chunk in source.chunks()
        for batch in chunk.batches(COLUMNS, batch_rows)
        for row in batch.to_pylist()
    ]


def read(path: Path, data: bytes) -> list[Row]:
    path.write_bytes(data)
    return rows_of(open_source(path))


def by_sklearn(path: Path) -> list[Row]:
    load_svmlight_file = pytest.importorskip("sklearn.datasets").load_svmlight_file
    features, labels = load_svmlight_file(str(path), zero_based=True)
    return [
        (
            max(float(label), 0.0),
            [(int(i), float(np.float32(v))) for i, v in zip(row.indices, row.data, strict=True)],
        )
        for label, row in zip(labels, features, strict=True)
    ]


@pytest.fixture
def a_svm(tmp_path: Path) -> Path:
    return tmp_path / "a.svm"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example of a test writes anew."""
    return tmp_path_factory.mktemp("libsvm") / "a.svm"


LABELS = st.sampled_from(["1", "0", "-1", "+1", "1.0", "-1.0", "0.0", "1e0"])
VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1", "-0.5", ".5", "2.", "+3", "1e-3", "1E+2", "-1.5e2", "1e-50", "0", "16777217"]),
    st.decimals(-1000, 1000, allow_nan=False, allow_infinity=False, places=25).map(str),
)
ITEMS = st.dictionaries(st.integers(0, 10**6), VALUES, max_size=5)
BLANKS = st.sampled_from(["\n", "\n", "\n", " \n", "\r\n", "\n# a comment 1:1\n", "\n\n\n", " # 9:9\n"])


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A row with whatever may stand around it."""
    qid = draw(st.sampled_from(["", "", " qid:3"]))
    items = "".join(f" {index}:{value}" for index, value in sorted(draw(ITEMS).items()))
    return draw(LABELS) + qid + items + draw(BLANKS)


@settings(max_examples=200, deadline=None)
@given(st.lists(lines(), min_size=1, max_size=8), st.integers(1, 60), st.booleans(), st.booleans())
def test_rows_are_those_of_sklearn(
    scratch: Path, written: list[str], block_nbytes: int, last_line_end: bool, packed: bool
) -> None:
    data = "".join(written).encode() if last_line_end else "".join(written).rstrip().encode()
    scratch.write_bytes(data)
    want = by_sklearn(scratch)
    scratch.write_bytes(gzip.compress(data) if packed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_NBYTES", block_nbytes)
        source = open_source(scratch)
        assert rows_of(source) == want
        places = []
        for chunk in source.chunks():
            n_rows = sum(batch.num_rows for batch in chunk.batches(["label"], 3))
            places += [chunk.locate(row) for row in range(n_rows)]
    begun = [i for i, line in enumerate(data.decode().split("\n"), 1) if line.partition("#")[0].strip()]
    assert places == [f"{scratch} line {number}" for number in begun]


def test_columns_and_types(a_svm: Path) -> None:
    a_svm.write_bytes(b"+1 3:1 7:0.5\n-1\n")
    source = open_source(a_svm)
    assert source.schema == pa.schema([("label", pa.float32()), ("features", pa.map_(pa.int64(), pa.float32()))])
    assert rows_of(source) == [(1.0, [(3, 1.0), (7, 0.5)]), (0.0, [])]
    assert source.sample(1).to_pylist() == [{"label": 1.0, "features": [(3, 1.0), (7, 0.5)]}]
    assert source.size == a_svm.stat().st_size and source.unit == "bytes"
    with pytest.raises(DataError, match=r"a\.svm has no column 'y', it has label, features"):
        list(next(source.chunks()).batches(["y"], 1))


def test_what_sklearn_refuses_or_leaves_open(a_svm: Path) -> None:
    top = 10**18 - 1
    # Indices may fall, as long as none comes twice in a row; they start at 0 and may be long.
    assert read(a_svm, b"1 3:1 1:2 0:4\n0 %d:1\n" % top) == [
        (1.0, [(3, 1.0), (1, 2.0), (0, 4.0)]),
        (0.0, [(top, 1.0)]),
    ]
    # Tabs, and spaces at both ends.
    assert read(a_svm, b" 1\t3:1  4:1 \t\r\n") == [(1.0, [(3, 1.0), (4, 1.0)])]


@pytest.mark.parametrize("block_nbytes", range(1, 40))
def test_wherever_chunks_are_cut_rows_are_the_same(
    a_svm: Path, monkeypatch: pytest.MonkeyPatch, block_nbytes: int
) -> None:
    data = b"".join(b"%d %d:%d.5 %d:1\n" % (i % 2, i, i, i + 1) for i in range(20))
    want = read(a_svm, data)
    assert len(want) == 20
    monkeypatch.setattr(text, "BLOCK_NBYTES", block_nbytes)
    source = open_source(a_svm)
    assert rows_of(source) == want
    chunks = list(source.chunks())
    assert sum(chunk.size for chunk in chunks) == source.size == len(data)
    # No line is longer than 18 bytes.
    assert len(chunks) >= len(data) // max(block_nbytes, 18)
    assert [chunk.index for chunk in source.chunks(2)] == list(range(2, len(chunks)))


def test_files_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_bytes(b"# nothing\n\n")
    (tmp_path / "b.svm").write_bytes(b"1 1:1")
    (tmp_path / "c.libsvm").write_bytes(b"0 2:1\n")
    source = open_source(tmp_path)
    assert rows_of(source) == [(1.0, [(1, 1.0)]), (0.0, [(2, 1.0)])]
    assert source.sample(9).num_rows == 2


@pytest.mark.parametrize("data", [b"\n", b"# 1 1:1\n", b" \r\n\n#"])
def test_no_rows(a_svm: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.svm has no rows$"):
        read(a_svm, data)


NUMBER = "allowed: a number as 0.5 or 1e-3 that fits float"
INDEX = "allowed: a whole number from 0 to 10^18 - 1"
LABEL = "allowed: 1, 0 or -1"
BAD_LINES = [
    # label
    ("2 1:1", f": got label '2', {LABEL}"),
    ("0.5 1:1", f": got label '0.5', {LABEL}"),
    ("nan 1:1", f": got label 'nan', {LABEL}"),
    ("yes 1:1", f": got label 'yes', {LABEL}"),
    ("1:1 2:1", f": got label '1:1', {LABEL}"),
    ("1,2,3", f": got label '1,2,3', {LABEL}"),
    ("--1 1:1", f": got label '--1', {LABEL}"),
    ("é 1:1", f": got label 'é', {LABEL}"),
    ("9" * 99 + " 1:1", f": got label '{'9' * 60}', {LABEL}"),
    # index
    ("1 1:1 -3:1", f": got index '-3', {INDEX}"),
    ("1 +3:1", f": got index '+3', {INDEX}"),
    ("1 1.5:1", f": got index '1.5', {INDEX}"),
    ("1 a:1", f": got index 'a', {INDEX}"),
    ("1 :1", f": got index '', {INDEX}"),
    ("1 1000000000000000000:1", f": got index '1000000000000000000', {INDEX}"),
    ("1 18446744073709551617:1", f": got index '18446744073709551617', {INDEX}"),
    ("1 1:1 3:1 1:1", ": got index 1 twice, allowed: once in a row"),
    ("1 1:1 1:1", ": got index 1 twice, allowed: once in a row"),
    # neither index nor value
    ("1 5", ": got '5', allowed: index:value"),
    ("1 1:1 x", ": got 'x', allowed: index:value"),
    ("1 1 :1", ": got '1', allowed: index:value"),
    # value
    ("1 1:nan", f", index 1: got value 'nan', {NUMBER}"),
    ("1 1:inf", f", index 1: got value 'inf', {NUMBER}"),
    ("1 1:-Infinity", f", index 1: got value '-Infinity', {NUMBER}"),
    ("1 1:1 7:x", f", index 7: got value 'x', {NUMBER}"),
    ("1 7:", f", index 7: got value '', {NUMBER}"),
    ("1 7: 1", f", index 7: got value '', {NUMBER}"),
    ("1 7:1:2", f", index 7: got value '1:2', {NUMBER}"),
    ("1 7:1e", f", index 7: got value '1e', {NUMBER}"),
    ("1 7:1.2.3", f", index 7: got value '1.2.3', {NUMBER}"),
    ("1 7:0x10", f", index 7: got value '0x10', {NUMBER}"),
    ("1 7:1_0", f", index 7: got value '1_0', {NUMBER}"),
    ("1 7:.", f", index 7: got value '.', {NUMBER}"),
    ("1 7:" + "x" * 99, f", index 7: got value '{'x' * 60}', {NUMBER}"),
]
HEAD = "# head\n1 1:1 2:2\n\n-1 qid:1 3:.5 # 2:2\r\n"
LINE = 5


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
@pytest.mark.parametrize("after", ["", "\n", "\r\n1 1:1\n", " 9:1\nx x\n"])
@pytest.mark.parametrize("block_nbytes", [1, 20, 1 << 20])
def test_a_bad_line_is_one_line_with_its_place(
    a_svm: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str, after: str, block_nbytes: int
) -> None:
    monkeypatch.setattr(text, "BLOCK_NBYTES", block_nbytes)
    if "twice" in message:  # looked for where all else of a chunk is right
        after = after.replace("x x", "0")
    with pytest.raises(DataError) as caught:
        read(a_svm, (HEAD + line + after).encode())
    assert str(caught.value) == f"{a_svm} line {LINE}{message}"


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_of_a_compressed_file_has_its_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.svm.gz"
    with pytest.raises(DataError) as caught:
        read(path, gzip.compress(f"{HEAD}{line}\n0 1:1\n".encode()))
    assert str(caught.value) == f"{path} line {LINE}{message}"


@pytest.mark.parametrize("value", ["1e39", "-3.5e38", "1e999", "9" * 45, "3.4028235677973366163754e38"])
def test_a_value_that_is_too_large_for_float(a_svm: Path, value: str) -> None:
    with pytest.raises(DataError) as caught:
        read(a_svm, f"{HEAD}1 7:{value}\n".encode())
    assert str(caught.value).startswith(f"{a_svm} line {LINE}") and "\n" not in str(caught.value)
    assert f"got value '{value}', {NUMBER}" in str(caught.value)


def test_a_bad_line_far_behind_is_met_when_it_is_read(a_svm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_svm.write_bytes(b"1 1:1\n" * 1000 + b"1 2\n")
    monkeypatch.setattr(text, "BLOCK_NBYTES", 600)
    chunks = list(open_source(a_svm).chunks())
    assert len(chunks) == 11
    for chunk in chunks[:-1]:
        assert sum(batch.num_rows for batch in chunk.batches(COLUMNS, 64)) == 100
    with pytest.raises(DataError, match=r"a\.svm line 1001: got '2', allowed: index:value$"):
        list(chunks[-1].batches(COLUMNS, 64))


def test_bytes_that_are_no_text(a_svm: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: got '\\\\xff\\\\xfe', allowed: index:value$"):
        read(a_svm, b"1 \xff\xfe\n")


def test_csv_options_are_not_for_libsvm(a_svm: Path) -> None:
    a_svm.write_bytes(b"1 1:1\n")
    with pytest.raises(ConfigError, match=r"csv options are for csv and tsv, got format 'libsvm' of .*a\.svm$"):
        open_source(a_svm, csv=CsvOptions(delimiter=" "))


@pytest.mark.parametrize(
    "line", [b"1 q 2:5\n", b"1 qab:1 2:5\n", b"1 qid:x 2:5\n", b"1 qid: 2:5\n", b"1 qid:3x\n"]
)
def test_only_qid_and_a_number_is_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.svm").write_bytes(line)
    with pytest.raises(DataError, match="line 1"):
        rows_of(open_source(tmp_path / "a.svm"))


def test_a_value_too_large_for_a_float_is_named_with_its_index(tmp_path: Path) -> None:
    (tmp_path / "a.svm").write_bytes(b"1 7:1e39\n")
    with pytest.raises(DataError, match="line 1, index 7: got value '1e39'"):
        rows_of(open_source(tmp_path / "a.svm"))
