"""Live sync: deltas that a trainer publishes are answered by, torn ones not; versions to go back to; canaries."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import penstock as ps
from penstock.errors import ConfigError, ModelError, StorageError
from penstock.models import Publisher, pin_version
from penstock.serve.start import Named, parse_canary, parse_model
from penstock.serve.versions.follow import Follower
from penstock.serve.versions.gate import Gate
from penstock.serve.versions.load import Loader, load_scorer
from penstock.serve.versions.source import LocalVersions, RemoteVersions
from tests.log.helpers import command, until
from tests.object_store import bucket, needs_a_store
from tests.serve.conftest import Served, rows_of_all_kinds
from tests.serve.test_rows import as_json
from tests.serve.test_server import ask, connect, serving

__all__ = ["bucket"]

TABLE = rows_of_all_kinds(40, seed=77)


class Trainer:
    """Learns and publishes; knows what each version predicts."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.model = ps.load(served.folder)
        # So many that a few rows are a small part of it.
        keys = np.arange(1, 5001, dtype=np.uint64) * np.uint64(2**51)
        self.model.table.insert(keys, np.full((len(keys), 2), 0.25, np.float32))
        self.folder = folder
        self.publisher = Publisher(folder)
        self.expected: dict[str, np.ndarray] = {}
        self._seed = 100

    def learn(self, rows: int = 3) -> None:
        self._seed += 1
        ps.fit(self.model, rows_of_all_kinds(rows, seed=self._seed), progress=False)

    def publish(self, recent: pa.Table | None = None) -> dict[str, Any]:
        manifest = self.publisher.publish(self.model, recent)
        self.expected[str(manifest["version"])] = self.model.predict(TABLE)
        return manifest

    def check(self, answer: dict[str, Any]) -> str:
        """Each answer has the bits of the version that it names."""
        found = np.array(answer["predictions"], np.float32)
        np.testing.assert_array_equal(found, self.expected[answer["version"]])
        return str(answer["version"])


@pytest.fixture
def trainer(served: Served, tmp_path: Path) -> Trainer:
    trainer = Trainer(served, tmp_path / "run")
    trainer.publish()
    return trainer


def follower(trainer: Trainer, **options: Any) -> Follower:
    found = Follower("ctr", LocalVersions(trainer.folder), Loader(folder=trainer.folder), **options)
    trainer.check(predict(found.first(wait=False, say=print)))
    return found


def predict(scorer: Any) -> dict[str, Any]:
    return {"predictions": scorer.score(as_json(TABLE)).tolist(), "version": scorer.version}


def tear(folder: Path, manifest: dict[str, Any], how: str) -> None:
    path = folder / manifest["tables"]["weights"]["layers"][-1]["files"][0]["path"]
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-7] if how == "torn" else data[:60] + bytes([data[60] ^ 1]) + data[61:])


@pytest.mark.parametrize("mapped", [False, True])
def test_each_delta_is_read_once_and_answered_by(trainer: Trainer, tmp_path: Path, mapped: bool) -> None:
    index = tmp_path / "index" if mapped else None
    one = Follower("ctr", LocalVersions(trainer.folder), Loader(folder=trainer.folder, mapped=index))
    first = one.first(wait=False, say=print)
    base = first.tables["weights"].base
    for n in range(40):
        trainer.learn()
        if n % 10 == 9:
            trainer.model.table.prune(0.05)
        trainer.publish()
        found = one.look()
        assert found is not None and trainer.check(predict(found)) == str(n + 2)
        np.testing.assert_array_equal(found.score_table(TABLE), trainer.expected[found.version])
        # Who comes late has the same.
        assert trainer.check(predict(load_scorer(trainer.folder))) == found.version
        if len(found.tables["weights"].layers) > 1 and n < 9:
            assert found.tables["weights"].base is base
    assert trainer.check(predict(first)) == "1"  # what was answered by is as it was
    assert one.look() is None
    if base.mapped is not None:
        there = list(index.iterdir())
        newest = one.scorer.tables["weights"].base.mapped
        assert newest in there and {path.suffix for path in there} == {".index"}
        for path in there:  # what nobody has needed for long goes
            os.utime(path, (0, 0))
        trainer.learn()
        trainer.publish()
        assert one.look() is not None and list(index.iterdir()) == [newest]


