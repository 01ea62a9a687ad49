# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folder -> a folder that ONNX Runtime GenAI loads.

It holds the float32 graph of dialect `ort` for the CPU, the tokenizer, `genai_config.json`, and our custom-operator
library: GenAI takes such a library only from the model's folder, the working directory or the loader's search path
(onnxruntime-genai pull request 2222). Our own runtimes never load a library from a folder.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from ...errors import NqEdgeError
from ...formats.backends import GENAI
from ...formats.bundle import Bundle
from ...formats.checkpoint import Checkpoint
from ...formats.graph import OPERATOR_VERSION
from ...formats.kv_layout import KvLayout
from ...models.config_reader import read_config
from ...system.files import new_folder, read_json, write_json
from ...system.native import ORT_LIBRARY_NAME, ort_library_path
from ..onnx.build import build_model
from ..onnx.export import Progress, source_model, table_formats, with_tables, write_graph_folder
from .config import CONFIG_FILE, genai_config
from .graph import last_token_logits

__all__ = ["export_genai"]

_DTYPE, _DIALECT = "float32", "ort"
#: Lowest version seen to run these folders.
_LOWEST = "0.18"


def export_genai(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    *,
    max_length: int | None = None,
    embedding: str | None = None,
    library: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a folder for onnxruntime-genai.

    Args:
        checkpoint: folder that `compress` wrote, or one that is open.
        output: folder to write; it appears only when it is complete.
        max_length: longest context in tokens; None is the model's own.
        embedding: see `export_onnx`.
        library: the custom-operator library of the machine that will run the folder; None is the one installed here.
        overwrite: replace a folder that nq-edge wrote.
        progress: called with (tensors written, tensors in all, name).

    Returns:
        The manifest that lies beside GenAI's own configuration.

    Raises:
        NqEdgeError: as `export_onnx`; NQ-ARCH for a family without a GenAI model type; NQ-NATIVE-MISSING without a
            library.
    """
    source = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    config = read_config(source.config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(source.folder / name, "NQ-TOKENIZER")
    length = max_length or config.max_positions
    generation = source.folder / "generation_config.json"
    settings = genai_config(
        config,
        source.config,
        read_json(generation, "NQ-CKPT") if generation.is_file() else {},
        length,
        ORT_LIBRARY_NAME,
    )
    kernels = Path(library) if library is not None else ort_library_path()
    if not kernels.is_file():
        raise NqEdgeError(
            "NQ-NATIVE-MISSING", f"there is no library {kernels}.", "Pass the libnanoquant_ort.so itself."
        )
    weights = with_tables(source, config, embedding, codes=True)
    model = build_model(config, weights, _DIALECT, _DTYPE, max_length=max_length, grouped=True)
    last_token_logits(model)
    with new_folder(Path(output), overwrite) as scratch:
        compressed = write_graph_folder(model, source, scratch, progress)
        write_json(scratch / CONFIG_FILE, settings)
        shutil.copyfile(kernels, scratch / ORT_LIBRARY_NAME)
        bundle = Bundle(
            folder=scratch,
            backend=GENAI,
            backend_versions=(_LOWEST, ""),
            dialect=_DIALECT,
            dtype=_DTYPE,
            portable=False,
            operator_version=OPERATOR_VERSION,
            source_model={**source_model(source, config), **table_formats(weights, config, _DIALECT, _DTYPE, False)},
            target_bpw=source.settings.target_bpw,
            true_bpw=source.settings.true_bpw,
            compressed_linears=compressed,
            vocab_size=config.vocab_size,
            kv=KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, _DTYPE, length),
        ).write()
    return replace(bundle, folder=Path(output))
