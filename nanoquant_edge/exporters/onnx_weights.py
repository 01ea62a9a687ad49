# SPDX-License-Identifier: Apache-2.0
"""The weights of an ONNX graph that this package wrote, from which the graph is written again for another target.

Initializers are named after the checkpoint's tensors, so the graph is a weight source without PyTorch. Everything is
mapped from disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.checkpoint import TABLE_FORMATS, PackedLayer, QuantizedTable, from_tiles
from ..formats.graph import DOMAIN, GROUP_OP, LAYOUT_TILES_16X256, LINEAR_INPUTS, LINEAR_OP
from .schema import check_model, load_model
from .schema.linear import LayerAttributes, layer_attributes

__all__ = ["OnnxWeights"]


class OnnxWeights:
    """The weights of a model file that `export_onnx` wrote; a `WeightSource`.

    Args:
        path: model.onnx, its data beside it.

    Raises:
        NqEdgeError: NQ-OPERATOR when the file is not valid, NQ-PATH when its data lies elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self._model = load_model(path)
        check_model(self._model)
        #: Module path -> what the node says of the layer, and the layer's six weights.
        self._layers: dict[str, tuple[LayerAttributes, list[ir.Value | None]]] = {}
        each = len(LINEAR_INPUTS) - 1
        for node in self._model.graph.all_nodes():
            if node.domain == DOMAIN and node.op_type in (LINEAR_OP, GROUP_OP):
                for index, attributes in enumerate(layer_attributes(node, ValueError)):
                    values = list(node.inputs[1 + index * each : 1 + (index + 1) * each])
                    self._layers[str(node.outputs[index].name).removesuffix(".output")] = (attributes, values)

    @property
    def layers(self) -> list[str]:
        """Module paths of the compressed layers."""
        return list(self._layers)

    def layer(self, name: str) -> PackedLayer:
        """See `WeightSource.layer`."""
        if name not in self._layers:
            raise NqEdgeError("NQ-CKPT", f"layer {name} is not in the bundle.")
        attributes, values = self._layers[name]
        parts = {part: self._array(value) for part, value in zip(LINEAR_INPUTS[1:], values, strict=True)}
        if attributes.layout == LAYOUT_TILES_16X256:
            parts["v_packed"] = from_tiles(parts["v_packed"], attributes.rank, attributes.in_features)
            parts["u_packed"] = from_tiles(parts["u_packed"], attributes.out_features, attributes.rank)
        if not attributes.has_scale_mid:
            parts["scale_mid"] = None
        if not attributes.has_bias:
            parts["bias"] = None
        return PackedLayer(**parts)

    def tensor(self, name: str) -> NDArray[np.generic]:
        """See `WeightSource.tensor`."""
        if name not in self._model.graph.initializers:
            raise NqEdgeError("NQ-CKPT", f"the bundle has no tensor {name}.")
        array: NDArray[np.generic] = self._array(self._model.graph.initializers[name])
        return array

    def table(self, module: str) -> QuantizedTable | None:
        """See `WeightSource.table`."""
        values = self._model.graph.initializers
        if f"{module}.codes" not in values:
            return None
        codes, scales = (np.asarray(self._array(values[f"{module}.{part}"])) for part in ("codes", "scales"))
        user = next(iter(values[f"{module}.codes"].uses())).node
        bits = user.attributes["bits"].as_int()
        kind = next(name for name, form in TABLE_FORMATS.items() if form.bits == bits)
        return QuantizedTable(kind, codes, scales)

    def tensor_names(self) -> list[str]:
        """See `WeightSource.tensor_names`."""
        return list(self._model.graph.initializers)

    @staticmethod
    def _array(value: ir.Value | None) -> Any:
        assert value is not None and value.const_value is not None
        return value.const_value.numpy()
