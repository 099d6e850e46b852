"""Places to files, and files to formats."""

from __future__ import annotations

import bz2
import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.data import CsvOptions, open_source
from penstock.data.files import find_files, is_local, nbytes_of, open_file, reading
from penstock.errors import ConfigError, DataError, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a Spark job and an editor leave behind."""
    for name in (
        "b.csv",
        "a.csv",
        "_SUCCESS",
        ".a.csv.crc",
        "day=1/part-1.csv",
        "day=1/part-0.csv",
        "day=1/.part-0.csv.crc",
        "day=2/_temporary/part-0.csv",
        "day=2/.git/part-0.csv",
        "day=2/deep/part-0.csv",
        "x[1].csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("i\n1\n")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], str]]:
    """Writes files of a file system that is not the machine's; a folder of them is gone after the test."""
    files = fsspec.filesystem("memory")

    def write(name: str, data: bytes) -> str:
        url = f"memory://test_files/{name}"
        with fsspec.open(url, "wb") as out:
            out.write(data)
        return url

    yield write
    if files.exists("/test_files"):
        files.rm("/test_files", recursive=True)


def found(*places: Any, below: Path) -> list[str]:
    return [str(Path(path).relative_to(below)) for path in find_files(places)]


def refused(error: type[InputError], place: Any, message: str, **options: Any) -> None:
    """Opening ends with this line."""
    with pytest.raises(error) as caught:
        open_source(place, **options)
    assert str(caught.value) == message


ALL = ["a.csv", "b.csv", "day=1/part-0.csv", "day=1/part-1.csv", "day=2/deep/part-0.csv", "x[1].csv"]


def test_a_folder_is_read_to_the_bottom_without_names_that_hide(folder: Path) -> None:
    assert found(folder, below=folder) == ALL
    assert found(str(folder), below=folder) == ALL
    assert found(f"{folder}/", below=folder) == ALL


def test_a_folder_whose_own_name_hides_is_read_where_it_is_named(folder: Path) -> None:
    assert found(folder / "day=2" / "_temporary", below=folder) == ["day=2/_temporary/part-0.csv"]
    assert found(folder / "day=2" / ".git", below=folder) == ["day=2/.git/part-0.csv"]


def test_a_file_whose_name_hides_is_read_where_it_is_named(folder: Path) -> None:
    assert found(folder / "_SUCCESS", folder / ".a.csv.crc", below=folder) == ["_SUCCESS", ".a.csv.crc"]


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("*.csv", ["a.csv", "b.csv", "x[1].csv"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("[bc].csv", ["b.csv"]),
        ("day=*/part-*.csv", ["day=1/part-0.csv", "day=1/part-1.csv"]),
        ("day=*", ["day=1/part-0.csv", "day=1/part-1.csv", "day=2/deep/part-0.csv"]),
        ("**/part-1.csv", ["day=1/part-1.csv"]),
        ("_SUC*", ["_SUCCESS"]),
        (".*.crc", [".a.csv.crc"]),
        # A name that is there is no pattern.
        ("x[1].csv", ["x[1].csv"]),
    ],
)
def test_globs(folder: Path, pattern: str, files: list[str]) -> None:
    assert found(f"{folder}/{pattern}", below=folder) == files


def test_a_glob_of_everything_lists_nothing_twice(folder: Path) -> None:
    # `*` matches _SUCCESS; `**` matches folders, and files in them.
    assert sorted(found(f"{folder}/*", below=folder)) == ALL
    assert found(f"{folder}/day=1/**", below=folder) == ["day=1/part-0.csv", "day=1/part-1.csv"]


def test_places_keep_their_order_and_may_repeat(folder: Path) -> None:
    assert found(folder / "b.csv", f"{folder}/day=1", folder / "a.csv", folder / "b.csv", below=folder) == [
        "b.csv",
        "day=1/part-0.csv",
        "day=1/part-1.csv",
        "a.csv",
        "b.csv",
    ]


def test_a_link_to_a_folder_is_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("links")
    (other / "link").symlink_to(folder / "day=1")
    assert found(other, below=other) == ["link/part-0.csv", "link/part-1.csv"]


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert find_files(["~/a.csv"]) == [f"{folder}/a.csv"]
    assert find_files(["~/day=1/*0.csv"]) == [f"{folder}/day=1/part-0.csv"]
    refused(DataError, "~/c.csv", f"{folder}/c.csv does not exist")


