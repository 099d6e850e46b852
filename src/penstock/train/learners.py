"""How a batch is learnt: example by example in one thread or several, or in mini-batches.

Each learner predicts every example before it learns it. What is read, and what is reported, is not known here.
"""

from __future__ import annotations

import concurrent.futures

import numpy as np

from penstock.batch import Floats, SparseBatch
from penstock.models import Linear
from penstock.models.linear import as_examples, memory_for
from penstock.table import unique_keys

__all__ = ["Hogwild", "Learner", "MiniBatches"]


class Learner:
    """Learns batches by example, in one thread."""

    def __init__(self, model: Linear) -> None:
        self._model = model

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def learn(self, batch: SparseBatch, out: Floats) -> None:
        """Predict into ``out``, then learn."""
        self._model.learn(batch, out)


class Hogwild(Learner):
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
    """Learns through ``gradients``: pull, compute, push, as the parameter server's workers do."""

    def __init__(self, model: Linear, size: int) -> None:
        super().__init__(model)
        self._size = size

    def learn(self, batch: SparseBatch, out: Floats) -> None:
        """Predict and learn, ``size`` consecutive examples at a time."""
        table = self._model.tables()["weights"]
        for begin in range(0, len(batch), self._size):
            part = batch.slice(begin, min(begin + self._size, len(batch)))
            keys, index = unique_keys(part.keys)
            rows = {"weights": table.pull(keys)}
            _, grads = self._model.gradients(rows, {"weights": index}, part, out[begin : begin + len(part)])
            table.push(keys, grads["weights"])
