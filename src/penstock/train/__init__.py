"""Training and scoring: the loop that reads, hashes, learns and reports."""

from penstock.train.holdout import Holdout
from penstock.train.online import Online, fit
from penstock.train.publishing import Publish
from penstock.train.scoring import evaluate, predict_to_file
from penstock.train.session import Run

__all__ = ["Holdout", "Online", "Publish", "Run", "evaluate", "fit", "predict_to_file"]
