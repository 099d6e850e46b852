"""The page and the command of ``penstock label-delay``: what is said, that nothing else is needed, how it ends."""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from penstock.cli.main import main
from penstock.dash.delay_page import _round, _ticks, delay_columns, delay_page, row_mark, write_delay_page
from penstock.dash.scale import Axis
from penstock.dash.svg import Line, lines, lines_frame
from penstock.errors import StorageError
from penstock.log import Log
from penstock.log.times import DAY_US, SECOND_US
from penstock.stream.delay import Choice, Delays
from penstock.stream.delay_advice import advice, shown_waits
from penstock.stream.delay_costs import Wait
from penstock.stream.labels import LabelPolicy
from penstock.stream.spec import Pipeline, StreamSpec
from tests.dash.test_page import NASTY, Page, svgs

MINUTE = 60 * SECOND_US


def wait_of(wait_us: int, *, by_arrival: bool) -> Wait:
    """Delays of ten minutes in the mean."""
    on_time = 1 - math.exp(-(wait_us + 5 * MINUTE) / (10 * MINUTE))
    return Wait(
        wait_us=wait_us,
        known=1 - math.exp(-wait_us / (10 * MINUTE)),
        arrived=1 - math.exp(-wait_us / (15 * MINUTE)) if by_arrival else None,
        on_time=on_time,
        fake_negatives=0.1 * (1 - on_time),
        mean_label=on_time,
        learnt=1 / (1 + 0.1 * (1 - on_time)),
        corrections_per_day=1_234_567 * (1 - on_time),
        age_us=wait_us + 5 * MINUTE,
    )


def delays_of(*, now: int = 10 * MINUTE, by_arrival: bool = False, name: str = "main", label: str = "y") -> Delays:
    lengths = sorted({*(int(1.5**n) * SECOND_US for n in range(29)), 0, now, 18 * MINUTE, 25 * MINUTE, DAY_US})
    waits = {length: wait_of(length, by_arrival=by_arrival) for length in lengths}
    pipeline = Pipeline(
        name=name,
        log=f"s3://{'bucket' * 30}",
        streams={"impressions": StreamSpec(lateness_us=2 * MINUTE), "clicks": StreamSpec(within_us=DAY_US)},
        query="",
        label_wait_us=now,
        label=label,
    )
    return Delays(
        pipeline=pipeline,
        label=label,
        examples=1_000_000,
        measured=200_000,
        positives=20_000,
        young=17,
        first_us=1_793_534_400_000_000,
        last_us=1_793_934_400_000_000,
        final_us=DAY_US,
        basis="arrival" if by_arrival else "event time",
        waits=tuple(waits.values()),
        current=waits[now],
        choices=(
            Choice(share=0.9, wait=waits[18 * MINUTE]),
            Choice(share=0.95, wait=waits[25 * MINUTE]),
            Choice(share=0.99, wait=None),
        ),
        notes=("17 examples were left out", "of 1,000,000 examples 200,000 were followed"),
    )


def test_the_page_says_it_all() -> None:
    delays = delays_of()
    text = delay_page(delays)
    page = Page(text)
    said = " ".join(" ".join(page.text).split())
    for words in (
        advice(delays),
        "1,000,000, of which 200,000 were followed",
        "20,000 (10.0 %)",
        "5m, impressions up to 2m late",
        'label_wait = "10m", late_positives = "none"',
        "Note: 17 examples were left out.",
        "90 % on time",
        "now 10m",
    ):
        assert words in said
    assert [svg.get("aria-label") for svg in svgs(text) if svg.get("role") == "img"] == [
        "When positives are known",
        "What each label_wait costs",
    ]
    # A row for each wait; each cell of it is there.
    assert page.count("tr") == 1 + len(delays.waits)
    for column in delay_columns(delays):
        assert column.head in said and column.cell(delays.current) in said and f"{column.explanation}." in said
    # What is to be put can be copied as it stands.
    blocks = [
        tomllib.loads(ElementTree.fromstring(b).text or "") for b in re.findall(r"<pre.*?</pre>", text, re.S)
    ]
    assert [block["pipeline"]["label_wait"] for block in blocks] == ["10m", "18m", "25m"]
    assert [block["pipeline"]["on_time"] for block in blocks] == [0.777, 0.9, 0.95]


def test_nothing_is_loaded_and_text_is_no_markup() -> None:
    text = delay_page(delays_of(label=NASTY))
    page = Page(text)
    assert page.count("script") == 1 and page.count("img") == 0
    assert not re.search(r"(src|href)=\"(?!data:,)", text)
    assert "alert(1)" in " ".join(page.text)
    policy = next(
        attributes["content"] for tag, attributes in page.tags if tag == "meta" and "content" in attributes
    )
    assert policy is not None and policy.startswith("default-src 'none'")


