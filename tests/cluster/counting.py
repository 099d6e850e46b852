"""A model that counts: after a run each key's weight is how often it was learnt, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from penstock.batch import Floats, Keys, SparseBatch
from penstock.features import FeaturePlan, Features
from penstock.models import Model, register_model
from penstock.optim import SGD, Optimizer
from penstock.table import SEGMENTS


@register_model
class Counting(Model):
    """The gradient of a key is -1 for each time it occurs, so SGD at rate 1 counts, in f32 exactly up to 2^24."""

    kind: ClassVar[str] = "counting"

    def __init__(
        self,
        features: Features | FeaturePlan | None = None,
        *,
        optimizer: Optimizer | None = None,
        slots: Any = 1 << 10,
        segments: int = SEGMENTS,
        fail_with: str = "",
    ) -> None:
        super().__init__(features, optimizer=optimizer or SGD(alpha=1.0))
        self.fail_with = fail_with
        self.add_table("counts", dim=1, slots=slots, segments=segments)

    def settings(self) -> dict[str, Any]:
        """Where to fail, for tests of a user's mistakes: in ``keys`` or in ``gradients``."""
        return {"fail_with": self.fail_with}

    def keys(self, batch: SparseBatch) -> dict[str, Keys]:
        if self.fail_with == "keys":
            raise KeyError("a mistake of the user's")
        return {"counts": batch.keys}

    def gradients(
        self, rows: Mapping[str, Floats], index: Mapping[str, Any], batch: SparseBatch, out: Floats
    ) -> tuple[float, dict[str, Floats]]:
        if self.fail_with == "gradients" and rows["counts"].any():
            raise ZeroDivisionError("a mistake of the user's")
        out[:] = 0.5
        grads = np.zeros_like(rows["counts"])
        np.subtract.at(grads[:, 0], index["counts"], np.float32(1))
        return 0.0, {"counts": grads}

    def predict_batch(self, batch: SparseBatch) -> Floats:
        return np.full(len(batch), 0.5, np.float32)
