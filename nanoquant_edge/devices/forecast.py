# SPDX-License-Identifier: Apache-2.0
"""How fast will it be? A forecast with a range, never a measurement; every part of a step is shown.

On a GPU a decode step is the sum of its compressed layers (`gpu_time`), the head and the cache at memory speed, and the
rest of each block. On a processor it is the signs over the rate of our kernels or their bytes over the bandwidth,
whichever is longer, the head at memory speed, and ONNX Runtime's time a node.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import NqEdgeError
from ..models.rates import rank_for_rate
from .cpu_time import cpu_prefill_tps, cpu_step
from .gpu_time import BLOCK_US, LINEARS, Code, Gpu, half_us, int8_rate
from .model import ModelFacts, linear_groups
from .profile import Target

__all__ = ["Forecast", "Range", "forecast", "gpu_of", "gpu_step"]

#: GHz of the GPU that the constants of `gpu_time` were read on.
_H200_GHZ = 1.98
#: Share of the bandwidth that head and cache reach: 0.96 and about a half were measured on the H200, 0.8 is assumed
#: elsewhere for the head.
_HEAD_SHARE, _CACHE_SHARE = {True: 0.96, False: 0.8}, 0.5
#: Microseconds to choose a token, on the H200.
_CHOICE_US = 5.0
#: A prompt on the H200 (first-token times of gpu_decode.json, 128 tokens): share of the published int8 rate with two
#: planes an activation, and microseconds of a block besides those of a step.
_PREFILL_SHARE, _PLANES, _PREFILL_BLOCK_US = 0.5, 2, 75.0
#: (share of bandwidth, compressed layers, rest of a block) of the slow and the fast end, relative to the middle.
_SLOW, _FAST = (0.65, 1.3, 1.6), (1.25, 0.85, 0.7)


@dataclass(frozen=True)
class Range:
    """A forecast figure: its middle and both ends."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.middle >= 20 else 1
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Forecast:
    """Tokens a second at batch 1.

    Attributes:
        path: "GPU" or "CPU".
        decode: tokens a second while a text is written, with `context` tokens in the cache.
        prefill: tokens a second of a prompt of 512 tokens, or of the context if that is shorter.
        step_us: part of a decode step -> microseconds, at the middle.
        watts: power of the power mode, where it is known.
        basis: what the constants come from.
    """

    path: str
    decode: Range
    prefill: Range
    step_us: dict[str, float]
    watts: float | None
    basis: str
    kind: str = field(default="forecast", init=False)

    @property
    def joules_per_token(self) -> float | None:
        """At most so much energy a token: the power mode's budget over the middle of decode."""
        return None if self.watts is None else self.watts / self.decode.middle


def forecast(target: Target, model: ModelFacts, *, context: int, power_mode: str | None = None) -> Forecast:
    """Predict a model on a device.

    Args:
        target: the device.
        model: at the rate in question.
        context: tokens in the cache.
        power_mode: a name of the profile; None takes the highest.

    Raises:
        NqEdgeError: NQ-OPTION for a power mode that the profile does not know or whose clocks are not published;
            NQ-TARGET for an architecture, whose cards differ.
    """
    if target.bandwidth_gbs is None:
        raise NqEdgeError(
            "NQ-TARGET", f"{target.name} is an architecture, whose cards differ.", "Name a card or a board."
        )
    ghz, gbs, watts = _clocks(target, power_mode)
    tokens = min(512, context)
    if target.multiprocessors is not None and target.compute_capability:
        gpu = gpu_of(target, ghz, gbs)
        parts = gpu_step(gpu, model, context=context)
        steps = [sum(gpu_step(gpu, model, context=context, end=end).values()) for end in (_SLOW, (1, 1, 1), _FAST)]
        decode = Range(*(1e6 / step for step in steps))
        macs = tokens * sum(_signs(model)) * _PLANES
        blocks = model.config.num_layers * _PREFILL_BLOCK_US * _H200_GHZ / gpu.ghz
        seconds = (sum(parts.values()) + blocks) / 1e6 + macs / (int8_rate(gpu) * _PREFILL_SHARE)
        middle = tokens / seconds
        basis = "kernel constants of an H200, data-sheet figures of this device"
        return Forecast("GPU", decode, Range(middle / 2.5, middle, middle * 1.8), parts, watts, basis)
    if target.cpu is None:
        raise NqEdgeError("NQ-TARGET", f"nothing is known of {target.name}'s processor.", "Name another device.")
    parts = cpu_step(target.cpu, model, gbs=gbs, context=context)
    step = 1e6 / sum(parts.values())
    # Kernels of other instruction sets than the measured one are counted at an assumed rate.
    spread = 1.5 if target.cpu.isa == "avx512" else 2.0
    middle = cpu_prefill_tps(target.cpu, model, tokens)
    basis = "rates of our kernels on two AVX-512 cores; other instruction sets assumed from their width"
    prefill = Range(middle / spread, middle, middle * spread)
    return Forecast("CPU", Range(step / spread, step, step * spread), prefill, parts, watts, basis)