def test_paths_are_relative_to_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_files(["a.csv", "./b.csv", Path("day=1")]) == [
        "a.csv",
        "b.csv",
        "day=1/part-0.csv",
        "day=1/part-1.csv",
    ]


def test_file_urls_are_paths(folder: Path) -> None:
    assert find_files([f"file://{folder}/a.csv"]) == [f"{folder}/a.csv"]
    assert find_files([f"file://{folder}/[ab].csv"]) == [f"{folder}/a.csv", f"{folder}/b.csv"]
    refused(DataError, f"file://{folder}/c.csv", f"{folder}/c.csv does not exist")


# What is not there, or not readable.


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("c.csv", "does not exist"),
        ("a.csv/b.csv", "does not exist"),
        ("c/d/*.csv", "matches no files"),
        ("*.parquet", "matches no files"),
        ("_S*/*", "matches no files"),
        ("day=1/deep", "does not exist"),
    ],
)
def test_nothing_there(folder: Path, place: str, message: str) -> None:
    refused(DataError, f"{folder}/{place}", f"{folder}/{place} {message}")


def test_a_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "_SUCCESS").touch()
    refused(DataError, tmp_path, f"{tmp_path} has no files")


def test_one_missing_place_among_others(folder: Path) -> None:
    refused(DataError, [folder / "a.csv", folder / "c.csv"], f"{folder}/c.csv does not exist")


@pytest.mark.parametrize("format", [None, "csv", "tsv", "libsvm", "parquet", "arrow"])
def test_an_empty_file(tmp_path: Path, format: str | None) -> None:
    path = tmp_path / "a"
    path.touch()
    refused(DataError, path, f"{path} is empty (0 bytes)", format=format)


def test_an_empty_file_among_others(folder: Path) -> None:
    (folder / "b.csv").write_bytes(b"")
    refused(DataError, folder, f"{folder}/b.csv is empty (0 bytes)")


def test_a_link_to_nowhere(folder: Path) -> None:
    (folder / "c.csv").symlink_to(folder / "nowhere")
    refused(DataError, folder, f"{folder}/c.csv does not exist")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    long = f"{tmp_path}/{'a' * 300}.csv"
    refused(DataError, long, f"{long} cannot be read: File name too long")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "a.csv").chmod(0)
    refused(DataError, folder / "a.csv", f"{folder}/a.csv cannot be read: Permission denied")


# URLs.


def test_a_url_is_read_as_a_file(memory: Callable[[str, bytes], str]) -> None:
    url = memory("a.csv", b"i,t\n1,x\n2,y\n")
    source = open_source(url)
    assert source.sample(9).to_pylist() == [{"i": 1, "t": "x"}, {"i": 2, "t": "y"}]
    assert source.size == 12 - 4
    assert not is_local(url) and nbytes_of(url) == 12
    with reading(url), open_file(url) as file:
        file.seek(4)
        assert file.read() == b"1,x\n2,y\n"


def test_globs_and_folders_of_urls(memory: Callable[[str, bytes], str]) -> None:
    names = ["b.csv", "a.csv", "_SUCCESS", ".a.crc", "day=1/p.csv", "day=1/_p.csv", "_temporary/p.csv"]
    for name in names:
        memory(name, b"i\n1\n")
    root = "memory:///test_files"
    files = [f"{root}/a.csv", f"{root}/b.csv", f"{root}/day=1/p.csv"]
    assert find_files(["memory://test_files"]) == find_files(["memory://test_files/"]) == files
    assert find_files(["memory://test_files/*.csv"]) == files[:2]
    assert find_files(["memory://test_files/day=*"]) == files[2:]
    assert find_files(["memory://test_files/_SUCCESS"]) == [f"{root}/_SUCCESS"]
    assert open_source("memory://test_files").sample(9).num_rows == 3


