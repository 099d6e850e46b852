"""Where partitions run: the seam to threads, processes and clusters, and the threads of this process.

An executor moves no numbers of its own: whichever one runs, each partition computes the same, and sums are added
in the order that it is told.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from penstock.batch import Keys
from penstock.train.tree.partition import (
    Gradient,
    Partial,
    Partition,
    Rows,
    Work,
    partial_gradient,
    sum_gradients,
)

__all__ = ["Executor", "Hosted", "Threads", "Wanted"]

S = TypeVar("S")
T = TypeVar("T")

Wanted = Mapping[str, Keys]
"""By table: the distinct keys of a batch, rising."""


class Executor(Protocol):
    """Runs the partitions of one run. Lists are by partition, None where its pass has ended.

    Calls come in the order ``start``, then ``begin`` for each pass, then for each iteration ``prepare``, ``keys``,
    ``map`` (again, if the same batch is wanted at other weights), ``combine`` for each level, ``collect``; and
    ``close`` at any time. Whatever a partition raises is raised by the call that waits for it.
    """

    moved_nbytes: int
    """Gradients that ``combine`` moved between executors."""

    def start(self, work: Work) -> None:
        """Make every partition."""

    def begin(self, positions: Sequence[tuple[int, int]]) -> None:
        """Begin a pass, each partition at its position."""

    def prepare(self) -> None:
        """Let every partition read its next batch; does not wait for it."""

    def keys(self) -> list[Wanted | None]:
        """Wait until the batches are there."""

    def map(self, weights: Sequence[Rows | None], *, observe: bool) -> list[Partial | None]:
        """Compute every batch's gradient; it stays where it is."""

    def combine(self, groups: Sequence[Sequence[int]]) -> None:
        """Add up each group's gradients in its order; its first member then has the sum."""

    def collect(self, partitions: Iterable[int]) -> list[Gradient]:
        """The gradients of these, without those that have none."""

    def close(self) -> None:
        """Stop everything."""


class Hosted:
    """Partitions that live in this process, and their gradients, by number."""

    def __init__(self, work: Work, numbers: Iterable[int]) -> None:
        self.partitions = {number: Partition(work, number) for number in numbers}
        self.gradients: dict[int, Gradient | None] = {}

    def compute(self, number: int, weights: Rows | None, observe: bool) -> Partial | None:
        """Keep the gradient of the partition's batch."""
        partition = self.partitions[number]
        if weights is None or partition.ready is None:
            self.gradients[number] = None
            return None
        self.gradients[number], partial = partial_gradient(
            partition.model, partition.ready, weights, observe=observe
        )
        return partial

    def add_up(self, group: Sequence[int]) -> None:
        """Let the group's first member have the sum."""
        parts = [part for part in map(self.gradients.get, group) if part is not None]
        self.gradients.update(dict.fromkeys(group))
        self.gradients[group[0]] = sum_gradients(parts) if parts else None

    def close(self) -> None:
        """Stop reading."""
        for partition in self.partitions.values():
            partition.close()


class Threads:
    """Partitions in threads of this process; kernels and readers let each other run."""

    moved_nbytes = 0

    def __init__(self, executors: int) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(executors, thread_name_prefix="penstock-partition")
        self._hosted: Hosted | None = None
        self._pending: list[concurrent.futures.Future[Wanted | None]] = []

    def start(self, work: Work) -> None:
        """Make every partition."""
        self._hosted = Hosted(work, range(work.partitions))

    def begin(self, positions: Sequence[tuple[int, int]]) -> None:
        """Begin a pass, each partition at its position."""
        self._settle()
        for partition in self._home.partitions.values():
            partition.begin(positions[partition.number])

    def prepare(self) -> None:
        """Let every partition read its next batch; does not wait for it."""
        partitions = self._home.partitions.values()
        self._pending = [self._pool.submit(partition.prepare) for partition in partitions]

    def keys(self) -> list[Wanted | None]:
        """Wait until the batches are there."""
        pending, self._pending = self._pending, []
        return [future.result() for future in self._all(pending)]

    def map(self, weights: Sequence[Rows | None], *, observe: bool) -> list[Partial | None]:
        """Compute every batch's gradient; it stays where it is."""
        compute = self._home.compute
        return self._run(lambda number: compute(number, weights[number], observe), range(len(weights)))

    def combine(self, groups: Sequence[Sequence[int]]) -> None:
        """Add up each group's gradients in its order; its first member then has the sum."""
        self._run(self._home.add_up, groups)

    def collect(self, partitions: Iterable[int]) -> list[Gradient]:
        """The gradients of these, without those that have none."""
        return [part for part in map(self._home.gradients.get, partitions) if part is not None]

    def close(self) -> None:
        """Stop everything."""
        self._settle()
        self._pool.shutdown()
        if self._hosted is not None:
            self._hosted.close()

    @property
    def _home(self) -> Hosted:
        assert self._hosted is not None
        return self._hosted

    def _run(self, function: Callable[[S], T], arguments: Iterable[S]) -> list[T]:
        futures = [self._pool.submit(function, argument) for argument in arguments]
        return [future.result() for future in self._all(futures)]

    def _settle(self) -> None:
        """Nothing may still use a partition that is about to change."""
        concurrent.futures.wait(self._pending)
        self._pending = []

    def _all(self, futures: list[concurrent.futures.Future[T]]) -> list[concurrent.futures.Future[T]]:
        """These, all done: the first error by partition is raised, not the first in time."""
        concurrent.futures.wait(futures)
        return futures
