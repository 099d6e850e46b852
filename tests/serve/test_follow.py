"""A server follows what a trainer publishes: an answer is that of the version it names, and a bad one never."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np

import penstock as ps
from penstock.serve.versions.follow import Follower
from penstock.serve.versions.load import Loader
from penstock.serve.versions.source import LocalVersions
from tests.log.helpers import until
from tests.serve.conftest import Served, rows_of_all_kinds
from tests.serve.test_rows import as_json
from tests.serve.test_server import ask, connect, serving


def another(served: Served, seed: int) -> ps.Linear:
    """A model of the same columns that has learnt other rows."""
    model = ps.Linear(served.model.features)
    ps.fit(model, rows_of_all_kinds(500, seed=seed), progress=False)
    return model


def spoil(folder: Path) -> None:
    """Damage the file of weights of the version that is valid."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / manifest["tables"]["weights"]["files"][0]["path"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_it_switches_to_each_sound_version_and_to_no_other(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "ctr"
    shutil.copytree(served.folder, folder)
    row = as_json(rows_of_all_kinds(1, seed=3))
    models = {"1": served.model, **{str(n): another(served, n) for n in (2, 3, 4)}}
    with serving("--follow", folder) as (running, port, _), contextlib.closing(connect(port)) as connection:

        def version() -> str:
            status, found = ask(connection, "/predict", row)
            assert status == 200
            expected = models[found["version"]].predict(rows_of_all_kinds(1, seed=3))
            np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected)
            return str(found["version"])

        assert version() == "1"
        models["2"].save(folder)
        until(lambda: version() == "2", running)
        table = models["3"].table
        keys, _ = next(items for n in range(table.segments) if len((items := table.items(n))[0]))
        table.insert(keys[:1], np.array([[np.inf, 1]], np.float32))
        models["3"].save(folder)
        assert running.stderr is not None
        refused = running.stderr.readline()
        assert "version 2 goes on answering" in refused and "weights that are not finite" in refused
        assert version() == "2"
        models["4"].save(folder)
        until(lambda: version() == "4", running)


def test_what_cannot_be_read_is_refused_once_and_mended_by_the_next(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "ctr"
    shutil.copytree(served.folder, folder)
    follower = Follower("ctr", LocalVersions(folder), Loader(folder=folder))
    follower.first(wait=False, say=print)
    assert follower.look() is None and follower.refused == 0
    another(served, 5).save(folder)
    spoil(folder)
    assert follower.look() is None and follower.look() is None and follower.refused == 1
    (folder / "manifest.json").unlink()
    assert follower.look() is None and follower.refused == 2
    better = another(served, 6)
    better.save(folder)
    found = follower.look()
    assert found is not None and follower.scorer is found
    np.testing.assert_array_equal(found.score_table(served.table), better.predict(served.table))
    assert follower.look() is None


def test_it_waits_for_the_first_model(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "ctr"
    began = threading.Event()

    def publish() -> None:
        assert began.wait(60)
        shutil.copytree(served.folder, folder)

    publisher = threading.Thread(target=publish)
    publisher.start()
    began.set()
    with serving("--follow", folder) as (_, port, said), contextlib.closing(connect(port)) as connection:
        assert "waiting for a model" in said[0] or "version 1" in said[0]
        assert ask(connection, "/predict", [{"site": "x"}])[0] == 200
    publisher.join()


def test_while_versions_change_each_answer_is_of_the_version_that_it_names(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "ctr"
    shutil.copytree(served.folder, folder)
    table = rows_of_all_kinds(5, seed=8)
    rows, models = as_json(table), [another(served, seed) for seed in (11, 12)]
    expected: dict[str, Any] = {"1": served.model.predict(table)}
    for n in range(2, 7):
        expected[str(n)] = models[n % 2].predict(table)
    seen: set[str] = set()
    with serving("--follow", folder) as (running, port, _), contextlib.closing(connect(port)) as connection:
        for n in range(2, 7):
            models[n % 2].save(folder)

            def arrived(n: int = n) -> bool:
                status, found = ask(connection, "/predict", rows)
                assert status == 200
                seen.add(found["version"])
                scores = np.array(found["predictions"], np.float32)
                np.testing.assert_array_equal(scores, expected[found["version"]])
                return bool(found["version"] == str(n))

            until(arrived, running)
    assert len(seen) >= 5
