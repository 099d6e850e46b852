"""``penstock export``: a model as a file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.errors import ConfigError

__all__ = ["export"]

_FORMATS = {".npz": "npz", ".onnx": "onnx"}


@click.command()
@click.argument("model")
@click.argument("output")
@click.option(
    "--to",
    "format_",
    type=click.Choice(["npz", "onnx", "mlflow"]),
    help="By the output's name if not given: .npz or .onnx.",
)
@click.option("--version", type=click.IntRange(min=1), help="One that was published before; else the newest.")
@click.option(
    "--vocabulary",
    multiple=True,
    metavar="DATA",
    help="Of onnx: take columns instead of hashed keys, with the categories that occur in DATA.",
)
def export(model: str, output: str, format_: str | None, version: int | None, vocabulary: tuple[str, ...]) -> None:
    """Write the MODEL in a folder to OUTPUT, for other programs.

    \b
    npz      a file for penstock.score, which needs NumPy alone
    onnx     a file for ONNX runtimes; needs the extra `onnx`
    mlflow   a folder that mlflow.pyfunc loads; needs the extra `mlflow`

    All score as penstock predict does (with --vocabulary, what it lacks counts nothing);
    docs/export.md says how to use them.
    """
    format_ = format_ or _FORMATS.get(Path(output).suffix)
    of_name = _FORMATS.get(Path(output).suffix, format_)
    if format_ is not None and of_name != format_:
        raise ConfigError(f"{output}: its ending is of {of_name}, --to says {format_}; allowed: one of the two")
    if format_ is None:
        raise ConfigError(f"{output}: got no --to, and an unknown ending; allowed: .npz, .onnx, or --to mlflow")
    if vocabulary and format_ != "onnx":
        raise ConfigError(f"--vocabulary is for onnx; {format_} takes every category as it is")
    from penstock.models import load_version

    loaded, manifest = load_version(model, version=version)
    if format_ == "mlflow":
        from penstock.export import mlflow

        if Path(output).exists():
            raise ConfigError(f"{output}: is there already; name a new folder")
        mlflow.save_model(loaded, output, metadata={"penstock_model_version": manifest["version"]})
        click.echo(f"version {manifest['version']}, {loaded.rows:,} features in {output}")
        return
    if not Path(output).resolve().parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {Path(output).parent}")
    if format_ == "npz":
        from penstock.export import write_npz

        npz = write_npz(loaded, output, manifest=manifest)
        _say(manifest["version"], npz.rows, loaded.rows, npz.nbytes, output)
        return
    from penstock.export import write_onnx

    onnx = write_onnx(loaded, output, vocabulary=list(vocabulary) or None, manifest=manifest)
    _say(manifest["version"], onnx.rows, loaded.rows, onnx.nbytes, output)
    if vocabulary:
        share = onnx.covered / max(onnx.rows, 1)
        click.echo(f"the vocabulary covers {onnx.covered:,} of them ({share:.1%}); other categories count nothing")
    shape = "[rows, 1]" if vocabulary else "[rows, keys]"
    for type_ in dict.fromkeys(onnx.inputs.values()):
        click.echo(f"inputs {type_} {shape}: {', '.join(n for n, each in onnx.inputs.items() if each == type_)}")
    click.echo(f"output float32 [rows, 1]: {onnx.output}")


def _say(version: int, rows: int, of: int, nbytes: int, output: str) -> None:
    from penstock.cli.show import count

    zero = f" (another {of - rows:,} weigh 0)" if of > rows else ""
    click.echo(f"version {version}, {rows:,} features{zero}, {count(nbytes, 'B')} in {output}")
