# SPDX-License-Identifier: Apache-2.0
"""What `nq-edge devices show` and `nq-edge devices fit` print: the answer first, then what it rests on."""

from __future__ import annotations

from ..devices import Assessment, Forecast, Target
from ..formats.backends import BACKEND_TITLES
from ..system.terminal import plain, terminal
from ..system.units import bits_text
from .layout import facts, figures

__all__ = ["print_assessment", "print_device", "runner_title"]

#: Fields of a profile -> what their sources are sources of.
_SOURCED = {
    "memory_gb": "memory",
    "reserved_gb": "memory that is set aside",
    "bandwidth_gbs": "bandwidth",
    "compute_capability": "compute capability",
    "multiprocessors": "multiprocessors",
    "gpu_ghz": "GPU clock",
    "cpu": "processor",
    "power_modes": "power modes",
    "software": "software",
}
_SPELLED = {"l4t": "L4T", "cuda": "CUDA", "tensorrt": "TensorRT", "python": "Python", "os": "", "jetpack": "JetPack"}


def runner_title(target: Target) -> str:
    """What runs bundles on a device, by its usual name."""
    return {**BACKEND_TITLES, "pytorch": "PyTorch"}.get(target.backend, target.backend)


def print_device(target: Target) -> None:
    """Everything of a profile, and where its numbers are from."""
    console = terminal()
    console.print(plain(f"{target.title} ({target.name})", style="bold"))
    console.print()
    cpu, shared = target.cpu, " shared by CPU and GPU" if target.unified and target.compute_capability else ""
    memory = [f"{target.memory_gb:g} GB{shared}"] if target.memory_gb else []
    memory += [f"{target.bandwidth_gbs:g} GB/s"] if target.bandwidth_gbs else []
    gpu = [f"compute capability {target.compute_capability}"] if target.compute_capability else []
    if target.multiprocessors:
        clock = f" at {target.gpu_ghz:g} GHz" if target.gpu_ghz else ""
        gpu.append(f"{target.multiprocessors} multiprocessors{clock}")
    modes = [
        f"{mode.name}: {mode.watts:g} W"
        + (f", GPU at {mode.gpu_ghz:g} GHz" if mode.gpu_ghz else "")
        + (f", {mode.bandwidth_gbs:g} GB/s" if mode.bandwidth_gbs else "")
        for mode in target.power_modes
    ]
    systems = [
        ", ".join(f"{_SPELLED.get(key, key)} {value}".strip() for key, value in row.items() if value)
        for row in target.software
    ]
    runner = runner_title(target)
    console.print(
        facts(
            (
                ("memory", ", ".join(memory)),
                ("set aside", f"{target.reserved_gb:g} GB that are not the model's" if memory else ""),
                ("GPU", ", ".join(gpu)),
                ("processor", f"{cpu.cores} cores at {cpu.ghz:g} GHz, {cpu.isa} kernels" if cpu else ""),
                *(("power modes" if not index else "", mode) for index, mode in enumerate(modes)),
                *(("software" if not index else "", system) for index, system in enumerate(systems)),
                ("runs bundles by", f"{runner}, graphs of dialect {target.dialect}" if runner else ""),
                *(("note" if not index else "", note) for index, note in enumerate(target.notes)),
            )
        )
    )
    _print_sources(target)


def _print_sources(target: Target) -> None:
    """Each source once, behind the names of what it is the source of."""
    cited: dict[str, list[str]] = {}
    for field, title in _SOURCED.items():
        value = getattr(target, field)
        if field in target.sources and value not in (None, "", ()):
            cited.setdefault(target.sources[field], []).append(title)
    if cited:
        console = terminal()
        console.print()
        console.print(plain("Sources", style="bold"))
        for source, titles in cited.items():
            console.print(plain(f"- {', '.join(titles)}: {source}."))


def print_assessment(found: Assessment) -> None:
    """The answer in a line, then memory, rates, speed and quality."""
    console, fit, model = terminal(), found.fit, found.model
    console.print(plain(_verdict(found), style="bold"))
    rate = f"{bits_text(model.bpw)}, embedding and head in {model.table}, context of {fit.capacity} tokens"
    console.print(plain(f"{model.name} ({model.config.family}): {rate}."))
    sizes = [(name, f"{size / 1e6:.1f}") for name, size in fit.parts.items()]
    sizes.append(("needed", f"{fit.needed / 1e6:.1f}"))
    if fit.available is not None:
        sizes.append(("available for a model", f"{fit.available / 1e6:.1f}"))
    sizes.append(("set aside for the system", f"{fit.target.reserved_gb * (1 << 30) / 1e6:.1f}"))
    console.print(figures(("memory (weights and cache exact, the rest estimated)", "MB"), sizes))
    context = f"up to {found.largest_context} tokens fit" if found.largest_context else "none fits"
    best = f"up to {bits_text(found.best_bpw)} fit" if found.best_bpw else "none of those tried fits"
    console.print(
        facts(
            (
                ("context", f"{context} at this rate"),
                ("rate", f"{best} at this context"),
                ("uncompressed", f"{model.dense / 1e6:.0f} MB for the weights alone, in 16 bits"),
                *_speed(found.speed),
                *(("note" if not index else "", note) for index, note in enumerate(found.notes)),
                *(() if found.quality else [("quality", "not known for this model; nq-edge validate measures it")]),
            )
        )
    )
    if found.quality:
        _print_quality(found)


def _verdict(found: Assessment) -> str:
    fit, speed = found.fit, found.speed
    if fit.available is None:
        return f"Cannot be judged on {fit.target.title}, whose cards differ: {fit.needed / 1e6:.0f} MB are needed."
    if not fit.fits:
        return (
            f"Does not fit {fit.target.title}: needs {fit.needed / 1e6:.0f} MB, "
            f"{fit.available / 1e6:.0f} MB are available."
        )
    fast = f", about {_figure(speed.decode.middle)} tokens/s (forecast)" if speed else ""
    return f"Fits {fit.target.title}: {fit.needed / 1e6:.0f} of {fit.available / 1e6:.0f} MB{fast}."


def _speed(speed: Forecast | None) -> list[tuple[str, str]]:
    if speed is None:
        return []
    parts = ", ".join(f"{name} {value / 1e3:.2f}" for name, value in speed.step_us.items())
    ranges = [
        f"{_figure(rates.middle)} ({_figure(rates.low)} to {_figure(rates.high)}) tokens/s"
        for rates in (speed.decode, speed.prefill)
    ]
    energy = f"at most {speed.joules_per_token:.2g} J a token at {speed.watts:g} W" if speed.watts else ""
    return [
        ("decode", f"{ranges[0]} on the {speed.path}; forecast, not measured"),
        ("prompt", f"{ranges[1]}; forecast, not measured"),
        ("energy", energy),
        ("a decode step", f"{sum(speed.step_us.values()) / 1e3:.2f} ms: {parts}"),
        ("forecast from", speed.basis),
    ]


def _figure(value: float) -> str:
    """A rate with as many digits as a forecast deserves."""
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _print_quality(found: Assessment) -> None:
    console = terminal()
    rows = [(f"{row.bpw:g}", f"{row.ppl:.2f}", f"{row.ppl_dense:.2f}", row.kind) for row in found.quality]
    first = found.quality[0]
    console.print()
    console.print(plain(f"Quality of {first.model}, which has this shape: perplexity on WikiText-2", style="bold"))
    console.print(figures(("bits per weight", "perplexity", "dense", "figure"), rows))
    for source in dict.fromkeys(row.source for row in found.quality):
        console.print(plain(f"Source: {source}."))
