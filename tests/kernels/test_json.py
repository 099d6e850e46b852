"""The kernel that cuts JSON arrays, against Python's own reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.kernels.json import cut_array

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just('\\"]},[{'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def cut(text: bytes, nbytes: int, items: int) -> tuple[int, int, int, int, list[int]]:
    cuts = np.full(len(text) // min(nbytes, items) + 1, -1, np.int64)
    end, count, longest_at, longest, found = cut_array(np.frombuffer(text, np.uint8), nbytes, items, cuts)
    assert (cuts[found:] == -1).all()
    return end, count, longest_at, longest, cuts[:found].tolist()


@settings(deadline=None)
@given(
    st.lists(VALUES, max_size=12),
    st.integers(1, 40),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([None, 1, "\t\r"]),
)
def test_pieces_are_the_array(
    values: list[object], nbytes: int, items: int, ascii: bool, indent: int | str | None
) -> None:
    text = json.dumps(values, ensure_ascii=ascii, indent=indent).encode(errors="surrogatepass")
    end, count, longest_at, longest, cuts = cut(text + b" ]x", nbytes, items)
    assert (end, count) == (len(text), len(values))
    bounds = [0, *cuts, len(text) - 1]
    pieces = [text[a + 1 : b].decode(errors="surrogatepass") for a, b in zip(bounds, bounds[1:], strict=False)]
    read = [json.loads(f"[{piece}]") for piece in pieces]
    assert [value for piece in read for value in piece] == values
    if len(values) > 1:
        assert all(0 < len(piece) <= items for piece in read)
        assert all(len(piece) == items or b - a >= nbytes for piece, a, b in zip(read, bounds, cuts, strict=False))
        assert longest <= len(text) - 2
    one = cut(text, 1, 1)[4]
    ends = [0, *one, len(text) - 1]
    lengths = [b - a - 1 for a, b in zip(ends, ends[1:], strict=False)]
    assert longest == max(lengths) == lengths[longest_at]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"[1, [2, 3], 4]", (14, 3, 1, 7, [10])),
        (b"[]", (2, 0, 0, 0, [])),
        (b"[ \n ]", (5, 0, 0, 3, [])),
        (b"[,]", (3, 2, 0, 0, [])),
        (b"", (0, 0, 0, 0, [])),
        (b"[1, 2", (0, 1, 0, 1, [])),
        (b'["]', (0, 0, 0, 0, [])),
        (b'["\\', (0, 0, 0, 0, [])),
        (b'["\\"]', (0, 0, 0, 0, [])),
        (b'["\\\\"]', (6, 1, 0, 4, [])),
        (b"]]]", (0, 0, 0, 0, [])),
    ],
)  # fmt: skip
def test_known_texts(text: bytes, found: tuple[int, int, int, int, list[int]]) -> None:
    assert cut(text, 99, 2) == found


@settings(deadline=None)
@given(
    st.binary(max_size=60) | st.text('[]{},"\\ 1', max_size=60).map(str.encode),
    st.integers(1, 9),
    st.integers(1, 9),
)
@example(b"," * 60, 1, 1)
def test_any_bytes_stay_within_bounds(text: bytes, nbytes: int, items: int) -> None:
    end, count, longest_at, longest, cuts = cut(text, nbytes, items)
    assert 0 <= end <= len(text) and 0 <= longest <= len(text) and 0 <= longest_at <= count
    assert cuts == sorted(set(cuts)) and all(text[at] == ord(",") for at in cuts)
