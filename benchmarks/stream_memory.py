# SPDX-License-Identifier: Apache-2.0
"""Peak host memory of compression with streamed weights against weights in memory, beside what arithmetic says.

    python -m benchmarks.stream_memory [--blocks 24] [--append]

A random Llama whose blocks dominate is compressed on the CPU with the smallest schedule, each way in a fresh process.
Of the peak (VmHWM) what a tiny model takes before it, libraries included, is taken off. Predicted, in float32 blocks:
tuning on the CPU holds the trained copy, its gradient, two moments and the copy to roll back to, 5 blocks; and either
nothing else or the model's N. Distillation holds one block's cores, or N of them. The rest is what `others` counts:
table and head, as float32 and as they are stored, packed signs, streams, and the largest LB-ADMM.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option

_WINDOWS, _LENGTH, _BPW = 4, 64, 1.0
_CHILD = """
import json, sys, time
from nanoquant_edge.compression import Recipe, compress
from nanoquant_edge.system.memory import peak_memory_mb as peak
tiny, model, text, output, way, windows, length, bpw = sys.argv[1:]
marks = {}
def progress(fraction, text):
    marks.setdefault(text.split(" of ")[0].rstrip("0123456789 "), peak())
recipe = Recipe(name="smallest", windows=int(windows), window_length=int(length), admm_steps=1, svid_steps=1,
    window_choice="distinct", fp_epochs=1, fp_batch=int(windows), ste_epochs=1, ste_batch=int(windows), kd_epochs=1,
    kd_batch=1, relative_lr=True, fp_lr=0.001, ste_lr=0.001, ste_scale_lr=0.001, kd_lr=0.001)
options = {"bpw": float(bpw), "recipe": recipe, "calibration": text, "device": "cpu", "compute_dtype": "float32",
    "stream_weights": way == "streamed"}
compress(tiny, output + "-tiny", **options)
base, begin = peak(), time.monotonic()
compress(model, output, **options, progress=progress)
seconds = time.monotonic() - begin
names = {"importances": "loaded", "block": "importances", "distilling scales": "blocks", "writing the checkpoint":
    "distillation"}
stages = {stage: round(marks[mark] - base) for mark, stage in names.items()}
print(json.dumps({"base_mb": round(base), "stages_mb": stages, "peak_mb": round(peak() - base), "seconds": seconds}))
"""


def random_folder(folder: Path, blocks: int, hidden: int, wide: int, vocab: int) -> Path:
    """A Llama in bfloat16 safetensors with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        num_hidden_layers=blocks,
        vocab_size=vocab,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="200MB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def predicted(way: str, blocks: int, hidden: int, wide: int, vocab: int) -> dict[str, float]:
    """Peak of the two long stages above the process's start, 10^6 bytes."""
    weights = 4 * hidden * hidden + 3 * hidden * wide
    block, everything = 4 * weights / 1e6, 4 * weights * blocks / 1e6
    table = (4 + 2) * vocab * hidden / 1e6
    packed = _BPW * weights * blocks / 8 / 1e6
    streams = 4 * 4 * _WINDOWS * _LENGTH * hidden / 1e6
    rank = _BPW * hidden * wide / (hidden + wide)
    # The target, and of both factors the primal, sign form, dual, and what is computed anew.
    admm = (4 * hidden * wide + 6 * 4 * rank * (hidden + wide)) / 1e6
    held = everything if way == "resident" else 0.0
    others = table + packed + streams
    return {
        "blocks": round(held + 5 * block + others + admm),
        "distillation": round(held + (everything if way == "resident" else block) + others),
    }


@click.command()
@click.option("--blocks", default=24, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--wide", default=2816, show_default=True)
@click.option("--vocab", default=2048, show_default=True)
@click.option("--repetitions", default=1, show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/stream_memory.json.")
@figures_option
def main(blocks: int, hidden: int, wide: int, vocab: int, repetitions: int, append: bool, folder: Path) -> None:
    """Print a row for each way."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        models = random_folder(scratch / "t", 2, 64, 96, 320), random_folder(scratch / "m", blocks, hidden, wide, vocab)
        (scratch / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400, encoding="utf-8")
        for way in ("streamed", "resident"):
            found = []
            for repetition in range(repetitions):
                command = [*models, scratch / "text.txt", scratch / f"{way}{repetition}", way, _WINDOWS, _LENGTH, _BPW]
                done = subprocess.run(
                    [sys.executable, "-c", _CHILD, *map(str, command)], stdout=subprocess.PIPE, check=True
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
            peaks = [one["peak_mb"] for one in found]
            row = {"weights": way, "blocks": blocks, "hidden": hidden, "wide": wide, "vocab": vocab}
            row |= {"windows": _WINDOWS, "length": _LENGTH, "target_bpw": _BPW}
            row |= {"block_mb": round(4 * (4 * hidden * hidden + 3 * hidden * wide) / 1e6, 1)}
            row |= {"base_mb": found[0]["base_mb"], "peak_mb": statistics.median(peaks)}
            row |= {"spread_mb": max(peaks) - min(peaks)} if repetitions > 1 else {}
            row |= {"stages_mb": found[0]["stages_mb"], "predicted_mb": predicted(way, blocks, hidden, wide, vocab)}
            row |= {"seconds": round(statistics.median(one["seconds"] for one in found), 1)}
            rows.append(row)
            click.echo(json.dumps(row))
    if append:
        append_rows("stream_memory", rows, repetitions, folder)


if __name__ == "__main__":
    main()
