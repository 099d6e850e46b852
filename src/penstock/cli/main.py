"""``penstock`` and its commands. Heavy imports happen inside a command, so that ``--help`` is at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import click

from penstock.version import __version__

__all__ = ["cli", "main"]

_COMMANDS = {
    "cluster": "Look at a running cluster, or stop it.",
    "compare": "Train under several consistencies, and show what each costs.",
    "coordinator": "Coordinate a cluster whose servers and workers are started by hand.",
    "dash": "Show a run, its cluster and its servers on a live page.",
    "examples": "Make training examples of an event log.",
    "evaluate": "Measure a model on labelled data.",
    "export": "Write a model for other programs: NumPy alone, ONNX, MLflow.",
    "feed": "Append a pipeline's examples to a stream of the log.",
    "inspect": "Show what a model is: size, metrics, lineage, strongest features.",
    "label-delay": "Measure how long labels take, and what each label_wait costs.",
    "log": "Keep events in a durable log, and look at them.",
    "make-clicks": "Make a synthetic click log whose best possible logloss is known.",
    "predict": "Score data with a model.",
    "prove": "Show that batch, stream and Lambda give the same examples.",
    "readmit": "Let quarantined events count after all.",
    "serve": "Answer for models over HTTP.",
    "server": "Hold rows of a cluster's model.",
    "train": "Train a model from files, or as a job file says.",
    "view": "Counts and sums over a pipeline's examples, by batch and since.",
    "why-waiting": "Show what holds the watermarks of a pipeline.",
    "worker": "Compute gradients for a cluster.",
}
_ELSEWHERE = {
    "cluster": "cluster",
    "compare": "compare",
    "coordinator": "cluster",
    "dash": "dash",
    "examples": "stream",
    "export": "export",
    "feed": "stream",
    "label-delay": "label_delay",
    "prove": "stream",
    "readmit": "stream",
    "view": "stream",
    "why-waiting": "stream",
    "log": "log",
    "serve": "serve",
    "server": "cluster",
    "worker": "cluster",
}


class _Commands(click.Group):
    """Imports a command when it is called; help needs only the list above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"penstock.cli.{_ELSEWHERE.get(cmd_name, 'commands')}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="penstock")
def cli() -> None:
    """Train very large sparse models from click logs, and predict with them.

    \b
    penstock make-clicks clicks/ --rows 1_000_000
    penstock train clicks/*.parquet --label clicked -o model/
    penstock evaluate model/ clicks/*.parquet
    """


def main() -> None:
    """Run the command line; errors of ours are one line on standard error."""
    from penstock.errors import PenstockError

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's background jobs start like this; who follows a log must still end by kill -INT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(cli.main(prog_name="penstock", standalone_mode=False) or 0)
    except PenstockError as error:
        _fail(f"penstock: {error}", error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _fail("penstock: stopped", 130)
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: Any, status: int) -> None:
    click.echo(str(message).replace("\n", " "), err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
