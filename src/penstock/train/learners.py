"""How a batch is learnt: example by example in one thread or several, or in mini-batches.

Each learner predicts every example before it learns it. What is read, and what is reported, is not known here.
"""

from __future__ import annotations

import concurrent.futures
from abc import ABC, abstractmethod

import numpy as np

from penstock.batch import Floats, SparseBatch
from penstock.models import Linear, Model
from penstock.models.linear import as_examples, memory_for
from penstock.table import unique_keys

__all__ = ["ByExample", "Hogwild", "Learner", "MiniBatches"]


class Learner(ABC):
    """Learns batches; a context."""

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def learn(self, batch: SparseBatch, out: Floats) -> None:
        """Predict into ``out``, then learn."""


class ByExample(Learner):
    """Learns example by example, in one thread."""

    def __init__(self, model: Linear) -> None:
        self._model = model

    def learn(self, batch: SparseBatch, out: Floats) -> None:
        """Predict into ``out``, then learn."""
        self._model.learn(batch, out)


class Hogwild(ByExample):
    """Learns each batch in several threads at once; they park while the table grows."""

    def __init__(self, model: Linear, threads: int) -> None:
        super().__init__(model)
        self._threads = threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads - 1, thread_name_prefix="penstock-learner")

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def learn(self, batch: SparseBatch, out: Floats) -> None:
        """Predict and learn; on return every example was learnt exactly once."""
        examples = as_examples(batch)
        bounds = np.linspace(0, len(batch), self._threads + 1).astype(int).tolist()
        parts = [(begin, end, memory_for(batch)) for begin, end in zip(bounds, bounds[1:], strict=False)]
        while parts:
            # This thread takes the last part: one thread fewer to wake.
            futures = [
                self._pool.submit(self._model.learn_some, examples, memory, out, begin, end)
                for begin, end, memory in parts[:-1]
            ]
            begin, end, memory = parts[-1]
            reached = [self._model.learn_some(examples, memory, out, begin, end)]
            reached = [future.result() for future in futures] + reached
            parts = [(r, end, memory) for r, (_, end, memory) in zip(reached, parts, strict=True) if r < end]
            if parts:
                self._model.table.grow()


class MiniBatches(Learner):
    """Learns any model through ``gradients``: pull, compute, push, as the parameter server's workers do."""

    def __init__(self, model: Model, size: int) -> None:
        self._model = model
        self._size = size

    def learn(self, batch: SparseBatch, out: Floats) -> None:
        """Predict and learn, ``size`` consecutive examples at a time."""
        model = self._model
        tables = model.tables()
        for begin in range(0, len(batch), self._size):
            part = batch.slice(begin, min(begin + self._size, len(batch)))
            distinct = {name: unique_keys(keys) for name, keys in model.keys(part).items()}
            rows = {name: tables[name].pull(keys) for name, (keys, _) in distinct.items()}
            index = {name: places for name, (_, places) in distinct.items()}
            _, grads = model.gradients(rows, index, part, out[begin : begin + len(part)])
            for name, (keys, _) in distinct.items():
                tables[name].push(keys, grads[name])
