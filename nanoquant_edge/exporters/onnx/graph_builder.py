# SPDX-License-Identifier: Apache-2.0
"""A thin layer over onnx-ir: every node gets a name, and every value a name, a type and a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .tensors import StreamedTensor

__all__ = ["IR_VERSION", "Dims", "GraphBuilder"]

#: Lowest that holds everything used here; ONNX Runtime 1.23 reads up to 11.
IR_VERSION = 10

#: A shape: numbers and symbolic names.
Dims = Sequence[int | str | None]


class GraphBuilder:
    """Collects nodes in topological order and makes a model of them.

    Args:
        opsets: domain -> version, for the model's imports.
    """

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self._opsets = dict(opsets)
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Dims) -> ir.Value:
        """A graph input."""
        value = _value(name, dtype, shape)
        self._inputs.append(value)
        return value

    def optional_input(self, name: str, default: NDArray[np.generic], shape: Dims) -> ir.Value:
        """A graph input that callers may leave out: an initializer of the same name, which a caller's value replaces.

        Args:
            name: unique name.
            default: its value where none is given, of the input's type.
            shape: what a caller may give.
        """
        value = _value(name, StreamedTensor(default).dtype, shape)
        value.const_value = StreamedTensor(default, name=name)
        self._initializers[name] = value
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value) -> None:
        """Make a value a graph output."""
        self._outputs.append(value)

    def initializer(self, name: str, array: NDArray[np.generic], dtype: ir.DataType | None = None) -> ir.Value:
        """A weight; asked for twice, it is stored once.

        Args:
            name: unique name.
            array: kept by reference and converted while it is written.
            dtype: stored type; None keeps the array's.
        """
        if name in self._initializers:
            return self._initializers[name]
        return self.weight(name, StreamedTensor(array, dtype, name))

    def weight(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A weight that is an onnx-ir tensor already; asked for twice, it is stored once."""
        if name not in self._initializers:
            value = _value(name, tensor.dtype, [int(dim) for dim in tensor.shape])  # type: ignore[arg-type]
            value.const_value = tensor
            self._initializers[name] = value
        return self._initializers[name]

    def integers(self, numbers: int | Sequence[int]) -> ir.Value:
        """A small int64 constant: a scalar, or a vector."""
        array = np.asarray(numbers, np.int64)
        text = "_".join(str(number) for number in array.reshape(-1))
        return self.initializer(f"constant.int64.{'scalar' if array.ndim == 0 else 'vector'}.{text}", array)

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        outputs: Sequence[tuple[str, ir.DataType, Dims] | None],
        domain: str = "",
        **attributes: Any,
    ) -> list[ir.Value]:
        """Add a node with several outputs.

        Args:
            op_type: operator.
            inputs: its inputs; None is an omitted optional one.
            name: unique node name.
            outputs: name, type and shape of each output; None is an omitted one.
            domain: operator domain.
            attributes: operator attributes.

        Returns:
            One value per entry of `outputs`.
        """
        values = [ir.Value(name="") if entry is None else _value(*entry) for entry in outputs]
        self._nodes.append(ir.node(op_type, list(inputs), attributes, domain=domain, outputs=values, name=name))
        return values

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType | None = None,
        shape: Dims | None = None,
        domain: str = "",
        output: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output, of the first input's type and shape unless others are given.

        The output is called `{name}.output` unless `output` says otherwise.
        """
        first = inputs[0]
        assert first is not None and first.dtype is not None and first.shape is not None
        dims = dims_of(first) if shape is None else shape
        entry = (output or f"{name}.output", dtype or first.dtype, dims)
        return self.nodes(op_type, inputs, name, [entry], domain, **attributes)[0]

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str, output: str | None = None) -> ir.Value:
        """The value in another type; itself when it has that type already."""
        if value.dtype == dtype and output is None:
            return value
        return self.node("Cast", [value], name, dtype=dtype, output=output, to=int(dtype))

    def model(self, name: str, metadata: Mapping[str, str], functions: Sequence[ir.Function] = ()) -> ir.Model:
        """The finished model.

        Initializers are ordered by item size, so that each lies on a multiple of its own when they are written
        one after the other.
        """
        initializers = sorted(self._initializers.values(), key=_item_size, reverse=True)
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=initializers,
            opset_imports=self._opsets,
            name=name,
        )
        return ir.Model(
            graph,
            ir_version=IR_VERSION,
            producer_name="nanoquant-edge",
            functions=functions,
            metadata_props=dict(metadata),
        )


def dims_of(value: ir.Value) -> list[int | str | None]:
    """A value's dimensions, symbolic ones by name."""
    assert value.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _item_size(value: ir.Value) -> float:
    assert value.dtype is not None
    return value.dtype.itemsize


def _value(name: str, dtype: ir.DataType, shape: Dims) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
