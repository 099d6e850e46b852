"""What late labels do to learning: which rows of a pipeline's output are learnt, and with which weights.

An example is given out when its window is sealed, with the label known then; one that is positive later was learnt
as a negative. With p the probability that an example is positive in the end, and q the share of positives that are
known when their windows are sealed:

``none``        A late positive is learnt as one more example. Probabilities come out too small.
``wait``        Windows are sealed only when hardly any positive can still come.
``duplicate``   Late positives are learnt besides their negatives, and all are weighted such that the mean of the
                loss is that of the true labels: positives by 1 + p (1 - q), negatives by
                (1 - p) (1 + p (1 - q)) / (1 - p q). With q = 0 these are the fake-negative weights of Ktena et al.
                2019, "Addressing delayed feedback for continuous training with neural networks in CTR prediction".
``importance``  Late positives are not learnt; positives in time stand for them, by 1 / q, and negatives count by
                (1 - p) / (1 - p q), the probability that they are none of them (Yasui et al. 2020, "A feedback
                shift correction in predicting conversion rates under delayed feedback").

p is the model's own prediction at that moment; no gradient goes through it. Negatives that are sampled with rate r
count 1 / r, in each of these; whether one is taken depends on its place in the stream alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.errors import ConfigError

__all__ = ["MODES", "LabelPolicy", "check_label"]

MODES = ("none", "wait", "duplicate", "importance")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def check_label(label: str, columns: Sequence[str], schema: pa.Schema) -> None:
    """The query gives such a column, and it can be 0 or 1.

    Raises:
        ConfigError: it does not.
    """
    if label not in columns:
        raise ConfigError(f"features.label: the query has no column {label!r}, it has {', '.join(columns)}")
    type_ = schema.field(label).type
    number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    if not (number or pa.types.is_boolean(type_)):
        raise ConfigError(
            f"features.label: column {label!r} is of type {type_}; allowed: 0 or 1, as a number or boolean"
        )


@dataclass(frozen=True, kw_only=True)
class LabelPolicy:
    """How examples are learnt whose labels may still change."""

    mode: str = "none"
    on_time: float = 0.0
    """q: the share of positives known when their windows are sealed; `penstock label-delay` measures it."""
    negatives: float = 1.0
    """The share of negatives that are learnt."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"late_positives: got {self.mode!r}, allowed: {', '.join(MODES)}")
        if not 0 <= self.on_time <= 1:
            raise ConfigError(f"on_time: got {self.on_time}, allowed: 0 to 1")
        if self.mode == "importance" and self.on_time <= 0:
            raise ConfigError(
                "late_positives 'importance' needs on_time, the share of positives that are known when a window "
                "is sealed; `penstock label-delay` measures it"
            )
        if not 0 < self.negatives <= 1:
            raise ConfigError(f"negatives: got {self.negatives}, allowed: above 0, up to 1")

    @property
    def needs_predictions(self) -> bool:
        """Whether weights depend on what the model predicts."""
        return self.mode in ("duplicate", "importance")

    def taken(self, rows: pa.Table, label: str) -> pa.Table:
        """The rows of a pipeline's output that are learnt."""
        kinds = rows["_kind"]
        keep = pc.not_equal(kinds, "retraction")
        positive = self._positive(rows, label)
        if self.mode == "importance":
            late_positive = np.asarray(pc.equal(kinds, "correction")) & positive
            keep = pc.and_(keep, pa.array(~late_positive))
        if self.negatives < 1:
            # Multiplicative hashing (Knuth 6.4): the same places are taken in every run.
            with np.errstate(over="ignore"):
                mixed = np.asarray(rows["_seq"]).astype(np.uint64) * _GOLDEN
            drawn = ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(11)).astype(np.float64) / 2**53
            keep = pc.and_(keep, pa.array(positive | (drawn < self.negatives)))
        return rows.filter(keep)

    def weights(
        self, labels: NDArray[np.float32], predicted: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        """Weights f32[B] of examples with these labels and predictions; None where all are 1."""
        positive = labels > 0
        weights = np.where(positive, 1.0, 1.0 / self.negatives)
        if self.needs_predictions:
            assert predicted is not None
            p, q = predicted.astype(np.float64), self.on_time
            unknown = np.maximum(1 - p * q, 1e-6)
            if self.mode == "duplicate":
                more = 1 + p * (1 - q)
                weights *= np.where(positive, more, (1 - p) * more / unknown)
            else:
                weights *= np.where(positive, 1 / q, (1 - p) / unknown)
        elif self.negatives == 1:
            return None
        return weights.astype(np.float32)

    @staticmethod
    def _positive(rows: pa.Table, label: str) -> NDArray[np.bool_]:
        column = pc.cast(rows[label], pa.float64())
        return np.asarray(pc.fill_null(pc.greater(column, 0), False))
