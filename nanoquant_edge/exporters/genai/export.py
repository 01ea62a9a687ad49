# SPDX-License-Identifier: Apache-2.0
"""A checkpoint or a bundle -> a folder that ONNX Runtime GenAI loads.

It holds the float32 graph of dialect `ort` for the CPU, the tokenizer, `genai_config.json`, and our custom-operator
library: GenAI takes such a library only from the model's folder, the working directory or the loader's search path
(onnxruntime-genai pull request 2222). Our own runtimes never load a library from a folder.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...formats.backends import GENAI
from ...formats.bundle import Bundle
from ...formats.checkpoint import Checkpoint
from ...system.files import new_folder, read_json, write_json
from ...system.native import ORT_LIBRARY_NAME, ort_library_path
from ...system.progress import Progress, Show
from ..onnx.build import build_model
from ..onnx.export import write_graph_folder
from ..source import Source
from .config import CONFIG_FILE, genai_config
from .last_token import last_token_logits
from .options import GenaiOptions

__all__ = ["export_genai"]

#: Lowest version seen to run these folders.
_LOWEST = "0.18"


def export_genai(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    options: GenaiOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Show | None = None,
    **keywords: Any,
) -> Bundle:
    """Write a folder for onnxruntime-genai.

    Args:
        checkpoint: the folder that `compress` wrote, a checkpoint that is open, or a bundle that `export_onnx` wrote.
        output: folder to write; it appears only when it is complete.
        options: what the folder is to be.
        overwrite: replace a folder that nq-edge wrote.
        progress: told how many of the weights are written.
        **keywords: fields of `GenaiOptions`, instead of those in `options`.

    Returns:
        The manifest that lies beside GenAI's own configuration.

    Raises:
        NqEdgeError: as `export_onnx`; NQ-ARCH for a family without a GenAI model type; NQ-NATIVE-MISSING without a
            library.

    Example:
        >>> export_genai("checkpoint", "genai", max_length=128).backend
        'onnxruntime-genai'
    """
    options = replace(options or GenaiOptions(), **keywords)
    model = Source.open(checkpoint)
    read_json(model.folder / "tokenizer_config.json", "NQ-TOKENIZER")
    generation = model.folder / "generation_config.json"
    settings = genai_config(
        model.config,
        model.model_config,
        generation=read_json(generation, "NQ-CKPT") if generation.is_file() else {},
        max_length=options.graph.length(model.config),
        library=ORT_LIBRARY_NAME,
    )
    library = Path(options.library) if options.library is not None else ort_library_path()
    if not library.is_file():
        raise NqEdgeError(
            "NQ-NATIVE-MISSING", f"there is no library {library}.", "Pass the libnanoquant_ort.so itself."
        )
    model = model.requantized(options.embedding)
    graph = build_model(model.config, model.weights, options.graph)
    last_token_logits(graph)
    told = Progress.to(progress)
    with new_folder(Path(output), overwrite) as scratch:
        write_graph_folder(graph, model, folder=scratch, progress=told)
        write_json(scratch / CONFIG_FILE, settings)
        shutil.copyfile(library, scratch / ORT_LIBRARY_NAME)
        bundle = model.bundle(scratch, options.graph, backend=GENAI, versions=(_LOWEST, "")).write()
    return replace(bundle, folder=Path(output))
