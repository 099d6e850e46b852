"""The Open Inference Protocol, version 2, over HTTP: tensors by column in, a tensor of scores out.

Source: the protocol's "Predict Protocol - Version 2" (KServe). Each input tensor is a column of the model, of
shape [rows] or [rows, 1]; a column that is not sent is missing in every row, and so is a null among the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from penstock.features import FeaturePlan

__all__ = ["BadTensors", "InferRequest", "infer_response", "model_metadata", "read_infer", "tensor_rows"]

_WHOLE = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {"FP16", "FP32", "FP64", "BF16"}
_DATATYPES = ("BOOL", *sorted(_WHOLE), *sorted(_FLOATS), "BYTES")
_OUTPUT = "score"


class BadTensors(ValueError):
    """The request is none of the protocol, or none for this model."""


class _Input(msgspec.Struct):
    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """Of ``POST /v2/models/NAME/infer``."""

    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1)]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


_decoder = msgspec.json.Decoder(InferRequest)


def read_infer(body: bytes) -> InferRequest:
    """A request.

    Raises:
        BadTensors: it is no JSON, or has other fields than the protocol's.
    """
    try:
        request = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadTensors(" ".join(str(error).split())) from error
    for output in request.outputs:
        if output.name != _OUTPUT:
            raise BadTensors(f"outputs: got {output.name!r}, allowed: {_OUTPUT!r}")
    return request


def tensor_rows(request: InferRequest) -> list[dict[str, Any]]:
    """Its rows, as objects of columns.

    Raises:
        BadTensors: shapes do not agree, or data are not of the tensor's type.
    """
    rows: int | None = None
    columns: dict[str, list[Any]] = {}
    for tensor in request.inputs:
        where = f"input {tensor.name!r}"
        if tensor.name in columns:
            raise BadTensors(f"{where} is there twice")
        if tensor.datatype not in _DATATYPES:
            raise BadTensors(f"{where}: got datatype {tensor.datatype[:20]!r}, allowed: {', '.join(_DATATYPES)}")
        if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
            raise BadTensors(f"{where}: got shape {tensor.shape}, allowed: [rows] or [rows, 1]")
        data = _flat(tensor.data) if len(tensor.shape) == 2 else tensor.data
        if len(data) != math.prod(tensor.shape):
            raise BadTensors(
                f"{where}: its shape {tensor.shape} has {math.prod(tensor.shape)} values, got {len(data)}"
            )
        if rows is not None and len(data) != rows:
            raise BadTensors(f"{where} has {len(data)} rows, {request.inputs[0].name!r} has {rows}")
        rows = len(data)
        _check(where, tensor.datatype, data)
        columns[tensor.name] = data
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def infer_response(request: InferRequest, name: str, version: str, scores: Sequence[float]) -> dict[str, Any]:
    """The answer: one tensor ``score`` of shape [rows]."""
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id:
        answer["id"] = request.id
    answer["outputs"] = [{"name": _OUTPUT, "shape": [len(scores)], "datatype": "FP32", "data": list(scores)}]
    return answer


def model_metadata(
    name: str, versions: Sequence[str], plan: FeaturePlan, brought: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Of ``GET /v2/models/NAME``: what it takes and gives. ``brought`` are columns of its rows, and their kinds,
    where these are not its inputs."""
    kinds = {**(brought or {}), **{column.name: column.kind for column in plan.columns}}
    numbers = ("raw", "standard", "log")
    inputs = [
        {"name": column, "datatype": "FP64" if kinds.get(column) in numbers else "BYTES", "shape": [-1]}
        for column in (plan.inputs if brought is None else brought)
        if kinds.get(column) not in ("list", "map")
    ]
    outputs = [{"name": _OUTPUT, "datatype": "FP32", "shape": [-1]}]
    return {"name": name, "versions": list(versions), "platform": "penstock", "inputs": inputs, "outputs": outputs}


def _flat(data: list[Any]) -> list[Any]:
    """Nested as the shape is, or flattened, as the protocol has it."""
    if data and all(isinstance(row, list) and len(row) == 1 for row in data):
        return [row[0] for row in data]
    return data


def _check(where: str, datatype: str, data: Sequence[Any]) -> None:
    for n, value in enumerate(data):
        if value is None:
            continue
        if datatype == "BOOL":
            fits = isinstance(value, bool)
        elif datatype == "BYTES":
            fits = isinstance(value, str)
        else:
            whole = isinstance(value, int) and not isinstance(value, bool)
            fits = whole if datatype in _WHOLE else whole or isinstance(value, float)
        if not fits:
            raise BadTensors(f"{where}: value {n} is {str(value)[:50]!r}, allowed: {datatype}")
