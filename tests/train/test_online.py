"""Training in one process: what is learnt, that it depends on the data alone, and that it can be resumed."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock as ps
from penstock.errors import ConfigError, DataError, FolderBusy, Interrupted, ModelError
from penstock.models import Linear
from penstock.train import online
from penstock.train.folder import RunFolder
from penstock.train.progress import JsonLines

CATEGORICAL = [f"c{i}" for i in range(1, 6)]
NUMERIC = ["n1", "n2", "n3"]


def features(**more: Any) -> ps.Features:
    return ps.Features(label="clicked", numeric=NUMERIC, categorical=CATEGORICAL, time="time", **more)


def rows_of(model: Linear) -> tuple[np.ndarray, np.ndarray]:
    parts = [model.table.items(segment) for segment in range(model.table.segments)]
    return np.concatenate([k for k, _ in parts]), np.concatenate([w for _, w in parts])


def assert_same_model(a: Linear, b: Linear) -> None:
    for left, right in zip(rows_of(a), rows_of(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_it_learns(clicks: Path) -> None:
    run = ps.fit(ps.Linear(features()), str(clicks))
    truth = json.loads((clicks.parent / "_clicks.json").read_text())
    base = truth["summary"]["base_rate_logloss"] if "summary" in truth else truth["base_rate_logloss"]
    assert run.rows == run.metrics.rows == 20_000
    assert run.metrics.logloss < base - 0.02
    assert run.metrics.auc > 0.65
    assert 0.9 < run.metrics.calibration < 1.1
    assert run.history[-1].rows == 20_000 and run.history[-1].done == 1.0


def test_any_kind_of_data_gives_the_same_model(clicks: Path) -> None:
    table = pq.read_table(clicks)
    want = ps.fit(ps.Linear(features()), str(clicks)).model
    batches = table.to_batches(max_chunksize=1000)
    for data in (
        table,
        table.to_pandas(),
        batches,
        iter(batches),
        [str(clicks)],
        str(clicks.parent / "*.parquet"),
    ):
        assert_same_model(ps.fit(ps.Linear(features()), data).model, want)


@pytest.mark.parametrize("readers", [1, 3])
def test_the_number_of_readers_does_not_matter(clicks: Path, readers: int) -> None:
    one = ps.fit(ps.Linear(features()), str(clicks), readers=readers)
    other = ps.fit(ps.Linear(features()), str(clicks), readers=2)
    assert_same_model(one.model, other.model)
    assert one.metrics == other.metrics


def test_minibatches_of_one_equal_learning_by_example(clicks: Path) -> None:
    data = pq.read_table(clicks).slice(0, 3000)
    by_example = ps.fit(ps.Linear(features()), data)
    batched = ps.fit(ps.Linear(features()), data, strategy=ps.Online(minibatch=1))
    assert_same_model(by_example.model, batched.model)
    assert by_example.metrics == batched.metrics


def test_larger_minibatches_learn_too(clicks: Path) -> None:
    run = ps.fit(ps.Linear(features()), str(clicks), strategy=ps.Online(minibatch=256))
    assert run.metrics.auc > 0.6


def test_hogwild_learns_as_well_as_one_thread(clicks: Path) -> None:
    one = ps.fit(ps.Linear(features()), str(clicks))
    two = ps.fit(ps.Linear(features()), str(clicks), strategy=ps.Online(threads=2))
    two.model.table.validate()
    np.testing.assert_array_equal(rows_of(one.model)[0], rows_of(two.model)[0])
    assert two.metrics.rows == one.metrics.rows
    assert abs(two.metrics.logloss - one.metrics.logloss) < 0.02


def test_passes_learn_more_but_metrics_are_of_the_first(clicks: Path) -> None:
    one = ps.fit(ps.Linear(features()), str(clicks))
    three = ps.fit(ps.Linear(features()), str(clicks), passes=3)
    assert three.rows == 60_000 and three.metrics == one.metrics
    assert (
        ps.evaluate(three.model, str(clicks)).scores().logloss
        < ps.evaluate(one.model, str(clicks)).scores().logloss
    )


def test_weights_act_like_repetition() -> None:
    table = pa.table({"label": [0, 1, 1], "c": ["a", "b", "b"], "w": [1.0, 2.0, 0.0]})
    spec = ps.Features(categorical=["c"], weight="w", bias=False)
    run = ps.fit(ps.Linear(spec, optimizer=ps.SGD(alpha=1.0)), table)
    # a: -0.5; b: 2 * 0.5, and then nothing for the weight of 0
    want = 1 / (1 + np.exp(-np.array([-0.5, 1.0, 1.0])))
    np.testing.assert_allclose(run.model.predict(table), want, rtol=1e-6)
    assert run.metrics.weight == 3.0


def test_holdout_by_fraction_is_neither_learnt_nor_lost(clicks: Path) -> None:
    run = ps.fit(ps.Linear(features()), str(clicks), holdout=0.25)
    assert run.holdout is not None
    assert run.holdout.rows + run.metrics.rows == 20_000
    assert 4700 < run.holdout.rows < 5300
    assert run.holdout.auc > 0.65
    again = ps.fit(ps.Linear(features()), str(clicks), holdout=0.25, readers=1)
    assert again.holdout == run.holdout


def test_holdout_by_time(clicks: Path) -> None:
    times = pq.read_table(clicks, columns=["time"]).column("time").to_numpy()
    moment = times[15_000]
    run = ps.fit(ps.Linear(features()), str(clicks), holdout=ps.Holdout(after=str(moment)))
    assert run.holdout is not None
    assert run.holdout.rows == int((times >= moment).sum())
    assert run.metrics.rows == int((times < moment).sum())


def test_holdout_needs_a_time_column(clicks: Path) -> None:
    spec = ps.Features(label="clicked", categorical=["c1"])
    with pytest.raises(ConfigError, match="time column"):
        ps.fit(ps.Linear(spec), str(clicks), holdout=ps.Holdout(after="2026-01-01"))


def test_a_pass_over_an_iterator_cannot_be_repeated(clicks: Path) -> None:
    with pytest.raises(ConfigError, match="iterator"):
        ps.fit(ps.Linear(features()), iter(pq.read_table(clicks).to_batches()), passes=2)


def test_divergence_is_one_clear_error() -> None:
    table = pa.table({"label": [0, 1] * 200, "x": [3e30, 1e30] * 200})
    spec = ps.Features(numeric=[ps.Numeric(name="x", how="raw")])
    with pytest.raises(DataError, match=r"training diverged near table row 0: .*lower the learning rate"):
        ps.fit(ps.Linear(spec, optimizer=ps.SGD(alpha=1e9)), table)


def test_saved_and_loaded_predicts_the_same_bits(clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks)
    run = ps.fit(ps.Linear(features(crosses=[("c1", "c2")])), table, output=tmp_path / "m")
    loaded = ps.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(table), run.model.predict(table))
    assert_same_model(loaded, run.model)
    assert not (tmp_path / "m" / "checkpoint").exists()
    lines = [json.loads(line) for line in (tmp_path / "m" / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["rows"] == 20_000 and lines[-1]["progressive"]["auc"] == run.metrics.auc


class _InterruptAt:
    """Raises SIGINT from inside the run when so many rows were learnt, as a user would from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
        learn = online.OnlineSession._learn
        seen = [0]

        def counted(self: Any, learner: Any, item: Any, progress: Any) -> None:
            learn(self, learner, item, progress)
            seen[0] += len(item.batch)
            if seen[0] >= rows:
                seen[0] = -(10**9)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(online.OnlineSession, "_learn", counted)


