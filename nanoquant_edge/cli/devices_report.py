# SPDX-License-Identifier: Apache-2.0
"""Tables of `nq-edge devices show` and `nq-edge devices fit`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..devices import Assessment, Target
from ..system.terminal import terminal

__all__ = ["print_assessment", "print_device"]


def print_device(target: Target) -> None:
    """Everything of a profile, each number beside its source."""
    console = terminal()
    table = Table(title=f"{target.name}: {target.title}", title_justify="left")
    for column in ("", "value", "source"):
        table.add_column(column, overflow="fold")
    cpu = target.cpu
    modes = ", ".join(
        f"{mode.name} {mode.watts:g} W"
        + (f" ({mode.gpu_ghz:g} GHz, {mode.bandwidth_gbs:g} GB/s)" if mode.gpu_ghz else "")
        for mode in target.power_modes
    )
    values = {
        "memory_gb": f"{target.memory_gb:g} GB{', shared by CPU and GPU' if target.unified else ''}"
        if target.memory_gb
        else "",
        "reserved_gb": f"{target.reserved_gb:g} GB are not the model's",
        "bandwidth_gbs": f"{target.bandwidth_gbs:g} GB/s" if target.bandwidth_gbs else "",
        "compute_capability": target.compute_capability,
        "multiprocessors": f"{target.multiprocessors}" if target.multiprocessors else "",
        "gpu_ghz": f"{target.gpu_ghz:g} GHz" if target.gpu_ghz else "",
        "cpu": f"{cpu.cores} cores, {cpu.ghz:g} GHz, {cpu.isa} kernels" if cpu else "",
        "power_modes": modes,
        "software": "; ".join(
            ", ".join(f"{key} {value}" for key, value in row.items() if value) for row in target.software
        ),
    }
    for name, value in values.items():
        if value:
            table.add_row(name.replace("_", " "), value, target.sources.get(name, ""))
    console.print(table)
    if target.backend:
        console.print(f"runs bundles by {target.backend}, graphs of dialect {target.dialect}")
    for note in target.notes:
        console.print(note)


def print_assessment(found: Assessment) -> None:
    """The answer in a line, then memory, rates and speed."""
    console = terminal()
    fit, model = found.fit, found.model
    verdict = "fits" if fit.fits else "does not fit"
    if fit.available is None:
        verdict = "cannot be judged on an architecture, whose cards differ, but takes its memory so:"
    console.print(
        Text(
            f"{_plain(model.name)} ({model.config.family}) at {model.bpw:g} bits per weight, tables in {model.table}, "
            f"context {fit.capacity}: {verdict} {fit.target.title}",
            style="bold",
        )
    )
    table = Table(title="memory, MB (weights and cache from sizes, the rest estimated)", title_justify="left")
    for column in (*fit.parts, "needed", "available", "set aside"):
        table.add_column(column, justify="right")
    available = "not known" if fit.available is None else f"{fit.available / 1e6:.0f}"
    sizes = [f"{size / 1e6:.1f}" for size in (*fit.parts.values(), fit.needed)]
    table.add_row(*sizes, available, f"{fit.target.reserved_gb * (1 << 30) / 1e6:.0f}")
    console.print(table)
    context = f"{found.largest_context} tokens" if found.largest_context else "none"
    best = f"{found.best_bpw:g} bits per weight" if found.best_bpw else "none of those tried"
    console.print(f"largest context at this rate: {context}; highest rate that fits at this context: {best}")
    console.print(f"uncompressed in 16 bits the weights alone take {model.dense / 1e6:.0f} MB")
    for note in found.notes:
        console.print(note)
    if found.speed is not None:
        speed = found.speed
        energy = f", at most {speed.joules_per_token:.2g} J a token ({speed.watts:g} W)" if speed.watts else ""
        console.print(
            f"forecast, not measured: decode {speed.decode} tokens/s, prompt {speed.prefill} tokens/s on "
            f"the {speed.path}{energy}"
        )
        parts = ", ".join(f"{name} {value / 1e3:.2f}" for name, value in speed.step_us.items())
        console.print(f"a decode step, ms: {parts} ({speed.basis})")
    if not found.quality:
        console.print("quality at this rate: not known for this model; see nq-edge validate")
        return
    rows = Table(title="quality, WikiText-2 perplexity", title_justify="left")
    for column in ("model of this shape", "bits per weight", "perplexity", "dense", "kind", "source"):
        rows.add_column(column)
    for row in found.quality:
        rows.add_row(row.model, f"{row.bpw:g}", f"{row.ppl:.2f}", f"{row.ppl_dense:.2f}", row.kind, row.source)
    console.print(rows)


def _plain(text: str) -> str:
    """A stranger's text for the terminal: no control sequences."""
    return "".join(character if character.isprintable() else "?" for character in text)
