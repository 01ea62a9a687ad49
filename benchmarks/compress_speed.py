# SPDX-License-Identifier: Apache-2.0
"""Time of compression by block and stage, on random weights of a published shape.

    python -m benchmarks.compress_speed --shape SmolLM2-135M --blocks 3 --recipe official [--profile] [--append]
    torchrun --nproc-per-node 2 -m benchmarks.compress_speed --shape Llama-2-70B --blocks 1 ...

The first block of a run makes the CUDA graphs, later ones replay them. The whole model is the first block, the others
at the last block's time, and a distillation measured on the model's full depth for a few steps (`--distillation`).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.figures import append_rows
from nanoquant_edge.compression import Recipe
from nanoquant_edge.compression.calibrate.curvature import with_curvature
from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.execution.block_call import BlockCall, first_inputs, recorded_arguments
from nanoquant_edge.compression.execution.parallel import joined_team, team
from nanoquant_edge.compression.execution.precision import compute_in, preferred_dtype
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune.distillation import distill_scales
from nanoquant_edge.compression.tune.layers import LatentLinear, SignFactors
from nanoquant_edge.compression.tune.reconstruction import reconstruct_block
from nanoquant_edge.compression.tune.workbench import Workbench
from nanoquant_edge.models import family_of
from nanoquant_edge.models.rates import rank_for_rate
from nanoquant_edge.models.source import SourceModel

#: hidden, feed-forward width, heads, key/value heads, head width, blocks, vocabulary
SHAPES = {
    "SmolLM2-135M": (576, 1536, 9, 3, 64, 30, 49152),
    "Llama-2-70B": (8192, 28672, 64, 8, 128, 80, 32000),
    "tiny": (64, 96, 4, 2, 16, 2, 320),
}


def random_model(shape: str, blocks: int, device: torch.device) -> LlamaForCausalLM:
    """A Llama of that shape, made on the device, whose weights keep the size of what flows through them."""
    hidden, wide, heads, kv_heads, head_dim, _, vocab = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_hidden_layers=blocks,
        vocab_size=vocab,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def stopwatch(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def profile(workbench: Workbench, rank: int) -> list[tuple[str, float, int]]:
    """Kernels of one epoch of TuneLatentSTE of the first layer: name, milliseconds, launches; the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        workbench.tune_latent(workbench.linears[0], rank, 0)
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    return [(event.key[:100], event.self_device_time_total / 1e3, event.count) for event in events[:40]]


@dataclass(frozen=True)
class Setting:
    """What is timed: the options of the command."""

    shape: str
    blocks: int
    recipe: str
    bpw: float
    changes: tuple[str, ...]
    plain: bool
    profiled: bool
    distillation: int

    @property
    def schedule(self) -> Recipe:
        """The recipe with its changes."""
        changes = (change.split("=", 1) for change in self.changes)
        return Recipe.preset(self.recipe, **{name: json.loads(value) for name, value in changes})


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="SmolLM2-135M", show_default=True)
@click.option("--blocks", default=3, show_default=True)
@click.option("--recipe", default="official", show_default=True)
@click.option("--bpw", default=1.0, show_default=True)
@click.option("--set", "changes", multiple=True, help="Recipe setting, name=value (JSON).")
@click.option("--device", default="cuda", show_default=True)
@click.option("--plain", is_flag=True, help="No CUDA graphs, for comparison.")
@click.option("--profile", "profiled", is_flag=True, help="Print the kernels of one tuning stage.")
@click.option("--distillation", default=0, show_default=True, help="Windows to distil the model of full depth on.")
@click.option("--append", is_flag=True, help="Add the row to docs/figures/compress_speed.json.")
def main(device: str, append: bool, **options: Any) -> None:
    """Print one row."""
    setting = Setting(**options)
    with joined_team(torch.device(device)) as (processes, process_device):
        run = Run(setting.schedule, process_device, preferred_dtype(process_device))
        row = timed(setting, run)
        if append and processes.first:
            append_rows("compress_speed", [row])
        if processes.first:
            click.echo(json.dumps(row))


