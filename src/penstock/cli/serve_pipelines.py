"""``penstock serve --pipeline``: which pipeline belongs to which model, read before the server listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.serve.features import Features
    from penstock.serve.scorer import Scorer

__all__ = ["features_of"]


def features_of(pipelines: Sequence[str], scorers: Mapping[str, Scorer]) -> dict[str, Features]:
    """By model, what its pipeline adds to rows: up to date, and fit for the version that is there.

    Raises:
        ConfigError: a column of a model cannot be had from a request, or a job file is none.
        DataError: a log cannot be read.
    """
    jobs = _jobs(pipelines, list(scorers))
    if not jobs:
        return {}
    from penstock.log.delta import require_deltalake

    require_deltalake()  # what else the extra brings is imported next, and tells less
    from penstock.job.pipeline import read_pipeline
    from penstock.serve.features import Features

    by_job = {job: Features(read_pipeline(job).pipeline) for job in dict.fromkeys(jobs.values())}
    features = {name: by_job[job] for name, job in jobs.items()}
    for name, each in features.items():
        try:
            each.check(scorers[name])
        except ConfigError as error:
            raise ConfigError(f"model {name}, {jobs[name]}: {error}") from error
    for job, each in by_job.items():
        _load(job, each)
    return features


def _load(job: str, features: Features) -> None:
    click.echo(f"pipeline {job}: reading {features.pipeline.log}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} events"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=not _terminal()
    ) as progress:
        tasks: dict[str, object] = {}

        def say(stream: str, read: int, of: int) -> None:
            if stream not in tasks:
                tasks[stream] = progress.add_task(f"reading {stream}", total=of)
            progress.update(tasks[stream], completed=read)  # type: ignore[arg-type]

        features.load(say)
    names = ", ".join(features.current.names)
    click.echo(f"pipeline {job}: " + (f"{names}, of {features.events:,} events" if names else "no aggregates"))


def _terminal() -> bool:
    return Console(stderr=True).is_terminal


def _jobs(pipelines: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """By model the job file that was given for it, or for all."""
    of_one: dict[str, str] = {}
    of_all: list[str] = []
    for each in pipelines:
        name, equals, job = each.partition("=")
        if equals and name in models:
            of_one[name] = job
        else:
            of_all.append(each)
    if len(of_all) > 1:
        raise ConfigError(
            f"--pipeline {of_all[1]}: a second one for all models; allowed: one, or NAME=JOB with a name of "
            f"{', '.join(models)}"
        )
    return {**(dict.fromkeys(models, of_all[0]) if of_all else {}), **of_one}
