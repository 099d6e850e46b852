"""The Open Inference Protocol, version 2, over HTTP: tensors by column in, a tensor of scores out.

Source: the protocol's "Predict Protocol - Version 2" (KServe). Each input tensor is a column of the model, of
shape [rows] or [rows, 1]; a column that is not sent is missing in every row, and so is a null among the data.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from penstock.features import FeaturePlan
from penstock.serve.api.slices import SLICE_ROWS, BadJson, JsonArray

__all__ = [
    "DATATYPES",
    "BadTensors",
    "InferRequest",
    "infer_response",
    "model_metadata",
    "read_infer",
    "rows_asked",
    "tensor_slices",
]

_WHOLE = {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {"FP16", "FP32", "FP64", "BF16"}
DATATYPES = ("BOOL", *sorted(_WHOLE), *sorted(_FLOATS), "BYTES")
_OUTPUT = "score"
_SLICE_VALUES = 4096
"""Of a tensor that are read at once."""


class BadTensors(ValueError):
    """The request is none of the protocol, or none for this model."""


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1, max_length=2)]
    datatype: str
    data: msgspec.Raw


class _Output(msgspec.Struct):
    name: str


class _Body(msgspec.Struct):
    """What is sent; its parts are read when it is known that they are not too many."""

    inputs: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=10_000)]
    id: str = ""
    outputs: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=100)] = []


@dataclass(frozen=True)
class InferRequest:
    """Of ``POST /v2/models/NAME/infer``; parameters are not looked at."""

    inputs: Sequence[_Input]
    id: str


_body = msgspec.json.Decoder(_Body).decode
_input = msgspec.json.Decoder(_Input).decode
_output = msgspec.json.Decoder(_Output).decode


def read_infer(body: bytes) -> InferRequest:
    """A request, of whose tensors the data are not read yet.

    Raises:
        BadTensors: it is no JSON, or has other fields than the protocol's.
    """
    where = ""
    try:
        found = _body(body)
        inputs = []
        for n, each in enumerate(found.inputs):
            where = f"input {n}: "
            inputs.append(_input(each))
        where = "outputs: "
        outputs = [_output(each) for each in found.outputs]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadTensors(where + " ".join(str(error).split())) from error
    for output in outputs:
        if output.name != _OUTPUT:
            raise BadTensors(f"outputs: got {output.name[:50]!r}, allowed: {_OUTPUT!r}")
    return InferRequest(inputs, found.id)


def rows_asked(request: InferRequest) -> int:
    """How many rows its shapes say that it has.

    Raises:
        BadTensors: they do not agree, or a tensor is none of the protocol's.
    """
    rows: int | None = None
    names = set()
    for tensor in request.inputs:
        where = _where(tensor)
        if tensor.name in names:
            raise BadTensors(f"{where} is there twice")
        names.add(tensor.name)
        if tensor.datatype not in DATATYPES:
            raise BadTensors(f"{where}: got datatype {tensor.datatype[:20]!r}, allowed: {', '.join(DATATYPES)}")
        if tensor.shape[1:] not in ([], [1]):
            raise BadTensors(f"{where}: got shape {str(tensor.shape)[:50]}, allowed: [rows] or [rows, 1]")
        if rows is not None and tensor.shape[0] != rows:
            raise BadTensors(f"{where} has {tensor.shape[0]} rows, {request.inputs[0].name[:50]!r} has {rows}")
        rows = tensor.shape[0]
    return rows or 0


def tensor_slices(request: InferRequest) -> Generator[None, None, list[list[dict[str, Any]]]]:
    """Its rows, as objects of columns, in slices; made in steps.

    Raises:
        BadTensors: data are not of the tensor's type, or more or fewer than its shape says.
    """
    rows = rows_asked(request)
    columns: dict[str, list[Any]] = {}
    for tensor in request.inputs:
        columns[tensor.name] = yield from _read_data(tensor)
        if len(columns[tensor.name]) != rows:
            got = len(columns[tensor.name])
            raise BadTensors(f"{_where(tensor)}: its shape {tensor.shape} has {rows} values, got {got}")
    names, slices = list(columns), []
    for begin in range(0, rows, SLICE_ROWS):
        part = [values[begin : begin + SLICE_ROWS] for values in columns.values()]
        slices.append([dict(zip(names, values, strict=True)) for values in zip(*part, strict=True)])
        yield
    return slices


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


def _where(tensor: _Input) -> str:
    return f"input {tensor.name[:50]!r}"


def _read_data(tensor: _Input) -> Generator[None, None, list[Any]]:
    """A tensor's values; they may be nested as its shape is, or flat, as the protocol has it."""
    values: list[Any] = []
    nested: bool | None = None
    try:
        for items in JsonArray(bytes(tensor.data), _SLICE_VALUES).slices():
            if len(tensor.shape) == 2:
                if nested is None:
                    nested = all(isinstance(item, list) for item in items)
                if nested:
                    items = _only_items(tensor, items)
            _check(_where(tensor), tensor.datatype, items, len(values))
            values += items
            yield
    except BadJson as error:
        raise BadTensors(f"{_where(tensor)}: data: {error}") from error
    return values


def _only_items(tensor: _Input, items: Sequence[Any]) -> list[Any]:
    if all(isinstance(item, list) and len(item) == 1 for item in items):
        return [item[0] for item in items]
    raise BadTensors(f"{_where(tensor)}: got other data than shape {tensor.shape} has: lists of one value each")


def _check(where: str, datatype: str, data: Sequence[Any], begin: int) -> None:
    for n, value in enumerate(data, begin):
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
