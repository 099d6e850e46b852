"""Commands on pipelines: examples of a log, proofs, and what a watermark waits for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from penstock.errors import ConfigError

__all__ = ["examples", "feed", "prove", "readmit", "train_pipeline", "view", "why_waiting"]

_WAIT_MAX_S = 120
_FROM = click.option("--from", "from_", metavar="TIME", help="From the window in which this time lies.")
_TO = click.option("--to", metavar="TIME", help="Windows before the one in which this time lies.")


def times(from_: str | None, to: str | None) -> tuple[int | None, int | None]:
    """Options as microseconds.

    Raises:
        ConfigError: one is no time, or they are the wrong way round.
    """
    from penstock.log.times import parse_time

    begin = None if from_ is None else parse_time(from_, "--from")
    end = None if to is None else parse_time(to, "--to")
    if begin is not None and end is not None and end <= begin:
        raise ConfigError(f"--to {to} must be after --from {from_}")
    return begin, end


@contextmanager
def counting(what: str) -> Iterator[Any]:
    """A line on a terminal that counts rows: call what is given with a text and a number."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task(what, total=None, text="")

        def tell(text: str, rows: int) -> None:
            progress.update(task, text=f"{text} {rows:,} rows")

        yield tell


def train_pipeline(
    sections: dict[str, Any],
    output: str | None,
    from_: str | None,
    to: str | None,
    *,
    once: bool,
    fork: bool,
    resume: bool,
    quiet: bool,
) -> None:
    """``penstock train`` of a job with a pipeline."""
    import dataclasses

    from penstock.cli.show import print_run
    from penstock.errors import Interrupted
    from penstock.job.pipeline import PipelineJob
    from penstock.kernels.compile import is_compiled

    run_of = sections.get("run")
    if run_of is not None:  # of a checkpoint: as the run before
        sections = {name: value for name, value in sections.items() if name != "run"}
        from_, to, once = from_ or run_of["from"], to or run_of["to"], once or run_of["once"]
    job = PipelineJob.from_dict(sections, "job")
    if output is not None:
        job = dataclasses.replace(
            job, job=dataclasses.replace(job.job, output=dataclasses.replace(job.job.output, path=output))
        )
    begin, end = times(from_, to)
    source = job.source(from_us=begin, to_us=end, follow=not once)
    if not is_compiled("linear.learn") and not quiet:
        click.echo("compiling kernels, once on a machine: 10 to 20 s ...", err=True)
    try:
        run = job.run(
            job.model(source),
            source,
            resume=resume,
            progress=not quiet,
            fork=fork,
            on_swap=lambda path: click.echo(
                f"the fork has caught up, and has taken the place of the model in {path}; it goes on from there",
                err=True,
            ),
            as_called={"from": from_, "to": to, "once": once},
        )
    except KeyboardInterrupt as error:
        raise Interrupted("stopped by Ctrl-C before an example was learnt; no checkpoint was written") from error
    print_run(Console(quiet=quiet, markup=False), run, job.job.output.path)


@click.command()
@click.argument("job")
@_FROM
@_TO
@click.option("--window", help="Instead of the job's own: 1d for a batch job.")
@click.option("--changes", is_flag=True, help="What a live run learns: first labels, then corrections.")
@click.option("-o", "--output", required=True, help="Folder for Parquet files.")
@click.option("--overwrite", is_flag=True, help="Replace examples that are there.")
@click.option("--no-wait", is_flag=True, help="Leave out what is not sealed, even if that is a matter of seconds.")
def examples(
    job: str,
    from_: str | None,
    to: str | None,
    window: str | None,
    changes: bool,
    output: str,
    overwrite: bool,
    no_wait: bool,
) -> None:
    """Make training examples of the log, as the pipeline in JOB (.toml) says: each with its final label."""
    import dataclasses

    from penstock.job.pipeline import read_pipeline
    from penstock.log import Log
    from penstock.log.times import format_duration, format_time, parse_duration
    from penstock.stream.feed import take_step
    from penstock.stream.output import write_examples
    from penstock.stream.replay import Replay

    pipeline = read_pipeline(job).pipeline
    if window is not None:
        pipeline = dataclasses.replace(pipeline, window_us=parse_duration(window, "--window"), slide_us=None)
    begin, end = times(from_, to)
    replay = Replay(Log(pipeline.log), pipeline, from_us=begin, to_us=end)
    if begin is not None and end is not None and replay.planner.from_us == replay.planner.to_us:
        raise ConfigError(
            f"--from {from_} and --to {to} lie in one window of {format_duration(pipeline.window_us)}, and the "
            "window of --to is left out; allowed: a later --to, or a shorter --window"
        )
    replay.timeline.extend()
    take_step(replay)
    with counting("examples") as tell:
        if end is not None and not no_wait:
            _wait(replay, end, tell)
        found = replay.run() if changes else replay.final()
        wrote = write_examples(
            replay,
            found,
            output,
            changes=changes,
            overwrite=overwrite,
            on_progress=lambda rows: tell("", rows),
        )
    last = len(replay.timeline.points) - 1
    if last >= 0:
        replay.records.uncounted(last)
    range_ = ""
    if wrote.first_us is not None and wrote.last_us is not None:
        range_ = f", windows from {format_time(wrote.first_us)} to {format_time(wrote.last_us)}"
    files = "1 file" if wrote.files == 1 else f"{wrote.files} files"
    click.echo(f"{wrote.rows:,} examples in {files} in {output}{range_}")
    if wrote.ambiguous:
        click.echo(
            f"note: for {wrote.ambiguous:,} of them the query gave several rows that differ; the least was taken",
            err=True,
        )
    _say_open(replay, end)


