# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folder -> bundle folder, all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from ...errors import NqEdgeError
from ...formats.backends import ONNXRUNTIME
from ...formats.bundle import Bundle
from ...formats.checkpoint import COMPANION_FILES, TABLE_FORMATS, Checkpoint
from ...formats.graph import DATA_FILE, MODEL_FILE, OPERATOR_VERSION
from ...formats.kv_layout import KvLayout
from ...models import DecoderConfig
from ...models.config_reader import read_config
from ...system.files import new_folder, read_json
from .build import build_model
from .dialects.base import dialect_named
from .schema import check_file
from .tables import Requantized, reads_codes
from .weights import HEAD, WeightSource

__all__ = [
    "export_onnx",
    "source_model",
    "table_formats",
    "with_tables",
    "write_graph_folder",
    "write_model",
]

#: Below this a tensor stays in model.onnx, where shape inference can read it: axes, shapes, unused scales.
_INLINE_BYTES = 64

#: progress(done, total, tensor name), called as each tensor is written.
Progress = Callable[[int, int, str], None]


def export_onnx(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    *,
    dtype: str = "float32",
    dialect: str = "ort",
    portable: bool = False,
    max_length: int | None = None,
    embedding: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle that ONNX Runtime runs.

    Weights are streamed from the checkpoint's files: memory use does not grow with the model.

    Args:
        checkpoint: folder that `compress` wrote, or one that is open.
        output: bundle folder; it appears only when it is complete.
        dtype: type of activations and cache: "float32" (CPU), "float16" or "bfloat16".
        dialect: "ort" for ONNX Runtime, "onnx24" for standard operators of opset 24.
        portable: add a slow body of the operator for runtimes without the kernel library.
        max_length: longest context in tokens; None is the model's own.
        embedding: "int8" or "int4" rounds a 16-bit embedding and head; "fp16" widens quantized ones; None writes what
            the checkpoint holds, widened where the graph cannot hold codes.
        overwrite: replace a bundle that stands there.
        progress: called with (tensors written, tensors in all, name).

    Returns:
        The bundle, read back.

    Raises:
        NqEdgeError: NQ-CKPT, NQ-ARCH, NQ-TOKENIZER, NQ-OPTION, NQ-OUTPUT or NQ-NUMERIC; nothing is left behind.
    """
    source = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    config = read_config(source.config)
    read_json(source.folder / "tokenizer.json", "NQ-TOKENIZER")
    target = dialect_named(dialect)
    if not target.in_place:
        raise NqEdgeError(
            "NQ-OPTION",
            f"dialect {dialect} is for TensorRT engines; ONNX Runtime would not find its cache updated.",
            "Use --to tensorrt --target jetson-..., or --dialect ort or onnx24.",
        )
    # The CPU library has the grouped operator; the CUDA kernels, for graphs of 16 bits, and the portable body have not.
    grouped = dtype == "float32" and not portable
    weights = with_tables(source, config, embedding, reads_codes(dialect, dtype, portable))
    model = build_model(config, weights, target, dtype, portable=portable, max_length=max_length, grouped=grouped)
    with new_folder(Path(output), overwrite) as scratch:
        compressed = write_graph_folder(model, source, scratch, progress)
        bundle = Bundle(
            folder=scratch,
            backend=ONNXRUNTIME,
            backend_versions=target.backend_versions,
            dialect=dialect,
            dtype=dtype,
            portable=portable,
            operator_version=OPERATOR_VERSION,
            source_model={**source_model(source, config), **table_formats(weights, config, dialect, dtype, portable)},
            target_bpw=source.settings.target_bpw,
            true_bpw=source.settings.true_bpw,
            compressed_linears=compressed,
            vocab_size=config.vocab_size,
            kv=KvLayout(
                layers=config.num_layers,
                heads=config.num_kv_heads,
                head_dim=config.head_dim,
                dtype=dtype,
                capacity=max_length or config.max_positions,
            ),
        ).write()
    return replace(bundle, folder=Path(output))


def with_tables(source: Checkpoint, config: DecoderConfig, embedding: str | None, codes: bool) -> WeightSource:
    """The checkpoint with its tables stored as asked for."""
    if embedding is None:
        return source
    if embedding not in ("fp16", *TABLE_FORMATS):
        raise NqEdgeError("NQ-OPTION", f"embedding must be fp16, {' or '.join(TABLE_FORMATS)}, not {embedding!r}.")
    if embedding != "fp16" and not codes:
        raise NqEdgeError(
            "NQ-OPTION",
            f"an {embedding} table is kept in codes only in float32 graphs of dialect ort without a portable body.",
            "Leave --embedding out: this graph gets a 16-bit table.",
        )
    return Requantized(source, _table_modules(config), embedding)


def _table_modules(config: DecoderConfig) -> list[str]:
    embedding = config.structure.embedding
    return [embedding] if config.tied else [embedding, HEAD.removesuffix(".weight")]


def table_formats(
    weights: WeightSource, config: DecoderConfig, dialect: str, dtype: str, portable: bool
) -> dict[str, str]:
    """How a graph stores its embedding and head, for the manifest: a type, a table format, or "tied"."""
    found = []
    for module in _table_modules(config):
        table = weights.table(module)
        if table is not None and reads_codes(dialect, dtype, portable):
            found.append(table.kind)
        elif table is not None or dtype != "float32":
            found.append(dtype if dtype != "float32" else "float16")
        else:
            found.append(str(weights.tensor(f"{module}.weight").dtype))
    return {"embedding": found[0], "head": "tied" if config.tied else found[1]}


def write_graph_folder(model: ir.Model, source: Checkpoint, folder: Path, progress: Progress | None) -> int:
    """Write a graph, its weights and the tokenizer's files, and check the nodes that were written.

    Returns:
        The number of compressed layers, all of the checkpoint's.

    Raises:
        NqEdgeError: NQ-OPERATOR when a node contradicts the operator's schema or a layer is not in the graph.
    """
    write_model(model, folder / MODEL_FILE, progress)
    compressed = check_file(folder / MODEL_FILE)
    if compressed != len(source.layers):
        raise NqEdgeError("NQ-OPERATOR", f"the graph has {compressed} of {len(source.layers)} compressed layers.")
    for name in COMPANION_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    return compressed


def write_model(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write model.onnx and, beside it, one file with all weights.

    Args:
        model: from `build_model`.
        path: where to; the weights go to `model.onnx.data` in the same folder.
        progress: called with (tensors written, tensors in all, name).
    """

    def report(tensor: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
        if progress is not None:
            progress(info.index + 1, info.total, tensor.name or "")

    ir.save(
        model,
        path,
        external_data=DATA_FILE,
        size_threshold_bytes=_INLINE_BYTES,
        callback=report,
        alignment=4096,  # large tensors start on a page, so that runtimes map them without copying
    )


def source_model(source: Checkpoint, config: DecoderConfig) -> dict[str, object]:
    """What a runtime or a reader wants to know of the model; everything else is in the other files."""
    kept = ("architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id")
    entry: dict[str, object] = {name: source.config[name] for name in kept if name in source.config}
    # What another exporter needs to write the graph again for its target; read like any config.json.
    entry["config"] = {name: value for name, value in source.config.items() if name != "quantization_config"}
    entry["name"] = source.name
    entry["hidden_size"] = config.hidden_size
    entry["scale_dtype"] = source.settings.scale_dtype
    return entry
