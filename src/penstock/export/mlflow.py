"""A model as an MLflow model: ``mlflow.pyfunc`` loads the model folder by this module, and nothing is pickled.

::

    import penstock.export.mlflow

    penstock.export.mlflow.log_model(model, name="ctr")
    mlflow.pyfunc.load_model(uri).predict(data_frame)          # an array of probabilities
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from penstock.batch import Floats
from penstock.errors import ConfigError, DataError
from penstock.features import ColumnPlan, FeaturePlan
from penstock.models import Model, load_model
from penstock.score.values import category
from penstock.version import DISTRIBUTION, __version__, the_extra

__all__ = ["log_model", "save_model"]

_DATA = "penstock"
"""Folder of the model within an MLflow model's artifacts."""


def save_model(model: Model, path: str | Path, **options: Any) -> None:
    """Write an MLflow model to a folder that is not there yet.

    The signature comes from the feature plan, and the requirements are this version of Penstock and pandas, unless
    ``options``, which go to ``mlflow.pyfunc.save_model``, say otherwise.

    Raises:
        ConfigError: MLflow is not installed, or the model has not been fitted.
    """
    mlflow = _mlflow()
    with _arguments(model) as arguments, _without_advice():
        mlflow.pyfunc.save_model(path=str(path), **{**arguments, **options})


def log_model(model: Model, name: str, **options: Any) -> Any:
    """Log an MLflow model to the active run; returns MLflow's ``ModelInfo``.

    ``options`` go to ``mlflow.pyfunc.log_model``; else as ``save_model``.

    Raises:
        ConfigError: MLflow is not installed, or the model has not been fitted.
    """
    mlflow = _mlflow()
    with _arguments(model) as arguments, _without_advice():
        return mlflow.pyfunc.log_model(name=name, **{**arguments, **options})


class DataFrameScorer:
    """What ``mlflow.pyfunc`` calls."""

    def __init__(self, model: Model) -> None:
        assert model.plan is not None
        self.model, self._plan = model, model.plan
        self._columns = {column.name: column for column in model.plan.columns}

    def predict(self, model_input: Any, params: Any = None) -> Floats:
        """Probabilities f32[rows] of a pandas data frame; a column that it lacks is missing in every row.

        Raises:
            DataError: it has none of the model's columns, or a value is not allowed.
        """
        inputs = self._plan.inputs
        if not any(name in model_input for name in inputs):
            raise DataError(f"the data frame has none of the model's columns; they are {', '.join(inputs)}")
        rows = len(model_input)
        arrays = {
            name: _array(name, self._columns.get(name), model_input[name])
            if name in model_input
            else _no_values(self._columns.get(name), rows)
            for name in inputs
        }
        return self.model.predict(pa.table(arrays))


def _load_pyfunc(data_path: str) -> DataFrameScorer:
    """MLflow calls this by its name."""
    return DataFrameScorer(load_model(data_path))


def _mlflow() -> Any:
    try:
        mlflow = importlib.import_module("mlflow")
        importlib.import_module("mlflow.pyfunc")
    except ImportError as error:
        raise ConfigError(f"MLflow needs {the_extra('mlflow')}") from error
    return mlflow


@contextmanager
def _arguments(model: Model) -> Iterator[dict[str, Any]]:
    """Of MLflow's functions; the model lies in a temporary folder meanwhile."""
    if model.plan is None:
        raise ConfigError("a model that has not been fitted cannot be exported: it knows no columns yet")
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/{_DATA}")
        yield {
            "loader_module": __name__,
            "data_path": f"{folder}/{_DATA}",
            "signature": _signature(model.plan),
            "pip_requirements": [f"{DISTRIBUTION}=={__version__}", "pandas"],
        }


@contextmanager
def _without_advice() -> Iterator[None]:
    """MLflow warns of signatures that no example has confirmed; ours is not guessed from one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example.*", UserWarning)
        yield


def _signature(plan: FeaturePlan) -> Any:
    models: Any = importlib.import_module("mlflow.models")
    types: Any = importlib.import_module("mlflow.types.schema")
    kinds = {column.name: column for column in plan.columns}

    def type_of(name: str) -> Any:
        column = kinds.get(name)
        if column is not None and column.type in ("double", "float", "halffloat"):
            return types.DataType.double
        if column is not None and column.type in ("string", "large_string"):
            return types.DataType.string
        # MLflow would refuse integers of which some are missing, as pandas makes them floating point.
        return types.AnyType()

    columns = [types.ColSpec(type=type_of(name), name=name, required=False) for name in plan.inputs]
    scores = types.TensorSpec(np.dtype(np.float32), (-1,))
    return models.ModelSignature(inputs=types.Schema(columns), outputs=types.Schema([scores]))


def _array(name: str, column: ColumnPlan | None, values: Any) -> pa.Array:
    """A column of a data frame as the encoder takes it."""
    if column is not None and column.kind == "map":
        values = [
            list(item.items()) if isinstance(item, dict) else None if _is_missing(item) else item
            for item in values
        ]
    try:
        if column is not None and column.kind == "map":
            return pa.array(values, pa.map_(pa.string(), pa.float64()))
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError) as error:
        if column is not None and column.kind != "categorical":
            raise DataError(f"column {name!r}: {' '.join(str(error).split())}") from error
        return _mixed(name, values)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if pt.is_null(array.type):
        return _no_values(column, len(array))
    if column is not None and column.type in ("float", "halffloat") and pt.is_floating(array.type):
        # As f32 numbers round differently than as f64.
        return array.cast(pa.float32(), safe=False)
    return array


def _mixed(name: str, values: Any) -> pa.Array:
    """Categories of several types, one by one."""
    texts = []
    for n, value in enumerate(values):
        try:
            texts.append(None if _is_missing(value) else category(value).decode())
        except (TypeError, ValueError) as error:
            message = f"row {n}: column {name!r} is {value!r}; allowed: text, a number or a boolean, or null"
            raise DataError(message) from error
    return pa.array(texts, pa.string())


def _no_values(column: ColumnPlan | None, rows: int) -> pa.Array:
    if column is not None and column.kind == "list":
        return pa.nulls(rows, pa.list_(pa.string()))
    if column is not None and column.kind == "map":
        return pa.nulls(rows, pa.map_(pa.string(), pa.float64()))
    return pa.nulls(rows)


def _is_missing(value: Any) -> bool:
    """None, pandas' NA, or NaN."""
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
