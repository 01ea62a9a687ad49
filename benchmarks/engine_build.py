# SPDX-License-Identifier: Apache-2.0
"""Time and host memory of building an engine, against the size of what goes in.

    python -m benchmarks.engine_build build/demo/checkpoint --target rtx-3060,rtx-4060,rtx-5070 --append
    python -m benchmarks.engine_build --shape llama-3.2-1b --target rtx-4060 --append

A shape stands for a model of that size with random signs at `--bpw`. `builder_peak_mb` is the peak of the builder's
process, mapped weights included, which the system may drop and read again; `builder_private_mb` is without them.
Goal: 1.5 times the graph plus 1 GB.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import append_rows
from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine
from nanoquant_edge.formats.checkpoint import (
    CheckpointParts,
    PackedLayer,
    QuantizationSettings,
    true_bits_per_weight,
    words_for,
    write_checkpoint,
)
from nanoquant_edge.models import family_of
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.models.rates import rank_for_rate

_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_parameters": {"rope_theta": 5e5}}
#: Sizes from the models' config.json.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        **_LLAMA,
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "llama-3.2-1b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1e6},
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "max_position_embeddings": 40960,
    },
}


def random_checkpoint(shape: str, bpw: float, folder: Path, **changes: Any) -> Path:
    """Write a checkpoint of random signs at the ranks that `compress` takes at `bpw` bits a weight.

    `changes` go into config.json.
    """
    config = {**SHAPES[shape], "dtype": "float16", **changes}
    decoder, family = read_config(config), family_of(config)
    rng = np.random.default_rng(0)

    def words(rows: int, columns: int) -> np.ndarray:
        return rng.integers(-(2**31), 2**31, (rows, words_for(columns)), dtype=np.int32)

    layers = {}
    for name in family.layer_names(decoder.num_layers):
        m, n = decoder.linear_shapes()[name.removeprefix(f"{family.blocks}.").partition(".")[2]]
        rank = rank_for_rate(m, n, bpw)
        scales = [np.full(size, 0.02, np.float16) for size in (m, n)]
        # Bits past the last column must be 0: whole words have none, and no shape here has others.
        layers[name] = PackedLayer(words(m, rank), words(rank, n), scales[0], scales[1])
    others = {name: np.ones(size, np.float16) for name, size in decoder.norm_shapes().items()}
    for name in (f"{family.embedding}.weight", *(() if decoder.tied else ("lm_head.weight",))):
        others[name] = rng.standard_normal((decoder.vocab_size, decoder.hidden_size), np.float32).astype(np.float16)
    ranks = {name: layer.rank for name, layer in layers.items()}
    settings = QuantizationSettings(
        target_bpw=bpw,
        true_bpw=true_bits_per_weight(layers.values()),
        ranks=ranks,
        scale_dtype="float16",
        head="tied" if decoder.tied else "float16",
    )
    companions = folder / "companions"
    companions.mkdir()
    (companions / "tokenizer.json").write_text("{}")
    parts = CheckpointParts(config, settings, layers, others)
    write_checkpoint(folder / "checkpoint", parts, companions=companions)
    return folder / "checkpoint"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--bpw", type=float, default=1.0)
    parser.add_argument("--target", default="rtx-4060")
    parser.add_argument("--name", help="of the model, for the table")
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--append", action="store_true", help="add the row to docs/figures/engine_build.json")
    given = parser.parse_args()
    if (given.source is None) == (given.shape is None):
        parser.error("pass a source or --shape")
    with tempfile.TemporaryDirectory(prefix="nq-engine-") as scratch:
        folder = Path(scratch)
        source = given.source or random_checkpoint(given.shape, given.bpw, folder)
        options = EngineOptions(capacity=given.capacity)
        bundle = build_engine(source, folder / "engine", target=given.target, options=options)
    build, engine = bundle.measured["build"], bundle.engine
    if engine is None:
        parser.error(f"no engine for {given.target} can be built here")
    # A random checkpoint's own arrays would count here, so only a given source tells what writing the graph took.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if given.source else 0
    graph = build["graph_bytes"]
    row = {
        "model": given.name or given.shape or bundle.source_model.get("name"),
        "target_bpw": bundle.target_bpw,
        "compute_capabilities": list(engine.compute_capabilities),
        "capacity": bundle.kv.capacity,
        "tensorrt": engine.tensorrt_version,
        "graph_mb": round(graph / 1e6, 1),
        "engine_mb": round(build["engine_bytes"] / 1e6, 1),
        "parse_s": build["parse_seconds"],
        "build_s": build["build_seconds"],
        "seconds": build["seconds"],
        "builder_peak_mb": round(build["peak_bytes"] / 1e6),
        "builder_private_mb": round(build["peak_private_bytes"] / 1e6),
        "own_peak_mb": round(own / 1e6) if own else None,
        "goal_mb": round((1.5 * graph + (1 << 30)) / 1e6),
    }
    for name, value in row.items():
        print(f"{name:22} {value}")
    if given.append:
        print(append_rows("engine_build", [row]))


if __name__ == "__main__":
    main()
