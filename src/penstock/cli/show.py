"""What several commands print: tables of scores, what a run came to, numbers in few digits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["add_scores", "count", "file_count", "plain_table", "print_run", "score_table"]


def print_run(console: Console, run: Any, path: str) -> None:
    """What a run came to."""
    table = score_table()
    add_scores(table, "progressive", run.metrics)
    if run.holdout is not None:
        add_scores(table, "hold-out", run.holdout)
    console.print(table)
    speed = f" ({run.rows / run.seconds:,.0f} rows/s)" if run.seconds else ""
    console.print(
        f"{run.rows:,} rows in {run.seconds:.2f} s{speed}, {run.model.rows:,} features; model in {path}",
        highlight=False,
    )


def plain_table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD if any(columns) else None, show_header=any(columns), padding=(0, 1))
    for i, name in enumerate(columns):
        text = i == 0 or name in ("", "feature", "type", "becomes")
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=i == 0)
    return table


def score_table() -> Table:
    return plain_table("", "rows", "logloss", "NE", "AUC", "calibration", "accuracy")


def add_scores(table: Table, name: str, scores: Any) -> None:
    values: Mapping[str, Any] = scores if isinstance(scores, Mapping) else dataclasses.asdict(scores)

    def shown(key: str, digits: int) -> str:
        value = values[key]
        return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    table.add_row(
        name,
        f"{values['rows']:,}",
        shown("logloss", 5),
        shown("normalised_entropy", 4),
        shown("auc", 4),
        shown("calibration", 4),
        shown("accuracy", 4),
    )


def file_count(n: int) -> str:
    return "1 file" if n == 1 else f"{n} files"


def count(number: float, unit: str = "") -> str:
    from penstock.train.progress import human

    return human(number, unit)


# ---- looking
