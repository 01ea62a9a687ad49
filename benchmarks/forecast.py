# SPDX-License-Identifier: Apache-2.0
"""The forecasts of `nq-edge devices fit` beside what was measured here and what others published.

    python -m benchmarks.forecast [--write] [--table]

Three kinds of rows. "measured": our own kernels, on an H200 (docs/figures/gpu_decode.json) and on this project's CPU
machine (docs/figures/cpu_peers.json or decode.json); the constants were fitted to some of them, which say so.
"other kernels": NanoQuant by its official code on GPUs that this project has not got; the forecast is of our kernels,
so the ratio is an expectation as much as an error. "other format": 4-bit and 1-bit engines of others on Jetson boards
and cards, forecast by the same bandwidths, latencies and head, with a dense product in place of ours: they check those.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import FOLDER, append_rows, figures_option
from benchmarks.forecast_data import MODELS, OFFICIAL, OTHERS
from nanoquant_edge.devices import forecast, target_named
from nanoquant_edge.devices.assess import sizes_of
from nanoquant_edge.devices.fit import check_fit
from nanoquant_edge.devices.forecast import gpu_of, gpu_step
from nanoquant_edge.devices.gpu_time import BLOCK_US, HANDOFF_US, LOAD_CYCLES, Gpu
from nanoquant_edge.devices.model import ModelFacts
from nanoquant_edge.devices.profile import Cpu, Target
from nanoquant_edge.models.config_reader import read_config

DOCUMENT = FOLDER.parent / "DEVICES.md"
#: Shapes in gpu_decode.json, real models left out.
SHAPES = ("qwen3-0.6b", "llama-3.2-1b", "qwen3-8b", "llama-2-70b")
#: Rows of gpu_decode.json that the constants of devices/gpu_time.py were fitted to.
FITTED = {("qwen3-0.6b", 128), ("llama-3.2-1b", 128), ("qwen3-8b", 128)}
#: This project's CPU machine.
_CORES = "two AVX-512 cores"
#: Share of the bandwidth that a dense product of others is counted at.
DENSE_SHARE = 0.8


def model_named(name: str, bpw: float, table: str = "float16") -> ModelFacts:
    """A model of `forecast_data.MODELS`."""
    return ModelFacts(name, "configuration", read_config(MODELS[name]), bpw, table)


def dense_tps(gpu: Gpu, model: ModelFacts, bits: float, head_bits: float, context: int) -> float:
    """Tokens a second of an engine with one launch for each group of layers, at `bits` a weight."""
    slower = 1.98 / gpu.ghz
    launches = 4 * (HANDOFF_US[gpu.architecture >= 90] + LOAD_CYCLES / gpu.ghz / 1e3) + BLOCK_US * slower
    weights = model.body_weights * bits / 8 / (gpu.gbs * DENSE_SHARE) / 1e3
    head = model.table_elements * head_bits / 8 / (gpu.gbs * DENSE_SHARE) / 1e3
    cache = gpu_step(gpu, model, context=context)["cache"]
    return 1e6 / (model.config.num_layers * launches + weights + head + cache)


def measured_rows(folder: Path) -> list[dict[str, Any]]:
    """Our kernels: predicted against measured."""
    rows = []
    h200 = target_named("h200")
    path = folder / "gpu_decode.json"
    newest: dict[tuple[str, float, int], dict[str, Any]] = {}
    for row in json.loads(path.read_text())["rows"] if path.is_file() else []:
        plain = row.get("table", "fp16") == "fp16" and row.get("cache_bits", 16) == 16 and not row.get("host_embedding")
        shape = row["weights"] == "nanoquant" and row["batch"] == 1 and row["prompt"] == 128 and row["model"] in SHAPES
        if plain and shape:
            newest[row["model"], row["target_bpw"], row["new"]] = row
    for (name, bpw, new), row in sorted(newest.items()):
        found = forecast(h200, model_named(name, bpw), context=row["prompt"] + new // 2)
        role = "fitted" if (name, new) in FITTED else "held out"
        source = f"docs/figures/gpu_decode.json, {role}"
        rows.append(_row("h200", name, bpw, found.decode, row["tps"], source, "measured", new))
    for (name, bpw, new), row in sorted(newest.items()):
        if new == 128:
            prompt = forecast(h200, model_named(name, bpw), context=row["prompt"]).prefill
            known = round(1e3 * row["prompt"] / row["ttft_ms"], 1)
            source = "docs/figures/gpu_decode.json, first token after 128, fitted"
            rows.append(_row("h200", name, bpw, prompt, known, source, "measured prompt", 0))
    cpu = _this_cpu()
    for row in cpu_measurements(folder):
        facts = model_named("smollm2-135m", row["bpw"], row["table"])
        name = f"smollm2-135m, {row['table']} tables"
        found = forecast(cpu, facts, context=row["context"])
        rows.append(_row(_CORES, name, row["bpw"], found.decode, row["decode"], row["source"], "measured", 64))
        if row["prefill"]:
            prompt = forecast(cpu, facts, context=256).prefill
            rows.append(_row(_CORES, name, row["bpw"], prompt, row["prefill"], row["source"], "measured prompt", 0))
    return rows


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    """Resident memory of the process on this project's CPU machine: predicted against measured."""
    rows = []
    for row in cpu_measurements(folder):
        sizes, extra = sizes_of(model_named("smollm2-135m", row["bpw"], row["table"]), _this_cpu())
        needed = check_fit(_this_cpu(), sizes, capacity=row["context"], extra=extra).needed / 1e6
        entry = {"device": _CORES, "model": f"smollm2-135m, {row['table']} tables", "target_bpw": row["bpw"]}
        entry |= {"predicted_mb": round(needed, 1), "measured_mb": row["mb"], "source": row["source"]}
        rows.append({**entry, "kind": "measured memory", "predicted_over_known": round(needed / row["mb"], 2)})
    return rows


