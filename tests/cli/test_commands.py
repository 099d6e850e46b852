"""The command line as a user meets it: what it prints, what it leaves on disk, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from penstock.cli.main import main
from penstock.models import load_model

Penstock = Callable[..., tuple[int, str, str]]


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Penstock:
    """Runs a command in this process: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def fails(result: tuple[int, str, str], *parts: str, status: int = 2) -> None:
    """The command ended with one clear line that has these parts."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("penstock: ")]
    assert (code, len(lines)) == (status, 1), err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]


def test_train_evaluate_predict_inspect(penstock: Penstock, clicks: Path) -> None:
    status, out, err = penstock("train", clicks, "--label", "clicked", "--time", "time", "-o", "model")
    assert status == 0, err
    assert "n1" in out and "standardised" in out and "category" in out and "event time" in out
    assert "20,000 rows" in out and "progressive" in out
    assert "rows/s" in err and "logloss" in err
    status, out, _ = penstock("evaluate", "model", clicks, "--json")
    assert status == 0 and json.loads(out)["auc"] > 0.7
    status, out, _ = penstock("evaluate", "model", clicks)
    assert "Calibration" in out and "evaluated" in out
    status, out, _ = penstock("predict", "model", clicks, "-o", "scores.parquet", "--keep", "c1,time")
    assert status == 0 and "20,000 scores" in out
    scores = pq.read_table("scores.parquet")
    assert scores.column_names == ["c1", "time", "score"]
    np.testing.assert_array_equal(
        scores.column("score").to_numpy(), load_model("model").predict(pq.read_table(clicks))
    )
    status, out, _ = penstock("inspect", "model")
    assert status == 0 and "20,000 rows of" in out and "c1=" in out and "ftrl (alpha 0.1" in out
    status, out, _ = penstock("inspect", "model", "--json")
    assert json.loads(out)["format"] == "penstock-model"


def test_scores_as_csv(penstock: Penstock, clicks: Path) -> None:
    assert penstock("train", clicks, "--label", "clicked", "-q")[0] == 0
    assert penstock("predict", "model", clicks, "-o", "scores.csv")[0] == 0
    assert pyarrow.csv.read_csv("scores.csv").num_rows == 20_000
    fails(penstock("predict", "model", clicks, "-o", "scores.txt"), "scores.txt", ".parquet or .csv")


def test_a_job_file_gives_the_same_model_as_options(penstock: Penstock, clicks: Path) -> None:
    Path("job.toml").write_text(f"""
        [data]
        train = "{clicks}"
        [features]
        label = "clicked"
        numeric = ["n2", {{ name = "n1", how = "log" }}]
        categorical = ["c1", "c2"]
        crosses = [["c1", "c2"]]
        [optimizer]
        name = "adagrad"
        alpha = 0.2
        [train]
        passes = 2
        [output]
        path = "by_job"
    """)
    assert penstock("train", "job.toml")[0] == 0
    options = ["--numeric", "n2", "--log", "n1", "--categorical", "c1,c2", "--cross", "c1,c2"]
    options += ["--optimizer", "adagrad,alpha=0.2", "--passes", "2", "--label", "clicked", "-o", "by_options"]
    assert penstock("train", clicks, *options)[0] == 0
    table = pq.read_table(clicks)
    np.testing.assert_array_equal(load_model("by_job").predict(table), load_model("by_options").predict(table))


def test_csv_and_parquet_of_the_same_rows_give_the_same_model(penstock: Penstock, clicks: Path) -> None:
    table = pq.read_table(clicks).drop_columns(["time", "n1", "n2", "n3"])
    pq.write_table(table, "a.parquet")
    pyarrow.csv.write_csv(table, "b.csv")
    for data, output in (("a.parquet", "a"), ("b.csv", "b")):
        assert penstock("train", data, "--label", "clicked", "-o", output, "-q")[0] == 0
    np.testing.assert_array_equal(load_model("a").predict(table), load_model("b").predict(table))


def test_make_clicks(penstock: Penstock) -> None:
    status, out, _ = penstock("make-clicks", "log", "--rows", "20_000", "--distinct", "1k")
    assert status == 0 and "best possible logloss" in out and "20,000" in out
    assert pq.read_metadata("log/clicks-00000.parquet").num_rows == 20_000
    fails(penstock("make-clicks", "log", "--rows", "100"), "log", "overwrite")
    assert penstock("make-clicks", "log", "--rows", "100", "--overwrite")[0] == 0


# What the issue calls bad input, each by the command that meets it.


def test_missing_file(penstock: Penstock) -> None:
    fails(penstock("train", "nowhere.parquet", "--label", "y"), "nowhere.parquet")
    fails(penstock("train", "nowhere/*.parquet", "--label", "y"), "nowhere/*.parquet")
    fails(penstock("train", "nowhere.toml"), "nowhere.toml")
    fails(penstock("evaluate", "nowhere", "a.parquet"), "nowhere", "no model there")


def test_unknown_column(penstock: Penstock, clicks: Path) -> None:
    fails(penstock("train", clicks, "--label", "click"), "'click'", "its columns are clicked, time")
    fails(penstock("train", clicks, "--label", "clicked", "--categorical", "c1,c99"), "'c99'", "c1, c2")
    assert penstock("train", clicks, "--label", "clicked", "-q")[0] == 0
    pq.write_table(pq.read_table(clicks, columns=["c1"]), "few.parquet")
    fails(penstock("predict", "model", "few.parquet", "-o", "s.csv"), "its columns are c1")
    assert not Path("s.csv").exists()


def test_empty_files(penstock: Penstock) -> None:
    for name in ("e.parquet", "e.csv", "e.svm"):
        Path(name).touch()
        fails(penstock("train", name, "--label", "y"), name)
    pq.write_table(pa.table({"y": pa.array([], pa.int8()), "c": pa.array([], pa.string())}), "none.parquet")
    fails(penstock("train", "none.parquet", "--label", "y"), "none.parquet")


def test_truncated_parquet(penstock: Penstock, clicks: Path) -> None:
    Path("cut.parquet").write_bytes(clicks.read_bytes()[:100_000])
    fails(penstock("train", "cut.parquet", "--label", "clicked"), "cut.parquet")
    assert not Path("model/manifest.json").exists()


def test_csv_row_with_too_few_fields(penstock: Penstock) -> None:
    Path("a.csv").write_text("y,c,d\n1,a,b\n0,a\n1,b,c\n")
    fails(penstock("train", "a.csv", "--label", "y"), "a.csv line 3", "2", "3")


def test_label_that_is_not_0_or_1(penstock: Penstock) -> None:
    Path("a.csv").write_text("y,c\n1,a\n0,a\n2,b\n")
    fails(penstock("train", "a.csv", "--label", "y"), "a.csv line 4", "label 'y' is 2", "allowed: 0 or 1")
    Path("b.csv").write_text("y,c\nyes,a\nno,a\n")
    fails(penstock("train", "b.csv", "--label", "y"), "b.csv line 2", "'yes'", "allowed: 0 or 1")
    Path("c.csv").write_text("y,c\n1,a\n,a\n")
    fails(penstock("train", "c.csv", "--label", "y"), "c.csv line 3", "missing", "allowed: 0 or 1")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite(penstock: Penstock, value: str) -> None:
    table = pa.table({"y": [0, 1, 0], "x": [1.0, 2.0, float(value)]})
    pq.write_table(table, "a.parquet")
    fails(penstock("train", "a.parquet", "--label", "y"), "a.parquet row 2", "'x'", value, "allowed: a finite")
    assert not Path("model/manifest.json").exists()


def test_libsvm_line_with_a_bad_index(penstock: Penstock) -> None:
    Path("a.svm").write_text("1 1:1 2:1\n0 -3:1\n")
    fails(penstock("train", "a.svm"), "a.svm line 2", "-3")


def test_bad_options(penstock: Penstock, clicks: Path) -> None:
    fails(penstock("train"), "nothing to train on")
    fails(penstock("train", clicks, "--optimizer", "adam"), "'adam'", "allowed: adagrad, ftrl")
    fails(penstock("train", clicks, "--optimizer", "ftrl,alpha=-1"), "alpha", "got -1")
    fails(penstock("train", clicks, "--optimizer", "ftrl,alpha"), "'alpha'", "a name, '=' and a number")
    fails(penstock("train", clicks, "--optimizer", "ftrl,rate=1"), "'rate'", "alpha, beta, l1, l2")
    assert penstock("train", clicks, "--nonsense")[0] == 2
    assert penstock("make-clicks", "x", "--rows", "many")[0] == 2
    Path("job.toml").write_text('[data]\ntrain = "a"\n[train]\nepochs = 3\n')
    fails(penstock("train", "job.toml"), "job.toml", "train.epochs", "passes")
    Path("job.toml").write_text('[data]\ntrain = "a"\n[train]\npasses = "3"\n')
    fails(penstock("train", "job.toml"), "job.toml", "`int`", "train.passes")
    Path("job.toml").write_text("[data\n")
    fails(penstock("train", "job.toml"), "job.toml", "not TOML")


def test_damaged_and_newer_models(penstock: Penstock, clicks: Path) -> None:
    assert penstock("train", clicks, "--label", "clicked", "-q")[0] == 0
    [rows] = Path("model/v000001").glob("weights-*.parquet")
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    fails(penstock("evaluate", "model", clicks), rows.name, "damaged")
    rows.unlink()
    fails(penstock("evaluate", "model", clicks), rows.name, "missing")
    manifest = Path("model/manifest.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format_version": 99}))
    fails(penstock("inspect", "model"), "manifest.json", "99", "reads up to 2")
    manifest.write_text(manifest.read_text()[:100])
    fails(penstock("inspect", "model"), "manifest.json", "damaged")
    manifest.write_text('{"format": "other"}')
    fails(penstock("inspect", "model"), "manifest.json", "not a model")


# What only a process of its own can show.


Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a command in a process of its own, which does not outlive the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "penstock.cli.main", *map(str, arguments)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def test_a_disk_that_fills_up_while_saving(spawn: Spawn, clicks: Path, tmp_path: Path) -> None:
    import resource

    model = tmp_path / "model"
    first = spawn("train", clicks, "--label", "clicked", "-o", model, "-q")
    assert first.wait(60) == 0
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (model / "v000001").iterdir())

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    second = spawn("train", clicks, "--label", "clicked", "-o", model, "-q", preexec_fn=small_disk)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1 and len(err.splitlines()) == 1, err
    assert "cannot write the model" in err and "File too large" in err
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (model / "v000001").iterdir()) == before
    assert sorted(p.name for p in model.glob("v*")) == ["v000001"]
    load_model(model)


def test_ctrl_c_leaves_a_checkpoint_and_resume_ends_with_the_same_model(
    spawn: Spawn, clicks: Path, tmp_path: Path
) -> None:
    options = ["train", clicks, "--label", "clicked", "--passes", "200"]
    want = spawn(*options, "-o", tmp_path / "want", "-q")
    got = spawn(*options, "-o", tmp_path / "got", start_new_session=True)
    assert got.stderr is not None
    while got.stderr.readline().split()[:1] != ["seconds"]:
        assert got.poll() is None
    os.killpg(got.pid, signal.SIGINT)
    _, err = got.communicate(timeout=60)
    assert got.returncode == 130, err
    assert "stopped by Ctrl-C" in err and f"penstock train --resume -o {tmp_path / 'got'}" in err
    assert "Traceback" not in err
    assert not (tmp_path / "got" / "manifest.json").exists()
    resumed = spawn("train", "--resume", "-o", tmp_path / "got", "-q")
    assert resumed.wait(120) == 0, resumed.stderr
    assert want.wait(120) == 0
    for name in (p.name for p in (tmp_path / "want" / "v000001").glob("weights*")):
        a, b = ((tmp_path / run / "v000001" / name).read_bytes() for run in ("want", "got"))
        assert a == b


def test_two_runs_on_one_folder(spawn: Spawn, clicks: Path, tmp_path: Path) -> None:
    first = spawn("train", clicks, "--label", "clicked", "--passes", "2000", "-o", tmp_path / "m")
    assert first.stderr is not None
    while first.stderr.readline().split()[:1] != ["seconds"]:
        assert first.poll() is None
    second = spawn("train", clicks, "--label", "clicked", "-o", tmp_path / "m")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and f"another run writes here (process {first.pid})" in err
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130


def test_help_is_quick_because_it_imports_little() -> None:
    code = "import sys, penstock.cli.main; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("numba", "numpy", "pyarrow", "rich"):
        assert f"'{heavy}'" not in loaded


def test_the_folder_of_make_clicks_is_data(penstock: Penstock) -> None:
    assert penstock("make-clicks", "clicks", "--rows", "2000")[0] == 0
    status, out, err = penstock("train", "clicks", "--label", "clicked", "-o", "m")
    assert status == 0, err
    # Times are no features unless they are named; that is said.
    assert "not used: time" in out


def test_names_and_values_that_look_like_markup_are_shown_as_they_are(penstock: Penstock) -> None:
    rows = ["label,[/q],[red]c"] + [f"{i % 2},[/x]{i % 2},[b]{i % 2}" for i in range(40)]
    Path("a.csv").write_text("\n".join(rows) + "\n")
    status, out, err = penstock("train", "a.csv", "-o", "m[i]")
    assert status == 0 and "[/q], [red]c" in out and "model in m[i]" in out, err
    status, out, err = penstock("inspect", "m[i]")
    assert status == 0 and "[/q]=[/x]1" in out and "[red]c=[b]1" in out, err


def test_what_pandas_writes_with_its_index(penstock: Penstock) -> None:
    Path("a.csv").write_text(",label,c\n" + "".join(f"{i},{i % 2},v{i % 2}\n" for i in range(20)))
    status, _, err = penstock("train", "a.csv", "-o", "m")
    assert status == 0, err


def test_csv_columns_that_change_their_look_behind_the_first_rows(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.data.delimited.SAMPLE_NBYTES", 2000)
    first = "".join(f"{i % 2},{i},{i},1\n" for i in range(500))
    Path("a.csv").write_text("label,id,x,w\n" + first + "1.0,abc,1.5,0.5\n")
    columns = ["--categorical", "id", "--numeric", "x", "--weight", "w"]
    status, _, err = penstock("train", "a.csv", *columns, "-o", "m")
    assert status == 0, err
    status, _, err = penstock("predict", "m", "a.csv", "-o", "s.csv", "--keep", "id,id")
    assert status == 0, err
    assert pa.csv.read_csv("s.csv")["id"].to_pylist()[-1] == "abc"


def test_kept_columns_keep_their_leading_zeros(penstock: Penstock) -> None:
    Path("a.csv").write_text("label,id\n" + "".join(f"{i % 2},{i:04}\n" for i in range(50)))
    assert penstock("train", "a.csv", "--categorical", "id", "-o", "m")[0] == 0
    assert penstock("predict", "m", "a.csv", "-o", "s.csv", "--keep", "id")[0] == 0
    assert Path("s.csv").read_text().splitlines()[1].startswith('"0000",')


def test_texts_that_mean_missing(penstock: Penstock) -> None:
    Path("a.csv").write_text("label,x\n" + "".join(f"{i % 2},{'NA' if i % 3 else i / 2}\n" for i in range(60)))
    status, out, err = penstock("train", "a.csv", "-o", "m", "--null", "NA")
    assert status == 0 and "number, standardised" in out, err


def test_times_are_needed_only_for_a_hold_out_by_time(penstock: Penstock) -> None:
    rows = "".join(f"{i % 2},v{i % 3},{i}\n" for i in range(60))
    Path("a.csv").write_text("label,c,t\n" + rows)
    status, _, err = penstock("train", "a.csv", "--time", "t", "--holdout-after", "50", "-o", "m")
    assert status == 0, err
    Path("b.csv").write_text("label,c\n" + "".join(f"{i % 2},v{i % 3}\n" for i in range(60)))
    status, _, err = penstock("evaluate", "m", "b.csv")
    assert status == 0, err


@pytest.mark.parametrize("readers", ["0", "-1"])
def test_readers_are_counted_from_one(penstock: Penstock, clicks: Path, readers: str) -> None:
    message = f"readers must be >= 1, got {readers}"
    fails(penstock("train", clicks, "--label", "clicked", "-o", "m", "--readers", readers), message)


def test_a_job_file_says_itself_how_files_are_read(penstock: Penstock) -> None:
    Path("job.toml").write_text('[data]\ntrain = "a.csv"\n')
    fails(penstock("train", "job.toml", "--delimiter", ";"), "[data] section")


def test_nothing_to_resume_in_a_new_folder(penstock: Penstock, clicks: Path) -> None:
    fails(penstock("train", clicks, "--label", "clicked", "--resume", "-o", "new"), "nothing to resume")
    assert not Path("new").exists()


def test_scores_do_not_overwrite_the_data(penstock: Penstock) -> None:
    Path("a.csv").write_text("label,c\n" + "".join(f"{i % 2},v{i % 3}\n" for i in range(60)))
    before = Path("a.csv").read_bytes()
    assert penstock("train", "a.csv", "-o", "m")[0] == 0
    fails(penstock("predict", "m", "a.csv", "-o", "./a.csv"), "./a.csv: is the data itself")
    assert Path("a.csv").read_bytes() == before
    fails(penstock("predict", "m", "a.csv", "-o", "no/s.csv"), "no/s.csv", "there is no folder no", status=1)


def test_a_misspelt_column_is_guessed(penstock: Penstock, clicks: Path) -> None:
    fails(penstock("train", clicks, "--label", "clikced", "-o", "m"), "did you mean 'clicked'?")


def test_a_run_that_has_not_ended_is_no_model_yet(penstock: Penstock, clicks: Path) -> None:
    assert penstock("train", clicks, "--label", "clicked", "-o", "m/checkpoint", "-q")[0] == 0
    fails(penstock("predict", "m", clicks, "-o", "s.csv"), "no model there", "penstock train --resume -o m")
