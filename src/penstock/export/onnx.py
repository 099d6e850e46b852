"""A model as ONNX, for runtimes of other languages: from columns, where texts are known, or from hashed keys.

Weights are found by ``LabelEncoder`` (ai.onnx.ml). Terms are f32 as in the model; their sum and the sigmoid are
f64, so a score differs from ``predict``, which adds in f32, by the rounding of that sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError, StorageError
from penstock.export.graph import Graph
from penstock.export.rows import checked, header_of, nonzero_rows
from penstock.export.vocabulary import Vocabulary
from penstock.features import ColumnPlan, FeaturePlan
from penstock.features.categories import BIAS, key_of_missing, key_of_number, seed_of
from penstock.models import Linear, Model
from penstock.score.hashing import integer_hashes, seal
from penstock.storage import write_atomically

__all__ = ["LIMIT_NBYTES", "OnnxExport", "write_onnx"]

LIMIT_NBYTES = (1 << 31) - (1 << 20)
"""Of a file: a protocol buffer holds less than 2 GiB."""

_OCTAVES = 1024
"""log2 of the largest f64."""
_MOST_PER_OCTAVE = 4096


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """What was written."""

    rows: int
    """Rows of the model whose weight is not 0."""
    covered: int
    """How many of these the file has: all, but for categories that the vocabulary lacks."""
    inputs: Mapping[str, str]
    """Types by name, of tensors of shape [rows, 1], or [rows, keys] where keys are hashed."""
    output: str
    """Name of the scores, f32[rows, 1]: ``score``, unless a column is called so."""
    nbytes: int


def write_onnx(
    model: Model, path: str | Path, *, vocabulary: Any = None, manifest: Mapping[str, Any] | None = None
) -> OnnxExport:
    """Write a model whose output ``score`` f32[rows, 1] is ``Model.predict``, within 1e-6.

    With a ``vocabulary`` (data as ``ps.fit`` takes it) there is an input for each column: texts of categories, f64
    numbers; the empty text and NaN are missing. A category that the vocabulary lacks counts nothing. Without one
    the inputs are ``keys`` i64[rows, n] and ``values`` f32[rows, n], which ``penstock.score.RowEncoder`` computes.

    Raises:
        ConfigError: ONNX is not installed, the model is too large or of another kind, or has columns that a
            vocabulary cannot describe.
        DataError: the vocabulary lacks a column, or a value there is not allowed.
        StorageError: the file cannot be written.
    """
    linear, plan = checked(model)
    keys, weights = nonzero_rows(linear)
    if vocabulary is None:
        graph = Graph(("keys", "values"), LIMIT_NBYTES)
        covered = len(keys)
        _from_keys(graph, keys, weights)
    else:
        graph = Graph(plan.inputs, LIMIT_NBYTES)
        covered = _from_columns(graph, linear, plan, Vocabulary(linear, plan, vocabulary))
    header = header_of(linear, plan, manifest)
    about = {f"penstock.{name}": json.dumps(header[name]) for name in ("features", "version", "lineage")}
    data = graph.serialized(about)
    _write(Path(path), data)
    return OnnxExport(rows=len(keys), covered=covered, inputs=graph.inputs, output=graph.output, nbytes=len(data))


def _from_keys(graph: Graph, keys: Keys, weights: Floats) -> None:
    allowed = LIMIT_NBYTES // 12
    if len(keys) > allowed:
        raise ConfigError(
            f"the model has {len(keys):,} features that are not 0; as ONNX, whose files are limited to 2 GiB, "
            f"{allowed:,} are allowed; --to npz has no such limit"
        )
    shape = ["rows", "keys"]
    found = graph.lookup(graph.input("keys", "int64", shape), keys.view(np.int64), weights)
    graph.sum_and_sigmoid([graph.node("Mul", found, graph.input("values", "float32", shape))])


def _from_columns(graph: Graph, model: Linear, plan: FeaturePlan, vocabulary: Vocabulary) -> int:
    """Terms of each column and cross; returns how many of the model's rows they cover."""
    covered = len(vocabulary)

    def weights_of(keys: list[np.uint64] | Keys) -> Floats:
        nonlocal covered
        weights = model.table.pull(np.array(keys, np.uint64))[:, 0]
        covered += int(np.count_nonzero(weights))
        return weights

    terms = [_number_term(graph, column, weights_of) for column in plan.columns if column.kind != "categorical"]
    ids = {}
    for name in dict.fromkeys([*vocabulary.categories, *(name for cross in plan.crosses for name in cross)]):
        texts = vocabulary.texts(name)
        # 0 is an unknown text.
        ids[name] = graph.lookup(graph.input(name, "string", ["rows", 1]), texts, np.arange(1, len(texts) + 1))
        known = vocabulary.categories.get(name)
        if known is not None:
            by_id = np.array([0.0, *(known.get(text, 0.0) for text in texts)], np.float32)
            terms.append(graph.node("Gather", graph.constant(by_id), ids[name]))
    for cross, combinations in vocabulary.crosses.items():
        terms.append(
            _cross_term(
                graph, [ids[name] for name in cross], [vocabulary.texts(name) for name in cross], combinations
            )
        )
    bias = float(weights_of([key_of_number(BIAS)])[0]) if plan.bias else 0.0
    graph.sum_and_sigmoid(terms, bias)
    return covered