def test_marks() -> None:
    delays = delays_of(now=18 * MINUTE)
    assert [mark for wait in delays.waits if (mark := row_mark(delays, wait))] == ["now, 90 %", "95 %"]
    # What is put already is not said twice.
    assert len(re.findall("<pre", delay_page(delays))) == 2
    delays = replace(delays, pipeline=replace(delays.pipeline, late=LabelPolicy(mode="importance", on_time=0.5)))
    assert "on_time = 0.5" in " ".join(Page(delay_page(delays)).text)


def _curves(text: str) -> list[int]:
    """How many each plot has."""
    return [
        sum(part.get("class", "").startswith("line ") for part in found.iter())
        for found in svgs(text)
        if found.get("role") == "img"
    ]


def test_arrival_has_a_curve_and_a_column_of_its_own() -> None:
    delays = delays_of(by_arrival=True)
    text = delay_page(delays)
    assert "arrived by then" in text and "had arrived" in text and "by arrival" in text
    assert _curves(text) == [2, 2] and _curves(delay_page(delays_of())) == [1, 2]
    assert "arrived by then" not in delay_page(delays_of())


@pytest.mark.parametrize("now", [0, SECOND_US, DAY_US, 3 * DAY_US])
def test_a_wait_at_either_end_is_on_the_plot_or_left_out(now: int) -> None:
    delays = delays_of(now=now)
    text = delay_page(delays)
    for found in svgs(text):
        for line in found.iter():
            if line.get("stroke-dasharray") == "4 3":
                x = float(re.match(r"M([\d.]+)", line.get("d") or "")[1])  # type: ignore[index]
                left, right, _, _ = lines_frame()
                assert left - 0.1 <= x <= right + 0.1
    assert "now 0s" not in text


def test_curves_that_do_not_move() -> None:
    delays = delays_of()
    flat = tuple(replace(wait, known=1.0, on_time=1.0, learnt=1.0) for wait in delays.waits)
    Page(delay_page(replace(delays, waits=flat, current=flat[3], choices=())))


def test_a_short_table_has_what_matters() -> None:
    delays = delays_of()
    shown = shown_waits(delays)
    assert len(shown) <= 12 and list(shown) == sorted(shown, key=lambda wait: wait.wait_us)
    assert delays.current in shown and all(c.wait in shown for c in delays.choices if c.wait is not None)
    assert all(wait.on_time < 0.9999 for wait in shown[:-1])


def test_durations_are_rounded() -> None:
    s = SECOND_US
    assert [_round(us) for us in (0, 1500, 59 * s, 871 * s, 5670 * s, 100_000 * s)] == [
        "0s",
        "1ms",
        "59s",
        "14m30s",
        "1h34m",
        "1d3h50m",
    ]


def test_ticks_are_few() -> None:
    for low, high in ((0.01, 0.2), (1, 60), (3, 5400), (1, 30 * 86400), (1e-6, 1e-5)):
        ticks = _ticks(low, high)
        assert len(ticks) <= 7 and all(low * 0.99 <= at <= high * 1.01 for at, _ in ticks)
    assert [text for _, text in _ticks(1, 60)] == ["1s", "3s", "10s", "30s", "1m"]


def test_a_plot_without_ticks_of_its_own_is_as_before() -> None:
    left, right, bottom, top = lines_frame()
    x, y = Axis(low=0, high=10, start=left, end=right), Axis(low=0, high=1, start=bottom, end=top)
    drawn = lines("t", "n", x, y, "x", "y", [Line(label="a", style=0, points=[(0, 0), (10, 1)], tips=["", ""])])
    assert ">10<" in drawn and "4 3" not in drawn


