"""One table, written by many in layers: it comes back in any number of parts, whatever fails meanwhile."""

from __future__ import annotations

import errno
import json
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import ConfigError, ModelError, StorageError
from penstock.features import ColumnPlan, FeaturePlan
from penstock.models import (
    Linear,
    build_manifest,
    commit_manifest,
    discard_version,
    files,
    load_model,
    new_version,
    read_manifest,
    read_rows,
    save_model,
    table_files,
    table_layers,
    write_arrays,
    write_names,
    write_removed,
    write_rows,
)
from penstock.table import Layout, Table

PLAN = FeaturePlan(label="y", columns=(ColumnPlan(name="site", kind="categorical", type="string"),))
SEGMENTS = 16
MODEL = Linear(PLAN, optimizer=ps.FTRL(alpha=0.3), segments=SEGMENTS, slots=1)
LAYOUT = MODEL.table.layout
SPEC = MODEL.to_spec()

Rows = dict[int, tuple[float, ...]]


def arrays(rows: Rows, layout: Layout = LAYOUT) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array(list(rows), np.uint64)
    return keys, np.array(list(rows.values()), np.float32).reshape(len(rows), layout.width)


def table_of(rows: Rows) -> Table:
    table = Table(LAYOUT.optimizer, segments=SEGMENTS, slots=1)
    table.insert(*arrays(rows))
    return table


def segment_of(key: int) -> int:
    return key >> 60


