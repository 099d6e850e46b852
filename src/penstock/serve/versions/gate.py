"""Whether a version may answer: it is tried on labelled rows that were learnt last, beside the one that answers.

A trainer publishes such rows with each version. They tell a model that is broken from one that is not, but no good
one from a better one: it has learnt them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.batch import Floats
from penstock.errors import ConfigError, DataError, ModelError, StorageError
from penstock.metrics import BinaryMetrics, Scores
from penstock.serve.scorer import Scorer

__all__ = ["Gate"]

_ROWS = 500
_OF_A_CLASS = 20
"""Rows, and rows of either label, below which nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Bounds that a version must keep to be switched to."""

    worst_logloss: float = 1.2
    """Log loss, as a multiple of that of the version that answers, on the same rows."""
    calibration: Sequence[float] = (0.33, 3.0)
    """Least and largest sum of predictions over sum of labels."""

    def __post_init__(self) -> None:
        low, high = self.calibration
        if not self.worst_logloss > 0:
            raise ConfigError(f"the worst logloss of a version must be > 0, got {self.worst_logloss:g}")
        if not 0 <= low < high:
            raise ConfigError(f"the calibration of a version: got {low:g}:{high:g}, allowed: rising numbers >= 0")

    def check(self, candidate: Scorer, answering: Scorer | None, recent: pa.Table | None) -> None:
        """See whether ``candidate`` may take the place of ``answering``.

        Raises:
            ModelError: it may not; the message says why.
        """
        if recent is None or candidate.model.plan is None or candidate.model.plan.label not in recent.column_names:
            return
        labels = pc.cast(recent[candidate.model.plan.label], pa.float32()).to_numpy()
        scores = candidate.score_table(recent)
        if not np.isfinite(scores).all():
            raise ModelError(f"version {candidate.version} predicts what is no number")
        positives = int(labels.sum())
        if len(labels) < _ROWS or min(positives, len(labels) - positives) < _OF_A_CLASS:
            return
        found = _measure(scores, labels)
        what = f"version {candidate.version} on {len(labels):,} recent rows"
        low, high = self.calibration
        if not low <= found.calibration <= high:
            raise ModelError(f"{what}: calibration {found.calibration:.3g}, allowed {low:g} to {high:g}")
        if answering is None:
            return
        try:
            before = _measure(answering.score_table(recent), labels)
        except (DataError, StorageError):
            return  # it is a model of other columns, or its file is damaged
        if found.logloss > self.worst_logloss * before.logloss:
            raise ModelError(
                f"{what}: logloss {found.logloss:.4g}, allowed {self.worst_logloss:g} x {before.logloss:.4g} of "
                f"version {answering.version}"
            )


def _measure(scores: Floats, labels: Floats) -> Scores:
    metrics = BinaryMetrics()
    metrics.update(scores, np.ascontiguousarray(labels, np.float32))
    return metrics.scores()
