"""What ``penstock train job.toml`` runs. The sections are keyword-only dataclasses; a file is checked whole.

::

    [data]
    train = "clicks/*.parquet"

    [features]
    label = "clicked"
    numeric = ["price", { name = "age", how = "log" }]
    categorical = ["site", "user"]
    crosses = [["site", "user"]]

    [optimizer]
    name = "ftrl"
    alpha = 0.1

    [train]
    passes = 2
    holdout = 0.1

    [output]
    path = "model/"
"""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from penstock.data import CsvOptions, Source, open_source
from penstock.engine import LocalProcesses, ParameterServer
from penstock.engine.spec import import_modules
from penstock.errors import ConfigError
from penstock.features import Features, Numeric
from penstock.job.dispatch import Strategy, fit
from penstock.models import KeepVersions, Linear
from penstock.optim import optimizer_from_dict
from penstock.parameter_server import ASP, Consistency, parse_consistency
from penstock.train import Holdout, Online, Publish, Run
from penstock.train.tree import TreeAggregate

__all__ = ["Data", "Job", "Output", "Training", "read_job", "read_sections"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What to read. All but ``train`` and ``format`` is for CSV and TSV; see ``CsvOptions``."""

    train: str | list[str]
    format: str | None = None
    delimiter: str | None = None
    header: bool = True
    columns: list[str] | None = None
    null_values: list[str] = field(default_factory=list)

    def open(self) -> Source:
        """A source with these options."""
        columns = tuple(self.columns) if self.columns is not None else None
        csv = CsvOptions(
            delimiter=self.delimiter, header=self.header, columns=columns, null_values=tuple(self.null_values)
        )
        return open_source(self.train, format=self.format, csv=csv if csv != CsvOptions() else None)


@dataclass(frozen=True, kw_only=True)
class FeatureSection:
    """``Features`` as TOML can say it."""

    label: str = "label"
    numeric: list[str | dict[str, str | int]] | None = None
    categorical: list[str] | None = None
    crosses: list[list[str]] = field(default_factory=list)
    weight: str | None = None
    time: str | None = None
    ignore: list[str] = field(default_factory=list)
    bias: bool = True

    def to_features(self) -> Features:
        """The spec."""
        numeric = None
        if self.numeric is not None:
            numeric = [n if isinstance(n, str) else _numeric(n) for n in self.numeric]
        return Features(
            **{**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "numeric": numeric}
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to learn; see ``fit``, and ``Online``, ``ParameterServer`` and ``TreeAggregate`` for each strategy.

    ``strategy`` is online, parameter-server or tree; where it is not given, naming servers, workers or a
    consistency means parameter-server.
    """

    strategy: str | None = None
    passes: int = 1
    threads: int = 1
    minibatch: int | None = None
    servers: int | None = None
    workers: int | None = None
    consistency: str | None = None
    micro_batches: int | None = None
    depth: int | None = None
    window: int | None = None
    partitions: int | None = None
    solver: str | None = None
    imports: list[str] = field(default_factory=list)
    holdout: float | None = None
    holdout_after: str | float | None = None
    readers: int | None = None
    checkpoint_every_s: float | None = 300.0


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the model goes, and which versions of it while it learns."""

    path: str = "model"
    publish_every_s: float | None = None
    """Seconds between versions of the model while it learns; 0 for one only at the end. A run that follows a log
    publishes one a minute unless this is given, others none."""
    publish_to: str | None = None
    """URL of a store, such as ``s3://bucket/ctr``, where versions are copied to."""
    keep_versions: int = 16
    """Of those that are published: the newest, and as many again of those before, spread over ``keep_for_s``."""
    keep_for_s: float = 3600.0

    def publish(self, every_s: float | None = None) -> Publish:
        """What is published; ``every_s`` where the section does not say it.

        Raises:
            ConfigError: a value is not allowed.
        """
        given = self.publish_every_s if self.publish_every_s is not None else every_s
        return Publish(
            every_s=given or None,
            to=self.publish_to,
            keep=KeepVersions(newest=self.keep_versions, for_s=self.keep_for_s),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a training run needs."""

    data: Data
    features: FeatureSection = field(default_factory=FeatureSection)
    optimizer: dict[str, str | float] = field(default_factory=lambda: {"name": "ftrl"})
    train: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)

    @staticmethod
    def from_dict(job: Mapping[str, Any], where: str = "job") -> Job:
        """A job from plain values.

        Raises:
            ConfigError: an unknown or missing key, or a value of another type; the message has its path.
        """
        for path, section in _sections(job):
            cls = _SECTIONS.get(path)
            known = {f.name for f in dataclasses.fields(cls)} if cls else set()
            for key in section if cls else ():
                if key not in known:
                    name = f"{path}.{key}" if path else key
                    shown = name if name.isprintable() else repr(name)
                    raise ConfigError(f"{where}: {shown} is not known; allowed: {', '.join(sorted(known))}")
        converted: Job = _convert(job, Job, where)
        import_modules(converted.train.imports)
        try:
            converted.features.to_features()
            optimizer_from_dict(converted.optimizer)
            converted.strategy()
            converted.holdout()
            converted.output.publish()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return converted

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def model(self) -> Linear:
        """The untrained model."""
        optimizer = optimizer_from_dict(self.optimizer)
        return Linear(self.features.to_features(), optimizer=optimizer)

    def strategy(self) -> Strategy:
        """The way of training."""
        return strategy_of(self.train)

    def holdout(self) -> Holdout | None:
        """The rows kept from the learner."""
        if self.train.holdout is None and self.train.holdout_after is None:
            return None
        return Holdout(fraction=self.train.holdout, after=self.train.holdout_after)

    def run(
        self,
        model: Linear,
        source: Source,
        *,
        resume: bool = False,
        progress: bool | None = None,
        engine: LocalProcesses | None = None,
        strategy: Strategy | None = None,
    ) -> Run:
        """Train; ``model`` and ``source`` are those of this job. ``strategy`` stands in for the job's own."""
        return fit(
            model,
            source,
            passes=self.train.passes,
            strategy=strategy if strategy is not None else self.strategy(),
            engine=engine,
            holdout=self.holdout(),
            output=self.output.path,
            resume=resume,
            checkpoint_every_s=self.train.checkpoint_every_s,
            publish=self.output.publish(),
            progress=progress,
            readers=self.train.readers,
            job=self.to_dict(),
        )


_OF_STRATEGY = {
    "online": ("threads", "minibatch"),
    "parameter-server": (
        "servers",
        "workers",
        "consistency",
        "minibatch",
        "micro_batches",
        "depth",
        "window",
        "imports",
    ),
    "tree": ("partitions", "minibatch", "solver", "depth"),
}
_ANY_OF_STRATEGIES = {name for names in _OF_STRATEGY.values() for name in names}


def strategy_of(train: Training) -> Strategy:
    """The strategy that the section names.

    Raises:
        ConfigError: no such strategy, or a setting of another one.
    """
    given = {
        f.name: getattr(train, f.name)
        for f in dataclasses.fields(train)
        if f.name in _ANY_OF_STRATEGIES and getattr(train, f.name) not in (None, [])
    }
    if given.get("threads") == 1:
        del given["threads"]
    cluster = {"servers", "workers", "consistency"} & given.keys()
    name = train.strategy or ("parameter-server" if cluster else "online")
    if name not in _OF_STRATEGY:
        raise ConfigError(f"train.strategy {name!r} is not known; allowed: {', '.join(_OF_STRATEGY)}")
    for setting in given:
        if setting not in _OF_STRATEGY[name]:
            raise ConfigError(
                f"train.{setting} does not go with strategy {name!r}, which has {', '.join(_OF_STRATEGY[name])}"
            )
    if name == "online":
        return Online(threads=train.threads, minibatch=train.minibatch)
    if name == "tree":
        depth = {"depth": given["depth"]} if "depth" in given else {}
        rows = {"batch_rows": given["minibatch"]} if "minibatch" in given else {}
        solver = {"solver": given["solver"]} if "solver" in given else {}
        return TreeAggregate(partitions=train.partitions, executor="processes", **depth, **rows, **solver)
    consistency: Consistency = parse_consistency(given.pop("consistency")) if train.consistency else ASP()
    given["imports"] = tuple(given.get("imports", ()))
    return ParameterServer(consistency=consistency, **given)


_SECTIONS: dict[str, type] = {
    "": Job,
    "data": Data,
    "features": FeatureSection,
    "train": Training,
    "output": Output,
}


def read_job(path: str | Path) -> Job:
    """Read a job file; relative paths in it are relative to the working folder.

    Raises:
        ConfigError: it is missing, not TOML, or not a job.
    """
    return Job.from_dict(_with_text_of_dates(read_sections(path)), str(path))


def read_sections(path: str | Path) -> dict[str, Any]:
    """The sections of a job file, unchecked.

    Raises:
        ConfigError: it is missing, or not TOML.
    """
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        shown = str(path) if str(path).isprintable() else repr(str(path))
        raise ConfigError(f"{shown}: not TOML: {' '.join(str(error).split())}") from error


def _with_text_of_dates(job: dict[str, Any]) -> dict[str, Any]:
    """TOML has a notation for times, so that one may stand there without quotes."""
    train = job.get("train")
    if isinstance(train, dict) and isinstance(train.get("holdout_after"), datetime.date):
        return {**job, "train": {**train, "holdout_after": train["holdout_after"].isoformat()}}
    return job


def _numeric(spec: Mapping[str, Any]) -> Numeric:
    known = [f.name for f in dataclasses.fields(Numeric)]
    for key in spec:
        if key not in known:
            raise ConfigError(f"features.numeric: {key!r} is not known; allowed: {', '.join(known)}")
    converted: Numeric = _convert(spec, Numeric, "features.numeric")
    return converted


def _sections(job: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [("", job), *((key, value) for key, value in job.items() if isinstance(value, Mapping))]


def _convert(value: Any, cls: type, where: str) -> Any:
    try:
        return msgspec.convert(value, cls)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}".replace("`$.", "`")) from error