def test_urls_of_nothing(memory: Callable[[str, bytes], str]) -> None:
    empty = memory("empty.csv", b"")
    memory("hidden/_SUCCESS", b"1")
    for place, message in (
        ("memory://test_files/c.csv", "memory://test_files/c.csv does not exist"),
        ("memory://test_files/*.tsv", "memory://test_files/*.tsv matches no files"),
        ("memory://test_files/hidden", "memory://test_files/hidden has no files"),
        (empty, "memory:///test_files/empty.csv is empty (0 bytes)"),
    ):
        refused(DataError, place, message)


def test_an_unknown_protocol() -> None:
    refused(ConfigError, "nope://bucket/a.csv", "nope://bucket/a.csv: Protocol not known: nope")


def test_a_file_system_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs\nto access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    refused(ConfigError, "s3://bucket/a.csv", "s3://bucket/a.csv: Install s3fs to access S3")


def test_whatever_a_file_system_raises_is_one_line_that_names_the_url() -> None:
    class ClientError(Exception):
        pass

    with pytest.raises(DataError) as caught, reading("s3://bucket/a.csv"):
        raise ClientError("SlowDown\n  (503)")
    assert str(caught.value) == "s3://bucket/a.csv cannot be read: SlowDown (503)"
    with pytest.raises(DataError, match=r"^s3://b/a cannot be read: ClientError$"), reading("s3://b/a"):
        raise ClientError
    # A local file has no such client: this would be a mistake of this program.
    with pytest.raises(ClientError), reading("a.csv"):
        raise ClientError


# Formats.

TABLE = pa.table({"label": [1, 0], "t": ["x", "y"]})


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def arrow_bytes(stream: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, TABLE.schema) as out:
        out.write_table(TABLE)
    data: bytes = sink.getvalue().to_pybytes()
    return data


CSV, TSV, SVM = b"label,t\n1,x\n0,y\n", b"label\tt\n1\tx\n0\ty\n", b"1 1:1\n0 2:1 # c\n"
PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize(
    ("name", "data", "reader"),
    [
        ("a.parquet", parquet_bytes(), "ParquetSource"),
        ("a.pq", parquet_bytes(), "ParquetSource"),
        ("a.arrow", arrow_bytes(), "IpcSource"),
        ("a.feather", arrow_bytes(), "IpcSource"),
        ("a.arrows", arrow_bytes(stream=True), "IpcSource"),
        ("a.csv", CSV, "DelimitedSource"),
        ("A.CSV", CSV, "DelimitedSource"),
        ("a.b.tsv", TSV, "DelimitedSource"),
        ("a.tab", TSV, "DelimitedSource"),
        ("a.svm", SVM, "LibsvmSource"),
        ("a.libsvm", SVM, "LibsvmSource"),
        # By their first bytes, where the name does not tell.
        ("part-0", parquet_bytes(), "ParquetSource"),
        ("part-0.tmp", arrow_bytes(), "IpcSource"),
        ("a9a", b"-1 3:1 11:1 14:1 \n+1 5:1\n", "LibsvmSource"),
        ("a9a.t", b"1 qid:1 3:0.5\r\n0 1:1\r\n", "LibsvmSource"),
        ("a9a.txt", b"+1.0 # nothing\n0 1:1\n", "LibsvmSource"),
    ],
)
def test_formats_are_told(tmp_path: Path, name: str, data: bytes, reader: str) -> None:
    (tmp_path / name).write_bytes(data)
    source = open_source(tmp_path / name)
    assert type(source).__name__ == reader
    assert source.sample(9).column("label").to_pylist() in ([1, 0], [0, 1])


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("name", "data"), [("a.csv", CSV), ("a.tsv", TSV), ("a.svm", SVM), ("a", SVM), ("a.txt", SVM)]
)
def test_formats_are_told_of_compressed_files(tmp_path: Path, suffix: str, name: str, data: bytes) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(PACKERS[suffix](data))
    assert open_source(path).sample(9).column("label").to_pylist() == [1, 0]


def test_compression_is_told_by_the_bytes_and_not_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(CSV)
    (tmp_path / "b.csv").write_bytes(gzip.compress(CSV, mtime=0))
    assert open_source(tmp_path).sample(9).column("label").to_pylist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "data", [CSV, TSV, b"1,2\n", b"hello\n", b"1 x:1\n", b"\x00\x01", b"PK\x03\x04", gzip.compress(CSV, mtime=0)]
)
def test_a_format_that_cannot_be_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    message = "its format cannot be told, name it with format (--format), one of arrow, csv, libsvm, parquet, tsv"
    refused(ConfigError, path, f"{path}: {message}")


