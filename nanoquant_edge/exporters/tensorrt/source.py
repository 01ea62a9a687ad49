# SPDX-License-Identifier: Apache-2.0
"""Where an engine's weights come from: a checkpoint, or an ONNX bundle whose graph is written again for the target.

The initializers of an ONNX bundle are named after the checkpoint's tensors, so the bundle is a weight source without
PyTorch. Everything is mapped from disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...formats.bundle import MANIFEST_FILE, Bundle
from ...formats.checkpoint import TABLE_FORMATS, Checkpoint, PackedLayer, QuantizedTable, from_tiles
from ...formats.graph import DOMAIN, GROUP_OP, LINEAR_OP, MODEL_FILE
from ...models import DecoderConfig
from ...models.config_reader import read_config
from ..onnx.export import source_model
from ..onnx.operator import ATTRIBUTES, GROUP_ATTRIBUTES, INPUTS, LAYOUT_TILES_16X256
from ..onnx.schema import check_file
from ..onnx.weights import WeightSource

__all__ = ["BundleWeights", "Source", "open_source"]


@dataclass(frozen=True)
class Source:
    """A model to build from.

    Attributes:
        folder: where it lies; its tokenizer files travel on.
        config: sizes.
        weights: tensors.
        layers: number of compressed layers.
        source_model: for the manifest.
        target_bpw, true_bpw: bits per weight asked for and stored.
    """

    folder: Path
    config: DecoderConfig
    weights: WeightSource
    layers: int
    source_model: dict[str, Any]
    target_bpw: float
    true_bpw: float


def open_source(folder: Path) -> Source:
    """A checkpoint folder or an ONNX bundle, by what lies in it.

    Raises:
        NqEdgeError: NQ-CKPT, NQ-BUNDLE, NQ-HASH, NQ-OPERATOR, NQ-ARCH or NQ-MODEL.
    """
    if (folder / MANIFEST_FILE).is_file():
        return from_bundle(Bundle.open(folder))
    source = Checkpoint(folder)
    config = read_config(source.config)
    return Source(
        folder,
        config,
        source,
        len(source.layers),
        source_model(source, config),
        source.settings.target_bpw,
        source.settings.true_bpw,
    )


def from_bundle(bundle: Bundle) -> Source:
    """The weights of an ONNX bundle.

    Raises:
        NqEdgeError: NQ-BUNDLE when it has no graph or was written before bundles kept the model's configuration,
            NQ-OPERATOR when its model file is not valid.
    """
    if MODEL_FILE not in bundle.files:
        raise NqEdgeError(
            "NQ-BUNDLE",
            f"{bundle.folder} holds no {MODEL_FILE}, so that no other engine can be made of it.",
            "Pass the checkpoint, or the bundle that `nq-edge export --to onnx` wrote.",
        )
    entry = bundle.source_model.get("config")
    if not isinstance(entry, dict):
        raise NqEdgeError(
            "NQ-BUNDLE",
            "the bundle does not hold the model's configuration.",
            "Export it again with this version, or pass the checkpoint.",
        )
    check_file(bundle.folder / MODEL_FILE)
    weights = BundleWeights(bundle.folder / MODEL_FILE)
    config = read_config(entry)
    return Source(
        bundle.folder,
        config,
        weights,
        len(weights.layers),
        bundle.source_model,
        bundle.target_bpw,
        bundle.true_bpw,
    )


class BundleWeights:
    """The weights of a model file that `export_onnx` wrote; a `WeightSource`.

    Args:
        path: model.onnx, checked by `check_file`.
    """

    def __init__(self, path: Path) -> None:
        self._model = ir.load(path)
        #: Module path -> the node that holds the layer, and its place in a group.
        self._nodes: dict[str, tuple[ir.Node, int]] = {}
        for node in self._model.graph.all_nodes():
            if node.domain == DOMAIN and node.op_type in (LINEAR_OP, GROUP_OP):
                for place, output in enumerate(node.outputs):
                    self._nodes[str(output.name).removesuffix(".output")] = (node, place)

    @property
    def layers(self) -> list[str]:
        """Module paths of the compressed layers."""
        return list(self._nodes)

    def layer(self, name: str) -> PackedLayer:
        """See `WeightSource.layer`."""
        if name not in self._nodes:
            raise NqEdgeError("NQ-CKPT", f"layer {name} is not in the bundle.")
        node, place = self._nodes[name]
        if node.op_type == GROUP_OP:
            each = {key: node.attributes[key] for key in GROUP_ATTRIBUTES}
            lists = zip(ATTRIBUTES, GROUP_ATTRIBUTES, strict=True)
            numbers = {
                key: each[kind].as_int() if kind in ("in_features", "layout") else each[kind].as_ints()[place]
                for key, kind in lists
            }
        else:
            numbers = {key: node.attributes[key].as_int() for key in ATTRIBUTES}
        first = 1 + place * len(INPUTS[1:])
        values = node.inputs[first : first + len(INPUTS[1:])]
        parts = {part: self._array(value) for part, value in zip(INPUTS[1:], values, strict=True)}
        if numbers["layout"] == LAYOUT_TILES_16X256:
            parts["v_packed"] = from_tiles(parts["v_packed"], numbers["rank"], numbers["in_features"])
            parts["u_packed"] = from_tiles(parts["u_packed"], numbers["out_features"], numbers["rank"])
        for part, flag in (("scale_mid", "has_scale_mid"), ("bias", "has_bias")):
            if not numbers[flag]:
                parts[part] = None
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
