# SPDX-License-Identifier: Apache-2.0
"""Will it fit, with how much context, at which rate, how good and how fast? One answer for a model and a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import NqEdgeError
from .fit import Fit, ModelSizes, check_fit, largest_capacity
from .forecast import Forecast, forecast
from .model import ModelFacts
from .profile import Target
from .quality import QualityRow, quality_rows

__all__ = ["RATES", "Assessment", "assess", "sizes_of"]

#: Rates that are tried for the best one that fits; published results are at several of them.
RATES = (0.55, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
#: Bytes of the process besides model, cache and activations: Python, ONNX Runtime, tokenizer; resident memory of
#: docs/figures/cpu_peers.json less those.
_CPU_RUNTIME = 100_000_000
#: Tokens of a prompt that pass at once: ONNX Runtime backend and engines alike.
_PREFILL = 512


@dataclass(frozen=True)
class Assessment:
    """What is known before anything is downloaded, compressed or built.

    Attributes:
        model: at the rate in question.
        fit: memory at `fit.capacity` tokens of context.
        largest_context: most tokens that fit, 0 if not even the smallest cache does.
        best_bpw: highest of `RATES` that fits at this context; None if none does.
        quality: what the rates cost, measured or published; empty where nothing is known of this model.
        speed: forecast; None for an architecture.
        notes: what the answer takes for granted, and what a user of the device must know.
    """

    model: ModelFacts
    fit: Fit
    largest_context: int
    best_bpw: float | None
    quality: tuple[QualityRow, ...]
    speed: Forecast | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        speed = self.speed
        return {
            "model": {
                "name": self.model.name,
                "kind": self.model.kind,
                "family": self.model.config.family,
                "bpw": self.model.bpw,
                "table": self.model.table,
                "dense_bytes": self.model.dense,
            },
            **self.fit.to_dict(),
            "fits": self.fit.fits,
            "largest_context": self.largest_context,
            "best_bpw": self.best_bpw,
            "notes": list(self.notes),
            "quality": [vars(row) for row in self.quality],
            "forecast": None
            if speed is None
            else {
                "path": speed.path,
                "decode_tps": vars(speed.decode),
                "prefill_tps": vars(speed.prefill),
                "step_us": {name: round(value, 1) for name, value in speed.step_us.items()},
                "watts": speed.watts,
                "joules_per_token": speed.joules_per_token,
                "basis": speed.basis,
                "kind": speed.kind,
            },
        }


def assess(
    model: ModelFacts, target: Target, *, context: int = 2048, batch: int = 1, power_mode: str | None = None
) -> Assessment:
    """Look at a model on a device.

    Args:
        model: at the rate in question.
        target: the device.
        context: tokens of prompt and text together.
        batch: sequences at once.
        power_mode: power mode of the device that the forecast is for; None takes the highest.

    Raises:
        NqEdgeError: NQ-OPTION for a context beyond the model's positions, and as `forecast`.
    """
    limit = model.config.max_positions
    if not 1 <= context <= limit:
        raise NqEdgeError("NQ-OPTION", f"context {context} is not between 1 and the model's {limit} positions.")
    if batch < 1:
        raise NqEdgeError("NQ-OPTION", f"batch {batch} is not a number of sequences.")
    notes = target.notes
    if target.flavour != "none" and model.table in ("int8", "int4"):
        notes += (f"Graphs for GPUs hold 16-bit tables, so that {model.table} ones are counted as float16.",)
        model = model.at(table="float16")
    sizes, extra = sizes_of(model, target, batch)
    fits = [rate for rate in RATES if _fit(model.at(rate), target, batch, context).fits]
    speed = None if target.bandwidth_gbs is None else forecast(target, model, context=context, power_mode=power_mode)
    return Assessment(
        model=model,
        fit=check_fit(target, sizes, capacity=context, extra=extra),
        largest_context=largest_capacity(target, sizes, limit=limit, extra=extra),
        best_bpw=fits[-1] if fits else None,
        quality=tuple(quality_rows(model.config)),
        speed=speed,
        notes=notes,
    )


def sizes_of(model: ModelFacts, target: Target, batch: int = 1) -> tuple[ModelSizes, dict[str, int]]:
    """What `check_fit` needs, and parts of memory besides: the runtime on a processor."""
    config, cpu = model.config, target.flavour == "none"
    # On a processor tables of 16 bits become float32 in memory, beside the mapped file that rows are gathered from.
    wide = cpu and model.table in ("float16", "bfloat16")
    sizes = ModelSizes.of(
        config,
        weights=model.body + model.tables * (3 if wide else 1),
        batch=batch,
        prefill=min(_PREFILL, config.max_positions),
        positions=1 if cpu else 16,
        item=4 if cpu else 2,
        max_positions=config.max_positions,
        in_place=target.dialect != "trt103",
        engine=not cpu,
    )
    return sizes, {"runtime": _CPU_RUNTIME} if cpu else {}


def _fit(model: ModelFacts, target: Target, batch: int, context: int) -> Fit:
    sizes, extra = sizes_of(model, target, batch)
    return check_fit(target, sizes, capacity=context, extra=extra)