@pytest.mark.parametrize("how", ["torn", "missing", "flipped"])
def test_a_torn_delta_is_refused_and_the_next_version_is_whole(
    trainer: Trainer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = follower(trainer)
    trainer.learn()
    tear(trainer.folder, trainer.publish(), how)
    assert one.look() is None and one.refused == 1
    assert "version 1 goes on answering: " in caplog.text
    trainer.learn()
    trainer.publish()
    found = one.look()
    assert found is not None and trainer.check(predict(found)) == "3"


def test_who_starts_when_the_newest_is_torn_begins_with_the_one_before(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer.learn()
    trainer.publish()
    for _ in range(2):
        trainer.learn()
        trainer.publisher._is_there = lambda *a, **k: True  # type: ignore[method-assign]
        manifest = trainer.publish()
        tear(trainer.folder, manifest, "flipped")
    one = Follower("ctr", LocalVersions(trainer.folder), Loader(folder=trainer.folder))
    assert trainer.check(predict(one.first(wait=True, say=print))) == "2"
    assert "version 4 is refused, version 2 goes on answering" in caplog.text and one.refused == 1
    assert one.look() is None
    with pytest.raises(ModelError, match="damaged"):
        Follower("ctr", LocalVersions(trainer.folder), Loader(folder=trainer.folder)).first(wait=False, say=print)
    del trainer.publisher._is_there
    trainer.learn()
    trainer.publish()
    found = one.look()
    assert found is not None and trainer.check(predict(found)) == "5"


def test_a_torn_delta_that_becomes_whole_is_taken_after_all(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.serve.versions import follow

    now = [0.0]
    monkeypatch.setattr(follow.time, "monotonic", lambda: now[0])
    one = follower(trainer)
    trainer.learn()
    manifest = trainer.publish()
    path = trainer.folder / manifest["tables"]["weights"]["layers"][-1]["files"][0]["path"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert one.look() is None and one.look() is None
    path.write_bytes(whole)
    assert one.look() is None  # not yet
    now[0] = 2.0
    found = one.look()
    assert found is not None and trainer.check(predict(found)) == "2" and one.refused == 1


def test_a_pin_is_followed_there_and_back(trainer: Trainer) -> None:
    one = follower(trainer)
    for _ in range(3):
        trainer.learn()
        trainer.publish()
    for version, expected in ((2, "2"), (4, "4"), (1, "1"), (None, "4")):
        pin_version(trainer.folder, version, "to see")
        found = one.look()
        assert found is not None and trainer.check(predict(found)) == expected
    pin_version(trainer.folder, 3)
    one.look()
    trainer.learn()
    trainer.publish()
    assert one.look() is None
    held = follower(trainer, version=2)
    assert held.scorer is not None and held.scorer.version == "2" and held.look() is None
    with pytest.raises(ModelError, match="there is no version 99"):
        follower(trainer, version=99)


def test_a_version_that_does_badly_on_recent_rows_is_not_switched_to(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    recent = rows_of_all_kinds(2000, seed=5)
    one = follower(trainer)
    trainer.learn()
    trainer.publish(recent)
    assert one.look() is not None
    table = trainer.model.table
    good = [table.items(segment) for segment in range(table.segments)]
    for keys, words in good:  # no clicks anywhere
        table.insert(keys, np.full_like(words, 100) * np.array([1, 0], np.float32))
        table.touch(keys)
    trainer.publish(recent)
    assert one.look() is None
    assert "2,000 recent rows: calibration" in caplog.text and "allowed 0.33 to 3" in caplog.text
    pin_version(trainer.folder, 3)
    assert one.look() is not None  # somebody wants it
    pin_version(trainer.folder, None)
    for keys, words in good:
        table.insert(keys, words)
        table.touch(keys)
    trainer.publish(recent)
    assert one.look() is not None
    bad = Follower(
        "ctr",
        LocalVersions(trainer.folder),
        Loader(folder=trainer.folder),
        gate=Gate(worst_logloss=0.5, calibration=(0, 100)),
    )
    bad.first(wait=False, say=print)
    trainer.learn()
    trainer.publish(recent)
    assert bad.look() is None
    assert "allowed 0.5 x" in caplog.text
    # Too few rows say nothing.
    trainer.publish(recent.slice(0, 100))
    assert bad.look() is not None
    with pytest.raises(ConfigError, match="the calibration of a version: got 3:1"):
        Gate(calibration=(3, 1))


def test_weights_that_are_not_finite_are_refused(trainer: Trainer) -> None:
    one = follower(trainer)
    keys = next(items[0] for s in range(1024) if len((items := trainer.model.table.items(s))[0]))
    trainer.model.table.insert(keys[:1], np.array([[np.inf, 1]], np.float32))
    trainer.model.table.touch(keys[:1])
    trainer.publish()
    assert one.look() is None and one.refused == 1


def test_a_damaged_index_is_told_apart_from_the_request_and_made_anew(trainer: Trainer, tmp_path: Path) -> None:
    with (
        serving("--mapped", trainer.folder) as (running, port, _),
        closing(connect(port)) as connection,
    ):
        rows = as_json(TABLE)
        [index] = (trainer.folder / "index").iterdir()
        assert trainer.check(ask(connection, "/predict", rows)[1]) == "1"
        assert index.stat().st_ino
    data = bytearray(index.read_bytes())
    for page in range(1, len(data) // 4096):
        data[4096 * page + 5] ^= 1
    index.write_bytes(data)
    with (
        serving("--mapped", trainer.folder) as (running, port, _),
        closing(connect(port)) as connection,
    ):
        until(lambda: ask(connection, "/predict", rows)[0] == 200, running)
        assert trainer.check(ask(connection, "/predict", rows)[1]) == "1"


def test_a_damaged_index_is_made_anew_while_versions_are_tried_on_recent_rows(
    trainer: Trainer, tmp_path: Path
) -> None:
    trainer.learn()
    trainer.publish(rows_of_all_kinds(2000, seed=5))
    one = Follower("ctr", LocalVersions(trainer.folder), Loader(folder=trainer.folder, mapped=tmp_path / "index"))
    scorer = one.first(wait=False, say=print)
    path = scorer.tables["weights"].base.mapped
    assert path is not None
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[4096 * page + 5] ^= 1
    scorer.tables["weights"].base.kernel.seen[:] = 0
    path.write_bytes(data)
    with pytest.raises(StorageError):
        predict(scorer)
    assert scorer.damaged and not path.exists()
    found = one.look()
    assert found is not None and trainer.check(predict(found)) == "2"


def test_a_server_follows_rolls_back_and_lists(trainer: Trainer) -> None:
    with (
        serving("--follow", trainer.folder) as (running, port, _),
        closing(connect(port)) as connection,
    ):

        def version() -> str:
            status, found = ask(connection, "/predict", as_json(TABLE))
            assert status == 200
            return trainer.check(found)

        assert version() == "1"
        for n in range(2, 5):
            trainer.learn()
            trainer.publish()
            until(lambda n=n: version() == str(n), running)
        done = subprocess.run(
            command("serve", "rollback", trainer.folder, "--to", "2", "--reason", "odd clicks"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.endswith("servers that follow it go back to version 2\n")
        until(lambda: version() == "2", running)
        listed = subprocess.run(
            command("serve", "versions", trainer.folder), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert [line.split()[0] for line in listed[1:]] == ["4", "3", "2", "1"]
        assert "newest" in listed[1] and "odd clicks" in listed[3]
        subprocess.run(command("serve", "rollback", trainer.folder, "--to", "newest"), check=True)
        until(lambda: version() == "4", running)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        assert 'penstock_model_switches_total{model="run"} 5.0' in text
        refused = subprocess.run(
            command("serve", "rollback", trainer.folder, "--to", "77"), capture_output=True, text=True
        )
        assert refused.returncode == 2 and "there is no version 77" in refused.stderr


def test_a_canary_gets_its_share_and_versions_can_be_asked_for(trainer: Trainer) -> None:
    trainer.learn()
    trainer.publish()
    options = (f"ctr={trainer.folder}@1", "--canary", f"ctr={trainer.folder}:25%", "--follow")
    with serving(*options) as (running, port, said), closing(connect(port)) as connection:
        assert "canary of ctr: version 2" in said[1]
        rows = as_json(TABLE)
        answers = [ask(connection, "/predict", rows)[1] for _ in range(40)]
        assert Counter(trainer.check(answer) for answer in answers) == {"1": 30, "2": 10}
        for version in ("1", "2"):
            assert ask(connection, f"/predict?version={version}", rows)[1]["version"] == version
        status, refused = ask(connection, "/predict?version=3", rows)
        assert status == 404 and "versions: 1, 2" in refused["error"]
        assert ask(connection, "/v2/models/ctr")[1]["versions"] == ["1", "2"]
        trainer.learn()
        trainer.publish()
        until(lambda: ask(connection, "/v2/models/ctr")[1]["versions"] == ["1", "3"], running)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        assert 'penstock_rows_total{model="ctr",role="canary"}' in text


def test_freshness_is_told(served: Served, tmp_path: Path) -> None:
    trainer = Trainer(served, tmp_path / "run")
    trainer.model.metadata["lineage"]["newest_event"] = "2026-11-27T10:00:00.5Z"
    trainer.publish()
    with serving("--follow", trainer.folder) as (_, port, _), closing(connect(port)) as connection:
        _, found = ask(connection, "/predict?lineage=1", as_json(TABLE))
        assert found["lineage"]["lineage"]["newest_event"] == "2026-11-27T10:00:00.5Z"
        assert found["lineage"]["newest_event_age_s"] > 0
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        assert 'penstock_newest_event_age_seconds{model="run",role="stable"}' in text
        assert 'penstock_freshness_seconds_count{model="run"} 1.0' in text


def test_models_as_a_command_line_names_them() -> None:
    assert parse_model("ctr=a/b@41") == Named("ctr", "a/b", 41)
    assert parse_model("s3://bucket/ctr") == Named("ctr", "s3://bucket/ctr")
    assert parse_model("x=s3://bucket/a=b@7") == Named("x", "s3://bucket/a=b", 7)
    assert parse_canary("ctr=a@3:0.5") == Named("ctr", "a", 3, 0.5)
    assert parse_canary("ctr=s3://b/a:5%") == Named("ctr", "s3://b/a", None, 0.05)
    for text in ("ctr=a", "ctr=a:0", "ctr=a:101%", "ctr=a:nan"):
        with pytest.raises(ConfigError):
            parse_canary(text)
    for text in ("", "a b=x", "=x", "-x=a"):
        with pytest.raises(ConfigError):
            parse_model(text)


class TestStore:
    """The same from an object store."""

    pytestmark = needs_a_store

    def test_versions_are_copied_there_and_followed(self, trainer: Trainer, bucket: str, tmp_path: Path) -> None:
        from penstock.models.history import read_version
        from penstock.models.remote import RemoteFolder

        url = f"{bucket}/ctr"
        remote = RemoteFolder(url)
        remote.put(trainer.folder, read_version(trainer.folder, 1))
        copies = tmp_path / "copies"
        one = Follower("ctr", RemoteVersions(url, copies), Loader(folder=copies))
        trainer.check(predict(one.first(wait=True, say=print)))
        for n in range(2, 6):
            trainer.learn()
            manifest = trainer.publish()
            remote.put(trainer.folder, manifest)
            found = one.look()
            assert found is not None and trainer.check(predict(found)) == str(n)
        remote.pin_version(3, "to see")
        listed = subprocess.run(command("serve", "versions", url), capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in listed.stdout.splitlines()] == ["version", "5", "4", "3", "2", "1"]
        assert "pinned since" in listed.stdout.splitlines()[3]
        found = one.look()
        assert found is not None and trainer.check(predict(found)) == "3"
        with pytest.raises(ModelError, match="there is no version 42"):
            remote.pin_version(42)
        remote.pin_version(None)
        assert one.look() is not None
        # Torn where it lies: refused; whole again: taken.
        trainer.learn()
        manifest = trainer.publish()
        entry = manifest["tables"]["weights"]["layers"][-1]["files"][0]["path"]
        remote.put(trainer.folder, manifest)
        whole = remote.read(entry)
        assert whole is not None
        remote.write(entry, whole[:-5])
        assert one.look() is None and one.refused == 1
        trainer.learn()
        remote.put(trainer.folder, trainer.publish())
        found = one.look()
        assert found is None  # it builds on the torn one
        remote.write(entry, whole)
        one._again_s = 0
        found = one.look()
        assert found is not None and trainer.check(predict(found)) == "7"
        # Who comes late, and a copy that went bad on our side.
        for path in copies.rglob("*.parquet"):
            path.write_bytes(path.read_bytes()[:-1])
        late = Follower("ctr", RemoteVersions(url, copies), Loader(folder=copies))
        assert trainer.check(predict(late.first(wait=False, say=print))) == "7"

    def test_a_server_of_a_url(self, trainer: Trainer, bucket: str) -> None:
        from penstock.models.history import read_version
        from penstock.models.remote import RemoteFolder

        remote = RemoteFolder(f"{bucket}/ctr")
        remote.put(trainer.folder, read_version(trainer.folder, 1))
        with serving("--follow", f"{bucket}/ctr") as (running, port, _):
            with closing(connect(port)) as connection:
                trainer.learn()
                remote.put(trainer.folder, trainer.publish())
                until(lambda: trainer.check(ask(connection, "/predict", as_json(TABLE))[1]) == "2", running)
            os.kill(running.pid, signal.SIGTERM)
            assert running.wait(60) == 0