@pytest.mark.parametrize("rows", [1, 4096, 9000, 19_999, 26_000])
def test_interrupted_and_resumed_gives_the_model_of_an_undisturbed_run(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    want = ps.fit(ps.Linear(features()), str(clicks), passes=2, holdout=0.1, output=tmp_path / "want")
    with monkeypatch.context() as patch:
        _InterruptAt(patch, rows)
        with pytest.raises(Interrupted, match=r"Ctrl-C.*--resume -o"):
            ps.fit(ps.Linear(features()), str(clicks), passes=2, holdout=0.1, output=tmp_path / "got")
    assert not (tmp_path / "got" / "manifest.json").exists()
    got = ps.fit(ps.Linear(features()), str(clicks), passes=2, holdout=0.1, output=tmp_path / "got", resume=True)
    assert_same_model(got.model, want.model)
    assert (got.metrics, got.holdout, got.rows) == (want.metrics, want.holdout, want.rows)
    files = [sorted(p.name for p in (tmp_path / d / "v000001").iterdir()) for d in ("want", "got")]
    assert files[0] == files[1]
    for name in files[0]:
        if name.startswith("weights"):
            assert (tmp_path / "want/v000001" / name).read_bytes() == (
                tmp_path / "got/v000001" / name
            ).read_bytes()


def test_ctrl_c_while_kernels_compile_is_one_line(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(self: Any, batch: Any, out: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(online.ByExample, "learn", pressed)
        with pytest.raises(Interrupted, match=r"before a row was learnt$"):
            ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")


def test_resume_refuses_other_data_or_settings(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _InterruptAt(patch, 5000)
        with pytest.raises(Interrupted):
            ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    with pytest.raises(ModelError, match="passes was 1, is now 2"):
        ps.fit(ps.Linear(features()), str(clicks), passes=2, output=tmp_path / "m", resume=True)
    with pytest.raises(ModelError, match="optimizer was"):
        other = ps.Linear(features(), optimizer=ps.SGD())
        ps.fit(other, str(clicks), output=tmp_path / "m", resume=True)
    with pytest.raises(ModelError, match="files was"):
        ps.fit(ps.Linear(features()), pq.read_table(clicks), output=tmp_path / "m", resume=True)
    with pytest.raises(ModelError, match="feature"):
        other = ps.Linear(ps.Features(label="clicked", categorical=["c1"]))
        ps.fit(other, str(clicks), output=tmp_path / "m", resume=True)


def test_nothing_to_resume(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to resume"):
        ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m", resume=True)
    ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    with pytest.raises(ModelError, match="its run has ended"):
        ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m", resume=True)


def test_a_checkpoint_is_taken_while_training(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[dict[str, Any]] = []
    save = RunFolder.save_checkpoint

    def noted(self: RunFolder, model: Linear, progress: dict[str, Any]) -> None:
        save(self, model, progress)
        saved.append(progress)

    monkeypatch.setattr(RunFolder, "save_checkpoint", noted)
    ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m", checkpoint_every_s=1e-9)
    assert len(saved) >= 4
    assert [s["state"]["rows"] for s in saved] == sorted(s["state"]["rows"] for s in saved)


def test_the_second_run_on_a_folder_is_refused(clicks: Path, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "m"),
        pytest.raises(FolderBusy, match=r"another run writes here \(process \d+\)"),
    ):
        ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")


def test_a_failed_run_leaves_the_earlier_model_and_no_thread(clicks: Path, tmp_path: Path) -> None:
    first = ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    table = pq.read_table(clicks)
    labels = table.column("clicked").to_numpy().copy()
    labels[17_000] = 7
    bad = table.set_column(table.schema.get_field_index("clicked"), "clicked", pa.array(labels))
    with pytest.raises(DataError, match="table row 17000: label 'clicked' is 7; allowed: 0 or 1"):
        ps.fit(ps.Linear(features()), bad, output=tmp_path / "m")
    assert_same_model(ps.load(tmp_path / "m"), first.model)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("penstock")]


def test_no_rows(tmp_path: Path) -> None:
    table = pa.table({"label": pa.array([], pa.int8()), "c": pa.array([], pa.string())})
    with pytest.raises(DataError, match="rows"):
        ps.fit(ps.Linear(), table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": 0}, "passes must be >= 1"),
        ({"holdout": 1.5}, "between 0 and 1"),
        ({"resume": True}, "resume needs the output folder"),
        ({"output": "s3://bucket/model"}, "local disk"),
    ],
)
def test_settings_are_checked(clicks: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ps.fit(ps.Linear(features()), str(clicks), **settings)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"minibatch": 0}, {"threads": 2, "minibatch": 2}])
def test_strategies_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        ps.Online(**settings)


def test_ctrl_c_in_the_hold_out_leaves_a_checkpoint_too(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ps.fit(ps.Linear(features()), str(clicks), holdout=0.5, output=tmp_path / "want")
    predict = Linear.predict_batch

    def interrupted(self: Linear, batch: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return predict(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "predict_batch", interrupted)
        with pytest.raises(Interrupted, match=r"Ctrl-C.*--resume -o"):
            ps.fit(ps.Linear(features()), str(clicks), holdout=0.5, output=tmp_path / "got")
    got = ps.fit(ps.Linear(features()), str(clicks), holdout=0.5, output=tmp_path / "got", resume=True)
    assert_same_model(got.model, want.model)
    assert (got.metrics, got.holdout) == (want.metrics, want.holdout)


def test_ctrl_c_while_the_model_is_saved_comes_too_late(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = RunFolder.finish

    def interrupted(self: RunFolder, model: Linear) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(self, model)

    monkeypatch.setattr(RunFolder, "finish", interrupted)
    run = ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    assert_same_model(ps.load(tmp_path / "m"), run.model)


def test_checkpoints_on_the_way_change_nothing_in_the_model(clicks: Path, tmp_path: Path) -> None:
    for name, every_s in (("without", None), ("with", 1e-9)):
        ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / name, checkpoint_every_s=every_s)
    found = [{p.name: p.read_bytes() for p in (tmp_path / n / "v000001").iterdir()} for n in ("without", "with")]
    assert found[0] == found[1] and "names.parquet" in found[0]


def test_divergence_in_a_later_pass_is_noticed() -> None:
    table = pa.table({"label": [0, 1] * 30, "x": [float(i) for i in range(60)]})
    spec = ps.Features(numeric=[ps.Numeric(name="x", how="raw")])
    model = ps.Linear(spec, optimizer=ps.SGD(alpha=1.0, l2=3.0))
    with pytest.raises(DataError, match="training diverged near table row 0"):
        ps.fit(model, table, passes=200)


def test_a_hold_out_of_an_iterator_is_refused_before_anything_is_learnt(clicks: Path) -> None:
    batches = iter(pq.read_table(clicks).to_batches())
    with pytest.raises(ConfigError, match="a hold-out: data must be readable again, got an iterator"):
        ps.fit(ps.Linear(features()), batches, holdout=0.1)
    next(batches)


def test_recent_rows_of_all_reports_add_up(clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonLines, "interval_s", 0.0)
    ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    lines = [json.loads(line) for line in (tmp_path / "m" / "progress.jsonl").read_text().splitlines()]
    assert len(lines) > 3 and sum(line["recent"]["rows"] for line in lines) == 20_000


def test_mini_batches_larger_than_a_read_are_whole(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    gradients = Linear.gradients

    def noted(self: Linear, rows: Any, index: Any, batch: Any, out: Any) -> Any:
        sizes.append(len(batch))
        return gradients(self, rows, index, batch, out)

    monkeypatch.setattr(Linear, "gradients", noted)
    ps.fit(ps.Linear(features()), pq.read_table(clicks), strategy=ps.Online(minibatch=9000))
    # Eight rows were learnt before the clock started.
    assert sizes[1:] == [9000, 9000, 2000]


def test_another_program_s_manifest_is_left_alone(clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ConfigError, match=r"has a manifest\.json of something else"):
        ps.fit(ps.Linear(features()), str(clicks), output=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_run_begun_anew_keeps_the_checkpoint_before_until_it_has_one(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _InterruptAt(patch, 5000)
        with pytest.raises(Interrupted):
            ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m")
    table = pq.read_table(clicks)
    bad = table.set_column(table.schema.get_field_index("clicked"), "clicked", pa.array([7] * len(table)))
    with pytest.raises(DataError, match="allowed: 0 or 1"):
        ps.fit(ps.Linear(features()), bad, output=tmp_path / "m")
    assert ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m", resume=True).rows == 20_000


@pytest.mark.parametrize(
    "progress", [{}, {"settings": []}, {"settings": {}, "state": {"chunk": "x"}, "metrics": {}}]
)
def test_a_damaged_checkpoint_is_one_line(clicks: Path, tmp_path: Path, progress: dict[str, Any]) -> None:
    from penstock.models import save_model

    model = ps.fit(ps.Linear(features()), str(clicks)).model
    save_model(model, tmp_path / "m" / "checkpoint", progress=progress)
    with pytest.raises(ModelError, match=r"checkpoint|cannot resume"):
        ps.fit(ps.Linear(features()), str(clicks), output=tmp_path / "m", resume=True)


def test_ctrl_c_before_anything_was_learnt_leaves_a_checkpoint(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _InterruptAt(patch, 0)
        with pytest.raises(Interrupted):
            ps.fit(
                ps.Linear(features()), str(clicks), holdout=ps.Holdout(after="2000-01-01"), output=tmp_path / "m"
            )