def gpu_of(target: Target, ghz: float | None = None, gbs: float | None = None) -> Gpu:
    """The numbers of a profile's GPU, at other clocks if given."""
    assert target.multiprocessors is not None and target.gpu_ghz is not None and target.bandwidth_gbs is not None
    architecture = int(target.compute_capability.replace(".", ""))
    return Gpu(architecture, target.multiprocessors, ghz or target.gpu_ghz, gbs or target.bandwidth_gbs)


def gpu_step(
    gpu: Gpu, model: ModelFacts, *, context: int, end: tuple[float, float, float] = (1, 1, 1)
) -> dict[str, float]:
    """Microseconds of a decode step, part by part; `end` scales bandwidth share, layers and the rest of a block."""
    config, code = model.config, Code.typical(gpu.bits)
    share = min(0.92, gpu.stream * end[0])
    linears = 0.0
    for group in linear_groups(config):
        # Layers that share their input run together: as one matrix with the rows of all.
        ranks = [rank_for_rate(out, into, model.bpw) for out, into in group]
        linears += half_us(gpu, code, rows=sum(ranks), columns=group[0][1], share=share)
        linears += half_us(gpu, code, rows=sum(out for out, _ in group), columns=max(ranks), share=share)
    slower = _H200_GHZ / gpu.ghz
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2 * context
    return {
        "compressed layers": config.num_layers * linears * LINEARS * end[1],
        "rest of the blocks": config.num_layers * BLOCK_US * slower * end[2],
        "head": model.head / (gpu.gbs * min(0.97, _HEAD_SHARE[gpu.gbs > 1200] * end[0] ** 0.5)) / 1e3,
        "cache": cache / (gpu.gbs * _CACHE_SHARE * end[0] ** 0.5) / 1e3,
        "choice": _CHOICE_US * slower,
    }


def _signs(model: ModelFacts) -> list[int]:
    """Sign multiplications of one token, a compressed layer each, over all blocks."""
    layers = [layer for group in linear_groups(model.config) for layer in group]
    return [model.config.num_layers * (m + n) * rank_for_rate(m, n, model.bpw) for m, n in layers]


def _clocks(target: Target, power_mode: str | None) -> tuple[float | None, float, float | None]:
    """GHz of the GPU, GB/s and watts in a power mode."""
    assert target.bandwidth_gbs is not None
    highest = target.power_modes[-1].watts if target.power_modes else None
    if power_mode is None:
        return target.gpu_ghz, target.bandwidth_gbs, highest
    modes = {mode.name.lower(): mode for mode in target.power_modes}
    mode = modes.get(power_mode.lower())
    if mode is None:
        raise NqEdgeError(
            "NQ-OPTION",
            f"{target.name} has no power mode {power_mode[:40]!r}.",
            f"Known: {', '.join(mode.name for mode in target.power_modes) or 'none'}.",
        )
    if mode.gpu_ghz is None or mode.bandwidth_gbs is None:
        usable = [mode.name for mode in target.power_modes if mode.gpu_ghz and mode.bandwidth_gbs]
        raise NqEdgeError(
            "NQ-OPTION",
            f"the clocks of {target.name} in power mode {mode.name} are not in its profile.",
            f"Use {' or '.join(usable)}, or leave --power-mode out." if usable else "Leave --power-mode out.",
        )
    return mode.gpu_ghz, mode.bandwidth_gbs, mode.watts