def _wait(replay: Any, end: int, tell: Any) -> None:
    """Wait for silence to seal what was asked for, where nothing else is missing and it takes no more than
    minutes."""
    import time

    from penstock.log.times import SECOND_US, now_us
    from penstock.stream.feed import take_step

    deadline = now_us() + _WAIT_MAX_S * SECOND_US
    while replay.timeline.points and replay.timeline.sealed_to(len(replay.timeline.points) - 1) < end:
        seals_at = next(
            (
                tick
                for tick in range(now_us(), deadline, SECOND_US)
                if replay.timeline.would_seal(tick) >= replay.planner.to_us
            ),
            None,
        )
        if seals_at is None:
            return
        tell(f"waiting {max(0, (seals_at - now_us()) // SECOND_US)} s for a stream to be silent;", 0)
        time.sleep(0.2)
        take_step(replay)


def _say_open(replay: Any, end: int | None) -> None:
    """Which windows are left out, since they are not sealed yet."""
    from penstock.log.times import format_time
    from penstock.stream.timeline import NEVER

    timeline = replay.timeline
    if not timeline.points:
        click.echo("note: there are no events yet", err=True)
        return
    sealed = timeline.sealed_to(len(timeline.points) - 1)
    if replay.has_unsealed(sealed, end if end is not None else 1 << 61):
        until = "none is sealed yet" if sealed == NEVER else f"those up to {format_time(sealed)} are sealed"
        held = next(h for h in timeline.held() if h.stream == replay.pipeline.primary)
        click.echo(f"note: windows that still wait are left out; {until}; {held.stream}: {held.policy}", err=True)


@click.command()
@click.argument("job")
@_FROM
@_TO
def prove(job: str, from_: str | None, to: str | None) -> None:
    """Show that batch, stream and Lambda give the same examples for the pipeline in JOB, or the first that
    differs."""
    from penstock.job.pipeline import read_pipeline
    from penstock.log import Log
    from penstock.stream.prove import prove as compare

    pipeline = read_pipeline(job).pipeline
    begin, end = times(from_, to)
    log = Log(pipeline.log)
    if not log.progress.steps():
        log.step()
    with counting("prove") as tell:
        proof = compare(pipeline, from_us=begin, to_us=end, on_progress=tell)
    cut = "one step alone, so Lambda is the batch"
    if proof.cut is not None:
        cut = f"Lambda goes over at step {proof.cut}"
    click.echo(
        f"{proof.examples:,} examples, {proof.steps:,} steps, {proof.corrections:,} corrected on the way; {cut}"
    )
    if proof.first is None:
        click.echo("batch = stream = Lambda: no row differs")
        return
    import json

    click.echo(f"{proof.differing:,} rows differ; the first, in {proof.first.way}:", err=True)
    for name, row in (("batch", proof.first.batch), (proof.first.way, proof.first.other)):
        click.echo(f"  {name:8} {json.dumps(row, default=str)}", err=True)
    sys.exit(1)


@click.command()
@click.argument("job")
@_FROM
@_TO
@click.option("--once", is_flag=True, help="Append what is sealed now, and end.")
def feed(job: str, from_: str | None, to: str | None, once: bool) -> None:
    """Append the examples of the pipeline in JOB to the stream that its `output` names, for other pipelines."""
    from penstock.job.pipeline import read_pipeline
    from penstock.stream.chain import feed_stream

    pipeline = read_pipeline(job).pipeline
    begin, end = times(from_, to)
    rows = 0
    try:
        with counting("feed") as tell:
            for feeding, examples in feed_stream(pipeline, from_us=begin, to_us=end, follow=not once):
                rows += 0 if examples is None else examples.rows.num_rows
                watermark = feeding.standing.watermark_text if feeding.standing is not None else "none yet"
                tell(f"watermark {watermark};", rows)
    except KeyboardInterrupt:
        click.echo("stopped by Ctrl-C; the same command goes on", err=True)
    click.echo(f"{rows:,} examples appended to {pipeline.output}")


