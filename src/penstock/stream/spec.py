"""What a pipeline is: streams, windows and one query, as a job file says it, checked whole.

::

    [streams]
    impressions = { time = "ts", id = "request_id", lateness = "2m", idle = "30s" }
    clicks      = { time = "ts", id = "click_id", lateness = "30m", idle = "30s", within = "1d" }

    [pipeline]
    log = "events/"
    window = "5m"
    label_wait = "10m"
    query = "select i.*, c.click_id is not null as clicked from impressions i left join clicks c on …"
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import ConfigError
from penstock.log import check_name
from penstock.log.times import SECOND_US, parse_duration
from penstock.stream.labels import LabelPolicy

__all__ = ["Aggregate", "Pipeline", "StreamSpec"]

_LATE = ("late_positives", "on_time", "negatives")
_AGGREGATES = ("count", "sum", "mean")


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """What a pipeline expects of a stream. Durations are microseconds."""

    time: str | None = None
    """Column of the event time; the stream's own where None."""
    id: str | None = None
    """Column by which an event that comes twice is known; the stream's own where None."""
    lateness_us: int = 0
    """How far an event may be behind the newest of its source before the watermark passes it."""
    idle_us: int | None = None
    """After so long without an event a source does not hold the watermark; None for never."""
    skew_us: int = 5 * 60 * SECOND_US
    """An event that is further ahead of its own arrival has a wrong clock."""
    within_us: int = 0
    """How far after a row of the primary stream a row of this one may lie and still belong to it."""
    before_us: int = 0
    """How far before."""
    dedup_us: int = 60 * 60 * SECOND_US
    """Two events of one id are the same if their times are no further apart."""

    @staticmethod
    def from_dict(value: Mapping[str, Any], where: str) -> StreamSpec:
        """Of plain values, durations as text.

        Raises:
            ConfigError: an unknown key, or a value of another form.
        """
        durations = ("lateness", "idle", "skew", "within", "before", "dedup")
        _check_keys(value, ("time", "id", *durations), where)
        found: dict[str, Any] = {}
        for key in ("time", "id"):
            if key in value:
                found[key] = _text(value[key], f"{where}.{key}")
        for key in durations:
            if key == "idle" and value.get(key) == "never":
                found["idle_us"] = None
            elif key in value:
                try:
                    found[f"{key}_us"] = parse_duration(value[key], f"{where}.{key}")
                except ConfigError as error:
                    raise ConfigError(f"{error}{', or never' if key == 'idle' else ''}") from error
        return StreamSpec(**found)


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A feature: what had happened, by an example's own time, in the time before it.

    Of the events of ``stream`` whose ``by`` columns equal the example's, which had arrived by the example's event
    time and are no older than ``over_us``.
    """

    name: str
    stream: str
    by: tuple[str, ...]
    over_us: int
    what: str = "count"
    of: str | None = None
    """The column that is summed, averaged, ...; None for count."""

    @staticmethod
    def from_dict(value: Mapping[str, Any], where: str) -> Aggregate:
        """Of plain values.

        Raises:
            ConfigError: an unknown or missing key, or a value of another form.
        """
        _check_keys(value, ("name", "stream", "by", "over", "what", "of"), where)
        for key in ("name", "stream", "by", "over"):
            if key not in value:
                raise ConfigError(f"{where}: {key} is missing")
        by = value["by"]
        what = value.get("what", "count")
        if what not in _AGGREGATES:
            raise ConfigError(f"{where}.what: got {what!r}, allowed: {', '.join(_AGGREGATES)}")
        if (what == "count") != ("of" not in value):
            raise ConfigError(f"{where}: {what} {'takes no' if what == 'count' else 'needs a column'} `of`")
        return Aggregate(
            name=check_name(_text(value["name"], f"{where}.name"), f"{where}.name"),
            stream=_text(value["stream"], f"{where}.stream"),
            by=tuple(_text(each, f"{where}.by") for each in (by if isinstance(by, list) else [by])),
            over_us=parse_duration(value["over"], f"{where}.over"),
            what=what,
            of=_text(value["of"], f"{where}.of") if "of" in value else None,
        )


@dataclass(frozen=True, kw_only=True)
class View:
    """Counts and sums over a pipeline's examples, by some of their columns; see ``views``."""

    name: str
    by: tuple[str, ...]
    sums: Mapping[str, str]
    """Of each sum, the column that is summed."""

    @staticmethod
    def from_dict(value: Mapping[str, Any], where: str) -> View:
        """Of plain values.

        Raises:
            ConfigError: an unknown or missing key, or a value of another form.
        """
        _check_keys(value, ("name", "by", "sums"), where)
        if "name" not in value:
            raise ConfigError(f"{where}: name is missing")
        by, sums = value.get("by", []), value.get("sums", {})
        if not isinstance(sums, Mapping):
            raise ConfigError(
                f'{where}.sums: got {sums!r}, allowed: names and columns, as {{ clicks = "clicked" }}'
            )
        view = View(
            name=check_name(_text(value["name"], f"{where}.name"), f"{where}.name"),
            by=tuple(_text(each, f"{where}.by") for each in (by if isinstance(by, list) else [by])),
            sums={
                check_name(name, f"{where}.sums"): _text(of, f"{where}.sums.{name}") for name, of in sums.items()
            },
        )
        taken = ["examples", *view.by, *view.sums]
        for name in taken:
            if taken.count(name) > 1:
                raise ConfigError(f"{where}: two columns would be named {name!r}")
        return view


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Streams, windows, a query; what ``fingerprint`` covers decides which examples come out, in which order."""

    name: str
    log: str
    streams: Mapping[str, StreamSpec]
    """The first is the primary one."""
    query: str
    window_us: int = 5 * 60 * SECOND_US
    slide_us: int | None = None
    """Where windows begin; None for tumbling windows, which begin where the last one ends."""
    label_wait_us: int = 0
    late: LabelPolicy = field(default_factory=LabelPolicy)
    """What a label that changes after its example was learnt does."""
    label: str | None = None
    output: str = "examples"
    aggregates: tuple[Aggregate, ...] = ()
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "pipeline.name")
        check_name(self.output, "pipeline.output")
        if not self.streams:
            raise ConfigError("streams: none is named; the first is the primary one")
        for name in self.streams:
            check_name(name, "streams")
        if self.window_us <= 0:
            raise ConfigError("pipeline.window must be longer than 0")
        if self.slide_us is not None and not (0 < self.slide_us <= self.window_us):
            raise ConfigError("pipeline.slide must be longer than 0, and no longer than window")
        if self.slide_us is not None and self.window_us % self.slide_us:
            raise ConfigError("pipeline.window must be a multiple of slide")
        first = self.streams[self.primary]
        if first.within_us or first.before_us:
            raise ConfigError(
                f"streams.{self.primary}: within and before are for the other streams; this is the primary one"
            )
        names = [aggregate.name for aggregate in self.aggregates]
        for aggregate in self.aggregates:
            if aggregate.stream not in self.streams:
                raise ConfigError(
                    f"aggregates.{aggregate.name}: there is no stream {aggregate.stream!r}; "
                    f"streams: {', '.join(self.streams)}"
                )
            if names.count(aggregate.name) > 1:
                raise ConfigError(f"aggregates: got two named {aggregate.name!r}, allowed: distinct names")

    @property
    def primary(self) -> str:
        """Name of the primary stream."""
        return next(iter(self.streams))

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the other streams."""
        return tuple(self.streams)[1:]

    @property
    def reach_us(self) -> int:
        """How far after a row of the primary stream another stream can matter to it."""
        return max((self.streams[name].within_us for name in self.others), default=0)

    @property
    def wait_us(self) -> int:
        """How long after a window's end it is sealed."""
        return max(self.label_wait_us, self.reach_us) if self.late.mode == "wait" else self.label_wait_us

    @property
    def fingerprint(self) -> str:
        """A digest of what decides which examples come out."""
        what = dataclasses.asdict(self)
        for key in ("name", "log", "output", "label", "late", "label_wait_us", "views"):
            del what[key]
        what["wait_us"] = self.wait_us
        what["streams"] = list(what["streams"].items())
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @staticmethod
    def from_dict(job: Mapping[str, Any], where: str) -> Pipeline:
        """Of the sections ``streams``, ``pipeline``, ``aggregates`` and ``views`` of a job file.

        Raises:
            ConfigError: with the place.
        """
        try:
            return _pipeline(job)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def _pipeline(job: Mapping[str, Any]) -> Pipeline:
    for section in ("streams", "pipeline"):
        if not isinstance(job.get(section), Mapping):
            raise ConfigError(f"the section [{section}] is missing")
    section = job["pipeline"]
    _check_keys(
        section,
        ("name", "log", "query", "window", "slide", "label_wait", "output", *_LATE),
        "pipeline",
    )
    if "query" not in section:
        raise ConfigError("pipeline.query is missing")
    streams = {}
    for name, value in job["streams"].items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"streams.{name}: got {value!r}, allowed: a table of its settings")
        streams[name] = StreamSpec.from_dict(value, f"streams.{name}")
    durations: dict[str, Any] = {
        f"{key}_us": parse_duration(section[key], f"pipeline.{key}")
        for key in ("window", "slide", "label_wait")
        if key in section
    }
    texts: dict[str, Any] = {
        key: _text(section[key], f"pipeline.{key}") for key in ("name", "log", "query", "output") if key in section
    }
    late = {key: section[key] for key in _LATE if key in section}
    for key in ("on_time", "negatives"):
        if key in late and (isinstance(late[key], bool) or not isinstance(late[key], int | float)):
            raise ConfigError(f"pipeline.{key}: got {late[key]!r}, allowed: a number from 0 to 1")
    if late.get("late_positives") in ("duplicate", "importance") and "on_time" not in late:
        raise ConfigError(
            f"pipeline.on_time is missing: late_positives = {late['late_positives']!r} weighs by the share of "
            "positives that are known when a window is sealed; penstock label-delay measures it"
        )
    if "late_positives" in late:
        late["mode"] = late.pop("late_positives")
    aggregates = _tables(job, "aggregates")
    features = job.get("features")
    label = features.get("label") if isinstance(features, Mapping) else None
    return Pipeline(
        **{"name": "main", "log": "events", **texts},
        streams=streams,
        label=label,
        late=LabelPolicy(**late),
        views=tuple(View.from_dict(each, f"views[{n}]") for n, each in enumerate(_tables(job, "views"))),
        aggregates=tuple(Aggregate.from_dict(each, f"aggregates[{n}]") for n, each in enumerate(aggregates)),
        **durations,
    )


def _tables(job: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    tables = job.get(section, [])
    if not isinstance(tables, list) or not all(isinstance(each, Mapping) for each in tables):
        raise ConfigError(f"{section}: got something else, allowed: tables, each [[{section}]]")
    return tables


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: got {value!r}, allowed: text")
    return value


def _check_keys(value: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in allowed:
            raise ConfigError(f"{where}.{key} is not known; allowed: {', '.join(allowed)}")
