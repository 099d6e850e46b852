"""Any kind of model: it is made elsewhere from its spec, trains from its gradients, and is kept like any other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from toy_model import Toy

import penstock as ps
from penstock.batch import SparseBatch
from penstock.errors import ConfigError, Interrupted, ModelError
from penstock.features import ColumnPlan, FeaturePlan
from penstock.models import Linear, Model, load_model, model_from_spec, register_model, save_model, table_layouts
from penstock.table import unique_keys
from penstock.train.folder import RunFolder
from penstock.train.learners import MiniBatches

PLAN = FeaturePlan(
    label="y",
    columns=(
        ColumnPlan(name="site", kind="categorical", type="string"),
        ColumnPlan(name="price", kind="standard", type="double", mean=1 / 3, scale=0.1),
    ),
    crosses=(("site", "user"),),
)


def models() -> list[Model]:
    return [
        Linear(PLAN, optimizer=ps.FTRL(alpha=0.3, l1=1 / 3), segments=32),
        Toy(PLAN, segments=16),
        Toy(PLAN, optimizer=ps.AdaGrad(alpha=0.1), block=8, dense_optimizer=ps.SGD(alpha=0.02)),
    ]


def data(rows: int = 3000, seed: int = 1) -> pa.Table:
    """Sites say something of the label, some of them less."""
    random = np.random.default_rng(seed)
    site, user = random.integers(0, 30, rows), random.integers(0, 50, rows)
    chance = 1 / (1 + np.exp(-np.random.default_rng(0).normal(0, 2, 30)[site]))
    return pa.table({"site": site, "user": user, "y": (random.random(rows) < chance).astype(np.int64)})


def batch_of(random: np.random.Generator, rows: int = 12, *, weighted: bool = True) -> SparseBatch:
    lengths = random.integers(0, 5, rows)
    keys = [random.choice(np.arange(1, 20, dtype=np.uint64), n, replace=False) for n in lengths]
    batch = SparseBatch(
        keys=np.concatenate(keys) * np.uint64(0x9E3779B97F4A7C15) << np.uint64(1),
        offsets=np.cumsum([0, *lengths]),
        labels=random.integers(0, 2, rows).astype(np.float32),
        values=random.normal(size=lengths.sum()).astype(np.float32),
        weights=random.choice([0.5, 1, 3], rows).astype(np.float32) if weighted else None,
    )
    batch.check()
    return batch


def rows_of(model: Model) -> dict[str, bytes]:
    return {
        name: b"".join(part.tobytes() for s in range(table.segments) for part in table.items(s))
        for name, table in model.tables().items()
    }


# The spec.


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    return all(map(plain, value)) if isinstance(value, list) else type(value) in (bool, int, float, str)


@pytest.mark.parametrize("model", models(), ids=lambda m: m.kind)
def test_a_model_is_made_elsewhere_from_plain_values(model: Model) -> None:
    model.begin()
    spec = model.to_spec()
    assert plain(spec)
    made = model_from_spec(json.loads(json.dumps(spec)))
    assert type(made) is type(model) and made.to_spec() == spec
    assert (made.plan, made.optimizer, made.settings()) == (model.plan, model.optimizer, model.settings())
    # It is a shell: without rows, and as small as a table can be.
    assert made.rows == 0
    for name, table in made.tables().items():
        assert table.layout == model.tables()[name].layout == table_layouts(spec)[name]
        assert table.slots == 64 * table.segments
    assert model.shell(segments=2).segments == 2 and model.shell().to_spec() == spec


def test_room_is_made_by_table() -> None:
    spec = Toy(PLAN, segments=2).to_spec()
    made = model_from_spec(spec, slots={"narrow": 1, "wide": 1 << 12, "dense": 1})
    assert [table.slots for table in made.tables().values()] == [128, 1 << 12, 128]
    assert all(table.slots == 1 << 10 for table in model_from_spec(spec, slots=1 << 10).tables().values())


def test_a_model_that_was_never_fitted_has_no_spec() -> None:
    with pytest.raises(ConfigError, match="has not been fitted"):
        Linear().to_spec()


def test_a_setting_must_be_a_plain_value() -> None:
    class Odd(Toy):
        def settings(self) -> dict[str, Any]:
            return {"block": [np.int64(3)]}

    with pytest.raises(ConfigError, match=r"settings\.block\[0\] must be a plain value, got a int64"):
        Odd(PLAN).to_spec()


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps(spec))
    *outer, last = path.split("/")
    holder = spec
    for name in outer:
        holder = holder[name]
    holder[last] = value
    if value is None:
        del holder[last]
    return spec


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kind", "deep", r"model kind 'deep' is not known; allowed: .*linear.*toy"),
        ("kind", ["toy"], r"model kind \['toy'\] is not known"),
        ("kind", None, "'kind' is missing"),
        ("features", None, "'features' is missing"),
        ("features", [], "model spec: "),
        ("features/version", 7, "features of hashing version 7"),
        ("optimizer", "sgd", "model spec: "),
        ("optimizer/name", "adam", "optimizer 'adam' is not known"),
        ("segments", 3, "segments must be a power of two >= 2, got 3"),
        ("segments", 32, "has here tables .*32.*, in the spec .*16"),
        ("settings/depth", 3, "model spec: .*unexpected keyword argument 'depth'"),
        ("settings/block", 32, 'has here tables .*"dense":{"dim":32.*, in the spec .*"dense":{"dim":16'),
        ("tables", None, "tables must be described by their names, got None"),
        ("tables/wide", None, "has here tables"),
        ("tables/wide/dim", 32, "has here tables"),
        ("tables/wide/dim", "64", "dim must be an integer, got '64'"),
        ("tables/wide/dim", 1 << 20, "dim must be <= 65536"),
        ("tables/wide/segments", True, "segments must be an integer, got True"),
        ("tables/wide/optimizer", "ftrl", "an optimizer is described by its name and numbers, got 'ftrl'"),
        ("tables/wide/color", "red", "described by dim, segments and optimizer, got"),
        ("tables/wide", 7, "described by dim, segments and optimizer, got 7"),
    ],
)
def test_a_spec_that_cannot_be(path: str, value: Any, message: str) -> None:
    spec = changed(Toy(PLAN, segments=16).to_spec(), path, value)
    with pytest.raises(ConfigError, match=message) as raised:
        model_from_spec(spec)
    assert len(str(raised.value).splitlines()) == 1


def test_kinds_and_tables_have_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"model kind 'toy' is already registered by .*toy_model\.Toy"):
        register_model(type("Other", (Toy,), {}))
    with pytest.raises(ConfigError, match="kind must be a word"):
        register_model(type("Nameless", (Toy,), {"kind": "a b"}))
    model = Toy(PLAN)
    for name in ("wide", "a-b"):
        with pytest.raises(ConfigError, match="name must be a new identifier"):
            model.add_table(name, dim=1, slots=1)
    with pytest.raises(ConfigError, match="same number of segments, got 8 for 'more', 1024 before"):
        model.add_table("more", dim=1, slots=1, segments=8)


# Training.


def pulled(model: Model, batch: SparseBatch) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    distinct = {name: unique_keys(keys) for name, keys in model.keys(batch).items()}
    rows = {name: model.tables()[name].pull(keys) for name, (keys, _) in distinct.items()}
    return {n: k for n, (k, _) in distinct.items()}, rows, {n: i for n, (_, i) in distinct.items()}


def test_the_toys_gradients_are_those_of_its_loss() -> None:
    random = np.random.default_rng(4)
    model, batch = Toy(PLAN, segments=2), batch_of(random)
    _, rows, index = pulled(model, batch)
    rows = {name: random.normal(0, 0.5, array.shape) for name, array in rows.items()}
    out = np.empty(len(batch), np.float32)
    _, grads = model.gradients(rows, index, batch, out)
    for name, array in rows.items():
        for at in zip(*(random.integers(0, n, 20) for n in array.shape), strict=True):
            losses = []
            for step in (1e-3, -1e-3):
                moved = {**rows, name: array.copy()}
                moved[name][at] += step
                losses.append(model.gradients(moved, index, batch, out)[0])
            assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(grads[name][at], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_mini_batches_push_what_gradients_gave(size: int) -> None:
    """Against rows in a dict, with AdaGrad written out."""
    random = np.random.default_rng(7)
    model = Toy(PLAN, optimizer=ps.AdaGrad(alpha=0.2, initial=0.1), segments=2)
    model.begin()
    states: dict[tuple[str, int], list[np.ndarray]] = {}
    for name, (keys, words) in model.initial_rows().items():
        for key, word in zip(keys.tolist(), words, strict=True):
            states[name, key] = [w.copy() for w in np.split(word.astype(np.float64), 2)]
    batches = [batch_of(random, 20) for _ in range(4)]
    out = np.empty(20, np.float32)
    with MiniBatches(model, size) as learner:
        for batch in batches:
            learner.learn(batch, out)
            expected = np.empty(20, np.float32)
            for begin in range(0, 20, size):
                part = batch.slice(begin, min(begin + size, 20))
                keys, rows, index = pulled(model, part)
                for name, array in rows.items():
                    for i, key in enumerate(keys[name].tolist()):
                        zeros = [np.zeros(array.shape[1]), np.zeros(array.shape[1])]
                        array[i] = states.setdefault((name, key), zeros)[0]
                _, grads = model.gradients(rows, index, part, expected[begin : begin + len(part)])
                for name, array in grads.items():
                    for key, g in zip(keys[name].tolist(), array.astype(np.float64), strict=True):
                        w, total = states[name, key]
                        total += g * g
                        w -= 0.2 * g / np.sqrt(0.1 + total)
            np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)
    for name, table in model.tables().items():
        keys = np.array([key for table_name, key in states if table_name == name], np.uint64)
        want = np.stack([states[name, key][0] for key in keys.tolist()])
        np.testing.assert_allclose(table.pull(keys), want, rtol=1e-3, atol=1e-5)
        assert len(table) == len(keys)


def test_a_model_that_has_learnt_keeps_its_rows_when_training_begins_again() -> None:
    model = Toy(PLAN, segments=2)
    model.begin()
    with MiniBatches(model, 12) as learner:
        for _ in range(2):  # the first gradient of the dense part is 0, as features have no rows yet
            learner.learn(batch_of(np.random.default_rng(0)), np.empty(12, np.float32))
    before = rows_of(model)
    model.begin()
    assert rows_of(model) == before


@pytest.fixture
def features() -> ps.Features:
    return ps.Features(label="y", categorical=["site", "user"])


def test_fit_trains_any_model_in_mini_batches(features: ps.Features, tmp_path) -> None:
    strategy = ps.Online(minibatch=64)
    run = ps.fit(Toy(features), data(), passes=2, strategy=strategy, output=tmp_path / "m", holdout=0.2)
    linear = ps.fit(ps.Linear(features, optimizer=ps.AdaGrad()), data(), passes=2, strategy=strategy, holdout=0.2)
    assert run.holdout is not None and linear.holdout is not None
    assert run.holdout.auc > 0.8 and run.holdout.logloss < linear.holdout.logloss + 0.02
    loaded = load_model(tmp_path / "m")
    assert isinstance(loaded, Toy) and rows_of(loaded) == rows_of(run.model)
    np.testing.assert_array_equal(loaded.predict(data(50)), run.model.predict(data(50)))
    assert ps.evaluate(loaded, data()).scores() == ps.evaluate(run.model, data()).scores()


def test_an_interrupted_fit_goes_on(features: ps.Features, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"strategy": ps.Online(minibatch=64), "passes": 3}
    want = ps.fit(Toy(features), data(), **options).model
    save, times = RunFolder.save_checkpoint, []

    def stopped(self: RunFolder, model: Model, progress: dict[str, Any]) -> None:
        save(self, model, progress)
        times.append(1)
        if len(times) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, Interrupted)):
        patch.setattr(RunFolder, "save_checkpoint", stopped)
        ps.fit(Toy(features), data(), output=tmp_path / "m", checkpoint_every_s=1e-9, **options)
    got = ps.fit(Toy(features), data(), output=tmp_path / "m", resume=True, **options).model
    assert rows_of(got) == rows_of(want)


def test_a_model_without_a_way_to_learn_by_example_says_so(features: ps.Features) -> None:
    with pytest.raises(ConfigError, match=r"kind 'toy' learns in mini-batches; give Online\(minibatch=512\)"):
        ps.fit(Toy(features), data())


# On disk.


def test_tables_of_several_dimensions_and_optimizers_come_back(tmp_path) -> None:
    model = Toy(PLAN, block=8, dense_optimizer=ps.SGD(alpha=0.02), segments=16)
    model.begin()
    with MiniBatches(model, 10) as learner:
        for seed in range(5):
            learner.learn(batch_of(np.random.default_rng(seed)), np.empty(12, np.float32))
    manifest = save_model(model, tmp_path)
    assert manifest["format_version"] == 1
    assert manifest["model"] == {"kind": "toy", "settings": model.settings()}
    assert [table.get("optimizer", {}).get("name") for table in manifest["tables"].values()] == [None, None, "sgd"]
    loaded = load_model(tmp_path)
    assert rows_of(loaded) == rows_of(model) and loaded.to_spec() == model.to_spec()
    for table in loaded.tables().values():
        table.validate()
        assert not len(table.take_changed())


def test_a_model_whose_class_has_other_tables_now_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(Toy(PLAN, segments=2), tmp_path)
    add = Toy.add_table
    monkeypatch.setattr(Toy, "add_table", lambda self, name, dim, **rest: add(self, name, dim=dim + 1, **rest))
    with pytest.raises(ModelError, match=r"manifest\.json: model kind 'toy' has here tables"):
        load_model(tmp_path)
