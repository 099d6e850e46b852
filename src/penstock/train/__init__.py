"""Training and scoring: the loop that reads, hashes, learns and reports."""

from penstock.train.holdout import Holdout
from penstock.train.online import Online, Run, fit
from penstock.train.scoring import evaluate, predict_to_file

__all__ = ["Holdout", "Online", "Run", "evaluate", "fit", "predict_to_file"]
