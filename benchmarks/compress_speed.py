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
from typing import Any

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.figures import append_rows
from nanoquant_edge.compression import Recipe
from nanoquant_edge.compression.calibrate.curvature import with_curvature
from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.calibrate.ranks import rank_for_rate
from nanoquant_edge.compression.execution.block_call import BlockCall, first_inputs, recorded_arguments
from nanoquant_edge.compression.execution.parallel import joined_team, team
from nanoquant_edge.compression.execution.precision import compute_in, preferred_dtype
from nanoquant_edge.compression.factorize.lb_admm import AdmmSettings, factorize
from nanoquant_edge.compression.tune.distillation import distill_scales
from nanoquant_edge.compression.tune.layers import LatentLinear, SignFactors
from nanoquant_edge.compression.tune.workbench import Workbench, reconstruct_block
from nanoquant_edge.models import family_of

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


def profile(bench: Workbench, rank: int) -> list[tuple[str, float, int]]:
    """Kernels of one epoch of TuneLatentSTE of the first layer: name, milliseconds, launches; the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        bench.tune_latent(bench.linears[0], rank, 0)
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    return [(event.key[:100], event.self_device_time_total / 1e3, event.count) for event in events[:40]]


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
def main(
    shape: str,
    blocks: int,
    recipe: str,
    bpw: float,
    changes: tuple[str, ...],
    device: str,
    plain: bool,
    profiled: bool,
    distillation: int,
    append: bool,
) -> None:
    """Print one row."""
    with joined_team(torch.device(device)) as (together, where):
        row = timed(shape, blocks, recipe, bpw, changes, where, plain, profiled, distillation)
        if append and together.first:
            append_rows("compress_speed", [row])
        if together.first:
            click.echo(json.dumps(row))


def timed(
    shape: str,
    blocks: int,
    recipe: str,
    bpw: float,
    changes: tuple[str, ...],
    where: torch.device,
    plain: bool,
    profiled: bool,
    distillation: int,
) -> dict[str, Any]:
    """One row; see the options of the command."""
    settings = {name: json.loads(value) for name, value in (change.split("=", 1) for change in changes)}
    chosen = Recipe.preset(recipe, **settings)
    dtype = preferred_dtype(where)
    model: Any = random_model(shape, blocks, where)
    family = family_of({"model_type": "llama"})
    layers = model.model.layers
    vocab = SHAPES[shape][-1]
    windows = torch.randint(vocab, (chosen.windows, chosen.window_length), generator=torch.Generator().manual_seed(0))
    linears = {name: model.get_submodule(name) for name in family.layer_names(blocks)}
    start = stopwatch(where)
    importances = collect_importances(model, linears, windows, chosen.gamma, dtype=dtype)
    if chosen.curvature:
        importances = with_curvature(model, linears, windows, importances, lambda _part: None, dtype)
    row: dict[str, Any] = {"model": shape, "recipe": recipe, "schedule": " ".join(changes), "target_bpw": bpw}
    row |= {
        "graphs": not plain,
        "processes": team().size,
        "importances_s": round(stopwatch(where) - start, 2),
        "blocks": [],
    }
    arguments = recorded_arguments(model, layers, windows[:1].to(where))
    stream = torch.cat([first_inputs(model, layers, part.to(where)) for part in windows.split(8)]).float()
    compressed = stream.clone()
    call = BlockCall(arguments[0], where, dtype)
    bench = Workbench(layers[0], family.linears, call, chosen, keep=False if plain else None, at_once=8)
    factors = {}
    ranks = {name: rank_for_rate(*bench.open[name].weight.shape, bpw) for name in family.linears}
    for index, dense in enumerate(layers):
        start = stopwatch(where)
        targets = call.over(dense, stream, 8)
        prefix = f"{family.blocks}.{index}."
        here = {name: importances[prefix + name] for name in family.linears}
        weights = here[family.last_linear].outputs
        result = reconstruct_block(
            dense, family.linears, ranks, here, weights, compressed, targets, call, chosen, 0, bench=bench
        )
        factors.update({prefix + name: value for name, value in result.factors.items()})
        compressed, stream = call.over(bench.block, compressed, 8), targets
        stages = {stage: round(seconds, 2) for stage, seconds in result.seconds.items()}
        losses = {name: outcome[1].last for name, outcome in result.losses.items()}
        row["blocks"].append({**stages, "all": round(stopwatch(where) - start, 2)})
        click.echo(json.dumps({**row["blocks"][-1], "errors": result.errors, "losses": losses}))
    if profiled:
        for name, milliseconds, count in profile(bench, ranks[family.linears[0]]):
            click.echo(f"{milliseconds:9.2f} ms {count:7d}  {name}")
    if where.type == "cuda":
        row["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    if distillation:
        del bench, stream, compressed, targets
        row["distillation_s_a_step"] = distil(shape, chosen, distillation, where, dtype)
    return row


def distil(shape: str, recipe: Recipe, windows: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds a step of scale distillation at full depth, from the difference of a long and a short run."""
    blocks, vocab = SHAPES[shape][5], SHAPES[shape][-1]
    model: Any = random_model(shape, blocks, device)
    factors: dict[str, SignFactors] = {}
    for name in family_of({"model_type": "llama"}).layer_names(blocks):
        layer = model.get_submodule(name)
        m, n = layer.weight.shape
        one = AdmmSettings(steps=1, svid_steps=1)
        found = factorize(layer.weight, torch.ones(n, device=device), torch.ones(m, device=device), 32, one)
        factors[name] = LatentLinear(found, None).harden()
    ids = torch.randint(vocab, (windows, recipe.window_length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), compute_in(dtype, device):
        teacher = torch.cat([model.base_model(part.to(device)).last_hidden_state.to(dtype) for part in ids.split(1)])
    times = []
    for epochs in (1, 3):
        start = stopwatch(device)
        changed = Recipe.preset(recipe.name, window_length=recipe.window_length, kd_epochs=epochs)
        distill_scales(model, model.model.layers, factors, ids, teacher, changed, 0, device, dtype)
        times.append(stopwatch(device) - start)
    return round((times[1] - times[0]) / (2 * windows), 4)


if __name__ == "__main__":
    main()
