"""Training by tree aggregate: weights out to the partitions, partial gradients back through a tree, one update.

The synchronous way of Spark MLlib (``GradientDescent`` and ``LBFGS`` over ``treeAggregate``), with sparse
gradients: each partition is sent the weights of its own batch's keys alone. A run depends on the data, the
partitions, the depth and the rows of a batch, bit for bit; not on where partitions run.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from penstock.data import Source
from penstock.errors import ConfigError, ModelError
from penstock.features import Encoder
from penstock.models import Model
from penstock.train.folder import RunFolder
from penstock.train.holdout import Holdout
from penstock.train.progress import Progress
from penstock.train.session import Run, Session, State, as_holdout, open_data, run_session
from penstock.train.stream import available_cores
from penstock.train.tree.executors import Executor, Threads, Wanted
from penstock.train.tree.partition import START, Gradient, Partial, Rows, Work, rehearse, shell_of, sum_gradients
from penstock.train.tree.shape import levels

__all__ = ["TreeAggregate", "TreeSession", "fit_tree"]

BATCH_ROWS_MAX = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TreeAggregate:
    """Sum the gradients of all partitions' next batches, then update once.

    Chunk i of the source belongs to partition ``i % partitions``.

    ==========  =================================================================================
    depth       of the tree of sums, as in Spark's ``treeAggregate``; 1 adds all up at the driver
    partitions  None: as many as cores. The result depends on it
    batch_rows  that each partition gives to an iteration, 1 to 65,536 (a chunk may end with fewer);
                None: all that it has, kept in memory, so that each pass is one iteration
    executor    where partitions run: "threads" of this process, or "processes" of this machine,
                which read the data by themselves
    executors   how many of these; None: as many as cores. The result does not depend on it
    solver      "optimizer" updates rows by the model's optimizer, as ``Online`` does; "lbfgs" looks
                for the optimum of the loss of all rows with the optimizer's l2 (on every weight, the
                bias too), always with ``batch_rows`` None; needs the extra ``lbfgs``
    iterations  of L-BFGS at most
    ==========  =================================================================================

    Raises:
        ConfigError: a value that is not allowed.
    """

    depth: int = 2
    partitions: int | None = None
    batch_rows: int | None = 4096
    executor: Literal["threads", "processes"] = "threads"
    executors: int | None = None
    solver: Literal["optimizer", "lbfgs"] = "optimizer"
    iterations: int = 100

    def __post_init__(self) -> None:
        for name in ("depth", "partitions", "executors", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        for name, allowed in (("executor", ("threads", "processes")), ("solver", ("optimizer", "lbfgs"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, allowed: {', '.join(allowed)}")
        if self.solver == "lbfgs":
            object.__setattr__(self, "batch_rows", None)
        if self.batch_rows is not None and not 1 <= self.batch_rows <= BATCH_ROWS_MAX:
            raise ConfigError(f"batch_rows must be 1 to {BATCH_ROWS_MAX:,} or None, got {self.batch_rows}")


@dataclass
class _State(State):
    iteration: int = 0
    """Of this pass."""
    positions: list[tuple[int, int]] = field(default_factory=list)
    """Where each partition's next batch begins, as (chunk, row of it)."""


@dataclass
class _Figures:
    """Counted by the driver since the run began or was resumed; the same for all executors, but for what moved
    between them."""

    iterations: int = 0
    """Sums of all partitions' gradients; of L-BFGS, each step of a line search is one."""
    partitions: int = 0
    executors: int = 0
    keys_back_nbytes: int = 0
    """Which weights partitions asked for."""
    weights_out_nbytes: int = 0
    gradients_back_nbytes: int = 0
    """With their keys."""
    predictions_back_nbytes: int = 0
    moved_nbytes: int = 0
    """Gradients moved between executors, to be added up there."""


def fit_tree(
    model: Model,
    data: Any,
    *,
    passes: int = 1,
    strategy: TreeAggregate | None = None,
    holdout: Holdout | float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    progress: bool | None = None,
    readers: int | None = None,
    job: dict[str, Any] | None = None,
) -> Run:
    """Train ``model`` on ``data`` by tree aggregate, in place; arguments as those of ``fit``.

    ``readers`` are the threads that evaluate the hold-out; while training, each partition reads by one thread of
    its own. ``Run.figures`` has the bytes that were moved.

    Raises:
        DataError, ConfigError, StorageError, FolderBusy: see ``errors``; the model on disk is unharmed.
        ExecutorLost: a process of the run died or went silent.
        Interrupted: after the checkpoint was written; with L-BFGS there is none.
    """
    strategy = strategy if strategy is not None else TreeAggregate()
    holdout = as_holdout(holdout)
    if strategy.solver == "lbfgs":
        from penstock.train.tree.lbfgs import check_solver

        check_solver(model, passes=passes, resume=resume)
    source = open_data(data, passes=passes, holdout=holdout, resume=resume, output=output)
    if not source.repeatable:
        raise ConfigError(
            "tree aggregate: each partition reads the data, got an iterator; allowed: files, a table"
        )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(RunFolder(output)) if output is not None else None
        if strategy.partitions is None:
            strategy = dataclasses.replace(strategy, partitions=_partitions(folder if resume else None))
        session = TreeSession(
            model,
            source,
            passes,
            holdout,
            folder=folder,
            readers=readers,
            checkpoint_every_s=checkpoint_every_s,
            job=job,
        )
        stack.enter_context(session.executing(strategy, source))
        return run_session(session, resume=resume, progress=progress)