@click.command()
@click.argument("log")
@click.argument("stream")
@click.option(
    "--reason", type=click.Choice(["late", "duplicate", "skewed"]), required=True, help="Of the quarantine."
)
@click.option("--pipeline", help="Only what this pipeline did not count.")
def readmit(log: str, stream: str, reason: str, pipeline: str | None) -> None:
    """Let events of STREAM count that pipelines put into quarantine: they come out as late examples."""
    from penstock.log import Log
    from penstock.stream.readmit import readmit as take_back

    count, step = take_back(Log(log), stream, reason=reason, pipeline=pipeline)
    if step is None:
        click.echo(f"nothing to readmit: the quarantine of {stream} has no such event that does not count already")
    else:
        click.echo(f"{count:,} events of {stream} count from step {step.number} on")


@click.group()
def view() -> None:
    """Counts and sums over a pipeline's examples: a batch view, and increments since, merged where they are
    read."""


@view.command("batch")
@click.argument("job")
def view_batch(job: str) -> None:
    """Compute the views of JOB anew from the log, completely, and cut over to them."""
    from penstock.job.pipeline import read_pipeline
    from penstock.log import Log
    from penstock.stream.views import Views

    pipeline = read_pipeline(job).pipeline
    log = Log(pipeline.log)
    if not log.progress.steps():
        log.step()
    step = Views(pipeline).batch()
    click.echo(f"batch views as of step {step}")


@view.command("follow")
@click.argument("job")
@click.option("--once", is_flag=True, help="Add what is there, and end.")
def view_follow(job: str, once: bool) -> None:
    """Keep the speed views of JOB up with the log."""
    import time

    from penstock.job.pipeline import read_pipeline
    from penstock.stream.views import Views

    views = Views(read_pipeline(job).pipeline)
    try:
        with counting("views") as tell:
            while True:
                tell(f"step {views.speed():,};", 0)
                if once:
                    break
                time.sleep(0.2)
    except KeyboardInterrupt:
        click.echo("stopped by Ctrl-C; the same command goes on", err=True)
    click.echo(f"views go up to step {views.through()}")


@view.command("show")
@click.argument("job")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each row.")
@click.option("-n", "rows", type=click.IntRange(min=1), default=50, show_default=True, help="Rows to show.")
def view_show(job: str, name: str, as_json: bool, rows: int) -> None:
    """Show the view NAME of JOB as it is now."""
    import json

    from penstock.job.pipeline import read_pipeline
    from penstock.stream.views import Views

    table, cut, through = Views(read_pipeline(job).pipeline).read(name)
    if as_json:
        for row in table.to_pylist():
            click.echo(json.dumps(row, default=str))
        return
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for n, column in enumerate(table.column_names):
        shown.add_column(column, justify="left" if n < len(table.column_names) - 1 else "right")
    for row in table.slice(0, rows).to_pylist():
        shown.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    console = Console(markup=False)
    console.print(shown)
    more = f"{rows:,} of {table.num_rows:,} rows; " if table.num_rows > rows else ""
    if cut < 0 and through < 0:
        console.print("there is nothing yet: penstock view batch computes it, penstock view follow keeps it up")
        return
    batch_ = "no batch view" if cut < 0 else f"batch view up to step {cut}"
    console.print(f"{more}{batch_}, increments up to step {through}", highlight=False)


@click.command("why-waiting")
@click.argument("job")
def why_waiting(job: str) -> None:
    """Show how far each stream of the pipeline in JOB is complete, which source holds it there, and why."""
    from penstock.job.pipeline import read_pipeline
    from penstock.log import Log
    from penstock.log.times import SECOND_US, format_duration, format_time, now_us
    from penstock.stream.replay import Replay
    from penstock.stream.timeline import NEVER

    pipeline = read_pipeline(job).pipeline
    replay = Replay(Log(pipeline.log), pipeline)
    replay.timeline.look(now_us())
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("stream", "complete up to", "held by", "for", "because"):
        table.add_column(column, overflow="fold", no_wrap=column in ("complete up to", "for"))
    now = now_us()
    for held in replay.timeline.held():
        table.add_row(
            held.stream,
            "nothing yet" if held.mark_us is None else format_time(held.mark_us // SECOND_US * SECOND_US),
            held.source if held.source is not None else "-",
            "-" if held.since_us is None else format_duration((now - held.since_us) // SECOND_US * SECOND_US),
            held.policy,
        )
    console = Console(markup=False)
    console.print(table)
    sealed = replay.timeline.sealed_to(len(replay.timeline.points) - 1)
    until = "no window is sealed yet"
    if sealed != NEVER:
        until = f"windows that begin before {format_time(sealed)} are sealed"
    console.print(until, highlight=False)