def stored(parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> Rows:
    found: Rows = {}
    for keys, words in parts:
        found.update(zip(keys.tolist(), map(tuple, words.tolist()), strict=True))
    return found


def some_rows(n: int, seed: int = 1) -> Rows:
    random = np.random.default_rng(seed)
    keys = np.unique(random.integers(1, 1 << 63, n, np.uint64)) << np.uint64(1)
    words = random.normal(size=(len(keys), 2)).astype(np.float32)
    return dict(zip(keys.tolist(), map(tuple, words.tolist()), strict=True))


def commit(root: Path, version: int, layers: list[dict[str, Any]], rows: int, **more: Any) -> dict[str, Any]:
    manifest = build_manifest(SPEC, version=version, layers={"weights": layers}, rows={"weights": rows}, **more)
    commit_manifest(root, manifest)
    return manifest


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def versions(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


@pytest.fixture
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROWS_PER_FILE", 60)
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 10)


@pytest.fixture
def root(tmp_path: Path, several_files: None) -> Path:
    """A checkpoint of two layers, each of two servers: 200 rows, of which 20 changed, 30 went and 10 are new."""
    rows = some_rows(200)
    halves = [range(0, SEGMENTS, 2), range(1, SEGMENTS, 2)]
    version, folder = new_version(tmp_path / "m")
    parts = [
        write_rows(table_of(rows), folder, "weights", segments=half, tag=f"s{i}") for i, half in enumerate(halves)
    ]
    first = {"files": parts[0] + parts[1]}
    commit(tmp_path / "m", version, [first], len(rows))
    version, folder = new_version(tmp_path / "m")
    keys = list(rows)
    changed = dict.fromkeys(keys[:20], (1.0, 2.0)) | some_rows(10, seed=2)
    entries, gone = [], []
    for i, half in enumerate(halves):
        mine = {key: words for key, words in changed.items() if segment_of(key) in half}
        entries += write_arrays(folder, "weights", LAYOUT, *arrays(mine), tag=f"s{i}")
        removed = np.array([key for key in keys[50:80] if segment_of(key) in half], np.uint64)
        gone += write_removed(folder, "weights", LAYOUT, removed, tag=f"s{i}")
    commit(tmp_path / "m", version, [first, {"files": entries, "removed": gone}], 180, progress={"clock": [1, {}]})
    return tmp_path / "m"


def wanted_rows() -> Rows:
    rows = some_rows(200)
    keys = list(rows)
    rows |= dict.fromkeys(keys[:20], (1.0, 2.0)) | some_rows(10, seed=2)
    for key in keys[50:80]:
        del rows[key]
    return rows


# What was written comes back.


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_layers_of_any_writers_are_read_by_any_readers(data: st.DataObject) -> None:
    keys = st.integers(1, 2**63 - 1).map(lambda half: 2 * half)
    value = st.floats(width=32, allow_nan=False)
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROWS_PER_FILE", data.draw(st.integers(1, 30)))
        patch.setattr(files, "ROWS_PER_GROUP", data.draw(st.integers(1, 10)))
        root, layers = Path(place), []
        for _ in range(data.draw(st.integers(1, 4))):
            known = st.sampled_from(sorted(rows)) if rows else keys
            changed = data.draw(st.dictionaries(st.one_of(keys, known), st.tuples(value, value), max_size=25))
            removed = data.draw(st.sets(known, max_size=8)) if layers else set()
            rows = {key: words for key, words in rows.items() if key not in removed} | changed
            # Every layer may be of other servers.
            server_of = data.draw(st.lists(st.integers(0, 2), min_size=SEGMENTS, max_size=SEGMENTS))
            version, folder = new_version(root)
            layer: dict[str, Any] = {"files": [], "removed": []}
            for server in range(3):
                mine = [s for s in range(SEGMENTS) if server_of[s] == server]
                tag = f"server.{server}"
                part = {key: words for key, words in changed.items() if segment_of(key) in mine}
                if not layers:
                    layer["files"] += write_rows(table_of(changed), folder, "weights", segments=mine, tag=tag)
                elif data.draw(st.booleans()):
                    layer["files"] += write_arrays(folder, "weights", LAYOUT, *arrays(part), tag=tag)
                else:
                    of_all = np.array(list(changed), np.uint64)
                    layer["files"] += write_rows(
                        table_of(rows), folder, "weights", segments=mine, tag=tag, keys=of_all
                    )
                gone = np.array([key for key in removed if segment_of(key) in mine], np.uint64)
                layer["removed"] += write_removed(folder, "weights", LAYOUT, gone, tag=tag)
            layers.append(layer)
            commit(root, version, layers, len(rows))
        manifest = read_manifest(root)
        assert manifest["format_version"] == (1 if len(layers) == 1 else 2)
        # Into one process, and into servers of any segments.
        loaded = load_model(root)
        assert stored(loaded.table.items(s) for s in range(SEGMENTS)) == rows
        mine = data.draw(st.sets(st.integers(0, SEGMENTS - 1)))
        found = stored(read_rows(root, manifest, "weights", mine))
        assert found == {key: words for key, words in rows.items() if segment_of(key) in mine}
        check_entries(root, manifest)


def check_entries(root: Path, manifest: dict[str, Any]) -> None:
    """Files are as their entries say: rows by rising key, in runs of segments of their own."""
    for layer in table_layers(manifest["tables"]["weights"]):
        for entries in (layer["files"], layer["removed"]):
            seen: list[int] = []
            for entry in entries:
                keys = pq.read_table(root / entry["path"])["key"].to_numpy()
                runs = [s for first, last in entry["segments"] for s in range(first, last + 1)]
                assert (keys[1:] > keys[:-1]).all() and len(keys) == entry["rows"]
                assert {segment_of(key) for key in keys.tolist()} <= set(runs)
                assert all(b[0] - a[1] > 1 for a, b in zip(entry["segments"], entry["segments"][1:], strict=False))
                seen += runs
            assert len(seen) == len(set(seen))


def test_a_checkpoint_of_two_layers(root: Path) -> None:
    manifest = read_manifest(root)
    assert manifest["format_version"] == 2 and manifest["progress"] == {"clock": [1, {}]}
    assert "files" not in manifest["tables"]["weights"]
    assert stored(read_rows(root, manifest, "weights")) == wanted_rows()
    for servers in (1, 3, 16):
        parts = [range(i, SEGMENTS, servers) for i in range(servers)]
        found = [stored(read_rows(root, manifest, "weights", part)) for part in parts]
        assert sum(map(len, found)) == 180
        assert {key: words for part in found for key, words in part.items()} == wanted_rows()
    loaded = load_model(root)
    assert stored(loaded.table.items(s) for s in range(SEGMENTS)) == wanted_rows()
    assert len(loaded.table.take_changed()) == 0


def test_any_shape_of_rows_is_written_from_arrays(tmp_path: Path) -> None:
    layout = Layout(optimizer=ps.AdaGrad(), dim=8, segments=4)
    random = np.random.default_rng(3)
    keys = random.permutation(np.array(list(some_rows(90)), np.uint64))
    words = random.normal(size=(len(keys), layout.width)).astype(np.float32)
    folder = new_version(tmp_path)[1]
    [entry] = write_arrays(folder, "wide", layout, keys, words)
    table = Table(layout.optimizer, dim=8, segments=4, slots=1)
    table.insert(keys, words)
    [same] = write_rows(table, folder, "again")
    assert entry["path"] == "v000001/wide-0000-0003.parquet" and entry["segments"] == [[0, 3]]
    assert entry["sha256"] == same["sha256"]


def test_nothing_changed_is_an_empty_layer(root: Path) -> None:
    before = read_manifest(root)
    version, folder = new_version(root)
    no_keys = np.empty(0, np.uint64)
    assert write_rows(table_of({}), folder, "weights", keys=no_keys) == []
    assert write_arrays(folder, "weights", LAYOUT, *arrays({})) == []
    assert write_removed(folder, "weights", LAYOUT, no_keys) == []
    assert write_rows(table_of({}), folder, "weights", segments=[]) == []
    assert write_names({}, folder) is None
    commit(root, version, [*table_layers(before["tables"]["weights"]), {"files": []}], 180)
    assert stored(read_rows(root, read_manifest(root), "weights")) == wanted_rows()


def test_a_manifest_of_the_older_form_is_read(tmp_path: Path, several_files: None) -> None:
    model = Linear(PLAN, segments=SEGMENTS, slots=1)
    model.table.insert(*arrays(some_rows(100)))
    manifest = save_model(model, tmp_path)
    for entry in manifest["tables"]["weights"]["files"]:
        [entry["segments"]] = entry["segments"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert stored(load_model(tmp_path).table.items(s) for s in range(SEGMENTS)) == some_rows(100)
    found = stored(read_rows(tmp_path, manifest, "weights", [0, 9]))
    assert found == {k: w for k, w in some_rows(100).items() if segment_of(k) in (0, 9)}


# A part costs a part.


def test_files_without_a_wanted_segment_are_not_read(root: Path) -> None:
    manifest = read_manifest(root)
    for file in root.glob("v*/*weights-s1-*.parquet"):  # those of odd segments
        file.unlink()
    assert stored(read_rows(root, manifest, "weights", [4, 6]))
    with pytest.raises(ModelError, match=r"weights-s1-.*: the manifest names this file, but it is missing"):
        list(read_rows(root, manifest, "weights", [4, 7]))
    with pytest.raises(ModelError, match="but it is missing"):
        load_model(root)


def test_row_groups_without_a_wanted_segment_are_not_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, from_arrow = [], Layout.from_arrow

    def counted(self: Layout, batch: Any) -> Any:
        rows.append(len(batch))
        return from_arrow(self, batch)

    monkeypatch.setattr(Layout, "from_arrow", counted)
    manifest = read_manifest(root)
    found = stored(read_rows(root, manifest, "weights", [6]))
    entries = table_files(manifest["tables"]["weights"])
    met = [e["rows"] for e in entries if "/weights" in e["path"] and any(a <= 6 <= b for a, b in e["segments"])]
    assert 5 < len(found) <= sum(rows) < 0.6 * sum(met)


# Folders of versions.


def test_folders_stay_as_long_as_a_layer_is_in_them(root: Path) -> None:
    assert versions(root) == ["manifest.json", "v000001", "v000002"]
    loaded = load_model(root)
    assert save_model(loaded, root)["format_version"] == 1
    assert versions(root) == ["manifest.json", "v000003"]
    assert stored(load_model(root).table.items(s) for s in range(SEGMENTS)) == wanted_rows()


def test_a_newer_version_that_is_being_written_stays(root: Path) -> None:
    version, folder = new_version(root)
    newer, _ = new_version(root)
    files_ = write_rows(table_of(some_rows(5)), folder, "weights")
    commit(root, version, [{"files": files_}], len(some_rows(5)))
    assert versions(root) == ["manifest.json", "v000003", "v000004"]
    discard_version(root, newer)
    discard_version(root, version)  # it was committed, so it stays
    assert versions(root) == ["manifest.json", "v000003"]
    load_model(root)


def test_what_is_not_there_is_not_committed(root: Path) -> None:
    before = contents(root)
    version, folder = new_version(root)
    [entry] = write_rows(table_of(some_rows(5)), folder, "weights")
    (root / entry["path"]).rename(root / "aside")
    with pytest.raises(StorageError, match="is not there; all processes must write to one shared folder"):
        commit(root, version, [{"files": [entry]}], 5)
    (root / entry["path"]).write_bytes(b"half")
    with pytest.raises(StorageError, match=rf"must have {entry['nbytes']} bytes, has 4"):
        commit(root, version, [{"files": [entry]}], 5)
    (root / "aside").unlink()
    discard_version(root, version)
    assert contents(root) == before


def test_a_manifest_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"manifest\.json of something else"):
        new_version(tmp_path)
    assert contents(tmp_path) == {"manifest.json": b"{}"}


# What fails leaves nothing behind.


def disk_full(real: Callable[..., Any], nth: int, calls: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    return call


WRITERS: dict[str, Callable[[Path], Any]] = {
    "write_rows": lambda folder: write_rows(table_of(some_rows(100)), folder, "weights", tag="s9"),
    "write_arrays": lambda folder: write_arrays(folder, "weights", LAYOUT, *arrays(some_rows(100)), tag="s9"),
    "write_removed": lambda folder: write_removed(folder, "weights", LAYOUT, arrays(some_rows(100))[0], tag="s9"),
    "write_names": lambda folder: write_names({4: "site=a"}, folder),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("holder", "step"),
    [
        (pq.ParquetWriter, "__init__"),
        (pq.ParquetWriter, "write_table"),
        (pq.ParquetWriter, "close"),
        (os, "fsync"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_full_disk_costs_one_writer_its_files_and_nobody_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, holder: Any, step: str
) -> None:
    version, folder = new_version(root)
    write_rows(table_of(some_rows(20)), folder, "weights", tag="s8")
    before, nth, failed = contents(root), 0, 0
    while True:
        nth += 1
        calls: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(holder, step, disk_full(getattr(holder, step), nth, calls))
            try:
                WRITERS[name](folder)
            except StorageError as error:
                failed += 1
                assert f"{folder}: cannot write the model: No space left" in str(error)
                assert contents(root) == before
            else:
                break
    assert failed == len(calls) > 0
    discard_version(root, version)
    assert stored(read_rows(root, read_manifest(root), "weights")) == wanted_rows()
    load_model(root)


@pytest.mark.parametrize(("holder", "step", "times"), [(os, "fsync", 2), (Path, "replace", 1), (Path, "stat", 2)])
def test_a_full_disk_at_the_commit_leaves_the_version_before(
    root: Path, monkeypatch: pytest.MonkeyPatch, holder: Any, step: str, times: int
) -> None:
    version, folder = new_version(root)
    layers = [{"files": write_rows(table_of(some_rows(100)), folder, "weights")}]
    before = contents(root)
    for nth in range(1, times + 1):
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
            patch.setattr(holder, step, disk_full(getattr(holder, step), nth, []))
            commit(root, version, layers, 100)
        assert contents(root) == before
    load_model(root)
    commit(root, version, layers, 100)
    assert len(load_model(root).table) == 100


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "write_names"])
def test_a_write_that_the_system_refuses(root: Path, name: str) -> None:
    """Not simulated: the file may not become as large as it must."""
    folder = new_version(root)[1]
    before = contents(root)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for nbytes in (0, 4, 200):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
            with pytest.raises(StorageError) as raised:
                WRITERS[name](folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "cannot write the model: " in str(raised.value) and "File too large" in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
        assert contents(root) == before
    WRITERS[name](folder)


def test_a_version_cannot_begin_on_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions(root)
    for nth in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
            patch.setattr(Path, "mkdir", disk_full(Path.mkdir, nth, []))
            new_version(root)
    assert versions(root) == before


# Damage.


def edited(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest["tables"]["weights"])
    (root / "manifest.json").write_text(json.dumps(manifest))


def removed_run_widened(table: dict[str, Any]) -> None:
    table["layers"][1]["removed"][0]["segments"] = [[15, 15]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["layers"][1].update(removed=[]), "180 rows promised, 210 found"),
        (lambda t: t["layers"].pop(), "180 rows promised, 200 found"),
        (lambda t: t["layers"].reverse(), "rows promised, "),
        (lambda t: t.update(files=[]), "table 'weights' must have either files or layers"),
        (lambda t: t.pop("layers"), "table 'weights' must have either files or layers"),
        (lambda t: t.update(layers=[]), "damaged: Expected `array` of length >= 1"),
        (lambda t: t.update(layers={}), "damaged: Expected `array"),
        (lambda t: t["layers"][0].pop("files"), "missing required field `files`"),
        (lambda t: t["layers"][0]["files"][0].update(rows=3), "3 rows promised, .* found"),
        (
            lambda t: t["layers"][0]["files"][0].update(segments=[[3, 1]]),
            r"must be runs \[first, last\] below 16, got \[3, 1\]",
        ),
        (lambda t: t["layers"][0]["files"][0].update(segments=[[0]]), r"must be runs .* got \[0\]"),
        (lambda t: t["layers"][0]["files"][0].update(segments=[["a", "b"]]), "must be runs "),
        (lambda t: t["layers"][0]["files"][0].update(segments=[]), "must be runs "),
        (lambda t: t["layers"][0]["files"][0].update(segments=[[0, 1 << 40]]), "must be runs "),
        (lambda t: t["layers"][0]["files"][0].update(segments=[[15, 15]]), "has rows outside of the segments"),
        (lambda t: t["layers"][0]["files"][0].update(segments=[[15, 16]]), "must be runs .* below 16"),
        (removed_run_widened, "removed-weights-.*has rows outside of the segments"),
        (
            lambda t: t["layers"][1].update(removed=t["layers"][1]["files"]),
            r"columns \['key', 'weight', 'z', 'n'\]",
        ),
        (lambda t: t["layers"][1].update(files=t["layers"][1]["removed"]), r"columns \['key'\], expected"),
        (lambda t: t["layers"][1]["removed"][0].update(path="../x"), "outside of the model: '../x'"),
    ],
)
def test_layers_that_are_not_what_was_written(root: Path, change: Callable[..., Any], message: str) -> None:
    edited(root, change)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(root)
    assert str(raised.value).startswith(str(root)) and len(str(raised.value).splitlines()) == 1


def test_a_byte_flipped_in_any_file_of_any_layer(root: Path) -> None:
    manifest = read_manifest(root)
    for entry in table_files(manifest["tables"]["weights"]):
        whole = (root / entry["path"]).read_bytes()
        (root / entry["path"]).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        for reading in (lambda: load_model(root), lambda: list(read_rows(root, manifest, "weights"))):
            with pytest.raises(ModelError, match="damaged: its checksum is not the one in the manifest") as raised:
                reading()
            assert entry["path"] in str(raised.value)
        (root / entry["path"]).write_bytes(whole)
    load_model(root)


def test_a_table_or_a_segment_that_is_not_there(root: Path) -> None:
    for segments in ([16], [-1, 3]):
        with pytest.raises(ConfigError, match=r"segments must be 0 to 15, got \["):
            list(read_rows(root, read_manifest(root), "weights", segments))
    with pytest.raises(ModelError, match=r"manifest.json: there is no table 'bias'; there are: weights"):
        list(read_rows(root, read_manifest(root), "bias"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": [3, 1]}, "segments must rise from 0 to 15"),
        ({"segments": [3, 3]}, "segments must rise"),
        ({"segments": [3, 16]}, "segments must rise"),
        ({"segments": [-1]}, "segments must rise"),
        ({"keys": np.array([2, 4], np.uint64)}, "table 'weights' has rows of only 0 of 2 keys"),
        ({"tag": "../x"}, "tag: letters, digits"),
    ],
)
def test_what_a_writer_may_not_ask(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = new_version(tmp_path)[1]
    with pytest.raises(ValueError, match=message):
        write_rows(table_of(some_rows(9)), folder, "weights", **options)
    assert contents(tmp_path) == {}


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    keys, words = arrays(some_rows(9))
    with pytest.raises(ValueError, match=rf"words must be f32\[{len(keys)}, 2\], got float32\[{len(keys)}, 1\]"):
        write_arrays(tmp_path, "weights", LAYOUT, keys, words[:, :1])