def cpu_measurements(folder: Path) -> list[dict[str, Any]]:
    """Newest figures of our kernels on a processor: rate, tables, tokens a second, MB."""
    found: dict[str, dict[str, Any]] = {}
    for file, start in (("decode.json", "nanoquant bundle"), ("cpu_peers.json", "nanoquant-")):
        path = folder / file
        for row in json.loads(path.read_text())["rows"] if path.is_file() else []:
            name = str(row.get("name", ""))
            if not name.startswith(start) or "isa" in row:  # newer kernels than those that the constants were fitted to
                continue
            peers = file == "cpu_peers.json"
            head = name.rsplit("-", 1)[-1].removesuffix("head") if peers else "float16"
            found[name] = {
                "bpw": float(name.split("-")[1].removesuffix("bpw")) if peers else 2.0,
                "table": head if head in ("int8", "int4") else "float16",
                "decode": row["decode_tps"],
                "prefill": row.get("prefill_tps"),
                "mb": row["rss_mb"] if peers else row["peak_mb"],
                "context": 288 if peers else 48,
                "source": f"docs/figures/{file}" + (", fitted" if peers else ", older kernels"),
            }
    return list(found.values())


def _this_cpu() -> Target:
    # The machine of those figures; its bandwidth is not told, and two cores do not fill it.
    return Target(
        "this", "two cores", memory_gb=24, bandwidth_gbs=51.2, cpu=Cpu("avx512", 2, 2.7), backend="onnxruntime"
    )


def published_rows() -> list[dict[str, Any]]:
    """Others: predicted against published."""
    rows = []
    for device, name, bpw, new, tps, source in OFFICIAL:
        found = forecast(target_named(device), model_named(name, bpw), context=128 + new // 2)
        rows.append(_row(device, name, bpw, found.decode, tps, source, "other kernels", new))
    for device, mode, name, bits, head_bits, context, tps, source in OTHERS:
        target = target_named(device)
        modes = {one.name: one for one in target.power_modes}
        clocks = (modes[mode].gpu_ghz, modes[mode].bandwidth_gbs) if mode else (None, None)
        predicted = dense_tps(gpu_of(target, *clocks), model_named(name, 1.0), bits, head_bits, context)
        label = f"{device} {mode}".strip()
        rows.append(_row(label, name, bits, predicted, tps, source, "other format", context))
    return rows


def _row(
    device: str, model: str, bpw: float, predicted: Any, known: float, source: str, kind: str, new: int
) -> dict[str, Any]:
    middle = getattr(predicted, "middle", predicted)
    row = {"device": device, "model": model, "target_bpw": bpw, "new": new, "predicted_tps": round(middle, 1)}
    if middle is not predicted:
        row["predicted_range"] = [round(predicted.low, 1), round(predicted.high, 1)]
    key = "measured_tps" if kind.startswith("measured") else "published_tps"
    return {**row, key: known, "predicted_over_known": round(middle / known, 2), "source": source, "kind": kind}


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, and a line a kind with the spread of its errors."""
    lines = ["| device | model | bits | new | predicted tokens/s (range) | known | predicted / known | whose figure |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in (row for row in rows if "predicted_tps" in row):
        span = "" if "predicted_range" not in row else " ({:.0f}–{:.0f})".format(*row["predicted_range"])
        known = row.get("measured_tps", row.get("published_tps"))
        cells = [row["device"], row["model"], f"{row['target_bpw']:g}", str(row["new"] or "–")]
        cells += [f"{row['predicted_tps']:.0f}{span}"]
        cells += [f"{known:.0f}", f"{row['predicted_over_known']:.2f}", f"{row['kind']}: {row['source']}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for row in (row for row in rows if "predicted_mb" in row):
        lines.append(
            f"- memory of {row['model']} at {row['target_bpw']:g} bits, MB: predicted {row['predicted_mb']:.0f}, "
            f"measured {row['measured_mb']:.0f} ({row['source']})"
        )
    for kind in dict.fromkeys(row["kind"] for row in rows if "predicted_tps" in row):
        ratios = [row["predicted_over_known"] for row in rows if row["kind"] == kind]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        lines.append(
            f"- {kind}: {len(ratios)} rows, geometric mean {mean:.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--write", is_flag=True, help="Write docs/figures/forecast.json and the table of docs/DEVICES.md.")
@figures_option
def main(write: bool, folder: Path) -> None:
    """Print forecasts beside measured and published figures."""
    rows = measured_rows(folder) + published_rows() + memory_rows(folder)
    click.echo(table_of(rows))
    if write:
        (folder / "forecast.json").unlink(missing_ok=True)  # made of other figures as a whole, so nothing is lost
        append_rows("forecast", rows, folder=folder)
        text = DOCUMENT.read_text(encoding="utf-8")
        begin, end = "<!-- forecast table -->\n", "<!-- end -->"
        head, rest = text.split(begin)
        DOCUMENT.write_text(f"{head}{begin}{table_of(rows)}\n{end}" + rest.split(end, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
