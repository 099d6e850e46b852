"""``fit``: one call for every way of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.engine import LocalProcesses, ParameterServer, fit_cluster
from penstock.errors import ConfigError
from penstock.models import Model
from penstock.train import Holdout, Online, Publish, Run
from penstock.train import fit as fit_online
from penstock.train.tree import TreeAggregate, fit_tree

__all__ = ["Strategy", "fit"]

Strategy = Online | ParameterServer | TreeAggregate


def fit(
    model: Model,
    data: Any,
    *,
    passes: int = 1,
    strategy: Strategy | None = None,
    engine: LocalProcesses | None = None,
    holdout: Holdout | float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    publish: Publish = Publish(),  # noqa: B008 - frozen
    progress: bool | None = None,
    readers: int | None = None,
    job: dict[str, Any] | None = None,
) -> Run:
    """Train ``model`` on ``data`` (see ``open_source``), in place.

    Args:
        model: new; for ``Online`` and ``TreeAggregate`` it may have been trained before.
        data: files, or what is in memory.
        passes: times to go over the data.
        strategy: ``Online()`` where None; ``ParameterServer(...)`` or ``TreeAggregate(...)``.
        engine: where the parameter server's roles run; ``LocalProcesses()`` where None.
        holdout: rows to evaluate on afterwards instead of learning them; a float is a fraction.
        output: folder for the model; with it, Ctrl-C (or SIGTERM) leaves a checkpoint there.
        resume: go on from the checkpoint in ``output``; data and settings must be those of the run before.
        checkpoint_every_s: seconds between checkpoints while training; None for only when interrupted.
        publish: versions of the model in ``output`` while it learns, for whoever serves it; ``TreeAggregate`` has
            one only at the end.
        progress: show it (None: only on a terminal).
        readers: threads that read and hash; as many as cores where None.
        job: kept in checkpoints, so that whoever resumes knows what to run.

    Raises:
        DataError, ConfigError, StorageError, FolderBusy: see ``errors``; the model on disk is unharmed.
        PenstockError: a role of a cluster is gone; the message names it, and the checkpoint to go on from.
        Interrupted: after the checkpoint was written.
    """
    same: dict[str, Any] = {
        "passes": passes,
        "holdout": holdout,
        "output": output,
        "resume": resume,
        "checkpoint_every_s": checkpoint_every_s,
        "progress": progress,
        "readers": readers,
        "job": job,
    }
    if isinstance(strategy, ParameterServer):
        return fit_cluster(model, data, strategy=strategy, engine=engine, publish=publish, **same)
    if engine is not None:
        raise ConfigError(f"an engine is for ParameterServer; strategy is {type(strategy or Online()).__name__}")
    if isinstance(strategy, TreeAggregate):
        if publish.every_s is not None:
            raise ConfigError(
                "TreeAggregate publishes only at the end; allowed with versions: Online, ParameterServer"
            )
        return fit_tree(model, data, strategy=strategy, **same)
    return fit_online(model, data, strategy=strategy, publish=publish, **same)
