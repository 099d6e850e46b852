"""JSON lines to events: whatever the bytes, each line is an event or rejected, once."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.log.sources.blocks import Block, Blocks
from penstock.log.sources.decode import LINE_NBYTES_MAX, Decoded, Decoder, Lines
from penstock.log.times import TIMESTAMP

STREAM = pa.schema(
    [
        ("ts", TIMESTAMP),
        ("id", pa.string()),
        ("n", pa.int64()),
        ("small", pa.int32()),
        ("x", pa.float64()),
        ("ok", pa.bool_()),
        ("tags", pa.list_(pa.string())),
        ("place", pa.struct([("city", pa.string()), ("zip", pa.int64())])),
        ("seen", TIMESTAMP),
        ("day", pa.date32()),
        ("price", pa.decimal128(10, 2)),
        ("blob", pa.binary()),
        ("pairs", pa.map_(pa.string(), pa.int64())),
    ]
)
T = '"ts":"2026-01-01T00:00:00Z"'


def decode(block: bytes | str, schema: pa.Schema = STREAM, **options: Any) -> Decoded:
    lines = Lines(block.encode() if isinstance(block, str) else block)
    return Decoder(schema, **{"time": "ts", **options}).decode(lines, np.arange(len(lines)))


def one_bad(line: bytes | str, schema: pa.Schema = STREAM) -> tuple[str, str]:
    """Reason and detail of a line that is rejected between two that are not."""
    line = line.encode() if isinstance(line, str) else line
    good = b'{"ts":"2026-01-01T00:00:00Z","id":"a"}\n'
    decoded = decode(good + line + b"\n" + good, schema)
    assert decoded.events["id"].to_pylist() == ["a", "a"]
    assert decoded.positions.tolist() == [0, 2]
    (rejected,) = decoded.rejected
    assert rejected.position == 1
    assert rejected.event == line[: 1 << 16]
    return rejected.reason, rejected.detail


def test_takes_known_columns_as_the_types_of_the_stream() -> None:
    decoded = decode(
        '{"ts":"2026-01-01T00:00:00Z","id":"2026-01-01","n":9007199254740993,"small":1,"x":1,"ok":true,'
        '"tags":["a",null],"place":{"zip":1},"seen":"2026-01-01T00:00:00.5Z","day":"2026-02-03","price":"1.25",'
        '"blob":"xyz","pairs":null}\n'
    )
    assert not decoded.rejected
    (event,) = decoded.events.to_pylist()
    assert event["id"] == "2026-01-01"
    assert (event["n"], event["small"], event["x"], event["ok"]) == (9007199254740993, 1, 1.0, True)
    assert (event["tags"], event["place"]) == (["a", None], {"city": None, "zip": 1})
    assert decoded.events["seen"].type == TIMESTAMP
    assert event["seen"].microsecond == 500_000
    assert (str(event["day"]), str(event["price"]), event["blob"]) == ("2026-02-03", "1.25", b"xyz")


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('{"id":', "malformed", "truncated"),
        ("{'id':1}", "malformed", "object keys must be strings"),
        ("[1]", "malformed", "got list<item: int64>, allowed: an object"),
        ("17", "malformed", "got int64"),
        ("null", "malformed", "got null"),
        ("garbage", "malformed", "invalid character"),
        ('{"id":"a"}{"id":"b"}', "malformed", "trailing characters"),
        (b'{"id":"\xff\xfe"}', "malformed", "not UTF-8"),
        (b"\x00\x01\x02", "malformed", "invalid character"),
        ('{"x":NaN}', "malformed", "invalid character"),
        ('{"x":-Infinity}', "malformed", "invalid character"),
        ('{"x":1e999}', "malformed", "out of range"),
        ('{"id":"\\ud800"}', "malformed", ""),
        ('{"n":1,"n":2}', "malformed", "key 'n' comes twice"),
        ('{"place":{"zip":1,"zip":2}}', "malformed", "key 'zip' comes twice"),
        ('{"new":' * 40 + "1" + "}" * 40, "malformed", "nested deeper than 32"),
        ('{"new":' * 100_000 + "1" + "}" * 100_000, "malformed", "nested deeper than 32"),
        ('{"new":' + "[" * 200_000 + "]" * 200_000 + "}", "malformed", "nested deeper than 32"),
        ('{"new":' + "[" * 200_000, "malformed", ""),
        ('{"id":"' + "x" * LINE_NBYTES_MAX + '"}', "too long", "1,048,585 bytes, allowed: 1,048,576"),
        ('{"n":"1"}', "type", "column 'n': got string, allowed: int64 as in the stream"),
        ('{"n":1.5}', "type", "column 'n': got double, allowed: int64 as in the stream"),
        ('{"n":1e2}', "type", "got double, allowed: int64"),
        ('{"n":9223372036854775808}', "type", "got an integer beyond 64 bits"),
        ('{"n":true}', "type", "got bool, allowed: int64"),
        ('{"small":2147483648}', "type", "got int64, allowed: int32"),
        ('{"id":5}', "type", "got int64, allowed: string"),
        ('{"ok":1}', "type", "got int64, allowed: bool"),
        ('{"x":"1.5"}', "type", "got string, allowed: double"),
        ('{"tags":"a"}', "type", "got string, allowed: list<"),
        ('{"tags":[1]}', "type", "got list<item: int64>, allowed: list<"),
        ('{"tags":[1,"a"]}', "type", "a list has int64 and string"),
        ('{"place":{"zip":"x"}}', "type", "got struct<zip: string>, allowed: struct<"),
        ('{"place":{"country":"de"}}', "type", "got struct<country: string>, allowed: struct<"),
        ('{"place":[]}', "type", "allowed: struct<"),
        ('{"seen":"yesterday"}', "type", "got 'yesterday', allowed: timestamp"),
        ('{"seen":true}', "type", "got bool, allowed: timestamp"),
        ('{"day":"x"}', "type", "got 'x', allowed: date32"),
        ('{"price":"x"}', "type", "got 'x', allowed: decimal128"),
        ('{"pairs":{"a":1}}', "type", "allowed: map<"),
        ('{"new":9223372036854775808}', "type", "an integer beyond 64 bits"),
        ('{"_seq":1}', "column", "'_seq'"),
        ('{"event_date":1}', "column", "'event_date'"),
        ('{"ID":"x"}', "column", "'ID' beside 'id'"),
        ('{"":1}', "column", "''"),
    ],
)
def test_rejects_what_is_no_event_and_takes_what_is_beside_it(line: bytes | str, reason: str, detail: str) -> None:
    got_reason, got_detail = one_bad(line)
    assert got_reason == reason
    assert detail in got_detail
    assert "\n" not in got_detail


@pytest.mark.parametrize(
    "line",
    [
        '{"place":{"zip":1,"more":null}}',
        '{"place":{"zip":1,"more":[],"other":{}}}',
        '{"new":null}',
        '{"new":[]}',
        '{"new":{}}',
        '{"new":[{}]}',
        '{"pairs":null}',
        '{"x":99999999999999999999999}',
        '{"id":"\\ud83d\\ude00 NaN"}',
        ' \t{"id":"x"} \r',
    ],
)
def test_what_says_nothing_new_changes_nothing(line: str) -> None:
    decoder = Decoder(STREAM, time="ts")
    lines = Lines(line.encode())
    decoded = decoder.decode(lines, np.arange(1))
    assert not decoded.rejected
    assert decoded.events.num_rows == 1
    assert decoder.schema == STREAM
    assert all(decoded.events[name].type == STREAM.field(name).type for name in ("id", "n", "place"))


def test_new_columns_have_the_type_of_their_first_value_and_integers_become_numbers() -> None:
    decoder = Decoder(STREAM, time="ts")
    block = b'{"a":1,"b":"x","c":[],"d":{"e":null}}\n{"a":1.5,"b":2}\n{"c":[1],"d":{"f":1}}\n'
    decoded = decoder.decode(Lines(block), np.arange(3))
    assert [(r.position, r.reason) for r in decoded.rejected] == [(1, "type")]
    assert "got int64, allowed: string as before" in decoded.rejected[0].detail
    assert decoder.schema.field("a").type == pa.int64()  # the line that had 1.5 was not taken
    assert decoder.schema.field("c").type == pa.list_(pa.int64())
    assert decoder.schema.field("d").type == pa.struct([("f", pa.int64())])
    mixed = decode('{"a":1}\n{"a":1.5}\n{"a":[1]}\n')
    assert mixed.events["a"].to_pylist() == [1.0, 1.5]
    assert len(mixed.rejected) == 1
    # The next block knows.
    second = decoder.decode(Lines(b'{"a":1.5}\n{"a":2}\n'), np.arange(2))
    assert [r.detail for r in second.rejected] == ["column 'a': got double, allowed: int64 as in the stream"]


def test_text_that_looks_like_a_time_stays_text() -> None:
    decoded = decode('{"when":"2026-01-01"}\n{"when":"2026-01-01T00:00:00"}\n')
    assert decoded.events["when"].to_pylist() == ["2026-01-01", "2026-01-01T00:00:00"]


def test_types_that_were_said_are_those_of_new_columns() -> None:
    decoded = decode('{"a":1}\n{"a":"x"}\n', types={"a": pa.float64()})
    assert decoded.events["a"].type == pa.float64()
    assert decoded.rejected[0].detail == "column 'a': got string, allowed: double as was said"


def test_times_may_be_text_or_numbers_or_both() -> None:
    assert decode('{"ts":1767225600}\n{"ts":1767225601.5}\n').events["ts"].type == pa.float64()
    both = decode(
        '{"ts":1767225600,"seen":1767225600}\n{"ts":"2026-01-01T00:00:01Z","seen":"2026-01-01"}\n{"ts":true}\n'
    )
    assert not both.rejected
    assert both.events["ts"].to_pylist() == ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "true"]
    assert [t and t.isoformat() for t in both.events["seen"].to_pylist()] == ["2026-01-01T00:00:00+00:00"] * 2 + [
        None
    ]


def test_too_many_columns_are_refused() -> None:
    event = json.dumps({f"c{i}": i for i in range(2000)})
    decoded = decode(event + "\n" + '{"id":"a"}\n')
    assert decoded.events.num_rows == 1
    assert "one too many, allowed: 1,000 columns" in decoded.rejected[0].detail


def test_lines_of_any_end() -> None:
    decoded = decode(b'\xef\xbb\xbf{"id":"a"}\r\n\r\n\n{"id":"b"}\n  \n{"id":"c"}')
    assert decoded.events["id"].to_pylist() == ["a", "b", "c"]
    assert decoded.positions.tolist() == [0, 3, 5]
    assert not decoded.rejected
    assert len(Lines(b"")) == 0
    assert decode(b"").events.num_rows == 0


def test_an_object_over_two_lines_beside_two_on_one() -> None:
    decoded = decode(b'{"n":1}{"n":2}\n{"n":\n3}\n{"n":4}\n')
    assert decoded.positions.tolist() == [3]
    assert [each.position for each in decoded.rejected] == [0, 1, 2]


ANY_BYTES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            b'{ | } | \n | \r\n | [ | ] | , | : | " | "a" | 1 | NaN | null | {"n":1,"n":2} | \xef\xbb\xbf | '
            b'{"a":1}\n | {"a":"x"}\n | {"ts":1}\n | {"_a":1}\n | {"place":{"q":1}}\n'.split(b" | ")
        ),
    ),
    max_size=30,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(ANY_BYTES, st.booleans())
def test_of_any_bytes_each_line_is_taken_or_rejected_once(block: bytes, known: bool) -> None:
    decoded = decode(block, STREAM if known else pa.schema([]), time="ts" if known else None)
    lines = Lines(block)
    filled = [number for number in range(len(lines)) if lines[number].strip(b" \t\r")]
    assert sorted([*decoded.positions.tolist(), *(each.position for each in decoded.rejected)]) == filled
    assert decoded.events.num_rows == len(decoded.positions)
    decoded.events.validate(full=True)


TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"ts": st.just("2026-01-01T00:00:00Z")},
        optional={
            "id": TEXT | st.none(),
            "n": st.integers(-(2**63), 2**63 - 1),
            "x": st.floats(allow_nan=False, allow_infinity=False),
            "ok": st.booleans(),
            "tags": st.lists(TEXT | st.none(), max_size=3),
            "place": st.fixed_dictionaries({"city": TEXT | st.none(), "zip": st.integers(0, 99999) | st.none()}),
            "fresh": TEXT,
        },
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.booleans(), st.lists(st.sampled_from([b"{", b"[]", b"\n", b'{"n":"s"}\n']), max_size=3))
def test_events_come_back_whatever_is_between_them(
    events: list[dict[str, Any]], ascii: bool, junk: list[bytes]
) -> None:
    block = b"".join(bad.strip() + b"\n" for bad in junk)
    block += b"".join(json.dumps(event, ensure_ascii=ascii).encode() + b"\n" for event in events)
    decoded = decode(block)
    assert len(decoded.rejected) == sum(1 for bad in junk if bad.strip())
    shown = [{k: v for k, v in row.items() if v is not None} for row in decoded.events.to_pylist()]
    assert shown == [{k: v for k, v in event.items() if v is not None} for event in events]


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.integers(0, 7))
def test_a_line_is_judged_without_its_neighbours(events: list[dict[str, Any]], cut: int) -> None:
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    lines.insert(min(cut, len(lines)), b'{"n":1.5}\n')
    whole = decode(b"".join(lines))
    taken = [decode(line).positions.size for line in lines]
    assert whole.positions.tolist() == [number for number, count in enumerate(taken) if count]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | ANY_BYTES, st.integers(1, 9), st.booleans())
def test_blocks_are_the_text_cut_at_newlines(text: bytes, step: int, grows: bool) -> None:
    pieces = iter([text[at : at + step] for at in range(0, len(text), step)])
    blocks = Blocks(lambda nbytes: next(pieces, b""), 0, grows=grows)
    found = list(blocks)
    whole = b"".join(block.text for block in found)
    assert whole == text[: len(text) - blocks.unfinished]
    assert all(block.text.endswith(b"\n") for block in found[:-1])
    assert [block.begin for block in found[1:]] == [block.end for block in found[:-1]]
    assert not blocks.unfinished or grows


def test_a_line_without_end_is_passed_over_without_keeping_it() -> None:
    huge = b"x" * (3 << 20)
    pieces = iter([b'{"a":1}\n', huge, huge, b'y\n{"a":2}', b"\n"])
    found = list(Blocks(lambda nbytes: next(pieces, b""), 0))
    assert [block.is_too_long for block in found] == [False, True, False]
    assert found[1] == Block(begin=8, end=8 + 2 * len(huge) + 2, text=b"x" * (1 << 16), is_too_long=True)
    assert found[2].text == b'{"a":2}\n'


def test_the_last_line_of_a_file_that_grows_waits_until_it_is_whole() -> None:
    def read(text: bytes) -> Blocks:
        pieces = iter([text])
        return Blocks(lambda nbytes: next(pieces, b""), 0, grows=True)

    for text, taken in ((b'{"a":1}\n{"a":2}', 15), (b'{"a":1}\n{"a":', 8), (b'{"a":', 0), (b'{"a":1}\n17', 8)):
        blocks = read(text)
        assert sum(len(block.text) for block in blocks) == taken
        assert blocks.unfinished == len(text) - taken


def test_floats_come_back_exactly() -> None:
    values = [0.1, 1e-308, 5e-324, math.pi, 1.7976931348623157e308, -0.0]
    block = "".join(json.dumps({"x": value}) + "\n" for value in values)
    assert decode(block).events["x"].to_pylist() == values
