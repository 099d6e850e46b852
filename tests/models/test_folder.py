"""Models on disk: what is written comes back, damage is said in one line, no failure costs the model before."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock import storage
from penstock.batch import SparseBatch
from penstock.errors import ConfigError, DataError, ModelError, StorageError
from penstock.features import ColumnPlan, FeaturePlan
from penstock.models import Linear, files, folder, load_model, read_manifest, save_model

PLAN = FeaturePlan(
    label="clicked",
    columns=(
        ColumnPlan(name="site", kind="categorical", type="string"),
        ColumnPlan(name="price", kind="standard", type="double", mean=1 / 3, scale=0.1),
    ),
    crosses=(("site", "user"),),
    weight="w",
    time="t",
)
OPTIMIZERS = [ps.FTRL(alpha=0.3, l1=0.5), ps.AdaGrad(alpha=0.2, initial=1e-3), ps.SGD(alpha=1 / 3)]
TABLE = pa.table({"site": ["a", None], "price": [1.0, 2.0], "user": [7, 8]})


def model_of(
    keys: np.ndarray, *, seed: int = 0, optimizer: ps.Optimizer = OPTIMIZERS[0], segments: int = 8
) -> Linear:
    """Rows of any bits that an f32 can have, the odd ones included."""
    random = np.random.default_rng(seed)
    model = Linear(PLAN, optimizer=optimizer, segments=segments, slots=1)
    words = random.standard_normal((len(keys), model.table.width)).astype(np.float32)
    odd = np.array([-0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38], np.float32)
    where = random.random(words.shape) < 0.05
    words[where] = random.choice(odd, where.sum())
    model.table.insert(keys, words)
    return model


def some_keys(n: int, seed: int = 1) -> np.ndarray:
    return np.unique(np.random.default_rng(seed).integers(1, 1 << 63, n, np.uint64)) << np.uint64(1)


def rows_of(model: Linear) -> tuple[bytes, bytes]:
    """All rows as bytes: nan is nan, and -0 is not 0."""
    parts = [model.table.items(segment) for segment in range(model.table.segments)]
    return b"".join(k.tobytes() for k, _ in parts), b"".join(w.tobytes() for _, w in parts)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROWS_PER_FILE", 60)
    monkeypatch.setattr(files, "ROWS_PER_GROUP", 10)


@pytest.fixture
def root(tmp_path: Path, several_files: None) -> Path:
    """A model of two files of rows, and names."""
    model = model_of(some_keys(100))
    model.names = {4: "site=a", 2**64 - 2: "site=日本"}
    model.metadata = {"metrics": {"progressive": {"auc": 0.75}}, "lineage": {"rows": 100}}
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(manifest))


def refused(root: Path, *parts: str) -> None:
    """Loading ends with one line that names the place and has these parts."""
    with pytest.raises(ModelError) as raised:
        load_model(root)
    message = str(raised.value)
    assert message.startswith(str(root)) and len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


# What is written comes back.


@settings(deadline=None, max_examples=60)
@given(
    halves=st.sets(st.integers(1, 2**63 - 1), max_size=60),
    optimizer=st.sampled_from(OPTIMIZERS),
    segments=st.sampled_from([2, 16, 1024]),
    n_files=st.integers(1, 9),
    per_group=st.integers(20, 1100),
    seed=st.integers(0, 2**32),
)
def test_rows_and_predictions_come_back_bit_for_bit(halves, optimizer, segments, n_files, per_group, seed):
    # One row at least in each segment.
    first = (np.arange(segments, dtype=np.uint64) << np.uint64(64 - (segments.bit_length() - 1))) + np.uint64(2)
    keys = np.union1d(first, np.array([2 * half for half in halves], np.uint64))
    model = model_of(keys, seed=seed, optimizer=optimizer, segments=segments)
    model.names = {2 * half: f"site={half}" for half in list(halves)[::3]}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROWS_PER_FILE", -(-len(keys) // n_files))
        patch.setattr(files, "ROWS_PER_GROUP", per_group)
        written = save_model(model, place)
        assert read_manifest(place) == json.loads(json.dumps(written))
        loaded = load_model(place)
        check_files(Path(place), loaded)
    assert len(loaded.table) == len(keys)
    assert rows_of(loaded) == rows_of(model)
    assert (loaded.plan, loaded.optimizer, loaded.names) == (PLAN, optimizer, model.names)
    assert loaded.table.segments == segments
    assert not len(loaded.table.take_changed())
    loaded.table.validate()
    batch = some_batch(np.random.default_rng(seed), keys)
    assert loaded.predict_batch(batch).tobytes() == model.predict_batch(batch).tobytes()


def some_batch(random: np.random.Generator, known: np.ndarray) -> SparseBatch:
    """Examples of known and unknown keys, with values."""
    keys = np.union1d(known, some_keys(30))
    random.shuffle(keys)
    inner = np.sort(random.integers(0, len(keys) + 1, 9))
    offsets = np.array([0, *inner, len(keys)], np.int64)
    values = random.standard_normal(len(keys)).astype(np.float32)
    return SparseBatch(keys=keys, offsets=offsets, labels=np.zeros(len(offsets) - 1, np.float32), values=values)


def check_files(root: Path, model: Linear) -> None:
    """Files follow each other by segment, none shares a segment with another, and keys rise."""
    entries = read_manifest(root)["tables"]["weights"]["files"]
    ends = [segment for file in entries for run in file["segments"] for segment in run]
    inner = [b - a for a, b in itertools.pairwise(ends)]
    assert (ends[0], ends[-1]) == (0, model.table.segments - 1)
    assert all(step == 1 for step in inner[1::2]) and all(step >= 0 for step in inner[::2])
    keys = [pq.read_table(root / file["path"])["key"].to_numpy() for file in entries]
    for file, found in zip(entries, keys, strict=True):
        [(first, last)] = file["segments"]
        assert f"-{first:04d}-{last:04d}.parquet" in file["path"]
        assert len(found) == file["rows"]
        assert ((first <= found >> model.table.rows.shift) & (found >> model.table.rows.shift <= last)).all()
    together = np.concatenate(keys)
    assert (together[1:] > together[:-1]).all()


def test_metadata_comes_back_and_progress_stays_in_the_manifest(root: Path) -> None:
    model = load_model(root)
    assert model.metadata == {"metrics": {"progressive": {"auc": 0.75}}, "lineage": {"rows": 100}}
    assert "progress" not in save_model(model, root)
    assert save_model(model, root, progress={"rows": 7})["progress"] == {"rows": 7}
    assert read_manifest(root)["progress"] == {"rows": 7}
    assert load_model(root).metadata == model.metadata


def test_the_same_model_gives_the_same_files(root: Path, tmp_path: Path) -> None:
    save_model(load_model(root), tmp_path / "again")
    weights = [sorted((place / "v000001").glob("*.parquet")) for place in (root, tmp_path / "again")]
    assert [p.name for p in weights[0]] == [p.name for p in weights[1]] and len(weights[0]) == 3
    for a, b in zip(*weights, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_room_is_made_for_as_many_rows_as_asked(root: Path) -> None:
    assert load_model(root, slots=1).table.slots < load_model(root, slots=1 << 18).table.slots
    assert rows_of(load_model(root, slots=1)) == rows_of(load_model(root, slots=1 << 18))


def test_other_programs_read_the_weights(root: Path) -> None:
    model = load_model(root)
    parts = [model.table.items(segment)[0] for segment in range(model.table.segments)]
    keys = np.concatenate(parts)
    weights = model.table.pull(keys)[:, 0]
    # None of these knows of Penstock; a glob is enough.
    rows = duckdb.sql(f"select key, weight, z, n from '{root}/v*/weights-*.parquet' order by key").fetchnumpy()
    np.testing.assert_array_equal(rows["key"], keys)
    np.testing.assert_array_equal(rows["weight"], weights)
    frame = pd.concat([pd.read_parquet(p) for p in sorted(root.glob("v*/weights-*.parquet"))])
    assert frame.columns.tolist() == ["key", "weight", "z", "n"]
    np.testing.assert_array_equal(frame["weight"], weights)
    assert pd.read_parquet(next(root.glob("v*/names.parquet"))).to_numpy().tolist() == [
        [4, "site=a"],
        [2**64 - 2, "site=日本"],
    ]


# Damage of the manifest.


def test_no_model_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no model there (no manifest.json)")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no model there")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "no model there")
    (tmp_path / "odd" / "manifest.json").mkdir(parents=True)
    refused(tmp_path / "odd", "manifest.json: cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "damaged"),
        (b"\0" * 100, "damaged"),
        (b"not JSON", "damaged"),
        (b'{"format": "penstock-model", "x": "\xff"}', "damaged"),
        (b"null", "not a model"),
        (b"[]", "not a model"),
        (b'"penstock-model"', "not a model"),
        (b"{}", "not a model"),
        (b'{"format": "penstock-job"}', "not a model"),
        (b'{"format": "penstock-model"}', "format version None"),
        (b'{"format": "penstock-model", "format_version": "1"}', "format version '1'"),
        (b'{"format": "penstock-model", "format_version": 1}', "damaged: Object missing required field"),
    ],
)
def test_a_manifest_that_is_none(root: Path, content: bytes, part: str) -> None:
    (root / "manifest.json").write_bytes(content)
    refused(root, "manifest.json", part)


def test_a_manifest_cut_anywhere(root: Path) -> None:
    whole = (root / "manifest.json").read_bytes()
    for end in range(0, len(whole), 7):
        (root / "manifest.json").write_bytes(whole[:end])
        refused(root, "manifest.json: damaged")


REQUIRED = [
    "format", "format_version", "model", "model/kind", "optimizer", "optimizer/name", "features", "features/label",
    "features/columns", "tables", "tables/weights", "tables/weights/segments", "tables/weights/rows",
    "tables/weights/files", "tables/weights/files/0/path", "tables/weights/files/1/sha256", "names", "names/path",
    "names/sha256",
]  # fmt: skip


def at(manifest: Any, path: str) -> tuple[Any, Any]:
    """What holds the value at a path, and its name there."""
    *outer, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in outer:
        manifest = manifest[part]
    return manifest, last


@pytest.mark.parametrize("path", REQUIRED)
def test_a_manifest_without_what_it_needs(root: Path, path: str) -> None:
    def remove(manifest: dict[str, Any]) -> None:
        holder, name = at(manifest, path)
        del holder[name]

    edit(root, remove)
    refused(root, "manifest.json")


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("format_version", 3, "format version 3, written by Penstock"),
        ("format_version", 3, "this one reads up to 2"),
        ("format_version", 1.5, "format version 1.5"),
        ("model", "linear", "damaged"),
        ("model/kind", "deep", "model kind 'deep' is not known; allowed: "),
        ("model/kind", ["linear"], "Expected `str`"),
        ("optimizer", None, "damaged"),
        ("optimizer/name", "adam", "optimizer 'adam' is not known; allowed: adagrad, ftrl, sgd"),
        ("optimizer/name", "sgd", "unknown hyperparameter 'beta'"),
        ("optimizer/alpha", "0.1", "alpha must be a finite number > 0, got '0.1'"),
        ("optimizer/alpha", -1, "got -1"),
        ("optimizer/rate", 1, "unknown hyperparameter 'rate'"),
        ("features", [], "damaged"),
        ("features/version", 2, "features of hashing version 2; allowed: 1"),
        ("features/version", "1", "damaged"),
        ("features/columns", {}, "damaged"),
        ("features/columns/0/kind", "embedding", "damaged"),
        ("features/columns/1/mean", "high", "columns"),
        ("features/crosses/0", "site", "damaged"),
        ("tables", [], "damaged"),
        ("tables/weights", "all", "damaged"),
        ("tables/weights/segments", 3, "segments must be a power of two >= 2, got 3"),
        ("tables/weights/segments", 0, "Expected `int` >= 2"),
        ("tables/weights/segments", -8, "Expected `int` >= 2"),
        ("tables/weights/segments", "8", "damaged"),
        ("tables/weights/segments", 8.0, "damaged"),
        ("tables/weights/rows", -1, "Expected `int` >= 0"),
        ("tables/weights/rows", 101, "101 rows promised, 100 found"),
        ("tables/weights/rows", 99, "99 rows promised, 100 found"),
        ("tables/weights/rows", 10**18, "Expected `int` <="),
        ("tables/weights/rows", None, "damaged"),
        ("tables/weights/files", None, "damaged"),
        ("tables/weights/files", [], "100 rows promised, 0 found"),
        ("tables/weights/files/0", "v000001/weights-0000-0003.parquet", "damaged"),
        ("tables/weights/files/0/path", 5, "damaged"),
        ("tables/weights/files/0/path", "../x", "names a file outside of the model: '../x'"),
        ("tables/weights/files/0/path", "v000001/../../x", "outside of the model"),
        ("tables/weights/files/0/path", "/etc/passwd", "outside of the model: '/etc/passwd'"),
        ("tables/weights/files/0/path", "", "outside of the model"),
        ("tables/weights/files/0/sha256", None, "Expected `str`"),
        ("names", "names.parquet", "damaged"),
        ("names", {}, "missing required field `path`"),
        ("names/path", "../names.parquet", "outside of the model"),
    ],
)
def test_a_manifest_with_a_value_that_cannot_be(root: Path, path: str, value: object, part: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        holder, name = at(manifest, path)
        holder[name] = value

    edit(root, change)
    refused(root, "manifest.json" if "checksum" not in part else "v000001", part)


def test_a_link_out_of_the_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    first = root / "v000001" / "weights-0000-0003.parquet"
    first.rename(tmp_path / "elsewhere.parquet")
    first.symlink_to(tmp_path / "elsewhere.parquet")
    refused(root, "outside of the model")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a JSON value, below the top."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield (*path, name)
        yield from leaves(inner, (*path, name))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    place = tmp_path_factory.mktemp("fuzz") / "model"
    model = model_of(some_keys(20), segments=2)
    model.names = {4: "site=a"}
    save_model(model, place)
    return place, (place / "manifest.json").read_bytes()


def works_or_is_refused(place: Path) -> None:
    try:
        model = load_model(place)
    except ModelError as error:
        assert str(error).startswith(str(place)) and len(str(error).splitlines()) == 1
        return
    model.table.validate()
    assert model.plan is not None
    if not all(model.plan.crosses):
        return  # a cross of no columns is not refused yet
    # A plan that was changed may ask for other data; that is said, too.
    try:
        assert len(model.predict(TABLE)) == 2
    except DataError as error:
        assert len(str(error).splitlines()) == 1


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 4, 64, 4096, 10**6 + 1, 2**63 - 1, -(2**63), -0.5, 2.5, 1e30]),
    st.sampled_from([{}, {"path": "x"}, {"name": "ftrl"}]),
)
LISTS = st.sampled_from([[], [1], ["a"], [[]], [None]])
TEXTS = st.sampled_from(["", "ab", "../x", "linear", "sgd", "ftrl", "raw", "list", "7", "v000001/names.parquet"])


@settings(deadline=None, max_examples=250)
@given(data=st.data())
def test_any_change_of_a_value_is_refused_or_harmless(valid: tuple[Path, bytes], data: st.DataObject) -> None:
    place, whole = valid
    manifest = json.loads(whole)
    for path in data.draw(st.lists(st.sampled_from(list(leaves(manifest))), min_size=1, max_size=2)):
        holder: Any = manifest
        try:
            for name in path[:-1]:
                holder = holder[name]
            if data.draw(st.integers(0, 5)) == 0:
                del holder[path[-1]]
            else:
                # For these two, texts and lists are not refused in our words yet.
                plain = path[-1] in ("rows", "optimizer")
                holder[path[-1]] = copy.deepcopy(data.draw(VALUES if plain else st.one_of(VALUES, LISTS, TEXTS)))
        except (KeyError, IndexError, TypeError):
            continue  # the first change took away the place of the second
    (place / "manifest.json").write_text(json.dumps(manifest))
    works_or_is_refused(place)


@settings(deadline=None, max_examples=150)
@given(
    where=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    how=st.sampled_from(["replace", "insert", "cut"]),
)
def test_any_change_of_a_byte_is_refused_or_harmless(valid, where, byte, how):
    place, whole = valid
    i = int(where * len(whole))
    middle = b"" if how == "cut" else bytes([byte])
    (place / "manifest.json").write_bytes(whole[:i] + middle + whole[i + (how != "insert") :])
    works_or_is_refused(place)


# Damage of the other files.


def test_a_byte_flipped_in_any_file(root: Path) -> None:
    for file in sorted((root / "v000001").iterdir()):
        whole = file.read_bytes()
        for i in {0, 7, len(whole) // 3, len(whole) // 2, len(whole) - 6, len(whole) - 1}:
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
            refused(root, f"{file}: damaged: its checksum is not the one in the manifest")
        for other in (b"", whole[:-1], whole + b"\0"):
            file.write_bytes(other)
            refused(root, f"{file}: damaged")
        file.write_bytes(whole)
    load_model(root)


def test_a_file_that_is_missing(root: Path) -> None:
    for file in sorted((root / "v000001").iterdir()):
        file.rename(root / "aside")
        refused(root, f"{file}: the manifest names this file, but it is missing")
        (root / "aside").rename(file)
    shutil.rmtree(root / "v000001")
    refused(root, "weights-0000-0003.parquet: the manifest names this file, but it is missing")


def test_two_files_swapped(root: Path) -> None:
    first, second = sorted((root / "v000001").glob("weights-*"))
    first.rename(root / "aside")
    second.rename(first)
    (root / "aside").rename(second)
    refused(root, f"{first}: damaged: its checksum")


def test_entries_of_the_manifest_in_another_order_are_the_same_model(root: Path) -> None:
    want = rows_of(load_model(root))
    edit(root, lambda manifest: manifest["tables"]["weights"]["files"].reverse())
    assert rows_of(load_model(root)) == want


def test_fewer_rows_than_promised(root: Path) -> None:
    entries = read_manifest(root)["tables"]["weights"]["files"]
    assert len(entries) == 2
    edit(root, lambda manifest: manifest["tables"]["weights"]["files"].pop())
    refused(root, f"manifest.json: 100 rows promised, {entries[0]['rows']} found")


def test_files_whose_checksums_are_right_but_whose_columns_are_not(root: Path) -> None:
    def weights_are_names(manifest: dict[str, Any]) -> None:
        manifest["tables"]["weights"]["files"][0] = manifest["names"]

    def names_are_weights(manifest: dict[str, Any]) -> None:
        manifest["names"] = manifest["tables"]["weights"]["files"][0]

    whole = (root / "manifest.json").read_bytes()
    edit(root, weights_are_names)
    refused(root, "names.parquet: columns ['key', 'name'], expected ['key', 'weight', 'z', 'n']")
    (root / "manifest.json").write_bytes(whole)
    edit(root, names_are_weights)
    refused(root, "damaged")
    (root / "manifest.json").write_bytes(whole)
    (root / "v000001" / "names.parquet").write_bytes(b"PAR1 no more")
    edit(root, lambda manifest: manifest["names"].update(files.seal(root / "v000001" / "names.parquet")))
    refused(root, "names.parquet: damaged")


# Saving that fails.


def failing(real: Callable[..., Any], nth: int, calls: list[int]) -> Callable[..., Any]:
    """``real``, whose ``nth`` call finds the disk full."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(args[0] if args else None, "name", None) == "manifest.json":
            return real(*args, **kwargs)  # only looked at, before anything is written
        calls.append(len(calls) + 1)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("holder", "name", "times"),
    [
        (Path, "mkdir", 2),
        (pq.ParquetWriter, "__init__", 3),
        (pq.ParquetWriter, "write_table", 3),
        (pq.ParquetWriter, "close", 3),
        (Path, "open", 4),
        (os, "fsync", 5),
        (Path, "replace", 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_full_disk_at_any_step_leaves_the_model_before_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, times: int
) -> None:
    before, real = contents(root), getattr(holder, name)
    model = model_of(some_keys(100, seed=2), seed=3)
    model.names = {4: "site=b"}
    for nth in range(1, times + 1):
        calls: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, failing(real, nth, calls))
            with pytest.raises(StorageError, match=r"cannot write the model: .*No space left") as raised:
                save_model(model, root)
        assert len(calls) >= nth, "there are fewer steps than this test thinks"
        assert str(root) in str(raised.value) and len(str(raised.value).splitlines()) == 1
        assert contents(root) == before
        assert sorted(p.name for p in root.iterdir()) == ["manifest.json", "v000001"]
    save_model(model, root)
    assert rows_of(load_model(root)) == rows_of(model)
    assert sorted(p.name for p in root.iterdir()) == ["manifest.json", "v000002"]