def _number_term(graph: Graph, column: ColumnPlan, weights_of: Callable[..., Floats]) -> str:
    number = graph.input(column.name, "float64", ["rows", 1])
    if column.type in ("float", "halffloat"):
        # As in training, which saw f32.
        number = graph.cast(graph.cast(number, "float32"), "float64")
    absent = graph.node("IsNaN", number)
    missing = graph.constant(weights_of([key_of_missing(column.name)]))
    if column.kind == "log":
        present = graph.node("Where", absent, graph.constant(np.zeros(1)), number)
        return graph.node("Where", absent, missing, _bucket_term(graph, column, present, weights_of))
    centred = graph.node("Sub", number, graph.constant(np.array([column.mean])))
    scaled = graph.node("Mul", centred, graph.constant(np.array([column.scale])))
    weight = graph.constant(weights_of([key_of_number(column.name)]))
    term = graph.node("Mul", graph.cast(scaled, "float32"), weight)
    return graph.node("Where", absent, missing, term)


def _bucket_term(graph: Graph, column: ColumnPlan, number: str, weights_of: Callable[..., Floats]) -> str:
    """The weight of ``sign(x) * round(log2(1 + abs(x)) * scale)``, of all the buckets that there can be."""
    if column.scale > _MOST_PER_OCTAVE:
        raise ConfigError(
            f"column {column.name!r} has {column.scale:g} buckets for each doubling; as ONNX "
            f"{_MOST_PER_OCTAVE} are allowed"
        )
    last = math.floor(_OCTAVES * column.scale + 0.5)
    buckets = np.arange(-last, last + 1)
    weights = weights_of(seal(seed_of(column.name), integer_hashes(buckets.view(np.uint64))))
    kept = weights != 0
    log = graph.node("Log", graph.node("Add", graph.node("Abs", number), graph.constant(np.ones(1))))
    steps = graph.node("Mul", log, graph.constant(np.array([column.scale / math.log(2)])))
    rounded = graph.node("Floor", graph.node("Add", steps, graph.constant(np.array([0.5]))))
    signed = graph.node("Mul", graph.node("Sign", number), rounded)
    return graph.lookup(graph.cast(signed, "int64"), buckets[kept], weights[kept])


def _cross_term(
    graph: Graph, ids: list[str], texts: list[list[str]], combinations: Mapping[tuple[str, ...], float]
) -> str:
    """The weight of a combination: two ids are one number, whose id is combined with the next."""
    places = [{text: n + 1 for n, text in enumerate(each)} for each in texts]
    known: NDArray[np.int64] = np.array(
        [[place[text] for place, text in zip(places, combination, strict=True)] for combination in combinations],
        np.int64,
    ).reshape(-1, len(ids))
    weights = np.array(list(combinations.values()), np.float32)
    combined, known_combined = ids[0], known[:, 0]
    for n in range(1, len(ids)):
        # Ids of the next are less than this, an unknown one being 0; so no two pairs are one number.
        base = len(texts[n]) + 1
        pair = graph.node("Mul", combined, graph.constant(np.array([base])))
        combined = graph.node("Add", pair, ids[n])
        known_combined = known_combined * base + known[:, n]
        if n < len(ids) - 1:
            distinct, known_combined = np.unique(known_combined, return_inverse=True)
            known_combined = known_combined + 1
            combined = graph.lookup(combined, distinct, np.arange(1, len(distinct) + 1))
    return graph.lookup(combined, known_combined, weights)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
