"""A comparison on a terminal: one table where it fits, else some below each other, and the sentence of advice."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from penstock.dash.advice import advice
from penstock.dash.figures import Column, columns, labels, one_line
from penstock.dash.trials import Comparison

__all__ = ["to_table"]

LABEL = 20
"""Characters of a name in the table."""


def to_table(comparison: Comparison) -> RenderableType:
    """All strategies, best per column in bold, the reason of each that failed, then the advice."""
    return _Report(comparison)


class _Report:
    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._labels = labels(comparison)
        self._columns = columns(comparison)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self._parts(self._columns, lambda shown: self._fits(shown, console, options)):
            yield self._table(part)
        for label, trial in zip(self._labels, self._comparison.trials, strict=True):
            if trial.error is not None:
                yield Text.assemble((label, "bold"), f" failed: {one_line(trial.error, 400) or 'no reason given'}")
        yield Text(advice(self._comparison))

    def _parts(self, shown: Sequence[Column], fits: Callable[[Sequence[Column]], bool]) -> list[Sequence[Column]]:
        """The columns of each table: one that fits, else by group, else halves."""
        if len(shown) < 2 or fits(shown):
            return [shown] if shown else []
        groups = [[column for column in shown if column.group == group] for group in ("learning", "cost")]
        if not all(groups):
            groups = [list(shown[: (len(shown) + 1) // 2]), list(shown[(len(shown) + 1) // 2 :])]
        return [part for group in groups for part in self._parts(group, fits)]

    def _fits(self, shown: Sequence[Column], console: Console, options: ConsoleOptions) -> bool:
        wide = options.update(width=10_000)
        return Measurement.get(console, wide, self._table(shown)).maximum <= options.max_width

    def _table(self, shown: Sequence[Column]) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        table.add_column("strategy", vertical="bottom", no_wrap=True)
        for column in shown:
            # The head takes more lines rather than a wider column.
            width = max(len(part) for part in (*column.head.split(), *(cell.text for cell in column.cells)))
            head = "\n".join(textwrap.wrap(column.head, width, break_on_hyphens=False))
            table.add_column(Text(head), justify="right", vertical="bottom", no_wrap=True)
        for index, label in enumerate(self._labels):
            cells = [column.cells[index] for column in shown]
            table.add_row(
                Text(one_line(label, LABEL)),
                *(Text(cell.text, style="bold" if cell.best else "") for cell in cells),
            )
        return table
