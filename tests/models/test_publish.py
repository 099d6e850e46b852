"""Versions that are published while a model learns: each reads back as the model was, however it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import ModelError, StorageError
from penstock.features import FeaturePlan
from penstock.models import KeepVersions, Publisher, load_model, pin_version, publish, read_manifest, read_version
from penstock.models.history import list_versions

PLAN = FeaturePlan(label="y", columns=())


def rows_of(model: ps.Model) -> dict[int, tuple[float, ...]]:
    found = {}
    for table in model.tables().values():
        for segment in range(table.segments):
            keys, words = table.items(segment)
            found.update(zip(keys.tolist(), map(tuple, words.tolist()), strict=True))
    return found


def learn(model: ps.Linear, keys: list[int]) -> None:
    model.table.push(np.array(keys, np.uint64) * np.uint64(2), np.full((len(keys), 1), 0.3, np.float32))


def layers(manifest: dict) -> int:
    return len(manifest["tables"]["weights"].get("layers", [None]))


steps = st.lists(
    st.one_of(
        st.lists(st.integers(1, 60), min_size=1, max_size=9),  # keys that are learnt
        st.just("prune"),
        st.just("fail"),
        st.just("publish"),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_every_version_is_the_model_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, steps: list[object]
) -> None:
    root = tmp_path_factory.mktemp("run")
    model = ps.Linear(PLAN, optimizer=ps.FTRL(l1=0.5), segments=4, slots=1)
    learn(model, list(range(100, 180)))
    publisher = Publisher(root)
    versions = {}
    for step in [*steps, "publish"]:
        if step == "prune":
            model.table.prune(0.0)
        elif step == "publish":
            manifest = publisher.publish(model)
            versions[manifest["version"]] = rows_of(model)
            assert rows_of(load_model(root)) == rows_of(model)
        elif step == "fail":
            with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
                patch.setattr(publish, "commit_manifest", fails)
                publisher.publish(model)
        else:
            assert isinstance(step, list)
            learn(model, step)
    for version, rows in list(versions.items())[-16:]:
        assert rows_of(load_model(root, version=version)) == rows


def fails(*_: object) -> None:
    raise StorageError("the disk is full")


def test_layers_are_merged_and_bases_renewed(tmp_path: Path) -> None:
    model = ps.Linear(PLAN, segments=4, slots=1)
    learn(model, list(range(1, 1001)))
    publisher = Publisher(tmp_path, KeepVersions(newest=3, for_s=0))
    counts, bases = [], set()
    for n in range(120):
        learn(model, [1 + n % 300])
        manifest = publisher.publish(model)
        counts.append(layers(manifest))
        table = manifest["tables"]["weights"]
        bases.add(table.get("files", table.get("layers", [{}])[0].get("files"))[0]["sha256"])
        assert rows_of(load_model(tmp_path)) == rows_of(model)
    assert counts[:34] == [*range(1, 34), 2]  # one more than 32 is merged
    assert len(bases) == 1
    learn(model, list(range(1, 300)))
    assert layers(publisher.publish(model)) == 1  # more than a quarter has changed
    assert len(list((tmp_path / "versions").iterdir())) == 3
    kept = {entry.name for entry in tmp_path.glob("v0*")}
    assert len(kept) <= 36
    learn(model, [5])
    before = publisher.publish(model)
    assert layers(publisher.publish(model)) == layers(before)  # nothing has changed


@pytest.mark.parametrize("how", ["torn", "missing", "flipped"])
def test_what_was_torn_is_written_again_by_the_next_version(tmp_path: Path, how: str) -> None:
    model = ps.Linear(PLAN, segments=4, slots=1)
    learn(model, list(range(1, 1001)))
    publisher = Publisher(tmp_path)
    publisher.publish(model)
    learn(model, [1, 2])
    publisher.publish(model)
    learn(model, [2, 3])
    path = tmp_path / publisher.publish(model)["tables"]["weights"]["layers"][-1]["files"][0]["path"]
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if how == "torn" else data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(ModelError):
        load_model(tmp_path)
    learn(model, [7])
    assert layers(publisher.publish(model)) == 2
    assert rows_of(load_model(tmp_path)) == rows_of(model)


def test_a_base_that_is_gone_is_written_again(tmp_path: Path) -> None:
    model = ps.Linear(PLAN, segments=4, slots=1)
    learn(model, list(range(1, 1001)))
    publisher = Publisher(tmp_path)
    (tmp_path / publisher.publish(model)["tables"]["weights"]["files"][0]["path"]).unlink()
    learn(model, [7])
    assert layers(publisher.publish(model)) == 1
    assert rows_of(load_model(tmp_path)) == rows_of(model)


def test_the_pinned_version_is_kept_and_only_versions_that_are_there_are_pinned(tmp_path: Path) -> None:
    model = ps.Linear(PLAN, segments=4, slots=1)
    learn(model, list(range(1, 101)))
    publisher = Publisher(tmp_path, KeepVersions(newest=2, for_s=0))
    publisher.publish(model)
    pinned = rows_of(model)
    learn(model, [1])
    publisher.publish(model)
    pin_version(tmp_path, 1, "worse since")
    with pytest.raises(ModelError, match="there is no version 9; the newest that are there: 1, 2"):
        pin_version(tmp_path, 9)
    for n in range(50):
        learn(model, [n])
        publisher.publish(model)
    assert rows_of(load_model(tmp_path, version=1)) == pinned
    found = list_versions(tmp_path)
    assert [each.version for each in found] == [52, 51, 1]
    assert found[0].notes == ["newest"] and found[2].notes[0].endswith(": worse since")
    assert found[2].changed is None and found[0].changed == 1
    pin_version(tmp_path, None)
    publisher.publish(model)
    assert {each.version for each in list_versions(tmp_path)} == {52, 53}


def test_a_few_older_versions_stay_spread_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.models import history

    model = ps.Linear(PLAN, segments=4, slots=1)
    learn(model, list(range(1, 101)))
    publisher, now = Publisher(tmp_path, KeepVersions(newest=4, for_s=400)), [1e9]

    class Clock:
        @staticmethod
        def time() -> float:
            return now[0]

    monkeypatch.setattr(history, "time", Clock)
    monkeypatch.setattr(history, "_seconds", float)
    real = publish.build_manifest
    monkeypatch.setattr(publish, "build_manifest", lambda *a, **k: {**real(*a, **k), "created": str(now[0])})
    for _ in range(100):
        now[0] += 10
        publisher.publish(model)
    written = [float(read_version(tmp_path, v)["created"]) for v in sorted(history.kept_versions(tmp_path))]
    ages = [now[0] - each for each in written][::-1]
    assert ages[:4] == [0, 10, 20, 30]
    assert 4 <= len(ages[4:]) <= 5 and ages[-1] > 280  # one of each 100 seconds
    assert read_manifest(tmp_path)["version"] == 100


def test_numbers_of_seven_digits_go_on(tmp_path: Path) -> None:
    model = ps.Linear(PLAN, segments=4, slots=1)
    learn(model, list(range(1, 101)))
    (tmp_path / "v999999").mkdir(parents=True)
    publisher = Publisher(tmp_path, KeepVersions(newest=2, for_s=0))
    for n in range(4):
        learn(model, list(range(1, 101)))
        assert publisher.publish(model)["version"] == 1_000_000 + n
    assert {path.name for path in tmp_path.glob("v[0-9]*")} == {"v1000002", "v1000003"}
