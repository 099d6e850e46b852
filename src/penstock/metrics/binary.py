"""Evaluation of a binary classifier over a stream: fixed memory, one pass, mergeable, saved exactly.

All scores come from one histogram of the predictions (``kernels.binning``: 12,801 bins, 300 KiB) and a sum of
log losses. Rows are not kept, and nothing here prints or writes files.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats
from penstock.errors import ConfigError, DataError, ModelError
from penstock.kernels.binning import BINS, MIDDLE, accumulate, take

__all__ = ["BinaryMetrics", "ReliabilityBin", "Scores"]

# Every f64 up to here that has no fraction is a count that JSON holds shorter, and exactly, as an integer.
MAX_COUNT = 2.0**53


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Quality of predictions; a score that is not defined (no rows, one class only) is nan.

    ==================  =============================================================================
    rows                number of examples
    weight              sum of their weights; all that follows is weighted
    auc                 area under the ROC curve; a pair of labels 0 and 1 in one bin counts half
    auc_error           bound on what binning changes: half the share of such pairs. About 3e-4 for
                        logits of spread 1; the error itself is mostly below 1e-5
    logloss             mean of -log of the probability given to the label, in nats; probabilities
                        no nearer to 0 or 1 than 2^-23, the epsilon of f32
    normalised_entropy  logloss over the entropy of the base rate; below 1 is better than a constant
                        (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook")
    calibration         sum of predictions over sum of labels; 1 is best
    accuracy            share of rows where (probability > 0.5) is the label
    base_rate           share of label 1
    mean_prediction     mean probability
    ==================  =============================================================================
    """

    rows: int
    weight: float
    auc: float
    auc_error: float
    logloss: float
    normalised_entropy: float
    calibration: float
    accuracy: float
    base_rate: float
    mean_prediction: float

    def to_json(self) -> dict[str, float | None]:
        """The scores by name, None where a score is not defined, since JSON has no nan."""
        return {name: None if math.isnan(value) else value for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One point of a calibration curve: rows of similar predictions, and how often their label is 1."""

    mean_prediction: float
    observed_rate: float
    weight: float


class BinaryMetrics:
    """Accumulates predictions and labels; gives ``Scores`` at any time.

    Not for two threads at once: give each its own and ``merge``. The same updates in the same order give the
    same bits, also through ``to_state`` and ``from_state``; another order changes sums by rounding alone, and
    where there are no weights, AUC and accuracy not at all.
    """

    __slots__ = ("_bins", "_loss", "_rows")

    def __init__(self) -> None:
        self._rows = 0
        self._loss = 0.0
        # Columns: weight of label 0, weight of label 1, weighted sum of probabilities.
        self._bins = np.zeros((BINS, 3), np.float64)

    @property
    def rows(self) -> int:
        """Number of examples seen."""
        return self._rows

    def update(self, probabilities: Floats, labels: Floats, weights: Floats | None = None) -> None:
        """Add B examples: f32[B] probabilities of label 1, labels f32[B] of 0 and 1, weights f32[B].

        Raises:
            ValueError: an array of another type or length, or not contiguous.
            DataError: a probability outside [0, 1] or nan, another label, a weight that is negative or not
                finite; the message has the first such row, and nothing was added.
        """
        B = len(labels)
        for name, array in (("probabilities", probabilities), ("labels", labels), ("weights", weights)):
            if array is not None:
                _expect_array(name, array, B)
        bad, loss = accumulate(self._bins, probabilities, labels, weights)
        if bad >= 0:
            weight = 1.0 if weights is None else weights[bad]
            raise DataError(
                f"row {bad} of {B}: got probability {probabilities[bad]}, label {labels[bad]}, "
                f"weight {weight}; allowed are 0 to 1, 0 or 1, and finite >= 0"
            )
        self._rows += B
        self._loss += loss

    def merge(self, other: BinaryMetrics) -> None:
        """Add all that ``other`` has seen; ``other`` stays as it is."""
        self._rows += other._rows
        self._loss += other._loss
        self._bins += other._bins

    def take(self) -> tuple[int, float, NDArray[np.int64], NDArray[np.float64]]:
        """All that was seen, as arrays of the bins that have rows, and forget it: for another's
        ``merge_taken``."""
        most = min(self._rows, BINS)
        bins, sums = np.empty(most, np.int64), np.empty((most, 3), np.float64)
        n = take(self._bins, bins, sums)
        taken = self._rows, self._loss, bins[:n], sums[:n]
        self._rows, self._loss = 0, 0.0
        return taken

    def merge_taken(self, rows: int, loss: float, bins: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Add what ``take`` gave, i64[n] bins (one may stand there twice) and their f64[n, 3] sums.

        Raises:
            DataError: it is not what ``take`` gives.
        """
        ok = bins.ndim == 1 and sums.shape == (len(bins), 3) and rows >= 0 and 0 <= loss < math.inf
        if not ok or (len(bins) and not 0 <= np.min(bins) <= np.max(bins) < BINS) or not (sums >= 0).all():
            raise DataError(f"metrics of {rows} rows: bins must be 0 to {BINS - 1}, and sums f64[n, 3] >= 0")
        np.add.at(self._bins, bins, sums)
        self._rows += rows
        self._loss += loss

    def copy(self) -> BinaryMetrics:
        """An independent copy, for ``since``."""
        twin = BinaryMetrics()
        twin.merge(self)
        return twin

    def since(self, earlier: BinaryMetrics) -> BinaryMetrics:
        """What was added after ``earlier = self.copy()``: the window of a progress report.

        Sums are differences of f64, so their relative error is about 1e-16 times total over window.

        Raises:
            ValueError: ``earlier`` is not an earlier state of this one.
        """
        window = BinaryMetrics()
        window._rows = self._rows - earlier._rows
        window._loss = self._loss - earlier._loss
        np.subtract(self._bins, earlier._bins, out=window._bins)
        # Every sum here only grows, so a smaller one has another past.
        if window._rows < 0 or window._loss < 0 or (window._bins < 0).any():
            raise ValueError(f"{earlier._rows} rows are not an earlier copy of these {self._rows} rows")
        return window

    def scores(self) -> Scores:
        """Scores of all rows seen; takes about 0.1 ms."""
        negative, positive, predicted = np.ascontiguousarray(self._bins.T)
        N, P, prediction = float(negative.sum()), float(positive.sum()), float(predicted.sum())
        W = N + P
        auc = auc_error = math.nan
        if P > 0 and N > 0:
            # Not a BLAS dot product, which may take threads, and then sums in another order.
            tied = 0.5 * positive * negative
            auc_error = float(tied.sum()) / (P * N)
            auc = min(float((positive * np.cumsum(negative) - tied).sum()) / (P * N), 1.0)
        correct = float(negative[: MIDDLE + 1].sum() + positive[MIDDLE + 1 :].sum())
        logloss = _ratio(self._loss, W)
        return Scores(
            rows=self._rows,
            weight=W,
            auc=auc,
            auc_error=auc_error,
            logloss=logloss,
            normalised_entropy=_ratio(logloss, _entropy(N, P)),
            calibration=_ratio(prediction, P),
            accuracy=_ratio(correct, W),
            base_rate=_ratio(P, W),
            mean_prediction=_ratio(prediction, W),
        )

    def reliability(self, bins: int = 10) -> tuple[ReliabilityBin, ...]:
        """The calibration curve, by rising prediction: at most ``bins`` points of about equal weight.

        Means and rates are exact for each point's rows; rows of one histogram bin stay together, so a
        prediction that many rows share makes a heavier point, and there may be fewer points.

        Raises:
            ConfigError: ``bins`` is less than 1.
        """
        if bins < 1:
            raise ConfigError(f"reliability: bins must be >= 1, got {bins}")
        weight = self._bins[:, 0] + self._bins[:, 1]
        used = np.flatnonzero(weight)
        if not len(used):
            return ()
        weight = weight[used]
        through = np.cumsum(weight)
        # A histogram bin goes where its middle row falls.
        point = ((through - 0.5 * weight) / through[-1] * bins).astype(np.int64)
        _, start = np.unique(point, return_index=True)
        sums = np.add.reduceat(self._bins[used], start)
        return tuple(
            ReliabilityBin(mean_prediction=sum_p / (n + p), observed_rate=p / (n + p), weight=n + p)
            for n, p, sum_p in sums.tolist()
        )

    def to_state(self) -> dict[str, object]:
        """All that was seen, as JSON can hold it exactly; only bins with rows: some 10 to 100 KB."""
        used = np.flatnonzero(self._bins.any(axis=1))
        negative, positive, predicted = self._bins[used].T
        state = _State(
            histogram_bins=BINS,
            rows=self._rows,
            loss=self._loss,
            bins=used.tolist(),
            negative=_compact(negative),
            positive=_compact(positive),
            predicted=_compact(predicted),
        )
        return msgspec.structs.asdict(state)

    @classmethod
    def from_state(cls, state: dict[str, object]) -> BinaryMetrics:
        """The accumulator whose ``to_state`` this was, bit for bit.

        Raises:
            ModelError: a field is missing, unknown, of another type or out of range.
        """
        try:
            read = msgspec.convert(state, _State)
        except msgspec.ValidationError as error:
            raise ModelError(f"state of metrics: {error}") from None
        if read.histogram_bins != BINS:
            raise ModelError(
                f"state of metrics: histogram_bins is {read.histogram_bins}, this version reads {BINS} alone"
            )
        lengths = {len(read.bins), len(read.negative), len(read.positive), len(read.predicted)}
        if len(lengths) != 1:
            raise ModelError(f"state of metrics: columns must have one length, got {sorted(lengths)}")
        if any(at <= before for before, at in itertools.pairwise([-1, *read.bins, BINS])):
            raise ModelError(f"state of metrics: bins must rise within 0 to {BINS - 1}")
        sums = np.array([read.negative, read.positive, read.predicted], np.float64)
        if not (np.isfinite(sums) & (sums >= 0)).all() or not 0 <= read.loss < math.inf or read.rows < 0:
            raise ModelError("state of metrics: rows, loss and the columns must be finite and >= 0")
        metrics = cls()
        metrics._rows = read.rows
        metrics._loss = read.loss
        metrics._bins[np.array(read.bins, np.int64)] = sums.T
        return metrics


class _State(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    histogram_bins: int
    rows: int
    loss: float
    bins: list[int]
    negative: list[float]
    positive: list[float]
    predicted: list[float]


def _compact(sums: NDArray[np.float64]) -> list[float]:
    return [int(x) if x.is_integer() and x < MAX_COUNT else x for x in sums.tolist()]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _entropy(negative: float, positive: float) -> float:
    """Entropy in nats of the base rate; nan where there is one class alone."""
    if not (negative > 0 and positive > 0):
        return math.nan
    whole = negative + positive
    return -sum(x / whole * math.log(x / whole) for x in (negative, positive))


def _expect_array(name: str, array: Floats, B: int) -> None:
    if array.dtype != np.float32 or array.shape != (B,) or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous float32[{B}], got {array.dtype}{list(array.shape)}"
            + ("" if array.flags.c_contiguous else " with strides")
        )