def test_a_format_that_is_named_needs_no_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for format, data in (
        ("csv", CSV),
        ("tsv", TSV),
        ("libsvm", SVM),
        ("parquet", parquet_bytes()),
        ("arrow", arrow_bytes()),
    ):
        path.write_bytes(data)
        assert open_source(path, format=format).sample(9).column("label").to_pylist() == [1, 0]


def test_a_format_that_does_not_exist(tmp_path: Path) -> None:
    refused(ConfigError, tmp_path, "format: got 'xls', allowed: arrow, csv, libsvm, parquet, tsv", format="xls")


def test_files_of_two_formats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    (tmp_path / "b.svm").write_bytes(SVM)
    message = f"{tmp_path}/b.svm is libsvm, {tmp_path}/a.csv is csv; allowed: files of one format"
    refused(DataError, tmp_path, message)


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "data", [CSV * 50, b"PAR1", b"ARROW1", parquet_bytes()[:-9], arrow_bytes()[:-9], b"\x00" * 99]
)
def test_files_that_are_not_what_they_seem_or_were_cut_off(tmp_path: Path, format: str, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_source(path, format=format)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)


def test_options_for_files_are_not_for_tables() -> None:
    refused(ConfigError, TABLE, "format and csv are for files, got Table as data", format="csv")
    refused(ConfigError, [TABLE], "format and csv are for files, got list as data", csv=CsvOptions())


@pytest.mark.parametrize("data", [None, 3, b"a.csv", {"a": [1]}, object()])
def test_what_is_no_data(data: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(data)
    assert str(caught.value).startswith(f"data: got {type(data).__name__}, allowed: a path, glob, folder or URL")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("i\n1\n")


def test_the_working_folder_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.csv", "_SUCCESS", ".a.csv.crc", ".git/x.csv")
    monkeypatch.chdir(tmp_path)
    assert find_files(["."]) == ["a.csv"]


@pytest.mark.parametrize("pattern", ["*", "**", "**/*.csv", "*/*.csv"])
def test_a_glob_passes_over_hidden_folders(tmp_path: Path, pattern: str) -> None:
    # Spark leaves files that were never committed in _temporary.
    touch(tmp_path, "d/a.csv", "_temporary/a.csv", ".git/a.csv")
    assert find_files([f"{tmp_path}/{pattern}"]) == [f"{tmp_path}/d/a.csv"]


def test_a_hidden_folder_that_is_spelled_out_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "_a/b.csv", "_a/_c.csv", ".x/d.csv")
    assert find_files([f"{tmp_path}/_a/*"]) == [f"{tmp_path}/_a/b.csv"]
    assert find_files([f"{tmp_path}/_*/*.csv"]) == [f"{tmp_path}/_a/_c.csv", f"{tmp_path}/_a/b.csv"]
    assert find_files([f"{tmp_path}/.x"]) == [f"{tmp_path}/.x/d.csv"]


def test_a_link_to_a_folder_above_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_files([tmp_path]) == [f"{tmp_path}/a.csv"]


def test_the_home_of_nobody() -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_source("~nosuchuser/a.csv")


@pytest.mark.parametrize("data", ["", [], ()])
def test_no_place_at_all(data: Any) -> None:
    with pytest.raises(ConfigError, match="at least one path"):
        open_source(data)


@pytest.mark.parametrize("data", [b"1\t1:1\n", b"# c\n1 1:1\n", b"\n1 1:1\n", b"1 1:1\t2:1\n"])
def test_libsvm_is_told_by_its_first_row(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w").write_bytes(data)
    assert open_source(tmp_path / "w").schema.names == ["label", "features"]


@pytest.mark.parametrize("digits", range(12))
def test_libsvm_is_told_by_a_row_that_is_longer_than_what_is_looked_at(tmp_path: Path, digits: int) -> None:
    items = b" ".join(b"%d:0.25" % i for i in range(10, 9000))
    (tmp_path / "w").write_bytes(b"1 1:0." + b"1" * digits + b"0 " + items + b"\n0 1:1\n")
    assert open_source(tmp_path / "w").schema.names == ["label", "features"]
