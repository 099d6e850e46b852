"""Job files: what they may say, and one line with its place for what they may not."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.data import CsvOptions
from penstock.engine import ParameterServer
from penstock.errors import ConfigError
from penstock.features import Features, Numeric
from penstock.job import job as module
from penstock.job.job import Data, FeatureSection, Job, Output, Training, read_job
from penstock.models import KeepVersions
from penstock.optim import FTRL, AdaGrad
from penstock.parameter_server import BSP, SSP
from penstock.train import Holdout, Online, Publish
from penstock.train.tree import TreeAggregate

SECTIONS: dict[str, type] = {"data": Data, "features": FeatureSection, "train": Training, "output": Output}

EVERY_KEY = """
[data]
train = ["a.csv", "b/*.csv"]
format = "csv"
delimiter = ";"
header = false
columns = ["clicked", "age", "price", "site", "user", "seconds", "importance", "note"]
null_values = ["NA"]

[features]
label = "clicked"
numeric = ["price", { name = "age", how = "log", per_octave = 2 }]
categorical = ["site", "user"]
crosses = [["site", "user"], ["user", "site", "age"]]
weight = "importance"
time = "seconds"
ignore = ["note"]
bias = false

[optimizer]
name = "adagrad"
alpha = 0.2
initial = 1
l2 = 1e-6

[train]
passes = 3
threads = 1
minibatch = 64
holdout_after = "2024-05-06T07:08:09"
readers = 2
checkpoint_every_s = 60

[output]
path = "out/model"
publish_every_s = 30
publish_to = "memory://ctr"
keep_versions = 5
keep_for_s = 60
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "job.toml"


def read(toml: Path, content: str | bytes) -> Job:
    toml.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_job(toml)


def fails(toml: Path, content: str | bytes, *parts: str) -> None:
    """The file is refused with one line that names it and has these parts."""
    with pytest.raises(ConfigError) as caught:
        read(toml, content)
    message = str(caught.value)
    assert message.startswith(f"{toml}: ") and "\n" not in message
    for part in parts:
        assert part in message


OF_OTHER_STRATEGIES = [
    f"train.{name}"
    for name in (
        "strategy",
        "servers",
        "workers",
        "consistency",
        "micro_batches",
        "depth",
        "window",
        "partitions",
        "solver",
        "imports",
    )
]


def test_every_key(toml: Path) -> None:
    job = read(toml, EVERY_KEY)
    assert job == Job(
        data=Data(
            train=["a.csv", "b/*.csv"],
            format="csv",
            delimiter=";",
            header=False,
            columns=["clicked", "age", "price", "site", "user", "seconds", "importance", "note"],
            null_values=["NA"],
        ),
        features=FeatureSection(
            label="clicked",
            numeric=["price", {"name": "age", "how": "log", "per_octave": 2}],
            categorical=["site", "user"],
            crosses=[["site", "user"], ["user", "site", "age"]],
            weight="importance",
            time="seconds",
            ignore=["note"],
            bias=False,
        ),
        optimizer={"name": "adagrad", "alpha": 0.2, "initial": 1.0, "l2": 1e-6},
        train=Training(
            passes=3,
            threads=1,
            minibatch=64,
            holdout_after="2024-05-06T07:08:09",
            readers=2,
            checkpoint_every_s=60.0,
        ),
        output=Output(
            path="out/model", publish_every_s=30.0, publish_to="memory://ctr", keep_versions=5, keep_for_s=60.0
        ),
    )
    # Nothing in this test is left at what it would be anyway.
    for name, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            if f"{name}.{field.name}" not in ("train.holdout", "train.threads", *OF_OTHER_STRATEGIES):
                assert getattr(getattr(job, name), field.name) != field.default
                assert f"\n{field.name} = " in EVERY_KEY


def test_defaults(toml: Path) -> None:
    assert read(toml, '[data]\ntrain = "a.csv"\n') == Job(
        data=Data(train="a.csv", format=None, delimiter=None, header=True, columns=None),
        features=FeatureSection(
            label="label",
            numeric=None,
            categorical=None,
            crosses=[],
            weight=None,
            time=None,
            ignore=[],
            bias=True,
        ),
        optimizer={"name": "ftrl"},
        train=Training(
            passes=1,
            threads=1,
            minibatch=None,
            holdout=None,
            holdout_after=None,
            readers=None,
            checkpoint_every_s=300.0,
        ),
        output=Output(path="model"),
    )