def timed(setting: Setting, run: Run) -> dict[str, Any]:
    """One row."""
    recipe, device = run.recipe, run.device
    model: Any = random_model(setting.shape, setting.blocks, device)
    family = family_of({"model_type": "llama"})
    layers = model.model.layers
    vocab = SHAPES[setting.shape][-1]
    windows = torch.randint(vocab, (recipe.windows, recipe.window_length), generator=torch.Generator().manual_seed(0))
    linears = {name: model.get_submodule(name) for name in family.layer_names(setting.blocks)}
    start = stopwatch(device)
    importances = collect_importances(model, linears, windows, run)
    if recipe.curvature:
        tokenizers: Any = None  # windows are there already
        source = SourceModel(setting.shape, model, tokenizers, model.config.to_dict(), Path(), "")
        importances = with_curvature(source, linears, windows=windows, importances=importances, run=run)
    row: dict[str, Any] = {
        "model": setting.shape,
        "recipe": setting.recipe,
        "schedule": " ".join(setting.changes),
        "target_bpw": setting.bpw,
        "graphs": not setting.plain,
        "processes": team().size,
        "importances_s": round(stopwatch(device) - start, 2),
        "blocks": [],
    }
    arguments = recorded_arguments(model, layers, windows[:1].to(device))
    stream = torch.cat([first_inputs(model, layers, ids.to(device)) for ids in windows.split(8)]).float()
    compressed = stream.clone()
    call = BlockCall(arguments[0], device, run.dtype)
    keep = False if setting.plain else None
    workbench = Workbench(layers[0], family.linears, call, recipe, at_once=8, keep=keep)
    factors = {}
    ranks = {name: rank_for_rate(*workbench.open[name].weight.shape, setting.bpw) for name in family.linears}
    for index, dense in enumerate(layers):
        start = stopwatch(device)
        targets = call.over(dense, stream, 8)
        prefix = f"{family.blocks}.{index}."
        block_importances = {name: importances[prefix + name] for name in family.linears}
        loss_weights = block_importances[family.last_linear].outputs
        workbench.load(dense, inputs=compressed, targets=targets, loss_weights=loss_weights)
        result = reconstruct_block(workbench, ranks, block_importances, run)
        factors.update({prefix + name: value for name, value in result.factors.items()})
        compressed, stream = call.over(workbench.block, compressed, 8), targets
        stages = {stage: round(seconds, 2) for stage, seconds in result.seconds.items()}
        losses = {name: outcome[1].last for name, outcome in result.losses.items()}
        row["blocks"].append({**stages, "all": round(stopwatch(device) - start, 2)})
        click.echo(json.dumps({**row["blocks"][-1], "errors": result.errors, "losses": losses}))
    if setting.profiled:
        for name, milliseconds, count in profile(workbench, ranks[family.linears[0]]):
            click.echo(f"{milliseconds:9.2f} ms {count:7d}  {name}")
    if device.type == "cuda":
        row["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    if setting.distillation:
        del workbench, stream, compressed, targets
        row["distillation_s_a_step"] = distil(setting.shape, setting.distillation, run)
    return row


def distil(shape: str, windows: int, run: Run) -> float:
    """Seconds a step of scale distillation at full depth, from the difference of a long and a short run."""
    blocks, vocab, device = SHAPES[shape][5], SHAPES[shape][-1], run.device
    model: Any = random_model(shape, blocks, device)
    factors: dict[str, SignFactors] = {}
    one_step = AdmmSettings(steps=1, svid_steps=1)
    for name in family_of({"model_type": "llama"}).layer_names(blocks):
        weight = model.get_submodule(name).weight
        inputs, outputs = (torch.ones(size, device=device) for size in reversed(weight.shape))
        found = factorize(weight, 32, inputs=inputs, outputs=outputs, settings=one_step)
        factors[name] = LatentLinear(found, None).harden()
    ids = torch.randint(vocab, (windows, run.recipe.window_length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), compute_in(run.dtype, device):
        states = [model.base_model(part.to(device)).last_hidden_state.to(run.dtype) for part in ids.split(1)]
    teacher = torch.cat(states)
    times = []
    for epochs in (1, 3):
        start = stopwatch(device)
        recipe = Recipe.preset(run.recipe.name, window_length=run.recipe.window_length, kd_epochs=epochs)
        changed = Run(recipe, device, run.dtype)
        distill_scales(model, model.model.layers, factors, windows=ids, teacher=teacher, run=changed)
        times.append(stopwatch(device) - start)
    return round((times[1] - times[0]) / (2 * windows), 4)


if __name__ == "__main__":
    main()
