# SPDX-License-Identifier: Apache-2.0
"""A checkpoint or a bundle -> the folder that ONNX Runtime runs, all of it or nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...errors import NqEdgeError
from ...formats.backends import ONNXRUNTIME
from ...formats.bundle import Bundle
from ...formats.checkpoint import Checkpoint
from ...formats.companions import copy_companions
from ...formats.graph import DATA_FILE, MODEL_FILE
from ...system.files import new_folder
from ...system.progress import Progress, Show
from ..options import ExportOptions
from ..schema import check_file
from ..source import Source
from .build import build_model
from .dialects.base import dialect_named

__all__ = ["export_onnx", "write_graph_folder", "write_model"]

#: Below this a tensor stays in model.onnx, where shape inference can read it: axes, shapes, unused scales.
_INLINE_BYTES = 64


def export_onnx(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Show | None = None,
    **keywords: Any,
) -> Bundle:
    """Write a bundle that ONNX Runtime runs.

    Weights are streamed from the files of the checkpoint: memory use does not grow with the model.

    Args:
        checkpoint: the folder that `compress` wrote, a checkpoint that is open, or a bundle that this function wrote.
        output: bundle folder; it appears only when it is complete.
        options: what the bundle is to be.
        overwrite: replace a bundle that stands there.
        progress: told how many of the weights are written.
        **keywords: fields of `ExportOptions`, instead of those in `options`.

    Returns:
        The bundle, read back.

    Raises:
        NqEdgeError: NQ-CKPT, NQ-BUNDLE, NQ-ARCH, NQ-TOKENIZER, NQ-OPTION, NQ-OUTPUT or NQ-NUMERIC; nothing is left
            behind.

    Example:
        >>> bundle = export_onnx("checkpoint", "bundle", dtype="float32", max_length=128)
        >>> bundle.kv.capacity
        128
    """
    options = replace(options or ExportOptions(), **keywords)
    model = Source.open(checkpoint).requantized(options.embedding)
    graph = build_model(model.config, model.weights, options.graph)
    versions = dialect_named(options.dialect).backend_versions(model.config, options.graph)
    told = Progress.to(progress)
    with new_folder(Path(output), overwrite) as scratch:
        write_graph_folder(graph, model, folder=scratch, progress=told)
        bundle = model.bundle(scratch, options.graph, backend=ONNXRUNTIME, versions=versions).write()
    return replace(bundle, folder=Path(output))


def write_graph_folder(graph: ir.Model, source: Source, *, folder: Path, progress: Progress) -> None:
    """Write a graph, its weights and the tokenizer's files, and check the nodes that were written.

    Args:
        graph: from `build_model`.
        source: the model that it was built from.
        folder: where to.
        progress: told how many of the weights are written.

    Raises:
        NqEdgeError: NQ-OPERATOR when a node contradicts the operator's schema or a layer is not in the graph.
    """
    write_model(graph, folder / MODEL_FILE, progress)
    compressed = check_file(folder / MODEL_FILE)
    if compressed != source.layers:
        raise NqEdgeError("NQ-OPERATOR", f"the graph has {compressed} of {source.layers} compressed layers.")
    copy_companions(source.folder, folder)


def write_model(graph: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write model.onnx and, beside it, one file with all weights.

    Args:
        graph: from `build_model`.
        path: where to; the weights go to `model.onnx.data` in the same folder.
        progress: told how many of the weights are written.
    """
    told = progress or Progress()

    def report(tensor: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
        told((info.index + 1) / info.total, f"writing {tensor.name}")

    ir.save(
        graph,
        path,
        external_data=DATA_FILE,
        size_threshold_bytes=_INLINE_BYTES,
        callback=report,
        alignment=4096,  # large tensors start on a page, so that runtimes map them without copying
    )