def test_empty_sections_are_as_none(toml: Path) -> None:
    job = read(toml, '[data]\ntrain = "a"\n[features]\n[train]\n[output]\n')
    assert job == Job.from_dict({"data": {"train": "a"}})


def test_defaults_are_not_shared() -> None:
    one, two = (Job.from_dict({"data": {"train": "a"}}) for _ in range(2))
    one.optimizer["alpha"] = 5.0
    one.features.ignore.append("x")
    assert (two.optimizer, two.features.ignore) == ({"name": "ftrl"}, [])


# What is not a job.


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["missing required field `data`"]),
        ("[data]\n", ["missing required field `train`", "at `data`"]),
        ("[train]\npasses = 1\n", ["missing required field `data`"]),
    ],
)
def test_missing_keys(toml: Path, content: str, parts: list[str]) -> None:
    fails(toml, content, *parts)


@pytest.mark.parametrize("section", ["", *SECTIONS])
@pytest.mark.parametrize("value", ["1", "{ deep = 1 }", "[{ deep = 1 }]"])
def test_unknown_keys_are_named_with_those_that_are_known(toml: Path, section: str, value: str) -> None:
    known = [field.name for field in dataclasses.fields(SECTIONS.get(section, Job))]
    name = f"{section}.tpyo" if section else "tpyo"
    allowed = f"{name} is not known; allowed: {', '.join(sorted(known))}"
    if section == "data":
        fails(toml, f'data.train = "a"\n{name} = {value}\n', allowed)
    else:
        fails(toml, f'{name} = {value}\n[data]\ntrain = "a"\n', allowed)


def test_an_unknown_section(toml: Path) -> None:
    fails(toml, '[data]\ntrain = "a"\n[trian]\npasses = 2\n', "trian is not known; allowed: data, features, ")


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("data", '"a.csv"', "str"),
        ("data", "[{ train = 'a' }]", "array"),
        ("data.train", "3", "int"),
        ("data.train[1]", "['a', 3]", "int"),
        ("data.format", "1", "int"),
        ("data.delimiter", "9", "int"),
        ("data.header", '"no"', "str"),
        ("data.header", "0", "int"),
        ("data.null_values", "'NA'", "str"),
        ("data.columns", '"a,b"', "str"),
        ("data.columns[0]", "[1]", "int"),
        ("features", "[]", "array"),
        ("features.label", "true", "bool"),
        ("features.numeric", '"age"', "str"),
        ("features.numeric[1]", '["age", 3]', "int"),
        ("features.numeric[0][...]", "[{ name = 'age', per_octave = 1.5 }]", "float"),
        ("features.categorical", "1", "int"),
        ("features.categorical[0]", "[['a']]", "array"),
        ("features.crosses[0]", "['a', 'b']", "str"),
        ("features.crosses[0][1]", "[['a', 1]]", "int"),
        ("features.weight", "[]", "array"),
        ("features.time", "2024-05-06", "date"),
        ("features.ignore", '"a"', "str"),
        ("features.bias", "1", "int"),
        ("optimizer", '"ftrl"', "str"),
        ("optimizer[...]", "{ name = 'ftrl', alpha = true }", "bool"),
        ("optimizer[...]", "{ name = ['ftrl'] }", "array"),
        ("train", "1", "int"),
        ("train.passes", '"2"', "str"),
        ("train.passes", "2.5", "float"),
        ("train.passes", "true", "bool"),
        ("train.threads", "1.5", "float"),
        ("train.minibatch", '"8"', "str"),
        ("train.holdout", '"10%"', "str"),
        ("train.holdout_after", "true", "bool"),
        ("train.readers", "0.5", "float"),
        ("train.strategy", "1", "int"),
        ("train.servers", '"2"', "str"),
        ("train.workers", "2.5", "float"),
        ("train.consistency", "4", "int"),
        ("train.micro_batches", '"4"', "str"),
        ("train.depth", "1.5", "float"),
        ("train.window", '"1"', "str"),
        ("train.partitions", "1.5", "float"),
        ("train.solver", "1", "int"),
        ("train.imports", '"a"', "str"),
        ("train.checkpoint_every_s", '"5m"', "str"),
        ("output", '"model"', "str"),
        ("output.path", "1", "int"),
        ("output.publish_every_s", '"soon"', "str"),
        ("output.publish_to", "1", "int"),
        ("output.keep_versions", "1.5", "float"),
        ("output.keep_for_s", '"1h"', "str"),
    ],
)
def test_values_of_another_type_are_named_with_their_path(toml: Path, key: str, value: str, got: str) -> None:
    name = key.partition("[")[0]
    content = f"{name} = {value}\n"
    if name not in ("data", "data.train"):
        content += 'data.train = "a"\n'
    fails(toml, content, f"got `{got}` - at `{key}`", "Expected `")


