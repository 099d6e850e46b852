"""Scoring data with a model: metrics, or a file of predictions. Memory stays bounded, whatever the data's size."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from penstock.data import Source, open_source
from penstock.errors import ConfigError, DataError, StorageError
from penstock.features import unknown_column
from penstock.metrics import BinaryMetrics
from penstock.models import Model
from penstock.train.holdout import Holdout
from penstock.train.stream import EncodedStream, read_for

__all__ = ["evaluate", "evaluate_holdout", "evaluate_stream", "predict_to_file"]


def evaluate(model: Model, data: Any, *, readers: int | None = None) -> BinaryMetrics:
    """Metrics of the model on labelled data.

    Raises:
        DataError: a column is missing, a value or a label is not allowed.
        ConfigError: the model has never been fitted.
    """
    return evaluate_stream(model, _stream(model, data, labelled=True, readers=readers))


def evaluate_stream(
    model: Model, stream: EncodedStream, after_each: Callable[[], None] = lambda: None
) -> BinaryMetrics:
    """Metrics of the model on encoded batches; ``after_each`` of them is called."""
    metrics = BinaryMetrics()
    with stream:
        for item in stream:
            if len(item.batch):
                metrics.update(model.predict_batch(item.batch), item.batch.labels, item.batch.weights)
            after_each()
    return metrics


def evaluate_holdout(
    model: Model,
    source: Source,
    holdout: Holdout,
    *,
    readers: int | None = None,
    after_each: Callable[[], None] = lambda: None,
) -> BinaryMetrics:
    """Metrics on the rows that were kept from the learner; ``source`` is read as the model's plan wants."""
    assert model.plan is not None
    _, held_out = holdout.split(model.plan)
    stream = EncodedStream(
        source, model.plan, keep=held_out, readers=readers, extra_columns=holdout.columns(model.plan)
    )
    return evaluate_stream(model, stream, after_each)


def predict_to_file(
    model: Model,
    data: Any,
    output: str | Path,
    *,
    keep: tuple[str, ...] = (),
    readers: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> int:
    """Write a column ``score`` for every row, in order, beside the ``keep`` columns; returns the rows.

    The file (``.parquet`` or ``.csv``) appears when it is complete.

    Raises:
        ConfigError: another ending, a URL, a column to keep that is called ``score`` or that CSV cannot hold.
        DataError: as ``evaluate``; labels are not needed.
        StorageError: the file cannot be written.
    """
    if "://" in str(output):
        raise ConfigError(f"{output}: scores are written to a local disk; copy the file from there")
    path, keep = Path(output), tuple(dict.fromkeys(keep))
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"{output}: scores are written as .parquet or .csv")
    if "score" in keep:
        raise ConfigError("a column called 'score' cannot be kept beside the scores")
    source = data if isinstance(data, Source) else open_source(data)
    if any(Path(file).exists() and path.exists() and path.samefile(file) for file in source.files):
        raise ConfigError(f"{output}: is the data itself; name another file for the scores")
    if not path.parent.is_dir():
        raise StorageError(f"{output}: cannot be written: there is no folder {path.parent}")
    stream = _stream(model, source, labelled=False, readers=readers, extra=keep)
    fields = [_plain(stream.source.schema.field(name)) for name in keep]
    for field in fields:
        if path.suffix == ".csv" and pa.types.is_nested(field.type):
            raise ConfigError(
                f"column {field.name!r} of type {field.type} cannot be kept in a .csv; allowed: .parquet"
            )
    schema = pa.schema([*fields, pa.field("score", pa.float32())])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        with stream, _writer(temporary, path.suffix, schema) as writer:
            for item in stream:
                columns = [item.records.column(name).cast(schema.field(name).type) for name in keep]
                scores = pa.array(model.predict_batch(item.batch))
                writer.write_table(pa.Table.from_arrays([*columns, scores], schema=schema))
                rows += len(item.batch)
                if on_rows is not None:
                    on_rows(rows)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: a column cannot be kept: {' '.join(str(error).split())}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return rows


def _stream(
    model: Model, data: Any, *, labelled: bool, readers: int | None, extra: tuple[str, ...] = ()
) -> EncodedStream:
    if model.plan is None:
        raise ConfigError("the model has not been fitted: it knows no columns yet")
    source = data if isinstance(data, Source) else open_source(data)
    wanted = [*model.plan.inputs, *extra]
    if labelled:
        wanted += [name for name in (model.plan.label, model.plan.weight) if name]
    for name in wanted:
        if name not in source.schema.names:
            raise unknown_column(name, source.schema)
    return EncodedStream(
        read_for(source, model.plan),
        model.plan,
        labelled=labelled,
        readers=readers,
        extra_columns=extra,
    )


def _plain(field: pa.Field) -> pa.Field:
    """Dictionaries differ from batch to batch: written as what they mean."""
    if pa.types.is_dictionary(field.type):
        return pa.field(field.name, field.type.value_type)
    return field


def _writer(path: Path, suffix: str, schema: pa.Schema) -> Any:
    if suffix == ".parquet":
        return pq.ParquetWriter(path, schema, compression="zstd")
    return pyarrow.csv.CSVWriter(path, schema)
