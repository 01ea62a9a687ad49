# SPDX-License-Identifier: Apache-2.0
"""Decoders of well-known shapes, and checkpoints of them with random signs: speed does not depend on the values.

    python -m benchmarks.decoder_shapes qwen3-0.6b FOLDER [--table int8]

A checkpoint is written in seconds, whatever its size: every tensor repeats the same random bytes. It has no tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from nanoquant_edge.formats.checkpoint import TABLE_FORMATS, QuantizationSettings, words_for
from nanoquant_edge.models import DecoderConfig
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.models.rates import layer_bits, rank_for_rate

__all__ = ["SHAPES", "config_of", "random_checkpoint", "true_bpw"]

_RANDOM_BYTES = 32 << 20
#: safetensors' name of a type -> bytes
_WIDTHS = {"I32": 4, "F16": 2, "I8": 1}


def _config(kind: str, sizes: tuple[int, ...], *, tied: bool, theta: float, positions: int = 16384) -> dict[str, Any]:
    vocabulary, hidden, feed_forward, layers, heads, kv_heads, head_dim = sizes
    return {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


#: Sizes from the models' config.json: vocabulary, hidden, feed-forward, blocks, heads, key heads, channels of a head.
SHAPES = {
    "smollm2-135m": _config("llama", (49152, 576, 1536, 30, 9, 3, 64), tied=True, theta=1e5),
    "qwen3-0.6b": _config("qwen3", (151936, 1024, 3072, 28, 16, 8, 128), tied=True, theta=1e6),
    "llama-3.2-1b": _config("llama", (128256, 2048, 8192, 16, 32, 8, 64), tied=True, theta=5e5),
    "qwen3-8b": _config("qwen3", (151936, 4096, 12288, 36, 32, 8, 128), tied=False, theta=1e6),
    "llama-2-70b": _config("llama", (32000, 8192, 28672, 80, 64, 8, 128), tied=False, theta=1e4),
}


def config_of(name: str, layers: int | None = None) -> DecoderConfig:
    """A shape's configuration, with fewer blocks if asked for."""
    return read_config(_entry(name, layers))


def _entry(name: str, layers: int | None) -> dict[str, Any]:
    entry = dict(SHAPES[name])
    if layers is not None:
        entry["num_hidden_layers"] = layers
    return entry


def true_bpw(name: str, bpw: float) -> float:
    """Stored bits per weight of all compressed layers at the ranks of a target rate."""
    shapes = config_of(name).linear_shapes().values()
    bits = sum(layer_bits(m, n, rank_for_rate(m, n, bpw)) for m, n in shapes)
    return bits / sum(m * n for m, n in shapes)


def random_checkpoint(
    name: str, folder: Path, *, bpw: float = 1.0, table: str = "fp16", layers: int | None = None
) -> Path:
    """Write a checkpoint of a shape, unless it stands there.

    Args:
        name: a key of `SHAPES`.
        folder: where to.
        bpw: bits per weight.
        table: "fp16", "int8" or "int4".
        layers: fewer blocks, for a trial.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    entry = _entry(name, layers)
    config = read_config(entry)
    family, shapes = config.structure, config.linear_shapes()
    ranks = {
        layer: rank_for_rate(*shapes[layer.removeprefix(f"{family.blocks}.").partition(".")[2]], bpw)
        for layer in family.layer_names(config.num_layers)
    }
    modules = [family.embedding] if config.tied else [family.embedding, "lm_head"]
    kind = "float16" if table == "fp16" else table
    settings = QuantizationSettings(
        target_bpw=bpw,
        true_bpw=true_bpw(name, bpw),
        ranks=ranks,
        embedding=kind,
        head="tied" if config.tied else kind,
        tables={} if table == "fp16" else dict.fromkeys(modules, table),
    )
    _write(folder / "nanoquant.safetensors", dict(_tensors(config, ranks, modules, table)))
    (folder / "config.json").write_text(json.dumps({**entry, "quantization_config": settings.to_dict()}))
    return folder


def _tensors(
    config: DecoderConfig, ranks: dict[str, int], modules: list[str], table: str
) -> Iterator[tuple[str, tuple[str, tuple[int, ...], float | None]]]:
    """Name -> type, shape, and the number that fills it; None fills it with random bytes."""
    family, shapes = config.structure, config.linear_shapes()
    for layer, rank in ranks.items():
        m, n = shapes[layer.removeprefix(f"{family.blocks}.").partition(".")[2]]
        scale = float((rank * n) ** -0.25)
        yield f"{layer}.u_packed", ("I32", (m, words_for(rank)), None)
        yield f"{layer}.v_packed", ("I32", (rank, words_for(n)), None)
        yield f"{layer}.scale_out", ("F16", (m,), scale)
        yield f"{layer}.scale_in", ("F16", (n,), scale)
    for name, shape in config.norm_shapes().items():
        yield name, ("F16", shape, 1.0)
    for module in modules:
        rows, columns = config.vocab_size, config.hidden_size
        if table == "fp16":
            yield f"{module}.weight", ("F16", (rows, columns), None)
            continue
        form = TABLE_FORMATS[table]
        yield f"{module}.codes", ("I8", (rows, form.row_bytes(columns)), None)
        yield f"{module}.scales", ("F16", (rows, form.groups(columns)), 2.0**-10 if form.bits == 8 else 2.0**-7)


def _write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], float | None]]) -> None:
    """A safetensors file, its data written piece by piece from the same random bytes."""
    header, offset = {}, 0
    for name, (kind, shape, _) in tensors.items():
        size = int(np.prod(shape)) * _WIDTHS[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    words = rng.integers(0, 256, _RANDOM_BYTES, np.uint8).data
    numbers = (rng.standard_normal(_RANDOM_BYTES // 2, np.float32) / 32).astype(np.float16).view(np.uint8).data
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for kind, shape, fill in tensors.values():
            size = int(np.prod(shape)) * _WIDTHS[kind]
            if fill is not None:
                file.write(np.full(size // 2, fill, np.float16).tobytes())
                continue
            source = numbers if kind == "F16" else words
            for begin in range(0, size, _RANDOM_BYTES):
                file.write(source[: min(_RANDOM_BYTES, size - begin)])
    os.utime(path)


@click.command()
@click.argument("name", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--table", default="fp16", show_default=True)
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--layers", type=int)
def main(name: str, folder: Path, table: str, bpw: float, layers: int | None) -> None:
    """Write a checkpoint."""
    random_checkpoint(name, folder, bpw=bpw, table=table, layers=layers)


if __name__ == "__main__":
    main()
