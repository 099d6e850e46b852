"""Job sections of a pipeline: what they mean, and one clear line for each thing that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from penstock.errors import ConfigError
from penstock.stream.labels import LabelPolicy
from penstock.stream.spec import Aggregate, Pipeline, StreamSpec

SECOND = 1_000_000
JOB: dict[str, Any] = {
    "streams": {
        "impressions": {"time": "ts", "id": "request_id", "lateness": "2m", "idle": "30s"},
        "clicks": {"lateness": "30m", "idle": "never", "skew": "1s", "within": "1d", "before": "5ms", "dedup": 0},
    },
    "pipeline": {
        "name": "ctr",
        "log": "events/",
        "window": "10m",
        "slide": "5m",
        "label_wait": "1h30m",
        "late_positives": "duplicate",
        "on_time": 0.8,
        "negatives": 1,
        "output": "out",
        "query": "select * from impressions",
    },
    "aggregates": [
        {"name": "seen", "stream": "impressions", "by": "u", "over": "1h"},
        {"name": "most", "stream": "clicks", "by": ["u", "v"], "over": "7d", "what": "sum", "of": "price"},
    ],
    "features": {"label": "clicked"},
}


def job(place: str = "", value: Any = None, *, drop: bool = False) -> dict[str, Any]:
    """The job with one value put somewhere else, by dots."""
    made = copy.deepcopy(JOB)
    if place:
        *path, last = place.split(".")
        at: Any = made
        for key in path:
            at = at[int(key) if isinstance(at, list) else key]
        if drop:
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = value
    return made


def test_everything_is_read() -> None:
    made = Pipeline.from_dict(JOB, "job.toml")
    assert made == Pipeline(
        name="ctr",
        log="events/",
        streams={
            "impressions": StreamSpec(time="ts", id="request_id", lateness_us=120 * SECOND, idle_us=30 * SECOND),
            "clicks": StreamSpec(
                lateness_us=1_800 * SECOND,
                idle_us=None,
                skew_us=SECOND,
                within_us=86_400 * SECOND,
                before_us=5_000,
                dedup_us=0,
            ),
        },
        query="select * from impressions",
        window_us=600 * SECOND,
        slide_us=300 * SECOND,
        label_wait_us=5_400 * SECOND,
        late=LabelPolicy(mode="duplicate", on_time=0.8),
        label="clicked",
        output="out",
        aggregates=(
            Aggregate(name="seen", stream="impressions", by=("u",), over_us=3_600 * SECOND),
            Aggregate(
                name="most", stream="clicks", by=("u", "v"), over_us=7 * 86_400 * SECOND, what="sum", of="price"
            ),
        ),
    )
    assert made.primary == "impressions"
    assert made.others == ("clicks",)
    assert made.reach_us == 86_400 * SECOND


def test_what_is_left_out_has_a_default() -> None:
    made = Pipeline.from_dict({"streams": {"a": {}}, "pipeline": {"query": "select * from a"}}, "job")
    assert (made.name, made.log, made.output, made.label) == ("main", "events", "examples", None)
    assert (made.window_us, made.slide_us, made.label_wait_us) == (300 * SECOND, None, 0)
    assert (made.late, made.aggregates, made.reach_us, made.others) == (LabelPolicy(), (), 0, ())
    assert made.streams["a"] == StreamSpec(lateness_us=0, idle_us=None, skew_us=300 * SECOND)
    assert made.streams["a"].dedup_us == 3_600 * SECOND


BAD: list[tuple[str, Any, str]] = [
    ("streams", None, "[streams]"),
    ("streams", [], "[streams]"),
    ("streams", {}, "streams: none is named"),
    ("pipeline", None, "[pipeline]"),
    ("pipeline", "x", "[pipeline]"),
    ("streams.clicks", "30m", "streams.clicks: got '30m'"),
    ("streams.Clicks", {}, "streams: got the name 'Clicks'"),
    ("streams.clicks.latenes", "5m", "streams.clicks.latenes is not known; allowed: time, id, lateness"),
    ("streams.clicks.lateness", "5", "streams.clicks.lateness: got '5'"),
    ("streams.clicks.lateness", 5, "streams.clicks.lateness: got 5"),
    ("streams.clicks.lateness", "-5m", "streams.clicks.lateness: got '-5m'"),
    ("streams.clicks.lateness", "never", "streams.clicks.lateness: got 'never'"),
    ("streams.clicks.idle", "forever", "streams.clicks.idle: got 'forever'"),
    ("streams.clicks.idle", None, "streams.clicks.idle: got None"),
    ("streams.clicks.skew", "101 years", "streams.clicks.skew: got '101 years'"),
    ("streams.clicks.within", "40000d", "streams.clicks.within: got '40000d'"),
    ("streams.clicks.before", [], "streams.clicks.before: got []"),
    ("streams.clicks.dedup", {}, "streams.clicks.dedup: got {}"),
    ("streams.clicks.time", 5, "streams.clicks.time: got 5, allowed: text"),
    ("streams.clicks.id", "", "streams.clicks.id: got '', allowed: text"),
    ("streams.impressions.within", "1d", "streams.impressions: within and before"),
    ("streams.impressions.before", "1d", "streams.impressions: within and before"),
    ("pipeline.windows", "5m", "pipeline.windows is not known; allowed: name, log, query, window"),
    ("pipeline.window", 0, "pipeline.window must be longer than 0"),
    ("pipeline.window", "5 minutes", "pipeline.window: got '5 minutes'"),
    ("pipeline.slide", 0, "pipeline.slide must be longer than 0"),
    ("pipeline.slide", "11m", "pipeline.slide must be longer than 0, and no longer than window"),
    ("pipeline.slide", "4m", "pipeline.window must be a multiple of slide"),
    ("pipeline.label_wait", "soon", "pipeline.label_wait: got 'soon'"),
    ("pipeline.late_positives", "drop", "late_positives: got 'drop', allowed: none, wait"),
    ("pipeline.late_positives", 1, "late_positives: got 1"),
    ("pipeline.on_time", "most", "pipeline.on_time: got 'most'"),
    ("pipeline.on_time", True, "pipeline.on_time: got True"),
    ("pipeline.on_time", 1.5, "on_time: got 1.5, allowed: 0 to 1"),
    ("pipeline.negatives", 0, "negatives: got 0, allowed: above 0, up to 1"),
    ("pipeline.negatives", None, "pipeline.negatives: got None"),
    ("pipeline.query", "", "pipeline.query: got ''"),
    ("pipeline.query", 3, "pipeline.query: got 3"),
    ("pipeline.name", "My pipeline", "pipeline.name: got the name 'My pipeline'"),
    ("pipeline.name", "a" * 64, "pipeline.name: got the name"),
    ("pipeline.output", "../x", "pipeline.output: got the name '../x'"),
    ("pipeline.log", 7, "pipeline.log: got 7"),
    ("aggregates", {}, "aggregates: got something else"),
    ("aggregates", [3], "aggregates: got something else"),
    ("aggregates.0.per", "u", "aggregates[0].per is not known"),
    ("aggregates.1.name", "a b", "aggregates[1].name: got the name 'a b'"),
    ("aggregates.0.name", "most", "aggregates: got two named 'most'"),
    ("aggregates.1.stream", "views", "aggregates.most: there is no stream 'views'; streams: impressions, clicks"),
    ("aggregates.1.stream", 1, "aggregates[1].stream: got 1"),
    ("aggregates.1.by", 1, "aggregates[1].by: got 1"),
    ("aggregates.1.by", ["u", 2], "aggregates[1].by: got 2"),
    ("aggregates.1.over", "long", "aggregates[1].over: got 'long'"),
    ("aggregates.1.what", "max", "aggregates[1].what: got 'max', allowed: count, sum, mean"),
    ("aggregates.1.what", "count", "aggregates[1]: count takes no"),
    ("aggregates.0.what", "sum", "aggregates[0]: sum needs a column"),
    ("aggregates.1.of", 3, "aggregates[1].of: got 3"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD, ids=lambda each: str(each)[:40])
def test_what_is_wrong_is_said_in_one_line_with_its_place(place: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_dict(job(place, value), "jobs/ctr.toml")
    text = str(caught.value)
    assert text.startswith("jobs/ctr.toml: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("streams", "the section [streams] is missing"),
        ("pipeline", "the section [pipeline] is missing"),
        ("pipeline.query", "pipeline.query is missing"),
        ("aggregates.1.name", "aggregates[1]: name is missing"),
        ("aggregates.1.stream", "aggregates[1]: stream is missing"),
        ("aggregates.1.by", "aggregates[1]: by is missing"),
        ("aggregates.1.over", "aggregates[1]: over is missing"),
        ("aggregates.1.of", "aggregates[1]: sum needs a column"),
    ],
)
def test_what_is_missing_is_said(place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_dict(job(place, drop=True), "job")
    assert message in str(caught.value)


@pytest.mark.parametrize("place", ["pipeline.slide", "pipeline.window", "pipeline.name", "aggregates", "features"])
def test_what_may_be_missing_is_no_error(place: str) -> None:
    Pipeline.from_dict(job(place, drop=True), "job")


def fingerprint(place: str = "", value: Any = None) -> str:
    return Pipeline.from_dict(job(place, value), "job").fingerprint


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pipeline.name", "other"),
        ("pipeline.log", "s3://bucket/events"),
        ("pipeline.negatives", 0.5),
        ("pipeline.output", "elsewhere"),
        ("features.label", "bought"),
        ("pipeline.window", "600s"),
        ("aggregates.0.by", ["u"]),
        ("streams.clicks.within", "24h"),
    ],
)
def test_the_fingerprint_stays_where_the_same_examples_come_out(place: str, value: Any) -> None:
    assert fingerprint(place, value) == fingerprint()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pipeline.window", "15m"),
        ("pipeline.slide", "10m"),
        ("pipeline.label_wait", 0),
        ("pipeline.late_positives", "wait"),
        ("pipeline.query", "select ts from impressions"),
        ("streams.clicks.lateness", "31m"),
        ("streams.clicks.idle", "1h"),
        ("streams.clicks.skew", "2s"),
        ("streams.clicks.within", "2d"),
        ("streams.clicks.before", 0),
        ("streams.clicks.dedup", "1us"),
        ("streams.clicks.id", "click_id"),
        ("streams.more", {}),
        ("aggregates.0.over", "2h"),
    ],
)
def test_the_fingerprint_changes_where_others_may_come_out(place: str, value: Any) -> None:
    assert fingerprint(place, value) != fingerprint()


def test_the_order_of_streams_is_part_of_the_fingerprint() -> None:
    def of(*names: str) -> str:
        return Pipeline.from_dict(
            {"streams": {name: {} for name in names}, "pipeline": {"query": "select * from a"}}, "job"
        ).fingerprint

    assert of("a", "b") != of("b", "a")
    assert of("a", "b") == of("a", "b")