def _partitions(resumed: RunFolder | None) -> int:
    """As many as the run had that is resumed, or as there are cores."""
    if resumed is None:
        return available_cores()
    saved = resumed.read_checkpoint()["settings"].get("strategy")
    partitions = saved.get("partitions") if isinstance(saved, dict) else None
    if not isinstance(partitions, int):
        raise ModelError(f"{resumed.path}: cannot resume: the run before was not by tree aggregate")
    return partitions


class TreeSession(Session):
    """One run of ``fit_tree``: the driver."""

    state_type = _State
    state: _State

    @contextlib.contextmanager
    def executing(self, strategy: TreeAggregate, source: Source) -> Iterator[None]:
        """Have executors for the time of the block; ``source`` is as the user named it."""
        assert strategy.partitions is not None
        self.strategy = strategy
        self._levels = levels(strategy.partitions, strategy.depth)
        self._heads = range(len(self._levels[-1]) if self._levels else strategy.partitions)
        executors = min(strategy.executors or available_cores(), strategy.partitions)
        self.counted = _Figures(partitions=strategy.partitions, executors=executors)
        if strategy.solver == "lbfgs":
            self.how_to_resume = None
        self.executor: Executor
        if strategy.executor == "processes":
            from penstock.train.tree.processes import Processes

            self.executor = Processes(executors, source)
        else:
            self.executor = Threads(executors)
        with contextlib.closing(self.executor):
            yield

    def settings(self) -> dict[str, Any]:
        settings = {"kind": "tree-aggregate", **dataclasses.asdict(self.strategy)}
        # Where partitions run changes nothing.
        for name in ("executor", "executors"):
            del settings[name]
        return settings

    def figures(self) -> dict[str, int]:
        self.counted.moved_nbytes = self.executor.moved_nbytes
        return dataclasses.asdict(self.counted)

    def warm_up(self) -> None:
        self.executor.start(
            Work(
                source=self.source,
                shell=shell_of(self.model),
                partitions=self.counted.partitions,
                batch_rows=self.strategy.batch_rows,
                holdout=self.holdout,
            )
        )
        found = rehearse(self.model.shell(segments=2), self.model.sample_batch(Encoder(self.plan).columns, 8))
        model = self.model.shell(segments=2)
        for name, (keys, grads) in found.items():
            model.tables()[name].pull(keys)
            model.tables()[name].push(keys, grads)

    def steps(self, progress: Progress) -> Iterator[None]:
        if self.strategy.solver == "lbfgs":
            from penstock.train.tree.lbfgs import minimise

            yield from minimise(self, progress)
            return
        executor, state = self.executor, self.state
        while state.pass_ < self.passes:
            self.begin_pass()
            wanted = executor.keys()
            while any(keys is not None for keys in wanted):
                partials, total = self.aggregate([self._pull(keys) for keys in wanted])
                # The next batches are read, and their keys found, while the table is updated.
                executor.prepare()
                for name, (keys, grads) in total.items():
                    self.model.tables()[name].push(keys, grads)
                self.account(partials)
                state.iteration += 1
                self.tell(progress)
                yield
                wanted = executor.keys()
            state.pass_, state.iteration, state.positions = state.pass_ + 1, 0, []

    def begin_pass(self) -> None:
        """Let executors read the first batches from ``state`` on."""
        if not self.state.positions:
            self.state.positions = [START] * self.counted.partitions
        self.executor.begin(self.state.positions)
        self.executor.prepare()

    def aggregate(self, weights: Sequence[Rows | None]) -> tuple[list[Partial | None], Gradient]:
        """What each partition says of its batch, and the sum of all gradients."""
        partials = self.executor.map(weights, observe=self.state.pass_ == 0)
        for level in self._levels:
            self.executor.combine(level)
        parts = self.executor.collect(self._heads)
        figures = self.counted
        figures.iterations += 1
        for rows in weights:
            figures.keys_back_nbytes += sum(8 * len(table) for table in (rows or {}).values())
            figures.weights_out_nbytes += sum(table.nbytes for table in (rows or {}).values())
        for part in parts:
            figures.gradients_back_nbytes += sum(keys.nbytes + grads.nbytes for keys, grads in part.values())
        return partials, sum_gradients(parts)

    def account(self, partials: Sequence[Partial | None]) -> None:
        """Move ``state`` behind these batches, and count their predictions, partition by partition."""
        for number, partial in enumerate(partials):
            if partial is None:
                continue
            self.observe(partial.predicted, partial.labels, partial.weights)
            for array in (partial.predicted, partial.labels, partial.weights):
                self.counted.predictions_back_nbytes += 0 if array is None else array.nbytes
            self.state.rows += partial.rows
            self.state.work += partial.work
            self.state.positions[number] = partial.position

    def _pull(self, wanted: Wanted | None) -> Rows | None:
        if wanted is None:
            return None
        return {name: self.model.tables()[name].pull(keys) for name, keys in wanted.items()}
