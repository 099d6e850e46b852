"""What the simulated cluster learns, and what must come out: toy data, a counter a key, a model that rounds.

``count`` holds for each key how many examples had it, so that one lost or doubled example shows. ``weight`` is
updated by a formula whose result depends on the order and the grouping of what is summed, bit for bit. The oracle
computes both one clock after the other, in plain NumPy.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from penstock.batch import Floats, Keys
from penstock.parameter_server.messages import BatchName

DIMS = {"count": 1, "weight": 2}
SEGMENTS = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch: its distinct keys, rising, how many of its examples have each, and how many these are."""

    keys: Keys
    counts: Floats
    rows: int


@dataclass(frozen=True, eq=False)
class Data:
    """Chunks of micro-batches; a clock's place follows from the number of lanes."""

    universe: Keys
    chunks: list[list[Batch]]
    passes: int
    lanes: int
    places: dict[BatchName, tuple[int, int]] = field(default_factory=dict)
    """Lane and clock of each micro-batch."""

    @property
    def clocks(self) -> int:
        return 1 + max(clock for _, clock in self.places.values())

    @property
    def rows(self) -> int:
        return self.passes * sum(batch.rows for chunk in self.chunks for batch in chunk)

    def batch(self, name: BatchName) -> Batch | None:
        """None where the chunk has ended before."""
        chunk = self.chunks[name.chunk % len(self.chunks)]
        return chunk[name.batch] if name.batch < len(chunk) else None

    def at(self, keys: Keys) -> np.ndarray:
        return np.searchsorted(self.universe, keys)

    def counts(self, names: set[BatchName]) -> Floats:
        """How many examples of these micro-batches have each key of the universe."""
        counts = np.zeros(len(self.universe), np.float32)
        for name in names:
            batch = self.batch(name)
            assert batch is not None
            counts[self.at(batch.keys)] += batch.counts
        return counts


@lru_cache(maxsize=64)
def make_data(family: int) -> Data:
    """The same data for all seeds of a family, so that they must all come to the same result."""
    r = random.Random(f"data {family}")
    universe = np.array(sorted({r.randrange(1, 1 << 63) * 2 for _ in range(20)}), np.uint64)
    chunks = []
    for _ in range(r.choice([1, 2, 3, 4, 5, 6])):
        batches = []
        for _ in range(r.choice([0, 1, 1, 2, 3, 4])):
            picked = sorted(r.sample(range(len(universe)), r.choice([0, 1, 3, 6, 8])))
            counts = np.array([r.randrange(1, 9) for _ in picked], np.float32)
            batches.append(Batch(universe[picked], counts, r.randrange(9, 20)))
        # An empty chunk is one micro-batch of no examples.
        chunks.append(batches or [Batch(np.empty(0, np.uint64), np.empty(0, np.float32), 0)])
    passes = r.choice([1, 1, 2])
    lanes = max(1, min(r.choice([1, 2, 3, 4]), len(chunks) * passes))
    data = Data(universe, chunks, passes, lanes)
    next_ = [0] * lanes
    for chunk in range(len(chunks) * passes):
        for batch in range(len(chunks[chunk % len(chunks)])):
            data.places[BatchName(chunk, batch)] = chunk % lanes, next_[chunk % lanes]
            next_[chunk % lanes] += 1
    return data


def gradients(name: BatchName, batch: Batch, rows: Mapping[str, Floats]) -> dict[str, Floats]:
    """Of a micro-batch, from the rows that it pulled; the same bits for the same rows."""
    weight, n = rows["weight"], np.float32(name.chunk * 7 + name.batch + 1)
    together = np.float32(weight.sum(dtype=np.float32)) if len(weight) else np.float32(0)
    slope = np.float32(1) / (np.float32(1.5) + np.abs(weight)) + together / np.float32(9)
    return {"count": -batch.counts[:, None], "weight": slope * batch.counts[:, None] / n - weight / np.float32(3)}


class Store:
    """A table of dim floats a key of the universe: the ``RowStore`` that servers have here."""

    def __init__(self, name: str, universe: Keys) -> None:
        self.name, self.dim, self.segments = name, DIMS[name], SEGMENTS
        self._universe = universe
        self.values = np.zeros((len(universe), self.dim), np.float32)
        self._there = np.zeros(len(universe), bool)
        self._changed = np.zeros(len(universe), bool)

    def __len__(self) -> int:
        return int(self._there.sum())

    def pull(self, keys: Keys) -> Floats:
        return self.values[np.searchsorted(self._universe, keys)]

    def push(self, keys: Keys, gradients: Floats) -> None:
        at = np.searchsorted(self._universe, keys)
        self.values[at] = update(self.name, self.values[at], gradients)
        self._there[at] = self._changed[at] = True

    def load(self, keys: Keys, words: Floats) -> None:
        at = np.searchsorted(self._universe, keys)
        self.values[at] = words
        self._there[at] = True

    def copy_all(self) -> tuple[Keys, Floats]:
        self._changed[:] = False
        return self._universe[self._there], self.values[self._there]

    def copy_changed(self) -> tuple[Keys, Floats]:
        at = self._changed.copy()
        self._changed[:] = False
        return self._universe[at], self.values[at]

    def take_removed(self) -> Keys:
        return np.empty(0, np.uint64)

    def touch(self, keys: Keys) -> None:
        self._changed[np.searchsorted(self._universe, keys)] = True


def update(table: str, values: Floats, gradients: Floats) -> Floats:
    """How a row changes."""
    if table == "count":
        return values - gradients
    return values * np.float32(0.875) - gradients / (np.float32(1) + np.abs(gradients))


@lru_cache(maxsize=64)
def counts_before(family: int) -> np.ndarray:
    """f32[clocks + 1, keys]: how often each key was seen in all clocks before one."""
    data = make_data(family)
    seen = np.zeros((data.clocks + 1, len(data.universe)), np.float32)
    for name, (_, clock) in data.places.items():
        seen[clock + 1] += data.counts({name})
    return np.cumsum(seen, axis=0, dtype=np.float32)


@lru_cache(maxsize=64)
def oracle(family: int) -> list[dict[str, Floats]]:
    """Under BSP the values of all tables before each clock, and after the last."""
    data = make_data(family)
    values = {table: np.zeros((len(data.universe), dim), np.float32) for table, dim in DIMS.items()}
    states = [{table: v.copy() for table, v in values.items()}]
    for clock in range(data.clocks):
        sums = {table: np.zeros_like(v) for table, v in values.items()}
        seen = np.zeros(len(data.universe), bool)
        names = sorted((lane, name) for name, (lane, place) in data.places.items() if place == clock)
        for _, name in names:
            batch = data.batch(name)
            assert batch is not None
            at = data.at(batch.keys)
            parts = gradients(name, batch, {table: v[at] for table, v in values.items()})
            for table, part in parts.items():
                sums[table][at] = np.where(seen[at][:, None], sums[table][at] + part, part)
            seen[at] = True
        for table, v in values.items():
            v[seen] = update(table, v[seen], sums[table][seen])
        states.append({table: v.copy() for table, v in values.items()})
    return states
