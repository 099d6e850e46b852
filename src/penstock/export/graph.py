"""An ONNX graph that is put together node by node; the one place that imports ONNX."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ConfigError
from penstock.version import __version__, the_extra

__all__ = ["Graph"]

_OPSET, _ML_OPSET, _IR_VERSION = 18, 4, 9
"""The oldest that have what is used here: ``LabelEncoder`` of tensors came with ML 4 (ONNX 1.15)."""


class Graph:
    """Nodes, constants and inputs. A method that adds a node gives the name of its output."""

    def __init__(self, names: Collection[str], limit_nbytes: int) -> None:
        """An empty graph.

        Args:
            names: of its inputs, which are not to be names of anything else
            limit_nbytes: that its constants may take

        Raises:
            ConfigError: ONNX is not installed.
        """
        try:
            import onnx
        except ImportError as error:
            raise ConfigError(f"ONNX needs {the_extra('onnx')}") from error
        self._onnx: Any = onnx
        self._limit_nbytes, self._nbytes = limit_nbytes, 0
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._input_infos: list[Any] = []
        self._counter = itertools.count()
        self._prefix = "_"
        while any(name.startswith(self._prefix) for name in names):
            self._prefix += "_"
        self.output = "score"
        """Name of what ``sum_and_sigmoid`` gives."""
        while self.output in names:
            self.output += "_"
        self.inputs: dict[str, str] = {}
        """Types by name."""

    def input(self, name: str, type_: str, shape: Sequence[str | int]) -> str:
        """A new input, of a type of NumPy or ``string``."""
        self.inputs[name] = type_
        self._input_infos.append(self._onnx.helper.make_tensor_value_info(name, self._type(type_), shape))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The output of a new node."""
        output = self._name(op)
        self._nodes.append(self._onnx.helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def cast(self, value: str, type_: str) -> str:
        """A value as another type."""
        return self.node("Cast", value, to=self._type(type_))

    def constant(self, array: NDArray[Any]) -> str:
        """A constant tensor."""
        self._count(array.nbytes)
        name = self._name("constant")
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def lookup(self, value: str, known: Sequence[str] | NDArray[np.int64], results: NDArray[Any]) -> str:
        """``results[i]`` where the value is ``known[i]``, else 0."""
        helper, from_array = self._onnx.helper, self._onnx.numpy_helper.from_array
        self._count(results.nbytes)
        if isinstance(known, np.ndarray):
            self._count(known.nbytes)
            keys = from_array(np.ascontiguousarray(known))
        else:
            texts = [text.encode() for text in known]
            # Each has a tag and a length of its own.
            self._count(sum(len(text) + 6 for text in texts))
            keys = helper.make_tensor("", self._type("string"), [len(texts)], texts)
        return self.node(
            "LabelEncoder",
            value,
            domain="ai.onnx.ml",
            keys_tensor=keys,
            values_tensor=from_array(results),
            default_tensor=from_array(np.zeros(1, results.dtype)),
        )

    def sum_and_sigmoid(self, terms: Sequence[str], bias: float = 0.0) -> None:
        """The output: 1 / (1 + exp(-x)), x being the bias and all of each row's terms, which are f32[rows, n]."""
        joined = self.node("Concat", *terms, axis=1) if len(terms) > 1 else terms[0]
        axis = self.constant(np.ones(1, np.int64))
        total = self.node("ReduceSum", self.cast(joined, "float64"), axis, keepdims=1)
        margin = self.node("Add", total, self.constant(np.array([bias])))
        score = self.cast(self.node("Sigmoid", margin), "float32")
        self._nodes.append(self._onnx.helper.make_node("Identity", [score], [self.output]))

    def serialized(self, about: Mapping[str, str]) -> bytes:
        """The whole model, checked; ``about`` becomes its metadata. The graph is empty afterwards."""
        helper = self._onnx.helper
        self._count(sum(len(text) for text in about.values()))
        output = helper.make_tensor_value_info(self.output, self._type("float32"), ["rows", 1])
        graph = helper.make_graph(self._nodes, "penstock", self._input_infos, [output], self._constants)
        # Each step copies what may be gigabytes.
        self._nodes, self._constants = [], []
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=_IR_VERSION,
            producer_name="penstock",
            producer_version=__version__,
        )
        del graph
        helper.set_model_props(model, dict(about))
        data: bytes = model.SerializeToString(deterministic=True)
        del model
        self._onnx.checker.check_model(data, full_check=True)
        return data

    def _name(self, what: str) -> str:
        return f"{self._prefix}{what}_{next(self._counter)}"

    def _type(self, name: str) -> int:
        type_ = np.dtype(object if name == "string" else name)
        found: int = self._onnx.helper.np_dtype_to_tensor_dtype(type_)
        return found

    def _count(self, nbytes: int) -> None:
        self._nbytes += nbytes
        if self._nbytes > self._limit_nbytes:
            raise ConfigError(
                f"as ONNX the model takes more than the {self._limit_nbytes:,} bytes that are allowed, as a file "
                "is limited to 2 GiB; --to npz has no such limit"
            )
