"""Versions that a run publishes while it learns: others load them; none is older than one that is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import penstock as ps
from penstock.errors import ConfigError, Interrupted, StorageError
from penstock.models import KeepVersions, load_model, read_manifest
from penstock.models.history import list_versions
from penstock.models.remote import RemoteFolder
from penstock.train.uploads import Uploads


def table(rows: int = 60_000) -> pa.Table:
    draw = np.random.default_rng(0)
    return pa.table({"clicked": draw.random(rows) < 0.2, "site": draw.integers(0, 5000, rows)})


FEATURES = ps.Features(label="clicked", categorical=["site"])


def rows_of(model: ps.Model) -> bytes:
    return b"".join(x.tobytes() for s in range(model.segments) for x in model.tables()["weights"].items(s))


def test_a_run_on_files_publishes_and_ends_with_the_same_model(tmp_path: Path) -> None:
    quiet = ps.Linear(FEATURES)
    ps.fit(quiet, table(), passes=3, progress=False)
    model, copy = ps.Linear(FEATURES), tmp_path / "copy"
    publish = ps.Publish(every_s=1e-6, to=f"file://{copy}")
    ps.fit(model, table(), passes=3, output=tmp_path / "run", publish=publish, progress=False)
    kept = list_versions(tmp_path / "run")
    assert len(kept) > 10
    assert rows_of(model) == rows_of(quiet) == rows_of(load_model(tmp_path / "run")) == rows_of(load_model(copy))
    rows = [load_model(tmp_path / "run", version=each.version).metadata["lineage"]["rows"] for each in kept]
    assert rows == sorted(rows, reverse=True)
    assert [p.name for p in (copy / "versions").iterdir()] and not list(copy.rglob("*.tmp"))


def test_a_resumed_run_does_not_publish_what_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a version that is newer than the checkpoint: the versions after it are none of before."""
    from penstock.train import online

    learn, learnt = online.OnlineSession._learn, [0]

    def interrupted(self: online.OnlineSession, *arguments: object) -> None:
        learn(self, *arguments)  # type: ignore[arg-type]
        learnt[0] += 1
        if learnt[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    publish = ps.Publish(every_s=1e-6)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(online.OnlineSession, "_learn", interrupted)
        ps.fit(ps.Linear(FEATURES), table(), output=run, publish=publish, progress=False)
    # As if the checkpoint were of the beginning: versions went further than it.
    manifest = read_manifest(run)
    published = manifest["lineage"]["rows"]
    assert published > 0
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text.replace(f'"rows": {published}', f'"rows": {published + 20_000}'))
    model = ps.Linear(FEATURES)
    ps.fit(model, table(), output=run, publish=publish, resume=True, progress=False)
    later = [each for each in list_versions(run) if each.version > manifest["version"]]
    rows = [load_model(run, version=each.version).metadata["lineage"]["rows"] for each in later]
    assert len(rows) >= 2 and min(rows) >= published + 20_000
    assert {read_manifest(run)["lineage"]["run"]} == {manifest["lineage"]["run"]}


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be > 0, got 0"):
        ps.Publish(every_s=0)
    with pytest.raises(ConfigError, match="nosuch"):
        ps.Publish(to="nosuch://a/b")
    with pytest.raises(ConfigError, match="TreeAggregate publishes only at the end"):
        ps.fit(ps.Linear(FEATURES), table(10), strategy=ps.TreeAggregate(), publish=ps.Publish(every_s=1))


def test_a_store_that_refuses_holds_up_nothing_and_is_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    model = ps.Linear(FEATURES)
    ps.fit(model, table(1000), output=tmp_path / "run", progress=False)
    uploads = Uploads(tmp_path / "run", f"file://{tmp_path}/file/ctr")
    uploads.put(read_manifest(tmp_path / "run"))
    with pytest.raises(StorageError, match=r"the last version was not copied: .*; it is in"):
        uploads.close(patience_s=0.5)
    assert "it is tried again" in caplog.text


def test_another_runs_model_is_not_published_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"publish to 'plain': allowed: a URL"):
        ps.Publish(to="plain")
    store = ps.Publish(to=f"file://{tmp_path}/store")
    first = ps.Linear(FEATURES)
    ps.fit(first, table(1000), output=tmp_path / "a", publish=store, progress=False)
    ps.fit(
        ps.Linear(FEATURES), table(2000), output=tmp_path / "a", publish=store, progress=False
    )  # its next version
    kept = rows_of(load_model(tmp_path / "store"))
    uploads = Uploads(tmp_path / "b", f"file://{tmp_path}/store")
    ps.fit(ps.Linear(FEATURES), table(500), output=tmp_path / "b", progress=False)
    uploads.put(read_manifest(tmp_path / "b"))
    with pytest.raises(StorageError, match=r"has version 2 of .*, of another run, as this one is at 1"):
        uploads.close(patience_s=0.2)
    assert rows_of(load_model(tmp_path / "store")) == kept
    assert {p.name for p in (tmp_path / "store").glob("v0*")} == {"v000002"}


def test_a_run_can_be_resumed_from_its_first_version_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.train import session

    monkeypatch.setattr(session.RunFolder, "forget_checkpoint", lambda self: None)
    publish = ps.Publish(every_s=1e-6)
    ps.fit(ps.Linear(FEATURES), table(), output=tmp_path / "run", publish=publish, progress=False)
    rows = session.RunFolder(tmp_path / "run").read_checkpoint()["state"]["rows"]
    assert 0 < rows < 60_000


def test_the_end_of_a_run_forgets_no_version_that_it_kept(tmp_path: Path) -> None:
    publish = ps.Publish(every_s=1e-6, keep=KeepVersions(newest=100))
    ps.fit(ps.Linear(FEATURES), table(200_000), passes=8, output=tmp_path / "run", publish=publish, progress=False)
    assert len(list_versions(tmp_path / "run")) > 20


def test_a_file_that_was_pruned_meanwhile_is_an_error_of_the_store(tmp_path: Path) -> None:
    model = ps.Linear(FEATURES)
    ps.fit(model, table(1000), output=tmp_path / "run", progress=False)
    manifest = read_manifest(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(StorageError, match="store/v000001"):
        RemoteFolder(f"file://{tmp_path}/store").put(tmp_path / "run", manifest)
