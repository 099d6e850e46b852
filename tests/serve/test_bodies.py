"""Bodies that nobody sends by mistake: damaged, hostile, or larger than they look. Each is answered by a 4xx."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.serve.api.app import ARROW, App, ServeLimits
from penstock.serve.api.slices import SLICE_NBYTES, SLICE_ROWS
from tests.asgi import ask
from tests.serve.conftest import Served, rows_of_all_kinds
from tests.serve.test_app import INFER, ROW, arrow, call
from tests.serve.test_rows import as_json

fuzzed = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=150
)


@pytest.fixture(scope="module")
def app(served: Served) -> App:
    limits = ServeLimits(body_nbytes=4 << 20, text_nbytes=4 << 20, table_rows=100_000, row_nbytes=100_000)
    return App({"ctr": served.scorer}, limits=limits)


def send(app: App, body: bytes, path: str = "/predict", **headers: str) -> int:
    """The status, of an answer that is well-formed; and a good request is answered after it."""
    answer = call(app, "POST", path, body, **headers)
    if answer.status != 200:
        assert 400 <= answer.status < 500, (answer, body[:200])
        error = json.loads(answer.body)["error"]
        assert error and "\n" not in error and len(error) < 600
    assert call(app, "POST", "/predict", ROW).status == 200
    return answer.status


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**25), 2**63, 2**64, 1e308, -5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["site", "user", "mobile", "price", "width", "seen", "tags", "words", "x"])


@fuzzed
@given(rows=st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), max_size=4), data=st.data())
def test_json_of_any_values_and_with_any_damage(app: App, rows: list[Any], data: st.DataObject) -> None:
    body = bytearray(json.dumps(rows).encode())
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
        body[at] = data.draw(st.integers(0, 255))
    send(app, bytes(body))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"price": NaN}', 400),
        (b'{"price": Infinity}', 400),
        (b'{"price": -1e999}', 400),
        (b'{"price": 1%s}' % (b"0" * 400), 400),
        (b'{"user": %s}' % (b"9" * 5000), 400),
        (b'{"site": "\\ud800"}', 400),
        (b'{"site": "\xed\xa0\x80"}', 400),
        (b'{"site": "a", "site": 1}', 200),
        (b'{"site": "\\u0000"}', 200),
        (b'\xef\xbb\xbf{"site": "a"}', 400),
        (b'{"site":' * 5000, 400),
        (b'{"site": "a"}' + b" " * SLICE_NBYTES, 200),
        (b'{"site": "a"}' + b" " * SLICE_NBYTES + b"x", 400),
        (b"[" + b",".join([b'{"site":"a"}'] * 9999) + b",]", 400),
        (b"[" + b",".join([b'{"site":"a"}'] * 9999) + b"]]", 400),
        (b"[" + b",".join([b'{"site":"a"}'] * 9999), 400),
        (b"[" + b",".join([b'{"site":"a"}'] * 9999) + b"}", 400),
        (b"[" + b",".join([b'{"site":"a"}'] * 5000 + [b'{"site":[}']) + b"]", 400),
        (b"[" + b",".join([b'{"site":"a"}'] * 5000 + [b""] * 2) + b"]", 400),
        (b"[" + b"," * 100_000 + b"]", 413),
        (b"[" + b" " * 100_000 + b"]", 400),
        (b"[" * 40_000 + b"]" * 40_000, 400),
        (b"7" * 100_000, 400),
        (json.dumps({f"c{n}": n for n in range(100_000)}).encode(), 413),
        (b'[{"site":"a"},' + json.dumps({f"c{n}": n for n in range(100_000)}).encode() + b"]", 413),
    ],
)  # fmt: skip
def test_json_that_is_none_or_is_too_much(app: App, body: bytes, status: int) -> None:
    assert send(app, body) == status


def test_rows_in_slices_have_the_bits_of_rows_at_once(app: App, served: Served) -> None:
    rows = as_json(rows_of_all_kinds(5 * SLICE_ROWS, seed=12))
    body = json.dumps(rows, indent=1).encode()
    assert len(body) > 2 * SLICE_NBYTES
    expected = served.model.predict(rows_of_all_kinds(5 * SLICE_ROWS, seed=12))
    for sent in (body, b" \n" + body + b"\t", gzip.compress(body)):
        headers = {} if sent[:2] != b"\x1f\x8b" else {"content_encoding": "gzip"}
        found = json.loads(call(app, "POST", "/predict", sent, **headers).body)["predictions"]
        np.testing.assert_array_equal(np.array(found, np.float32), expected)
    short = [{"user": row.get("user"), "seen": row.get("seen")} for row in rows]
    small = json.dumps(short).encode()
    assert len(small) < SLICE_NBYTES
    found = json.loads(call(app, "POST", "/predict", small).body)["predictions"]
    assert found == served.scorer.score(short).tolist()
    columns = {"user": ("INT64", "user"), "price": ("FP64", "price"), "site": ("BYTES", "site")}
    tensors = [
        {"name": name, "shape": [len(rows)], "datatype": type_, "data": [row.get(key) for row in rows]}
        for name, (type_, key) in columns.items()
    ]
    found = json.loads(call(app, "POST", INFER, {"inputs": tensors}).body)["outputs"][0]["data"]
    assert found == served.scorer.score([{name: row.get(name) for name in columns} for row in rows]).tolist()


def test_a_bad_row_in_a_late_slice_is_named_by_its_place(app: App) -> None:
    rows = [ROW] * 3000 + [{"price": "x"}]
    assert b"row 3000: column 'price'" in call(app, "POST", "/predict", rows).body
    data = [1.5] * 9000 + ["x"]
    tensor = {"name": "price", "shape": [9001], "datatype": "FP64", "data": data}
    assert b"value 9000 is 'x'" in call(app, "POST", INFER, {"inputs": [tensor]}).body


@fuzzed
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.floats(0, 1), fuse=st.booleans())
@example(at=0.99, bit=0, cut=1.0, fuse=False)
def test_damaged_gzip(app: App, at: float, bit: int, cut: float, fuse: bool) -> None:
    body = bytearray(gzip.compress(json.dumps([ROW] * 30).encode(), mtime=0))
    body[int(at * len(body))] ^= 1 << bit
    sent = bytes(body[: int(cut * len(body))]) + (b"junk" if fuse else b"")
    send(app, sent, content_encoding="gzip")


def test_a_small_body_that_unpacks_to_more_than_allowed(app: App) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < 1 << 17
    assert send(app, bomb, content_encoding="gzip") == 413


def compressed(table: pa.Table, codec: str) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return sink.getvalue()


STREAMS = [(), ("zstd",), ("lz4",)]


@fuzzed
@given(which=st.sampled_from(STREAMS), seed=st.integers(0, 2**32), flips=st.integers(0, 4), cut=st.booleans())
def test_damaged_arrow(app: App, which: tuple[str, ...], seed: int, flips: int, cut: bool) -> None:
    table = rows_of_all_kinds(20, seed=1)
    body = bytearray(compressed(table, *which) if which else arrow(table))
    draw = random.Random(seed)
    for _ in range(flips):
        # Metadata has most of what can be wrong, and is in front.
        body[int(len(body) * draw.random() ** 2)] ^= 1 << draw.randrange(8)
    if cut:
        del body[draw.randrange(len(body)) :]
    send(app, bytes(body), content_type=ARROW)


@fuzzed
@given(
    seed=st.integers(0, 2**32),
    value=st.sampled_from([-1, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 0xFFFFFFFF, 8]),
    wide=st.booleans(),
    which=st.sampled_from(STREAMS),
)
def test_arrow_with_hostile_lengths(app: App, seed: int, value: int, wide: bool, which: tuple[str, ...]) -> None:
    table = rows_of_all_kinds(20, seed=1)
    body = bytearray(compressed(table, *which) if which else arrow(table))
    width = 8 if wide else 4
    at = random.Random(seed).randrange(len(body) // width - 1) * width
    body[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    send(app, bytes(body), content_type=ARROW)


def test_arrow_buffers_that_unpack_to_more_than_allowed(app: App) -> None:
    table = rows_of_all_kinds(20_000, seed=1).drop_columns(["site"])
    zeros = table.append_column("site", pa.array(["x" * 1000] * 20_000))
    for codec in ("zstd", "lz4"):
        body = compressed(zeros, codec)
        assert len(body) < 2 << 20
        assert send(app, body, content_type=ARROW) == 413
        # Arrow unpacks as much as is written in front of a buffer.
        lengths = bytearray(compressed(rows_of_all_kinds(20_000, seed=1), codec))
        at = lengths.index(struct.pack("<q", 20_000 * 8))
        lengths[at : at + 8] = struct.pack("<q", 1 << 40)
        assert send(app, bytes(lengths), content_type=ARROW) == 413


def with_columns(**columns: pa.Array) -> bytes:
    rows = len(next(iter(columns.values())))
    table = rows_of_all_kinds(10, seed=1).slice(0, 0)
    whole = {
        name: pa.nulls(rows, field.type) for name, field in zip(table.column_names, table.schema, strict=True)
    }
    return arrow(pa.table({**whole, **columns}))


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ({"site": pa.nulls(100_001)}, 413),
        ({"site": pa.nulls(10)}, 200),
        ({"tags": pa.array([[None] * 10])}, 400),
        ({"tags": pa.array([[True] * 200_000])}, 413),
        ({"site": pa.array([{"a": 1}] * 3)}, 400),
        ({"site": pa.array([[[1]]] * 3)}, 400),
        ({"site": pa.RunEndEncodedArray.from_arrays(pa.array([50_000], pa.int32()), pa.array(["x"]))}, 400),
        ({"site": pa.array(["text of a view, not inlined"] * 3, pa.string_view())}, 200),
        ({"price": pa.array(["x"] * 3)}, 400),
        ({"price": pa.array([float("nan")] * 3)}, 400),
        ({"site": pa.array([b"\xff\xfe"] * 3)}, 200),
        ({"site": pa.array(["x"] * 3).dictionary_encode()}, 200),
    ],
)  # fmt: skip
def test_arrow_types_that_are_taken_and_those_that_are_not(
    app: App, columns: dict[str, pa.Array], status: int
) -> None:
    assert send(app, with_columns(**columns), content_type=ARROW) == status


def test_views_that_show_the_same_bytes_many_times(app: App) -> None:
    text = pa.py_buffer(b"y" * 100_000)
    view = struct.pack("<i4sii", 100_000, b"yyyy", 0, 0)
    views = pa.Array.from_buffers(pa.string_view(), 1000, [None, pa.py_buffer(view * 1000), text])
    body = with_columns(site=views)
    assert len(body) < 1 << 20
    assert send(app, body, content_type=ARROW) == 413


def test_arrow_of_very_many_columns_or_batches(app: App) -> None:
    table = rows_of_all_kinds(5, seed=1)
    known = dict(zip(table.column_names, table.columns, strict=True))
    wide = pa.table({**{f"c{n}": pa.nulls(5) for n in range(5000)}, **known})
    assert send(app, arrow(wide), content_type=ARROW) == 200
    twice = pa.Table.from_arrays([*table.columns, table["site"]], names=[*table.column_names, "site"])
    assert send(app, arrow(twice), content_type=ARROW) == 400
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("price", pa.float64())])) as writer:
        for _ in range(5000):
            writer.write_batch(pa.record_batch({"price": [1.0]}))
    assert send(app, sink.getvalue(), content_type=ARROW) == 413


def test_large_bodies_are_counted_together_and_let_go(served: Served) -> None:
    app = App({"ctr": served.scorer}, limits=ServeLimits(waiting_nbytes=400_000, idle_s=0.05))
    body = json.dumps([ROW] * 5000).encode()
    assert call(app, "POST", "/predict", body).status == 200
    assert call(app, "POST", "/predict", [], content_length="200000").status == 408
    assert call(app, "POST", "/predict", body).status == 200  # what was held is not held any more

    async def together() -> list[int]:
        answers = await asyncio.gather(*[ask(app, "POST", "/predict", body) for _ in range(4)])
        small = await ask(app, "POST", "/predict", json.dumps(ROW).encode())
        return [*sorted(answer.status for answer in answers), small.status]

    assert asyncio.run(together()) == [200, 200, 429, 429, 200]
