from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.libsvm import BAD_INDEX, BAD_LABEL, BAD_VALUE, DONE, parse_libsvm


def parse(text: bytes):
    lines, items = text.count(b"\n") + 1, text.count(b":")
    labels, row_at = np.empty(lines, np.float32), np.empty(lines, np.int64)
    offsets = np.empty(lines + 1, np.int32)
    indices, values = np.empty(items, np.int64), np.zeros(items, np.float32)
    long_at, long_item = np.empty(items, np.int64), np.empty(items, np.int64)
    ended, at, rows, nnz, n_long, rising = parse_libsvm(
        np.frombuffer(text, np.uint8), labels, row_at, offsets, indices, values, long_at, long_item
    )
    for start, item in zip(long_at[:n_long], long_item[:n_long], strict=True):
        with np.errstate(over="ignore"):
            values[item] = np.float32(float(re.compile(rb"[^\s#]+").match(text, int(start)).group()))
    return {
        "ended": ended,
        "at": at,
        "labels": labels[:rows].tolist(),
        "row_at": row_at[:rows].tolist(),
        "rows": [
            list(zip(indices[a:b].tolist(), values[a:b], strict=True))
            for a, b in zip(offsets[:rows], offsets[1 : rows + 1], strict=True)
        ],
        "n_long": n_long,
        "rising": bool(rising),
        "nnz": nnz,
    }


def oracle(text: str) -> tuple[list[float], list[list[tuple[int, np.float32]]]]:
    labels, rows = [], []
    for line in text.split("\n"):
        tokens = line.partition("#")[0].split()
        if not tokens:
            continue
        labels.append(max(float(tokens[0]), 0.0))
        pairs = [token.split(":") for token in tokens[1:] if not token.startswith("qid:")]
        rows.append([(int(index), np.float32(float(value))) for index, value in pairs])
    return labels, rows


def test_the_example_of_the_docstring():
    parsed = parse(b"+1 3:2 7:0.5\n")
    assert parsed["labels"] == [1]
    assert parsed["rows"] == [[(3, 2.0), (7, 0.5)]]
    assert (parsed["ended"], parsed["nnz"], parsed["n_long"], parsed["rising"]) == (DONE, 2, 0, True)


def test_labels_comments_qid_blank_lines_and_line_ends():
    text = b"-1 qid:3 1:1  2:2 # 9:9\r\n\n  \n# all of it\n0\n1.0\t4:4e0\r\n+1 5:-.5#x\n-1.0 6:6."
    parsed = parse(text)
    assert parsed["labels"] == [0, 0, 1, 1, 0]
    assert parsed["rows"] == [[(1, 1.0), (2, 2.0)], [], [(4, 4.0)], [(5, -0.5)], [(6, 6.0)]]
    assert [text[at:][:4] for at in parsed["row_at"]] == [b"-1 q", b"0\n1.", b"1.0\t", b"+1 5", b"-1.0"]


def test_nothing_is_no_row():
    assert parse(b"")["rows"] == []
    assert parse(b"\n \n#\n")["rows"] == []


@pytest.mark.parametrize(
    ("text", "ended", "at"),
    [
        (b"1 1:1\n2 1:1\n", BAD_LABEL, 6),
        (b"nan 1:1\n", BAD_LABEL, 0),
        (b"1:1\n", BAD_LABEL, 0),
        (b"1x 1:1\n", BAD_LABEL, 0),
        (b"1 -3:1\n", BAD_INDEX, 2),
        (b"1 :1\n", BAD_INDEX, 2),
        (b"1 7\n", BAD_INDEX, 2),
        (b"1 1.5:1\n", BAD_INDEX, 2),
        (b"1 1:1 1000000000000000000:1\n", BAD_INDEX, 6),
        (b"1 q:1\n", BAD_INDEX, 2),
        (b"1 3:\n", BAD_VALUE, 2),
        (b"1 3:inf\n", BAD_VALUE, 2),
        (b"1 3:nan\n", BAD_VALUE, 2),
        (b"1 3:1e\n", BAD_VALUE, 2),
        (b"1 3:1.2.3\n", BAD_VALUE, 2),
        (b"1 3:.\n", BAD_VALUE, 2),
        (b"1 3:--1\n", BAD_VALUE, 2),
        (b"1 3:1:2\n", BAD_VALUE, 2),
        (b"1 3:0x1\n", BAD_VALUE, 2),
        (b"1 3:1", DONE, 6),
    ],
)
def test_mistakes_are_found_where_they_are(text, ended, at):
    parsed = parse(text)
    assert (parsed["ended"], parsed["at"]) == (ended, at)


def test_indices_up_to_18_digits():
    assert parse(b"1 0:1 999999999999999999:1\n")["rows"] == [[(0, 1.0), (999999999999999999, 1.0)]]


def test_rising_is_by_row():
    assert parse(b"1 5:1 6:1\n1 1:1 2:1\n")["rising"]
    assert not parse(b"1 5:1 6:1\n1 2:1 1:1\n")["rising"]
    assert not parse(b"1 5:1 5:1\n")["rising"]


decimals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda x: f"{x:.9g}"),
    st.from_regex(r"[+-]?([0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,25})([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    # Halfway between two f32, and a little beside.
    st.builds(
        lambda m, e, d: f"{(2 * m + 1) * 2**e}{d}",
        st.integers(2**23, 2**24 - 1),
        st.integers(0, 30),
        st.sampled_from(["", ".0", ".5", ".0000000001", "e0", "e-3"]),
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(decimals, min_size=1, max_size=20))
def test_decimals_are_those_of_float(texts):
    line = "1 " + " ".join(f"{i}:{text}" for i, text in enumerate(texts)) + "\n"
    parsed = parse(line.encode())
    assert parsed["ended"] == DONE
    with np.errstate(over="ignore"):
        expected = np.array([float(text) for text in texts]).astype(np.float32)
    got = np.array([value for _, value in parsed["rows"][0]])
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_common_decimals_take_the_short_way():
    text = " ".join(f"{i}:{x!r}" for i, x in enumerate(np.random.default_rng(3).random(500).tolist()))
    assert parse(f"1 {text}\n".encode())["n_long"] == 0


blanks = st.sampled_from([" ", "  ", "\t"])
pairs = st.tuples(st.integers(0, 10**18 - 1), st.sampled_from(["1", "0.25", "-3", "1e-3", "007", "1.50"]))
lines = st.builds(
    lambda label, items, blank, qid, comment, tail: (
        blank.join([label, *([f"qid:{qid}"] if qid else []), *(f"{i}:{v}" for i, v in items)]) + tail + comment
    ),
    st.sampled_from(["1", "+1", "-1", "0", "1.0", "-1.00"]),
    st.lists(pairs, max_size=5),
    blanks,
    st.sampled_from([0, 0, 12]),
    st.sampled_from(["", "# x 1:2", "#"]),
    st.sampled_from(["", " ", "\r"]),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(lines, st.sampled_from(["", " ", "# 1:1"])), max_size=8), st.booleans())
def test_same_as_the_oracle(texts, last_line_end):
    text = "\n".join(texts) + ("\n" if last_line_end else "")
    parsed = parse(text.encode())
    assert parsed["ended"] == DONE
    assert (parsed["labels"], parsed["rows"]) == oracle(text)
