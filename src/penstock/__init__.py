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
    from penstock.engine import LocalProcesses as LocalProcesses
    from penstock.engine import ParameterServer as ParameterServer
    from penstock.errors import PenstockError as PenstockError
    from penstock.features import Features as Features
    from penstock.features import Numeric as Numeric
    from penstock.job import fit as fit
    from penstock.log import Log as Log
    from penstock.models import DenseSlices as DenseSlices
    from penstock.models import Linear as Linear
    from penstock.models import Model as Model
    from penstock.models import load_model as load  # noqa: F401
    from penstock.models import register_model as register_model
    from penstock.optim import FTRL as FTRL
    from penstock.optim import SGD as SGD
    from penstock.optim import AdaGrad as AdaGrad
    from penstock.optim import Optimizer as Optimizer
    from penstock.optim import register_optimizer as register_optimizer
    from penstock.parameter_server import ASP as ASP
    from penstock.parameter_server import BSP as BSP
    from penstock.parameter_server import SSP as SSP
    from penstock.stream.source import PipelineSource as PipelineSource
    from penstock.stream.spec import Pipeline as Pipeline
    from penstock.train import Holdout as Holdout
    from penstock.train import Online as Online
    from penstock.train import Publish as Publish
    from penstock.train import Run as Run
    from penstock.train import evaluate as evaluate
    from penstock.train import predict_to_file as predict_to_file
    from penstock.train.tree import TreeAggregate as TreeAggregate

_HOME = {
    "ASP": "parameter_server",
    "AdaGrad": "optim",
    "BSP": "parameter_server",
    "ClickLog": "data.clicks",
    "CsvOptions": "data",
    "DenseSlices": "models",
    "FTRL": "optim",
    "Features": "features",
    "Holdout": "train",
    "Linear": "models",
    "Log": "log",
    "LocalProcesses": "engine",
    "Model": "models",
    "Numeric": "features",
    "Online": "train",
    "Optimizer": "optim",
    "ParameterServer": "engine",
    "PenstockError": "errors",
    "Pipeline": "stream.spec",
    "PipelineSource": "stream.source",
    "Publish": "train",
    "Run": "train",
    "SGD": "optim",
    "SSP": "parameter_server",
    "SparseBatch": "batch",
    "TreeAggregate": "train.tree",
    "evaluate": "train",
    "fit": "job",
    "load": "models:load_model",
    "open_source": "data",
    "predict_to_file": "train",
    "register_model": "models",
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
