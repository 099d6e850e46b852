"""Models from their folders, ready to answer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from penstock.models import load_version
from penstock.serve.scorer import Scorer

__all__ = ["load_scorer"]


def load_scorer(folder: str | Path) -> Scorer:
    """The model that is valid in a folder.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    scorer = Scorer(*load_version(folder))
    _warm_up(scorer)
    return scorer


def _warm_up(scorer: Scorer) -> None:
    """Have the kernels compiled before the first request."""
    plan = scorer.model.plan
    assert plan is not None
    row = dict.fromkeys(plan.inputs)
    scorer.score([row])
    scorer.score_table(pa.Table.from_batches([scorer.reader.read([row])]))
