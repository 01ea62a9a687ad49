# SPDX-License-Identifier: Apache-2.0
"""A bundle's model for a GPU's own decoder: the weights of its graph, which is not run."""

from __future__ import annotations

from ...errors import NqEdgeError
from ...formats.backends import ONNXRUNTIME
from ...formats.bundle import Bundle
from ...formats.graph import DATA_FILE, MODEL_FILE
from ...formats.graph_check import check_graph
from ...formats.graph_weights import GraphWeights, graph_weights
from ...formats.stored_tensor import StoredTensor
from ...models import DecoderConfig
from ...models.config_reader import read_config
from .model_files import HEAD, LayerFiles, ModelFiles, TableFiles

__all__ = ["bundle_files"]

#: How a graph calls 1 + weight of a norm that is stored less one.
_MULTIPLIER = "multiplier"
_VECTORS = ("scale_in", "scale_mid", "scale_out", "bias")


def bundle_files(bundle: Bundle) -> ModelFiles:
    """The parts of a bundle for ONNX Runtime.

    Args:
        bundle: an opened bundle.

    Raises:
        NqEdgeError: NQ-BACKEND for another bundle, NQ-BUNDLE, NQ-OPERATOR or NQ-PATH for a graph that is not this
            package's, NQ-CKPT for what does not fit the configuration.

    Example:
        >>> bundle_files(Bundle.open("bundle")).config.family
        'llama'
    """
    if bundle.backend != ONNXRUNTIME:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle was made for {bundle.backend[:40]!r}; a GPU's own decoder reads bundles for onnxruntime.",
            "Pass the checkpoint, or the bundle that `nq-edge export --to onnx` wrote.",
        )
    config, path = read_config(bundle.model_config()), bundle.path(MODEL_FILE)
    check_graph(path.read_bytes(), [name for name in bundle.files if name == DATA_FILE])
    graph = graph_weights(path, bundle.path)
    vectors, stored_whole = _vectors(config, graph)
    return ModelFiles(
        folder=bundle.folder,
        config=config,
        title=str(bundle.source_model.get("name") or bundle.folder.resolve().name),
        layers=_layers(graph),
        tables=_tables(config, graph),
        vectors=vectors,
        plus_one=frozenset(vectors if config.structure.norm == "rms_plus_one" else ()) - stored_whole,
    )


def _layers(graph: GraphWeights) -> dict[str, LayerFiles]:
    found = {}
    for name, layer in graph.layers.items():
        names = {part: f"{name}.{part}" for part in ("v_packed", "u_packed", *_VECTORS)}
        parts = {part: graph.tensors[tensor] for part, tensor in names.items() if tensor in graph.tensors}
        missing = {"v_packed", "u_packed", "scale_in", "scale_out"} - set(parts)
        if missing:
            raise NqEdgeError("NQ-CKPT", f"layer {name[:200]} has no {min(missing)} in the bundle.")
        found[name] = LayerFiles(layer.in_features, layer.rank, layer.out_features, layer.tiled, parts)
    return found


def _tables(config: DecoderConfig, graph: GraphWeights) -> dict[str, TableFiles]:
    found, tensors = {}, graph.tensors
    for module in filter(None, (config.structure.embedding, HEAD, config.structure.positions)):
        if f"{module}.weight" in tensors:
            found[module] = TableFiles("", tensors[f"{module}.weight"])
        elif f"{module}.codes" in tensors and f"{module}.scales" in tensors:
            codes = tensors[f"{module}.codes"]
            width = codes.shape[1] if len(codes.shape) == 2 else 0
            kind = "int8" if width == config.hidden_size else "int4"
            found[module] = TableFiles(kind, codes, tensors[f"{module}.scales"])
    return found


def _vectors(config: DecoderConfig, graph: GraphWeights) -> tuple[dict[str, StoredTensor], frozenset[str]]:
    """Norms by the names of the checkpoint's tensors, and those of them that hold 1 + weight already."""
    found: dict[str, StoredTensor] = {}
    whole: set[str] = set()
    for name in config.norm_shapes():
        multiplier = f"{name.removesuffix('.weight')}.{_MULTIPLIER}"
        if name in graph.tensors:
            found[name] = graph.tensors[name]
        elif multiplier in graph.tensors:
            found[name] = graph.tensors[multiplier]
            whole.add(name)
    return found, frozenset(whole)
