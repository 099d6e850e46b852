"""What stands on the terminal, wide and narrow, with and without colour."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from penstock.dash import Comparison, Trial, advice, to_table


def printed(comparison: Comparison, width: int, *, colour: bool = False) -> str:
    file = StringIO()
    Console(file=file, width=width, force_terminal=colour, legacy_windows=False).print(to_table(comparison))
    return file.getvalue()


def test_one_table_where_it_fits(comparison: Comparison) -> None:
    text = printed(comparison, 120)
    assert text.count("strategy ") == 1 and "…" not in text
    [row] = [line.strip() for line in text.splitlines() if line.strip().startswith("SSP(4)")]
    assert re.sub(" +", " ", row) == "SSP(4) 45.5 k 22.0 0.4792 0.7810 0.8407 9 % / 13 % 1 / 5 / 7 422 0.39 ×"
    assert "SSP(64) failed: server 2 (127.0.0.1:9000) died after 3.1 s" in text
    assert " ".join(text.split()).endswith(advice(comparison))


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (50, 4)])
def test_narrow_terminals_get_more_tables_and_no_cut_figures(
    comparison: Comparison, width: int, tables: int
) -> None:
    text = printed(comparison, width)
    assert text.count("strategy ") == tables and "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for figure in ("45.5 k", "0.4792", "9 % / 13 %", "3 / 19 / 88", "422", "0.39 ×"):
        assert figure in text


def test_best_is_bold(comparison: Comparison) -> None:
    text = printed(comparison, 120, colour=True)
    [asp] = [line for line in text.splitlines() if "ASP " in line and "50 k" in line]
    assert "\x1b[1m   50 k\x1b[0m" in asp or "\x1b[1m  50 k\x1b[0m" in asp
    assert "\x1b[1m0.4793" not in asp


def test_text_of_data_is_no_markup_and_moves_no_cursor(compare: Callable[..., Comparison]) -> None:
    made = compare(Trial(name="[red]x[/red]\x1b[2J", error="bad [/] tag\n\x1b]0;title\x07 end"))
    text = printed(made, 120)
    assert "[red]x[/red]�[2J failed: bad [/] tag �]0;title� end" in text and "\x1b" not in text


def test_nothing_to_show(compare: Callable[..., Comparison]) -> None:
    assert printed(compare(), 80).strip() == "No strategy finished."
