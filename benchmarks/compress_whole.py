# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of whole compressions on random weights of published shapes, stage by stage.

    python -m benchmarks.compress_whole --shape Qwen2.5-1.5B --recipe official --recipe balanced [--blocks 6] --append

A random Llama of that shape with a tokenizer of bytes is written to a folder and compressed as any model is, on the
WikiText-2 training part. With fewer blocks than the model has, a row tells the whole model's time as well: the stages
that walk through the blocks take as much longer as it has more of them. Peaks are the device's, or the process's on a
CPU; `predicted_mb` is what the arithmetic of docs/notes/gpu.md says.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.figures import append_rows, figures_option
from nanoquant_edge.compression import CompressOptions, Recipe, compress
from nanoquant_edge.compression.recipe import REDUCED
from nanoquant_edge.models.rates import rank_for_rate

#: hidden, feed-forward width, heads, key/value heads, head width, blocks, vocabulary, whether head and table are tied
SHAPES = {
    "tiny": (64, 96, 4, 2, 16, 2, 320, True),
    "SmolLM2-135M": (576, 1536, 9, 3, 64, 30, 49152, True),
    "Qwen2-0.5B": (896, 4864, 14, 2, 64, 24, 151936, True),
    "Qwen2.5-1.5B": (1536, 8960, 12, 2, 128, 28, 151936, True),
    "Llama-3-8B": (4096, 14336, 32, 8, 128, 32, 128256, False),
}
#: Stages whose time does not grow with the blocks.
_FIXED = ("loading and checks",)


def random_folder(folder: Path, shape: str, blocks: int, device: torch.device) -> Path:
    """A random Llama of a shape in bfloat16 safetensors, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, wide, heads, kv_heads, head_dim, _, vocab, tied = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_hidden_layers=blocks,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with device:
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).cpu().save_pretrained(folder, max_shard_size="1GB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def predicted_mb(shape: str, blocks: int, recipe: Recipe, *, bpw: float, streamed: bool) -> dict[str, int]:
    """Peak of the stages on a GPU by arithmetic, 10^6 bytes (docs/notes/gpu.md, memory that compression takes)."""
    hidden, wide, heads, kv_heads, head_dim, _, vocab, tied = SHAPES[shape]
    query, key = heads * head_dim, kv_heads * head_dim
    layers = [(query, hidden), (key, hidden), (key, hidden), (hidden, query)]
    layers += [(wide, hidden), (wide, hidden), (hidden, wide)]
    block = sum(m * n for m, n in layers)
    tables = vocab * hidden * (1 if tied else 2)
    # The head is held a second time in the compute type.
    model = 4 * (tables + block * (1 if streamed else blocks)) + 2 * vocab * hidden
    tokens = recipe.windows * recipe.window_length
    stream = 4 * tokens * hidden
    widths = sum(m + n for m, n in layers)
    window = 4 * recipe.window_length * widths
    kept = max(2, min(8, (6 << 30) // stream))
    block_windows = max(1, min(8, (2 << 30) // window))
    sweep = model + (kept + 3) * stream + block_windows * window
    factors = 4 * sum(m * m + n * n for m, n in layers) + 16 * max(hidden, wide) ** 2
    together = block <= 100_000_000  # the workbench keeps its stages, and a copy of inputs and targets
    ranks = [rank_for_rate(m, n, bpw) * (m + n) for m, n in layers]
    latents = 20 * max(ranks)
    if together:
        tuning = 12 * sum(sum(m * n for m, n in layers[start:]) for start in range(7)) + (4 << 30)
        tuning = min(tuning, 12 * 7 * block + (4 << 30))
    else:
        tuning = 12 * block
    activations = recipe.fp_batch * window
    blocks_peak = model + (5 if together else 3) * stream + tuning + latents + 10 * block + activations
    return {
        "importances": round((sweep if streamed else model + min(8 * window * blocks, 12 << 30)) / 1e6),
        "curvature": round((sweep + factors if recipe.curvature else 0) / 1e6),
        "blocks": round(blocks_peak / 1e6),
    }


def whole_seconds(stages: dict[str, float], blocks: int, depth: int, total: float) -> float:
    """Time of the whole depth from that of some blocks."""
    steps = {"TuneFP", "LB-ADMM", "TuneLatentSTE"}
    named = {name: seconds for name, seconds in stages.items() if name not in steps}
    fixed = sum(named.get(name, 0.0) for name in _FIXED) + total - sum(named.values())
    return fixed + (total - fixed) * depth / blocks


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="Qwen2-0.5B", show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=("balanced",), help="A preset, or official-reduced.")
@click.option("--blocks", default=0, help="Only so many; 0 is all.")
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--set", "changes", multiple=True, help="Recipe setting, name=value (JSON).")
@click.option("--text", type=click.Path(path_type=Path), default=Path("../shared/data/wikitext2-train-part.raw"))
@click.option("--stream-weights", is_flag=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to the figure file compress_whole.json.")
@figures_option
def main(
    shape: str,
    recipes: tuple[str, ...],
    blocks: int,
    changes: tuple[str, ...],
    text: Path,
    append: bool,
    folder: Path,
    **options: Any,
) -> None:
    """Print a row for each recipe."""
    depth = SHAPES[shape][5]
    blocks = blocks or depth
    gpu = torch.device("cuda" if torch.cuda.is_available() and options["device"] != "cpu" else "cpu")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = random_folder(scratch / "model", shape, blocks, gpu)
        for label in recipes:
            row: dict[str, Any] = {"model": shape, "recipe": label, "schedule": " ".join(changes), "blocks": blocks}
            row |= measured(model, scratch / "checkpoint", label, changes, text=text, **options)
            recipe = _recipe(label, changes)
            row["whole_seconds"] = round(whole_seconds(row["stage_seconds"], blocks, depth, row["seconds"]), 1)
            rate, streamed = options["bpw"], options["stream_weights"]
            row["predicted_mb"] = predicted_mb(shape, blocks, recipe, bpw=rate, streamed=streamed)
            click.echo(json.dumps(row))
            if append:
                append_rows("compress_whole", [row], folder=folder)


def _recipe(label: str, changes: tuple[str, ...]) -> Recipe:
    name, _, schedule = label.partition("-")
    settings = {key: json.loads(value) for key, value in (change.split("=", 1) for change in changes)}
    return Recipe.preset(name, **{**(REDUCED[name] if schedule == "reduced" else {}), **settings})


def measured(
    model: Path,
    output: Path,
    label: str,
    changes: tuple[str, ...],
    *,
    text: Path,
    bpw: float,
    stream_weights: bool,
    device: str,
) -> dict[str, Any]:
    """Seconds and peak of one compression."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    options = CompressOptions(
        bpw=bpw,
        recipe=_recipe(label, changes),
        calibration=text,
        stream_weights=stream_weights,
        device=device,
        overwrite=True,
    )
    made = compress(model, output, options).settings
    found = {name: made.recipe[name] for name in ("seconds", "stage_seconds", "peak_mb", "left_out", "streamed")}
    return {"target_bpw": bpw, "true_bpw": round(made.true_bpw, 4), **found}


if __name__ == "__main__":
    main()
