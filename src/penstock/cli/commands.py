"""The commands. Each turns options into calls of the library, and what comes back into tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from penstock.cli.options import Count, data_options, data_section, names
from penstock.cli.show import add_scores, file_count, plain_table, print_run, score_table
from penstock.errors import ConfigError, Interrupted

__all__ = ["evaluate", "inspect", "make_clicks", "predict", "train"]


def _optimizer(text: str) -> dict[str, Any]:
    """``ftrl,alpha=0.1`` as a section of a job."""
    name, *pairs = [part.strip() for part in text.split(",")]
    spec: dict[str, Any] = {"name": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            spec[key.strip()] = float(value)
        except ValueError as error:
            raise ConfigError(f"--optimizer {text!r}: {pair!r} must be a name, '=' and a number") from error
        if not equals:
            raise ConfigError(f"--optimizer {text!r}: {pair!r} must be a name, '=' and a number")
    return spec


@click.command()
@click.argument("data", nargs=-1)
@click.option("--label", help="Column to predict, 0 or 1 (or boolean).  [default: label]")
@click.option("-o", "--output", help="Folder for the model.  [default: model]")
@click.option(
    "--numeric", multiple=True, help="Columns standardised: a,b. With --categorical: only these are used."
)
@click.option("--raw", multiple=True, help="Numeric columns used as they are.")
@click.option("--log", multiple=True, help="Numeric columns in logarithmic buckets.")
@click.option("--categorical", multiple=True, help="Columns that are categories: a,b.")
@click.option("--cross", multiple=True, help="Combination of columns: a,b. Once for each cross.")
@click.option("--ignore", multiple=True, help="Columns that are not features: a,b.")
@click.option("--weight", help="Column of example weights.")
@click.option("--time", help="Column of event time, for --holdout-after.")
@click.option("--optimizer", help="ftrl,alpha=0.1,beta=1,l1=0,l2=0 or adagrad,alpha=... or sgd,alpha=...")
@click.option("--passes", type=int, help="Times to go over the data.  [default: 1]")
@click.option("--threads", type=int, help="Threads that learn on one table.  [default: 1]")
@click.option(
    "--minibatch", type=Count(), metavar="NUMBER", help="Examples whose gradients are summed before an update."
)
@click.option("--strategy", help="online, parameter-server or tree.  [default: online]")
@click.option("--servers", type=int, help="Processes that hold the model: trains by parameter server.")
@click.option("--workers", type=int, help="Processes that read and compute gradients.")
@click.option("--consistency", help="bsp, ssp:4 (any number) or asp: who waits for whom.  [default: asp]")
@click.option("--micro-batches", type=int, help="Micro-batches of --minibatch rows to a global batch.")
@click.option("--depth", type=int, help="Micro-batches under way in a worker; levels of a tree.")
@click.option("--window", type=int, help="Of them, between their pull and their push.  [default: 1]")
@click.option("--partitions", type=int, help="Parts of the data, for --strategy tree.")
@click.option("--solver", help="optimizer or lbfgs, for --strategy tree.")
@click.option("--holdout", type=float, help="Share of rows to evaluate on instead of learning them.")
@click.option("--holdout-after", help="Evaluate on the rows from this event time on.")
@click.option("--readers", type=int, help="Threads that read and hash.  [default: cores]")
@click.option("--from", "from_", metavar="TIME", help="Of a pipeline: from the window in which this time lies.")
@click.option("--to", metavar="TIME", help="Of a pipeline: windows that begin before; then it ends.")
@click.option("--once", is_flag=True, help="Of a pipeline: learn what is sealed now, and end.")
@click.option("--fork", is_flag=True, help="Of a pipeline: train apart, and replace the model once all is learnt.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output folder.")
@click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
@data_options
def train(
    data: tuple[str, ...],
    output: str | None,
    resume: bool,
    quiet: bool,
    from_: str | None,
    to: str | None,
    once: bool,
    fork: bool,
    **options: Any,
) -> None:
    """Train a model on DATA: files, folders, globs, URLs, or one job file (.toml).

    Without --numeric, --raw, --log or --categorical every other column is a feature, by its type. Where the job
    has a pipeline, it is trained on what the log has, and then on what comes, until Ctrl-C.
    """
    from penstock.kernels.compile import is_compiled
    from penstock.train import Online

    sections = _pipeline_sections(data, output, resume)
    if sections is not None:
        from penstock.cli.stream import train_pipeline

        given = [name for name, value in options.items() if value not in (None, (), False)]
        if given:
            option = given[0].strip("_").replace("_", "-")
            raise ConfigError(f"--{option}: of a pipeline this is said in its job file")
        train_pipeline(sections, output, from_, to, once=once, fork=fork, resume=resume, quiet=quiet)
        return
    if from_ or to or once or fork:
        raise ConfigError("--from, --to, --once and --fork are for a job with a pipeline")
    job = _train_job(data, output, resume, options)
    source = job.data.open()
    model = job.model()
    console = Console(quiet=quiet, markup=False)
    if not resume:
        from penstock.train.session import SAMPLE_ROWS

        plan = model.resolve(source.sample(SAMPLE_ROWS))
        _print_plan(console, plan)
        used = {*plan.inputs, plan.label, plan.weight, plan.time, *model.features.ignore}
        unused = [name for name in source.schema.names if name not in used]
        if unused:
            console.print(f"  not used: {', '.join(unused)}\n", highlight=False)
    kernel = (
        "linear.learn" if isinstance(job.strategy(), Online) and not job.train.minibatch else "linear.gradients"
    )
    if not is_compiled(kernel) and not quiet:
        click.echo("compiling kernels, once on a machine: 10 to 20 s ...", err=True)
    try:
        run = job.run(model, source, resume=resume, progress=not quiet)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped by Ctrl-C before a row was learnt; no checkpoint was written") from error
    print_run(console, run, job.output.path)


def _pipeline_sections(data: tuple[str, ...], output: str | None, resume: bool) -> dict[str, Any] | None:
    """The sections of a job with a pipeline, from its file or from the checkpoint; None for other jobs."""
    if len(data) == 1 and data[0].endswith(".toml"):
        from penstock.job.job import read_sections

        sections = read_sections(data[0])
        return sections if "pipeline" in sections else None
    if resume and not data:
        from penstock.train.folder import RunFolder

        job = RunFolder(output or "model").read_checkpoint().get("job") or {}
        found: dict[str, Any] | None = job.get("pipeline_job")
        return found
    return None


def _train_job(data: tuple[str, ...], output: str | None, resume: bool, options: dict[str, Any]) -> Any:
    """The job that arguments and options describe, over that of a job file or of a checkpoint."""
    from penstock.job import Job, read_job

    if len(data) == 1 and data[0].endswith(".toml"):
        base = read_job(data[0]).to_dict()
    elif data:
        base = {}
    elif resume:
        from penstock.train.folder import RunFolder

        base = RunFolder(output or "model").read_checkpoint().get("job") or {}
        if not base:
            raise ConfigError("the checkpoint was written from Python: resume it there, or name DATA and options")
    else:
        raise ConfigError("nothing to train on: name files, folders or a job file (see penstock train --help)")
    spec: dict[str, dict[str, Any]] = {section: dict(base.get(section) or {}) for section in _SECTIONS}
    reading = {k: options[k] for k in ("format_", "delimiter", "no_header", "columns", "null")}
    if base and any(reading.values()):
        raise ConfigError("how files are read is said in the job's [data] section; leave such options out")
    if not base:
        spec["data"] = data_section(list(data), **reading)
    features, training = spec["features"], spec["train"]
    numeric: list[Any] = [*(names(options["numeric"]) or [])]
    numeric += [{"name": name, "how": "raw"} for name in names(options["raw"]) or []]
    numeric += [{"name": name, "how": "log"} for name in names(options["log"]) or []]
    given = {
        "label": options["label"],
        "numeric": numeric or None,
        "categorical": names(options["categorical"]),
        "crosses": [names((cross,)) for cross in options["cross"]] or None,
        "ignore": names(options["ignore"]),
        "weight": options["weight"],
        "time": options["time"],
    }
    features.update({k: v for k, v in given.items() if v is not None})
    training.update({k: options[k] for k in _TRAINING if options[k] is not None})
    if options["optimizer"] is not None:
        spec["optimizer"] = _optimizer(options["optimizer"])
    if output is not None:
        spec["output"]["path"] = output
    return Job.from_dict({key: value for key, value in spec.items() if value}, "options")


_SECTIONS = ("data", "features", "optimizer", "train", "output")
_TRAINING = (
    "strategy",
    "passes",
    "threads",
    "minibatch",
    "servers",
    "workers",
    "consistency",
    "micro_batches",
    "depth",
    "window",
    "partitions",
    "solver",
    "holdout",
    "holdout_after",
    "readers",
)


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--readers", type=int, help="Threads that read and hash.  [default: cores]")
@data_options
def evaluate(model: str, data: tuple[str, ...], as_json: bool, readers: int | None, **reading: Any) -> None:
    """Measure the MODEL in a folder on labelled DATA."""
    from penstock.models import load_model
    from penstock.train import evaluate as measure

    loaded = load_model(model)
    metrics = measure(loaded, _open(data, reading), readers=readers)
    scores = metrics.scores()
    if as_json:
        import json

        click.echo(json.dumps(scores.to_json()))
        return
    console = Console(markup=False)
    table = score_table()
    add_scores(table, "evaluated", scores)
    console.print(table)
    curve = plain_table("predicted", "observed", "share of rows")
    for part in metrics.reliability():
        curve.add_row(
            f"{part.mean_prediction:.4f}", f"{part.observed_rate:.4f}", f"{part.weight / scores.weight:.1%}"
        )
    console.print("Calibration, by prediction:")
    console.print(curve)


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="File of scores: .parquet or .csv.")
@click.option("--keep", multiple=True, help="Columns to copy beside the scores: a,b.")
@click.option("--readers", type=int, help="Threads that read and hash.  [default: cores]")
@data_options
def predict(
    model: str, data: tuple[str, ...], output: str, keep: tuple[str, ...], readers: int | None, **reading: Any
) -> None:
    """Score DATA with the MODEL in a folder: a column `score` for each row, in order."""
    from penstock.models import load_model
    from penstock.train import predict_to_file

    rows = predict_to_file(
        load_model(model),
        _open(data, reading),
        output,
        keep=tuple(names(keep) or ()),
        readers=readers,
    )
    click.echo(f"{rows:,} scores in {output}")


@click.command()
@click.argument("model")
@click.option("--top", type=click.IntRange(min=0), default=20, show_default=True, help="Features to show.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def inspect(model: str, top: int, as_json: bool) -> None:
    """Show the MODEL in a folder: size, metrics, lineage, strongest features."""
    from penstock.models import Linear, load_model, read_manifest, table_files
    from penstock.train.progress import human

    manifest = read_manifest(model)
    if as_json:
        import json

        click.echo(json.dumps(manifest, indent=1))
        return
    loaded = load_model(model)
    console = Console(markup=False)
    files = [file for table in manifest["tables"].values() for file in table_files(table)]
    facts = plain_table("", "")
    optimizer = dict(manifest["optimizer"])
    name = optimizer.pop("name")
    facts.add_row("model", manifest["model"]["kind"])
    facts.add_row("optimizer", f"{name} ({', '.join(f'{k} {v:g}' for k, v in optimizer.items())})")
    facts.add_row("features", f"{loaded.rows:,}")
    facts.add_row("on disk", f"{human(sum(f['nbytes'] for f in files), 'B')} in {file_count(len(files))}")
    facts.add_row("in memory", human(loaded.nbytes, "B"))
    facts.add_row("version", f"{manifest['version']}, {manifest['created']}, Penstock {manifest['code_version']}")
    lineage = manifest.get("lineage")
    if lineage:
        sources = lineage.get("files", [])
        facts.add_row("learnt from", f"{lineage.get('rows', 0):,} rows of {_some(sources) or 'data in memory'}")
        settings = lineage.get("settings", {}).items()
        facts.add_row("settings", ", ".join(f"{k} {_plain(v)}" for k, v in settings if v))
    console.print(facts)
    _print_plan(console, loaded.plan)
    metrics = manifest.get("metrics") or {}
    table = score_table()
    for what in ("progressive", "holdout"):
        if metrics.get(what):
            add_scores(table, what, metrics[what])
    console.print(table)
    if not isinstance(loaded, Linear):
        return
    strongest = plain_table("weight", "feature")
    for key, weight in loaded.strongest(top):
        strongest.add_row(f"{weight:+.4f}", loaded.names.get(key, f"key {key:#018x} (name not known)"))
    console.print(f"The {top} strongest features:")
    console.print(strongest)


@click.command("make-clicks")
@click.argument("folder")
@click.option(
    "--rows", type=Count(), metavar="NUMBER", default="1_000_000", show_default=True, help="Rows in all."
)
@click.option("--numeric", type=int, default=13, show_default=True, help="Numeric columns.")
@click.option("--categorical", type=int, default=26, show_default=True, help="Categorical columns.")
@click.option(
    "--distinct",
    type=Count(),
    metavar="NUMBER",
    default="10_000_000",
    show_default=True,
    help="Of the largest column.",
)
@click.option("--click-rate", type=float, default=0.25, show_default=True, help="Share of clicks.")
@click.option("--drift", type=float, default=0.0, show_default=True, help="How far the truth moves over the log.")
@click.option(
    "--cross/--no-cross", default=True, show_default=True, help="A pair of columns that matters together."
)
@click.option("--missing", type=float, default=0.02, show_default=True, help="Share of values that are missing.")
@click.option("--seed", type=int, default=7, show_default=True, help="The same seed gives the same bytes.")
@click.option("--overwrite", is_flag=True, help="Replace a click log that is in the folder.")
def make_clicks(folder: str, overwrite: bool, **spec: Any) -> None:
    """Make a synthetic click log in FOLDER, as Parquet: Criteo-like columns, labels from a known model."""
    import sys

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from penstock.data.clicks import ClickLog, write_clicks

    log = ClickLog(**spec)
    with Progress(
        TextColumn("[bold]make-clicks"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("make-clicks", total=log.rows)
        summary = write_clicks(
            log, folder, overwrite=overwrite, on_progress=lambda rows: progress.update(task, completed=rows)
        )
    table = plain_table("", "")
    table.add_row("rows", f"{summary.rows:,} in {file_count(len(summary.files))} in {folder}")
    table.add_row("click rate", f"{summary.click_rate:.4f}")
    table.add_row("best possible logloss", f"{summary.best_logloss:.5f}  (of the true probabilities)")
    table.add_row("best possible AUC", f"{summary.best_auc:.4f}")
    table.add_row("logloss of the click rate", f"{summary.base_rate_logloss:.5f}  (what knows no feature)")
    Console(markup=False).print(table)


def _open(data: tuple[str, ...], reading: dict[str, Any]) -> Any:
    from penstock.job import Data

    return Data(**data_section(list(data), **reading)).open()


def _print_plan(console: Console, plan: Any) -> None:
    table = plain_table("columns", "type", "becomes")
    for row in plan.describe():
        table.add_row(*row)
    console.print(table)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k} {v}" for k, v in value.items() if v is not None)
    return str(value)
