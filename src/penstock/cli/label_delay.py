"""``penstock label-delay``: how long labels take, and what to put for ``label_wait`` and late positives."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from penstock.cli.stream import counting, times
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.dash.delay_page import DelayColumn
    from penstock.stream.delay import Delays

__all__ = ["label_delay"]

_PAGE = "label-delay.html"


@click.command("label-delay")
@click.argument("job")
@click.option("--from", "from_", metavar="TIME", help="Examples of this event time or later.")
@click.option("--to", metavar="TIME", help="Examples before this event time.")
@click.option(
    "--final-after",
    metavar="DURATION",
    help="Take labels as final so long after their examples, for a log that is younger than `within`.",
)
@click.option("-o", "--output", help=f"The page.  [default: {_PAGE}; none with --json]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def label_delay(
    job: str, from_: str | None, to: str | None, final_after: str | None, output: str | None, as_json: bool
) -> None:
    """Measure how long labels of the pipeline in JOB take to turn positive, and what each label_wait costs.

    Shows a table and writes a page; the log is left as it is.
    """
    from penstock.dash.delay_page import write_delay_page
    from penstock.job.pipeline import read_pipeline
    from penstock.log.times import parse_duration
    from penstock.stream.delay import measure
    from penstock.stream.delay_advice import advice, to_json

    page = None if output is None and as_json else Path(output or _PAGE)
    if page is not None and (page.suffix != ".html" or not page.parent.is_dir()):
        raise ConfigError(f"{page}: the page must be a .html in a folder that exists")
    pipeline = read_pipeline(job).pipeline
    begin, end = times(from_, to)
    final_us = None if final_after is None else parse_duration(final_after, "--final-after")
    if final_us == 0:
        raise ConfigError(f"--final-after: got {final_after!r}, allowed: longer than 0")
    try:
        with counting("label-delay"):
            delays = measure(pipeline, from_us=begin, to_us=end, final_after_us=final_us)
    except ConfigError as error:
        raise ConfigError(f"{job}: {error}") from error
    if page is not None:
        write_delay_page(delays, page)
    if as_json:
        click.echo(json.dumps(to_json(delays)))
        return
    console = Console(markup=False, highlight=False)
    console.print(
        f"{delays.positives:,} of {delays.measured:,} examples are positive in the end ({delays.label}); "
        f"delays by {delays.basis}"
    )
    console.print(_table(delays, console))
    mode = delays.pipeline.late.mode
    given = f'"{mode}"' if delays.pipeline.late.needs_predictions else '"duplicate" (or "importance")'
    console.print(f"\nin [pipeline], with late_positives = {given}:")
    console.print(_settings(delays))
    console.print(advice(delays), style="bold")
    for note in delays.notes:
        click.echo(f"note: {note}", err=True)
    console.print(f"page in {page}")


def _settings(delays: Delays) -> Table:
    """The lines to put, one choice a row."""
    shown = [("as it is", delays.current)]
    shown += [(f"{100 * each.share:.0f} % on time", each.wait) for each in delays.choices if each.wait is not None]
    table = Table.grid(padding=(0, 3, 0, 0))
    for what, wait in shown:
        lines = [line for line in delays.toml(wait) if not line.startswith("late_positives")]
        table.add_row(f"  {what}", *lines)
    return table


def _table(delays: Delays, console: Console) -> Table:
    from penstock.dash.delay_page import delay_columns

    columns = delay_columns(delays)
    table = _of(delays, columns)
    if Measurement.get(console, console.options.update(width=10_000), table).maximum > console.width and all(
        abs(wait.mean_label - wait.on_time) < 0.0005 for wait in delays.waits
    ):
        # Where no label turns back, the mean of the labels is short by the positives that are.
        return _of(delays, [column for column in columns if column.head != "CTR given out"])
    return table


def _of(delays: Delays, columns: Sequence[DelayColumn]) -> Table:
    from penstock.dash.delay_page import row_mark
    from penstock.stream.delay_advice import shown_waits

    waits = shown_waits(delays)
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        cells = [column.cell(wait) for wait in waits]
        # The head takes more lines rather than a wider column.
        width = max(map(len, [*column.head.split(), *cells]))
        head = "\n".join(textwrap.wrap(column.head, width, break_on_hyphens=False))
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(Text(head), justify=justify, vertical="bottom", no_wrap=True)
    table.add_column("", no_wrap=True)
    for wait in waits:
        style = "bold" if wait is delays.current else ""
        table.add_row(*(each.cell(wait) for each in columns), row_mark(delays, wait), style=style)
    return table