def test_every_key_has_a_type_that_is_checked() -> None:
    [marker] = [
        mark
        for mark in test_values_of_another_type_are_named_with_their_path.pytestmark
        if mark.name == "parametrize"
    ]
    tried = {key.partition("[")[0] for key, _, _ in marker.args[1]}
    for section, cls in SECTIONS.items():
        assert {f"{section}.{field.name}" for field in dataclasses.fields(cls)} <= tried


@pytest.mark.parametrize(
    "content",
    [
        b"[data\n",
        b"train\n",
        b'{"data": {"train": "a"}}',
        b"[data]\n[data]\n",
        b"\xff\xfe",
        b"a = 1979-13-40\n",
        b"\0",
    ],
)
def test_not_toml(toml: Path, content: bytes) -> None:
    fails(toml, content, "not TOML: ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_job(tmp_path / "job.toml")
    assert str(caught.value) == f"{tmp_path}/job.toml: cannot be read: No such file or directory"
    with pytest.raises(ConfigError) as caught:
        read_job(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


def test_without_a_file_it_is_a_job_that_is_wrong() -> None:
    for job, message in (
        (
            {"data": {"train": "a"}, "x": 1},
            "job: x is not known; allowed: data, features, optimizer, output, train",
        ),
        ({"data": None}, "job: Expected `object`, got `null` - at `data`"),
        ({"data": {"train": Path("a")}}, "job: Expected `str | array`, got `PosixPath` - at `data.train`"),
        (
            {"data": {"train": "a"}, "train": {"holdout_after": datetime.date(2024, 5, 6)}},
            "job: Expected `float | str | null`, got `date` - at `train.holdout_after`",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            Job.from_dict(job)
        assert str(caught.value) == message


# There and back.

# Control characters would need other escapes in TOML than in JSON.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)
TEXTS = st.lists(TEXT, max_size=3)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(1, 2**63 - 1)
JOBS = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"train": TEXT | TEXTS},
            optional={"format": TEXT, "delimiter": TEXT, "header": st.booleans(), "columns": TEXTS},
        )
    },
    optional={
        "features": st.fixed_dictionaries(
            {},
            optional={
                "label": TEXT,
                "numeric": st.lists(
                    TEXT
                    | st.fixed_dictionaries(
                        {"name": TEXT}, optional={"how": st.just("log"), "per_octave": st.integers(1, 9)}
                    ),
                    max_size=3,
                ),
                "categorical": TEXTS,
                "crosses": st.lists(st.lists(TEXT, min_size=2, max_size=3, unique=True), max_size=2),
                "weight": TEXT,
                "time": TEXT,
                "ignore": TEXTS,
                "bias": st.booleans(),
            },
        ),
        "optimizer": st.fixed_dictionaries(
            {"name": st.sampled_from(["ftrl", "adagrad", "sgd"])},
            optional={"alpha": st.floats(1e-3, 10), "l2": st.floats(0, 1)},
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "passes": COUNTS,
                "minibatch": st.integers(1, 1 << 16),
                "holdout_after": TEXT | NUMBERS,
                "readers": COUNTS,
                "checkpoint_every_s": NUMBERS,
            },
        ),
        "output": st.fixed_dictionaries({}, optional={"path": TEXT}),
    },
)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example of a test writes anew."""
    return tmp_path_factory.mktemp("job") / "job.toml"


def is_allowed(values: dict[str, Any]) -> bool:
    """No column stands for two things."""
    try:
        Job.from_dict(values)
    except ConfigError as error:
        return not re.search("named twice|cannot be (a feature|crossed)", str(error))
    return True


@settings(deadline=None)
@given(JOBS.filter(is_allowed))
def test_a_job_is_the_same_by_toml_by_values_and_by_json(scratch: Path, values: dict[str, Any]) -> None:
    job = Job.from_dict(values)
    assert read(scratch, "\n".join(f"{key} = {as_toml(value)}" for key, value in values.items())) == job
    assert Job.from_dict(job.to_dict()) == job
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    for section, given_values in values.items():
        kept = job.to_dict()[section]
        assert {key: kept[key] for key in given_values} == given_values


# What a job makes.


def test_the_model_of_a_job(toml: Path) -> None:
    model = read(toml, EVERY_KEY).model()
    assert model.optimizer == AdaGrad(alpha=0.2, initial=1.0, l2=1e-6)
    assert read(toml, EVERY_KEY).features.to_features() == Features(
        label="clicked",
        numeric=["price", Numeric(name="age", how="log", per_octave=2)],
        categorical=["site", "user"],
        crosses=[["site", "user"], ["user", "site", "age"]],
        weight="importance",
        time="seconds",
        ignore=["note"],
        bias=False,
    )
    assert Job.from_dict({"data": {"train": "a"}}).model().optimizer == FTRL()
    assert Job.from_dict({"data": {"train": "a"}}).features.to_features() == Features(crosses=[], ignore=[])


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"optimizer": {"name": "adam"}}, ["'adam'", "allowed: adagrad, ftrl, sgd"]),
        ({"optimizer": {"alpha": 0.1}}, ["optimizer None", "allowed: adagrad, ftrl, sgd"]),
        ({"optimizer": {"name": "ftrl", "rate": 1}}, ["'rate'", "allowed: alpha, beta, l1, l2"]),
        ({"optimizer": {"name": "ftrl", "l1": -1}}, ["l1 must be a finite number >= 0", "-1"]),
        ({"optimizer": {"name": "ftrl", "alpha": "0.1"}}, ["alpha must be a finite number > 0", "'0.1'"]),
        ({"optimizer": {"name": "ftrl", "alpha": float("nan")}}, ["alpha", "nan"]),
        ({"features": {"numeric": [{"name": "age", "how": "lag"}]}}, ["features.numeric", "'lag'", "how"]),
        ({"features": {"numeric": [{"name": "age", "how": 1}]}}, ["features.numeric", "how"]),
        ({"features": {"numeric": [{"how": "log"}]}}, ["features.numeric", "`name`"]),
        (
            {"features": {"numeric": [{"name": "age", "per_octave": 0}]}},
            ["'age'", "per_octave must be >= 1, got 0"],
        ),
        ({"features": {"numeric": [{"name": "age", "per_octave": "4"}]}}, ["features.numeric", "per_octave"]),
        ({"features": {"crosses": [["site"]]}}, ["cross", "['site']"]),
        ({"features": {"crosses": [["site", "site"]]}}, ["cross", "['site', 'site']"]),
        ({"features": {"crosses": [["site", "label"]]}}, ["'label' cannot be crossed"]),
        ({"features": {"categorical": ["label"]}}, ["'label' cannot be a feature"]),
        ({"features": {"categorical": ["a"], "numeric": [{"name": "a"}]}}, ["'a' is named twice"]),
    ],
)
def test_models_that_cannot_be(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Job.from_dict({"data": {"train": "a"}, **values}).model()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def training(**values: Any) -> Job:
    return Job.from_dict({"data": {"train": "a"}, "train": values})


def test_the_hold_out_of_a_job() -> None:
    assert training().holdout() is None
    assert training(holdout=0.25).holdout() == Holdout(fraction=0.25)
    assert training(holdout_after="2024-05-06").holdout() == Holdout(after="2024-05-06")
    # A number may be event time, and may be 0.
    assert training(holdout_after=0).holdout() == Holdout(after=0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"holdout": 0.1, "holdout_after": 3}, "a hold-out needs either fraction or after"),
        ({"holdout": 0}, "hold-out fraction must be between 0 and 1, got 0.0"),
        ({"holdout": 1}, "hold-out fraction must be between 0 and 1, got 1.0"),
        ({"holdout": -0.1}, "hold-out fraction must be between 0 and 1, got -0.1"),
        ({"holdout": float("nan")}, "hold-out fraction must be between 0 and 1, got nan"),
    ],
)
def test_hold_outs_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        training(**values).holdout()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_strategy_of_a_job() -> None:
    assert training().strategy() == Online(threads=1, minibatch=None)
    assert training(threads=4).strategy() == Online(threads=4)
    assert training(minibatch=8).strategy() == Online(minibatch=8)
    for values, message in (
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"minibatch": 0}, "minibatch must be 1 to 65,536, got 0"),
        ({"threads": 2, "minibatch": 8}, "give either minibatch or threads"),
    ):
        with pytest.raises(ConfigError, match=message):
            training(**values).strategy()


def test_the_source_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1;x\n0;y\n")
    values = {"train": str(tmp_path / "a.csv"), "delimiter": ";", "header": False, "columns": ["label", "t"]}
    data = Job.from_dict({"data": values}).data
    assert data.open().sample(9).to_pylist() == [{"label": 1, "t": "x"}, {"label": 0, "t": "y"}]
    (tmp_path / "a.csv").write_bytes(b"label\tt\n1\tx\n")
    again = Job.from_dict({"data": {"train": str(tmp_path / "a.csv"), "format": "tsv"}}).data
    assert again.open().sample(9).to_pylist() == [{"label": 1, "t": "x"}]


def test_options_of_csv_are_given_only_where_the_job_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "open_source", lambda data, **options: asked.append((data, options)))
    Data(train="a.parquet").open()
    Data(train=["a"], format="tsv", header=False).open()
    Data(train="b", delimiter=" ", null_values=["NA"]).open()
    assert asked == [
        ("a.parquet", {"format": None, "csv": None}),
        (["a"], {"format": "tsv", "csv": CsvOptions(header=False)}),
        ("b", {"format": None, "csv": CsvOptions(delimiter=" ", null_values=("NA",))}),
    ]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"format": "xls"}, ["format", "'xls'", "allowed: arrow, csv"]),
        ({"delimiter": ",,"}, ["delimiter", "',,'"]),
        ({"delimiter": ""}, ["delimiter", "''"]),
        ({"columns": ["a"]}, ["columns", "set header to false"]),
        ({"columns": ["a", "a"], "header": False}, ["columns", "'a' 2 times"]),
        ({"format": "libsvm", "delimiter": " "}, ["csv options", "'libsvm'"]),
    ],
)
def test_sources_that_cannot_be(tmp_path: Path, values: dict[str, Any], parts: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(b"1 1:1\n")
    with pytest.raises(ConfigError) as caught:
        Job.from_dict({"data": {"train": str(tmp_path / "a.csv"), **values}}).data.open()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_run_is_given_all_that_the_job_says(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(module, "fit", lambda model, source, **options: runs.append((model, source, options)))
    job = Job.from_dict(
        {
            "data": {"train": "a"},
            "train": {"passes": 3, "threads": 2, "holdout": 0.1, "readers": 5, "checkpoint_every_s": 7},
            "output": {"path": "out", "publish_every_s": 9, "publish_to": "memory://x", "keep_versions": 2},
        }
    )
    model, source = job.model(), pa.table({})
    job.run(model, source, resume=True, progress=False)
    [(got_model, got_source, options)] = runs
    assert got_model is model and got_source is source
    assert options == {
        "passes": 3,
        "strategy": Online(threads=2),
        "engine": None,
        "holdout": Holdout(fraction=0.1),
        "output": "out",
        "resume": True,
        "checkpoint_every_s": 7.0,
        "publish": Publish(every_s=9.0, to="memory://x", keep=KeepVersions(newest=2)),
        "progress": False,
        "readers": 5,
        "job": job.to_dict(),
    }
    assert Job.from_dict(options["job"]) == job


def test_a_misspelt_key_of_a_numeric_column() -> None:
    job = {"data": {"train": "a"}, "features": {"numeric": [{"name": "age", "hwo": "log"}]}}
    with pytest.raises(ConfigError, match=r"job: features.numeric: 'hwo' is not known; allowed: name, how"):
        Job.from_dict(job)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optimizer", {"name": "adam"}, "optimizer 'adam' is not known"),
        ("optimizer", {"name": "ftrl", "alpha": 1e300}, "alpha must be a finite number > 0, got 1e+300"),
        ("optimizer", {"name": "ftrl", "alpha": 1e-60}, "alpha must be a finite number > 0, got 1e-60"),
        ("train", {"threads": 2, "minibatch": 3}, "either minibatch or threads"),
        ("train", {"holdout": 1.5}, "between 0 and 1"),
        ("features", {"crosses": [["a"]]}, "two or more columns"),
    ],
)
def test_a_file_is_checked_whole(toml: Path, section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Job.from_dict({"data": {"train": "a"}, section: values}, str(toml))
    assert str(caught.value).startswith(f"{toml}: ") and message in str(caught.value)


def test_files_that_no_parser_takes(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not TOML"):
        read_job(tmp_path / "deep.toml")
    with pytest.raises(ConfigError, match="not TOML: embedded null byte"):
        read_job("a\0b")
    with pytest.raises(ConfigError, match=r"^[^\n]*$"):
        Job.from_dict({"data": {"train": "a", "x\ny": 1}})


@pytest.mark.parametrize(
    ("written", "kept"),
    [("2024-05-06", "2024-05-06"), ("2024-05-06T07:08:09Z", "2024-05-06T07:08:09+00:00"), ("17", 17.0)],
)
def test_a_time_may_stand_without_quotes(toml: Path, written: str, kept: str | float) -> None:
    assert read(toml, f'[data]\ntrain = "a"\n[train]\nholdout_after = {written}\n').train.holdout_after == kept


@pytest.mark.parametrize(
    ("train", "strategy"),
    [
        ({}, Online()),
        ({"minibatch": 64}, Online(minibatch=64)),
        ({"servers": 2}, ParameterServer(servers=2)),
        ({"workers": 3, "consistency": "ssp:4"}, ParameterServer(workers=3, consistency=SSP(4))),
        (
            {
                "strategy": "parameter-server",
                "consistency": "bsp",
                "minibatch": 64,
                "micro_batches": 2,
                "depth": 5,
            },
            ParameterServer(consistency=BSP(), minibatch=64, micro_batches=2, depth=5),
        ),
        ({"consistency": "asp", "window": 3, "imports": ["json"]}, ParameterServer(window=3, imports=("json",))),
        (
            {"strategy": "tree", "depth": 3, "partitions": 4, "minibatch": 64},
            TreeAggregate(depth=3, partitions=4, batch_rows=64, executor="processes"),
        ),
        ({"strategy": "tree", "solver": "lbfgs"}, TreeAggregate(solver="lbfgs", executor="processes")),
    ],
)
def test_strategies(train: dict[str, Any], strategy: object) -> None:
    assert Job.from_dict({"data": {"train": "a"}, "train": train}).strategy() == strategy


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ({"strategy": "spark"}, ["train.strategy 'spark'", "online, parameter-server, tree"]),
        ({"servers": 2, "threads": 2}, ["train.threads", "'parameter-server'", "servers, workers"]),
        ({"strategy": "online", "servers": 2}, ["train.servers", "'online'"]),
        ({"strategy": "tree", "workers": 2}, ["train.workers", "'tree'"]),
        ({"consistency": "eventual"}, ["consistency 'eventual'", "bsp, ssp:4 (any number) and asp"]),
        ({"consistency": "ssp"}, ["consistency 'ssp'"]),
        ({"servers": 0}, ["servers", "got 0"]),
        ({"servers": 1, "imports": ["no_such.module"]}, ["module 'no_such.module' cannot be imported"]),
        ({"workers": 2, "window": 0}, ["window", "got 0"]),
    ],
)
def test_strategies_that_cannot_be(train: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Job.from_dict({"data": {"train": "a"}, "train": train})
    for part in parts:
        assert part in str(caught.value)
