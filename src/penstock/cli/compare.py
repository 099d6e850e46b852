"""``penstock compare``: the same job under several strategies, a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from penstock.cli.options import Count, data_options, data_section
from penstock.errors import ConfigError

__all__ = ["compare"]


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--consistency",
    "strategies",
    multiple=True,
    help="bsp, ssp:4, asp, tree or online; once for each.  [default: bsp, ssp:4, asp, tree]",
)
@click.option("--servers", type=int, default=1, show_default=True, help="Processes that hold the model.")
@click.option("--workers", type=int, default=2, show_default=True, help="Processes that compute gradients.")
@click.option("--minibatch", type=Count(), metavar="NUMBER", help="Rows of a micro-batch.  [default: 1024]")
@click.option("--straggler", help="Slow a worker down: 1=4x, or 1=80ms a step.")
@click.option("--label", help="Column to predict, where DATA is no job file.")
@click.option("-o", "--output", default="compare.html", show_default=True, help="The page.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@data_options
def compare(
    data: tuple[str, ...],
    strategies: tuple[str, ...],
    servers: int,
    workers: int,
    minibatch: int | None,
    straggler: str | None,
    label: str | None,
    output: str,
    quiet: bool,
    **reading: Any,
) -> None:
    """Train DATA (or a job file) once under each strategy, and show what each costs: a table, a page, an advice.

    Models are thrown away. The page is one file, with its figures beside it as JSON.
    """
    from penstock.dash import save_comparison, to_table, write_page
    from penstock.job import Job, parse_straggler, read_job, strategies_of
    from penstock.job import compare as measure

    page = Path(output)
    if page.suffix != ".html" or not page.parent.is_dir():
        raise ConfigError(f"{output}: the page must be a .html in a folder that exists")
    if len(data) == 1 and data[0].endswith(".toml"):
        job = read_job(data[0])
    else:
        spec: dict[str, Any] = {"data": data_section(list(data), **reading)}
        if label is not None:
            spec["features"] = {"label": label}
        job = Job.from_dict(spec, "options")
    slow = parse_straggler(straggler) if straggler else None
    chosen = strategies_of(
        strategies or ("bsp", "ssp:4", "asp", "tree"),
        servers=servers,
        workers=workers,
        minibatch=minibatch if minibatch is not None else job.train.minibatch,
        slow=slow,
        imports=tuple(job.train.imports),
        **{k: v for k in ("micro_batches", "depth", "window") if (v := getattr(job.train, k)) is not None},
    )
    console = Console(markup=False)

    def say(name: str) -> None:
        if not quiet:
            click.echo(f"{name} ...", err=True)

    comparison = measure(job, chosen, straggler=straggler, progress=not quiet, on_trial=say)
    write_page(comparison, page)
    figures = page.with_suffix(".json")
    save_comparison(comparison, figures)
    console.print(to_table(comparison))
    console.print(f"page in {page}, figures in {figures}", highlight=False)