def test_the_file_is_replaced_at_once(tmp_path: Path) -> None:
    write_delay_page(delays_of(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == delay_page(delays_of())
    with pytest.raises(StorageError):
        write_delay_page(delays_of(), tmp_path / "nowhere" / "page.html")


# The command.

Penstock = Callable[..., tuple[int, str, str]]

JOB = """
[streams]
impressions = { time = "ts", id = "request_id", lateness = "2m" }
clicks = { time = "ts", id = "click_id", within = "1d" }
[pipeline]
label_wait = "10m"
query = '''
select i.*, c.click_id is not null as clicked from impressions i left join clicks c on c.request_id = i.request_id
'''
[features]
label = "clicked"
"""


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Penstock:
    """Runs a command in a folder with a job and a log: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("job.toml").write_text(JOB)
    base = 1_790_000_000 * SECOND_US
    log = Log("events")
    time = pa.timestamp("us", tz="UTC")
    imps = [base + k * 30 * SECOND_US for k in range(600)]
    clicks = [(imps[k] + (k * 37 % 300) * 5 * SECOND_US, f"r{k}") for k in range(0, 600, 3)]
    clicks.append((imps[-1] + 2 * DAY_US, "none"))
    tables = {
        "impressions": pa.table({"ts": pa.array(imps, time), "request_id": [f"r{k}" for k in range(600)]}),
        "clicks": pa.table(
            {
                "ts": pa.array([at for at, _ in clicks], time),
                "click_id": [f"c{n}" for n in range(len(clicks))],
                "request_id": [of for _, of in clicks],
            }
        ),
    }
    for name, table in tables.items():
        log.create(name, list(table.schema), time="ts", id="request_id" if name == "impressions" else "click_id")
        log.stream(name).append(table, source="a", arrival=table["ts"])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["penstock", "label-delay", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_table_advice_and_a_page(penstock: Penstock) -> None:
    status, out, err = penstock("job.toml")
    assert (status, err) == (0, "")
    rows = out.splitlines()
    assert rows[0] == "200 of 600 examples are positive in the end (clicked); delays by event time"
    assert max(map(len, rows[:20])) <= 80 and "…" not in out
    [now] = [row for row in rows if row.rstrip().endswith("now")]
    assert now.startswith("10m ") and len(now.split()) >= 9
    assert 'in [pipeline], with late_positives = "duplicate" (or "importance"):' in rows
    assert sum(row.startswith(("  90 % on time", "  95 % on time", "  99 % on time")) for row in rows) == 3
    assert " ".join(out.split()).count('label_wait = "10m" has') == 1
    assert rows[-1] == "page in label-delay.html" and "clicked" in Path("label-delay.html").read_text()
    # No step was taken, nothing else is left behind.
    assert Log("events").progress.steps() == []
    assert sorted(path.name for path in Path().iterdir()) == ["events", "job.toml", "label-delay.html"]


def test_json_is_one_object(penstock: Penstock) -> None:
    status, out, err = penstock("job.toml", "--json")
    found = json.loads(out)
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    assert (found["examples"], found["positives"], found["label"], found["by"]) == (
        600,
        200,
        "clicked",
        "event time",
    )
    assert found["current"]["label_wait_s"] == 600 and found["current"] in [
        {**row, "toml": found["current"]["toml"]} for row in found["waits"]
    ]
    assert [choice["share"] for choice in found["choices"]] == [0.9, 0.95, 0.99]
    assert all(choice["on_time"] >= choice["share"] for choice in found["choices"])
    assert tomllib.loads("\n".join(found["choices"][0]["toml"]))["label_wait"] == found["choices"][0]["label_wait"]
    assert not Path("label-delay.html").exists()
    assert penstock("job.toml", "--json", "-o", "a.html")[0] == 0 and Path("a.html").exists()


def test_a_part_of_time(penstock: Penstock) -> None:
    """Impressions stand every 30 s from 2026-09-21T14:13:20Z on."""
    _, out, _ = penstock("job.toml", "--json", "--from", "2026-09-21T14:20:00Z", "--to", "2026-09-21T15:20:00Z")
    assert json.loads(out)["examples"] == 120


def test_errors_are_one_line(penstock: Penstock) -> None:
    def fails(*arguments: object, words: str) -> None:
        status, out, err = penstock(*arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1) and err.startswith("penstock: "), err
        assert words in err

    fails("job.toml", "-o", "page.txt", words="the page must be a .html")
    fails("job.toml", "-o", "nowhere/page.html", words="in a folder that exists")
    fails("job.toml", "--from", "noon", words="--from: got 'noon'")
    fails("job.toml", "--final-after", "0", words="longer than 0")
    fails("job.toml", "--to", "2020-01-01", words="has no events there")
    fails("nothing.toml", words="nothing.toml: cannot be read")
    Path("job.toml").write_text(JOB.replace('[features]\nlabel = "clicked"', ""))
    fails("job.toml", words="job.toml: features.label is missing")
    Path("job.toml").write_text(JOB.replace('label = "clicked"', 'label = "request_id"'))
    fails("job.toml", words="column 'request_id' is of type string")
    Path("job.toml").write_text(JOB.replace("c.click_id is not null", "coalesce(c.click_id = 'never', false)"))
    fails("job.toml", "--json", words="none of 600 examples is positive in the end")
    assert not Path("label-delay.html").exists()


def test_help_names_it(penstock: Penstock) -> None:
    status, out, _ = penstock("--help")
    assert status == 0 and "--final-after" in out and "label_wait" in out
