"""Penstock trains very large sparse models from event logs, and serves them while they learn.

::

    import penstock as ps

    features = ps.Features(label="clicked", numeric=["price"], categorical=["site", "user"])
    run = ps.fit(ps.Linear(features, optimizer=ps.FTRL(alpha=0.1)), "clicks/*.parquet")
    run.metrics.auc

Names are imported when first used: ``import penstock`` loads neither Numba nor Arrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from penstock.version import __version__

if TYPE_CHECKING:
    from penstock.batch import SparseBatch as SparseBatch
    from penstock.data import CsvOptions as CsvOptions
    from penstock.data import open_source as open_source
    from penstock.data.clicks import ClickLog as ClickLog
    from penstock.data.clicks import write_clicks as write_clicks
    from penstock.errors import PenstockError as PenstockError
    from penstock.features import Features as Features
    from penstock.features import Numeric as Numeric
    from penstock.models import Linear as Linear
    from penstock.models import load_model as load  # noqa: F401
    from penstock.optim import FTRL as FTRL
    from penstock.optim import SGD as SGD
    from penstock.optim import AdaGrad as AdaGrad
    from penstock.optim import Optimizer as Optimizer
    from penstock.optim import register_optimizer as register_optimizer
    from penstock.train import Holdout as Holdout
    from penstock.train import Online as Online
    from penstock.train import Run as Run
    from penstock.train import evaluate as evaluate
    from penstock.train import fit as fit
    from penstock.train import predict_to_file as predict_to_file

_HOME = {
    "AdaGrad": "optim",
    "ClickLog": "data.clicks",
    "CsvOptions": "data",
    "FTRL": "optim",
    "Features": "features",
    "Holdout": "train",
    "Linear": "models",
    "Numeric": "features",
    "Online": "train",
    "Optimizer": "optim",
    "PenstockError": "errors",
    "Run": "train",
    "SGD": "optim",
    "SparseBatch": "batch",
    "evaluate": "train",
    "fit": "train",
    "load": "models:load_model",
    "open_source": "data",
    "predict_to_file": "train",
    "register_optimizer": "optim",
    "write_clicks": "data.clicks",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    module, _, inner = _HOME[name].partition(":")
    value = getattr(importlib.import_module(f"penstock.{module}"), inner or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
