# SPDX-License-Identifier: Apache-2.0
"""What quantized embeddings and heads cost, apart from the body: the dense model with nothing but its tables rounded.

    python -m benchmarks.embedding MODEL --text TEXT --calibration TEXT [--append]

`rounded` is what `export --embedding` does to a 16-bit table, `calibrated` what `compress --embedding` does. KL and
same-top-1 are against the dense model over every position of the windows; the seconds are the rounding's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.figures import append_rows
from nanoquant_edge.compression.calibrate.text import text_windows
from nanoquant_edge.compression.tables import quantized_tables
from nanoquant_edge.formats.checkpoint import TABLE_FORMATS, QuantizedTable, quantize_table
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.validation.text import cut_windows


def log_probabilities(model: Any, window: torch.Tensor) -> torch.Tensor:
    """float32 (length, vocabulary)."""
    with torch.inference_mode():
        return model(input_ids=window[None], use_cache=False).logits[0].float().log_softmax(-1)


def measure(model: Any, windows: torch.Tensor, dense: list[torch.Tensor]) -> dict[str, float]:
    """Perplexity, mean KL in nats and same-top-1, over all windows."""
    divergence = same = loss = 0.0
    for window, wanted in zip(windows, dense, strict=True):
        found = log_probabilities(model, window)
        divergence += float((wanted.exp() * (wanted - found)).sum(-1).mean())
        same += float((found.argmax(-1) == wanted.argmax(-1)).float().mean())
        loss -= float(found[:-1].gather(-1, window[1:, None]).mean())
    count = len(windows)
    return {"ppl": float(np.exp(loss / count)), "kl": divergence / count, "top1": same / count}


def put(model: Any, tables: dict[str, QuantizedTable]) -> float:
    """Replace the model's tables; returns what they take on disk, MB."""
    for name, table in tables.items():
        weight = model.get_submodule(name).weight
        weight.data.copy_(torch.from_numpy(np.array(table.dense(np.float32))))
    return sum(table.codes.nbytes + table.scales.nbytes for table in tables.values()) / 1e6


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), required=True, help="Text that is measured.")
@click.option("--calibration", type=click.Path(path_type=Path), required=True, help="Text for `calibrated`.")
@click.option("--windows", default=4, show_default=True)
@click.option("--length", default=1024, show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/embedding.json.")
def main(model: Path, text: Path, calibration: Path, windows: int, length: int, append: bool) -> None:
    """Measure MODEL (a Hugging Face folder or a .gguf file) with its tables in 16, 8 and 4 bits."""
    rows: list[dict[str, Any]] = []
    with load_model(model) as source:
        network, tied = source.model.float().eval(), source.decoder.tied
        ids = np.asarray(source.tokenizer(text.read_text(encoding="utf-8"))["input_ids"], np.int64)
        texts = torch.from_numpy(cut_windows(ids, windows, length))
        calibration_text = calibration.read_text(encoding="utf-8")
        drawn = text_windows(source.tokenizer, calibration_text, windows=8, length=length, seed=0)
        with torch.no_grad():
            sample = torch.cat([network.base_model(input_ids=ids).last_hidden_state for ids in drawn.split(1)])
        modules = {module: name for name, module in network.named_modules()}
        ends = [network.get_input_embeddings()] + ([] if tied else [network.get_output_embeddings()])
        kept = {modules[end]: end.weight.detach().clone() for end in ends}
        dense = [log_probabilities(network, window) for window in texts]

        def add(kind: str, how: str, size: float, seconds: float) -> None:
            row = {"model": source.name, "embedding": kind, "how": how, "n_windows": windows, "length": length}
            row |= {**measure(network, texts, dense), "table_mb": round(size, 2), "seconds": round(seconds, 1)}
            rows.append(row)
            values = (row["ppl"], row["kl"], 100 * row["top1"], row["table_mb"], row["seconds"])
            click.echo(f"{kind:6} {how:10} ppl %7.3f  kl %.5f  top1 %6.2f %%  %7.2f MB  %5.1f s" % values)

        entries = sum(weight.numel() for weight in kept.values())
        add("float32", "dense", 4 * entries / 1e6, 0.0)
        for kind in TABLE_FORMATS:
            for how in ("rounded", "calibrated"):
                for name, weight in kept.items():
                    network.get_submodule(name).weight.data.copy_(weight)
                started = time.monotonic()
                if how == "rounded":
                    tables = {name: quantize_table(weight.numpy(), kind, name) for name, weight in kept.items()}
                else:
                    tables = quantized_tables(network, sample, kind, tied)
                seconds = time.monotonic() - started
                add(kind, how, put(network, tables), seconds)
    if append:
        click.echo(f"written to {append_rows('embedding', rows)}")


if __name__ == "__main__":
    main()
