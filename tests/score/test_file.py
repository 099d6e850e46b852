"""The exported file: the same bytes each time, and no byte of it is trusted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ModelError, StorageError
from penstock.export import write_npz
from penstock.score import Scorer, file
from tests.score.conftest import Exported

KEYS, WEIGHTS = np.array([2, 8, 9 << 60], np.uint64), np.array([1, 2, 3], np.float32)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    nbytes = file.write(tmp_path / "m.npz", {"version": 7, "features": {"é": None}}, KEYS, WEIGHTS)
    assert nbytes == (tmp_path / "m.npz").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]
    header, keys, weights = file.read(tmp_path / "m.npz")
    assert header == {"format": "penstock-scorer", "format_version": 1, "version": 7, "features": {"é": None}}
    assert keys.tolist() == KEYS.tolist() and weights.tolist() == WEIGHTS.tolist()


def test_numpy_opens_it_and_equal_models_are_equal_bytes(exported: Exported, tmp_path: Path) -> None:
    with np.load(exported.file, allow_pickle=False) as archive:
        assert sorted(archive) == ["header", "keys", "sha256", "weights"]
        header = json.loads(archive["header"].tobytes())
        assert len(archive["keys"]) == len(archive["weights"]) == len(exported.scorer)
    assert header["features"] == json.loads(json.dumps(exported.model.plan.to_dict()))  # type: ignore[union-attr]
    assert header["lineage"]["rows"] == 2000 and header["metrics"]["progressive"]["auc"] > 0.5
    write_npz(exported.model, tmp_path / "again.npz", manifest={"version": 41})
    assert (tmp_path / "again.npz").read_bytes() == exported.file.read_bytes()


def test_an_older_file_stays_where_a_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write(tmp_path / "m.npz", {}, KEYS, WEIGHTS)
    before = (tmp_path / "m.npz").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(StorageError, match=r"m\.npz: cannot be written: No space left on device$"):
        file.write(tmp_path / "m.npz", {}, KEYS[:1], WEIGHTS[:1])
    assert (tmp_path / "m.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]
    with pytest.raises(StorageError, match=r"nowhere/m\.npz: cannot be written: No such file"):
        file.write(tmp_path / "nowhere" / "m.npz", {}, KEYS, WEIGHTS)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_damaged_byte_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    file.write(path, {"version": 1}, KEYS, WEIGHTS)
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        header, keys, weights = file.read(path)
    except ModelError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    # A byte that says nothing: a time, an attribute.
    assert header["version"] == 1 and keys.tolist() == KEYS.tolist() and weights.tolist() == WEIGHTS.tolist()


def archive(path: Path, **arrays: Any) -> None:
    """A file with these arrays, and the right checksum."""
    whole: dict[str, Any] = {"keys": KEYS, "weights": WEIGHTS, "header": {}, **arrays}
    whole["header"] = np.frombuffer(
        json.dumps({"format": "penstock-scorer", "format_version": 1, **whole["header"]}).encode(), np.uint8
    )
    np.savez(path, sha256=np.frombuffer(file._digest(whole), np.uint8), **whole)


@pytest.mark.parametrize("part", ["header", "keys", "weights", "sha256"])
def test_contents_that_are_others_than_was_written_are_noticed(
    exported: Exported, tmp_path: Path, part: str
) -> None:
    """The archive has checksums of its own, but a whole part may be exchanged."""
    with np.load(exported.file) as whole:
        arrays = dict(whole)
    if part == "header":
        changed = np.append(arrays[part], np.uint8(ord(" ")))
    else:
        changed = arrays[part].copy()
        changed[-1] = changed[0]
    np.savez(tmp_path / "m.npz", **{**arrays, part: changed})
    with pytest.raises(ModelError, match="damaged: its contents do not match their checksum"):
        file.read(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", **arrays)
    assert file.read(tmp_path / "m.npz")[0]["version"] == 41


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"header": {"format": "x"}}, "not an exported model of Penstock"),
        ({"header": {"format_version": 2}}, "format version 2; this Penstock reads 1"),
        ({"keys": KEYS[::-1].copy()}, "damaged: keys must rise"),
        ({"keys": KEYS[:2]}, r"damaged: keys uint64\(2,\), weights float32\(3,\)"),
        ({"keys": KEYS.astype(np.int64)}, "damaged: keys int64"),
        ({"weights": np.array([1, np.nan, 2], np.float32)}, "damaged: keys must rise, and weights be finite"),
        ({"weights": WEIGHTS.astype(np.float64)}, "weights float64"),
        ({"header": {"features": {"version": 9}}}, "features of hashing version 9; allowed: 1"),
        ({"header": {"features": 5}}, "feature plan: damaged"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    archive(tmp_path / "m.npz", **arrays)
    with pytest.raises(ModelError, match=said):
        Scorer.load(tmp_path / "m.npz")


def a_pickle(path: Path) -> None:
    np.savez(path, header=np.array([{"format": "penstock-scorer"}], object))


def an_array(path: Path) -> None:
    with path.open("wb") as one:
        np.save(one, np.ones(3))


def another_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("a.txt", "x")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file; penstock export makes one"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "not an exported model of Penstock"),
        (lambda path: path.write_bytes(b"hello"), "not an exported model of Penstock"),
        (an_array, "not an exported model of Penstock"),
        (a_pickle, "cannot be read: ValueError: Object arrays cannot be loaded"),
        (another_zip, "not an exported model of Penstock"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, make: Callable[[Path], Any], said: str) -> None:
    make(tmp_path / "m.npz")
    with pytest.raises(ModelError, match=said):
        Scorer.load(tmp_path / "m.npz")
