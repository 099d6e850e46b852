"""A model of tables of several dimensions and a dense part, with gradients in NumPy: for tests alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from penstock.batch import Floats, Keys, SparseBatch
from penstock.features import FeaturePlan, Features
from penstock.models import DenseSlices, Model, register_model
from penstock.optim import AdaGrad, Optimizer, optimizer_from_dict
from penstock.table import SEGMENTS, unique_keys


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@register_model
class Toy(Model):
    """p = sigmoid(a.left + b.right + bias), a f32[8] and b f32[64] being sums of the rows of an example's keys.

    ``left``, ``right`` and ``bias`` are dense, and lie in one table. Tables have different optimizers.
    """

    kind: ClassVar[str] = "toy"

    def __init__(
        self,
        features: Features | FeaturePlan | None = None,
        *,
        optimizer: Optimizer | None = None,
        slots: int | Mapping[str, int] = 1 << 10,
        segments: int = SEGMENTS,
        block: int = 16,
        dense_optimizer: Optimizer | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(features, optimizer=optimizer or AdaGrad(alpha=0.1))
        if dense_optimizer is not None and not isinstance(dense_optimizer, Optimizer):
            dense_optimizer = optimizer_from_dict(dense_optimizer)
        self.dense_optimizer = dense_optimizer
        self.block = block
        self.add_table("narrow", dim=8, slots=slots, segments=segments)
        self.add_table("wide", dim=64, slots=slots, segments=segments)
        self.add_table("dense", dim=block, slots=slots, segments=segments, optimizer=dense_optimizer)
        self.parts = [
            DenseSlices(name, shape, block) for name, shape in (("left", (8,)), ("right", (4, 16)), ("bias", ()))
        ]

    def settings(self) -> dict[str, Any]:
        """As ``__init__`` takes them."""
        dense = self.dense_optimizer
        return {"block": self.block} | ({"dense_optimizer": dense.to_dict()} if dense else {})

    def initial_rows(self) -> dict[str, tuple[Keys, Floats]]:
        """``left`` and ``right`` must not be 0, or nothing would ever be learnt."""
        random = np.random.default_rng(5)
        optimizer = self.dense_optimizer or self.optimizer
        made = [
            part.rows_for(random.normal(0, 0.3, part.shape).astype(np.float32), optimizer)
            for part in self.parts[:2]
        ]
        return {"dense": (np.concatenate([k for k, _ in made]), np.concatenate([w for _, w in made]))}

    def keys(self, batch: SparseBatch) -> dict[str, Keys]:
        """Of the features in two tables, and every dense block."""
        dense = np.concatenate([part.keys for part in self.parts])
        return {"narrow": batch.keys, "wide": batch.keys, "dense": dense}

    def gradients(
        self, rows: Mapping[str, Floats], index: Mapping[str, Any], batch: SparseBatch, out: Floats
    ) -> tuple[float, dict[str, Floats]]:
        """By hand, in f64."""
        a, b, (left, right, _), score = self._forward(rows, index, batch)
        p = sigmoid(score)
        out[:] = p
        weights = np.ones(len(batch)) if batch.weights is None else batch.weights
        g = (p - batch.labels) * weights
        values = np.ones(batch.nnz) if batch.values is None else batch.values
        example = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
        grads = {name: np.zeros(pulled.shape, np.float64) for name, pulled in rows.items()}
        for name, dense in (("narrow", left), ("wide", right.reshape(-1))):
            np.add.at(grads[name], index[name], (g[example] * values)[:, None] * dense)
        parts = [g @ a, (g @ b).reshape(4, 16), g.sum()]
        together = np.concatenate(
            [part.to_rows(np.asarray(array, np.float32)) for part, array in zip(self.parts, parts, strict=True)]
        )
        np.add.at(grads["dense"], index["dense"], together)
        clipped = np.clip(p, 1e-7, 1 - 1e-7)
        loss = -(weights * np.where(batch.labels > 0, np.log(clipped), np.log1p(-clipped))).sum()
        return float(loss), {name: array.astype(np.float32) for name, array in grads.items()}

    def predict_batch(self, batch: SparseBatch) -> Floats:
        """From the tables."""
        distinct = {name: unique_keys(keys) for name, keys in self.keys(batch).items()}
        rows = {name: self.tables()[name].pull(keys) for name, (keys, _) in distinct.items()}
        *_, score = self._forward(rows, {name: index for name, (_, index) in distinct.items()}, batch)
        return sigmoid(score).astype(np.float32)

    def _forward(self, rows: Any, index: Any, batch: SparseBatch) -> Any:
        values = np.ones(batch.nnz) if batch.values is None else batch.values
        example = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
        sums = []
        for name in ("narrow", "wide"):
            total = np.zeros((len(batch), rows[name].shape[1]))
            np.add.at(total, example, rows[name][index[name]] * values[:, None])
            sums.append(total)
        pulled = rows["dense"][index["dense"]]
        cuts = np.cumsum([0, *map(len, self.parts)])
        dense = [
            part.to_array(pulled[begin:end]) for part, begin, end in zip(self.parts, cuts, cuts[1:], strict=False)
        ]
        left, right, bias = dense
        return *sums, dense, sums[0] @ left + sums[1] @ right.reshape(-1) + bias
