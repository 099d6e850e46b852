"""How good predictions are: metrics that accumulate over a stream, merge, and are saved with a run."""

from penstock.metrics.binary import BinaryMetrics, ReliabilityBin, Scores

__all__ = ["BinaryMetrics", "ReliabilityBin", "Scores"]
