"""Files of JSON lines that grow, are cut, replaced, or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dash.live import tail as tail_module
from penstock.dash.live.tail import Tail


@given(cuts=st.lists(st.integers(0, 400), max_size=12), piece=st.sampled_from([1, 7, 64]))
def test_each_line_once_however_the_file_grows(
    cuts: list[int], piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tail") / "lines.jsonl"
    lines = [{"n": n, "text": "ä" * (n % 5)} for n in range(12)]
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_module, "_PIECE", piece)
        tail, found = Tail(path), []
        for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
            with path.open("ab") as file:
                file.write(data[path.stat().st_size if path.exists() else 0 : cut])
            _, new = tail.read()
            found += new
    assert found == lines


def test_what_is_no_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"half": \n[1, 2]\n\xff\xfe\n\n"text"\n{"b": 2}\n{"not yet')
    assert Tail(path).read() == (True, [{"a": 1}, {"b": 2}])


def test_a_file_that_is_replaced_or_cut_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert tail.read() == (True, [{"a": 1}, {"b": 2}])
    assert tail.read() == (False, [])
    other = tmp_path / "other"
    other.write_text('{"c": 3}\n{"d": 4}\n{"e": 5}\n')
    other.replace(path)
    assert tail.read() == (True, [{"c": 3}, {"d": 4}, {"e": 5}])
    path.write_text('{"f": 6}\n')
    assert tail.read() == (True, [{"f": 6}])
    path.unlink()
    assert tail.read() == (True, []) and tail.read() == (False, [])


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "LINE_NBYTES", 100)
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    path.write_bytes(b"x" * 500)
    assert tail.read()[1] == [] and len(tail._rest) == 0
    with path.open("ab") as file:
        file.write(b"x" * 50 + b'\n{"a": 1}\n')
    assert tail.read()[1] == [{"a": 1}]