def test_an_interrupt_while_rows_are_written_leaves_the_model_before(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = contents(root)
    for holder, name in ((pq.ParquetWriter, "write_table"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, pressed)
            with pytest.raises(KeyboardInterrupt):
                save_model(model_of(some_keys(10)), root)
        assert contents(root) == before


CRASH_AT_EVERY_LINE = """
import os, shutil, sys
from pathlib import Path
from penstock import storage
from penstock.models import commit, files, folder, load_model, manifest

root, old_place, new_place = map(Path, sys.argv[1:])
files.ROWS_PER_FILE = 20

def rows_of(model):
    return b"".join(x.tobytes() for s in range(model.table.segments) for x in model.table.items(s))

old, new = load_model(old_place), load_model(new_place)
states = {rows_of(old): "old", rows_of(new): "new"}
assert len(states) == 2
traced = {module.__file__ for module in (files, folder, manifest, commit, storage)}
seen, n, status = [], 0, 77
while status == 77:
    n += 1
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(old_place, root)
    child = os.fork()
    if not child:
        lines = 0

        def trace(frame, event, arg):
            global lines
            if frame.f_code.co_filename not in traced:
                return None
            lines += event == "line"
            if lines == n:
                os._exit(77)
            return trace

        sys.settrace(trace)
        folder.save_model(new, root)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen.append(states[rows_of(load_model(root))])
    if n % 10 == 0:
        # The save after a crash clears what that left.
        folder.save_model(old, root)
        assert len(list(root.glob("v*"))) == 1 and rows_of(load_model(root)) == rows_of(old)
assert status == 0, status
print(*seen)
"""


def test_a_crash_at_any_line_of_saving_leaves_the_old_or_the_new_model(tmp_path: Path) -> None:
    for seed, name in ((1, "old"), (2, "new")):
        model = model_of(some_keys(30, seed), segments=2)
        model.names = {2: name}
        save_model(model, tmp_path / name)
    places = [str(tmp_path / name) for name in ("root", "old", "new")]
    ended = subprocess.run(
        [sys.executable, "-c", CRASH_AT_EVERY_LINE, *places], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    seen = ended.stdout.split()
    # Old up to one line, and new from there on.
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == 2
    assert seen.count("old") > 50 and seen.count("new") > 5


def test_versions_before_are_removed_and_nothing_else(root: Path) -> None:
    model = load_model(root)
    for name in ("v1", "v0000001", "vx00001", "checkpoint", "v000007"):  # the last one as a crash leaves it
        (root / name).mkdir()
        (root / name / "file").touch()
    (root / "notes.txt").touch()
    assert save_model(model, root)["version"] == 8
    left = {"manifest.json", "notes.txt", "checkpoint", "v1", "v0000001", "vx00001"}
    assert {p.name for p in root.iterdir()} == {*left, "v000008"}
    assert rows_of(load_model(root)) == rows_of(model)
    assert save_model(model, root)["version"] == 9
    assert {p.name for p in root.iterdir()} == {*left, "v000009"}


def test_a_model_may_be_saved_over_the_one_it_was_loaded_from(root: Path) -> None:
    model = load_model(root)
    key = some_keys(1, seed=9)
    model.table.push(key, np.ones((1, 1), np.float32))
    model.save(str(root))
    assert rows_of(load_model(root)) == rows_of(model)
    assert len(load_model(root).table) == 101


def test_a_reader_whose_version_goes_meanwhile_reads_the_one_that_came(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = model_of(some_keys(100, seed=5), seed=6)
    read, times = folder.read_checked, [0]

    def disturbed(*args: Any) -> Iterator[pa.RecordBatch]:
        times[0] += 1
        if times[0] == 2:  # when one file of two was read
            save_model(new, root)
        yield from read(*args)

    monkeypatch.setattr(folder, "read_checked", disturbed)
    assert rows_of(load_model(root)) == rows_of(new)
    assert times[0] == 4


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(StorageError, match="cannot write the model"):
            save_model(model_of(some_keys(3)), place)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("content", [b'{"name": "a web app"}', b"[]", b'"penstock-model"'])
def test_a_manifest_of_another_program_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"has a manifest\.json of something else") as raised:
        save_model(model_of(some_keys(3)), tmp_path)
    assert str(raised.value).startswith(str(tmp_path))
    assert contents(tmp_path) == {"manifest.json": content}


def test_a_model_whose_manifest_is_damaged_may_be_saved_over(root: Path) -> None:
    model = load_model(root)
    (root / "manifest.json").write_bytes(b'{"format": "pens')
    save_model(model, root)
    assert rows_of(load_model(root)) == rows_of(model)


def test_a_model_that_was_never_fitted_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has not been fitted"):
        save_model(ps.Linear(), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_slots_are_checked(root: Path) -> None:
    with pytest.raises((ModelError, ConfigError), match="slots must be >= 1"):
        load_model(root, slots=0)


def test_a_failure_after_the_commit_does_not_lose_the_model(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = storage.sync_folder

    def fails(place: Path) -> None:
        if place == root:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(place)

    new = model_of(some_keys(100, seed=2))
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(storage, "sync_folder", fails)
        save_model(new, root)
    load_model(root)


def test_a_version_that_somebody_else_has_begun_is_left_alone(root: Path) -> None:
    (root / "v000002").mkdir()
    (root / "v000003").mkdir()
    save_model(model_of(some_keys(5)), root)
    assert read_manifest(root)["version"] == 4
    load_model(root)


def test_a_model_without_rows_is_a_model(tmp_path: Path) -> None:
    save_model(Linear(PLAN), tmp_path / "m")
    assert len(load_model(tmp_path / "m").table) == 0


def test_json_nested_too_deep(root: Path) -> None:
    (root / "manifest.json").write_text("[" * 100_000)
    refused(root, "damaged")


def test_what_a_crash_left_is_cleared_away(root: Path) -> None:
    (root / ".manifest.json.4242.tmp").write_text("{")
    save_model(load_model(root), root)
    assert sorted(p.name for p in root.iterdir()) == ["manifest.json", "v000002"]
