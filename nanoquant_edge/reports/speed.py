# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of a bundle: what `nq-edge bench --record` measured beside what is forecast for the same machine."""

from __future__ import annotations

from typing import Any

from ..devices import TARGETS, forecast, open_model
from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from .page import Paragraph, Part, Table

__all__ = ["speed_parts"]


def speed_parts(bundle: Bundle) -> list[Part]:
    """A table of measured and forecast figures, or how to get the measured ones.

    Args:
        bundle: its manifest may hold `measured["bench"]`, which is free form and may come from a stranger.
    """
    bench = bundle.measured.get("bench")
    timings = bench.get("timings") if isinstance(bench, dict) else None
    if not isinstance(bench, dict) or not isinstance(timings, list):
        return [Paragraph("Nothing was measured yet: `nq-edge bench BUNDLE --record` stores its figures here.")]
    rows: list[tuple[str, str, str]] = []
    device = str(bench.get("device", ""))
    for timing in timings[:64]:
        if not isinstance(timing, dict):
            continue
        prompt = timing.get("prompt")
        ahead = _forecast(bundle, device, prompt)
        for key, title in (("decode_tps", "decode, tokens/s"), ("prefill_tps", "prefill, tokens/s")):
            rows.append((f"{title}, prompt of {prompt}", _figure(timing.get(key)), ahead.get(key, "not known")))
    memory = bench.get("memory_mb")
    if isinstance(memory, dict):
        rows += [(f"memory {name}, MB", _figure(value), "") for name, value in memory.items()]
    rows.append(("files, MB", _figure(bench.get("file_mb")), ""))
    where = f"Measured on {device or 'a machine that is not a known device'}, {bench.get('date', 'some day')}."
    return [Paragraph(where), Table(("figure", "measured", "forecast"), rows)]


def _forecast(bundle: Bundle, device: str, prompt: Any) -> dict[str, str]:
    target = TARGETS.get(device)
    if target is None or not isinstance(prompt, int) or prompt < 1:
        return {}
    try:
        ahead = forecast(target, open_model(str(bundle.folder)), context=prompt)
    except NqEdgeError:  # of a bundle without configuration, or a device without published figures
        return {}
    return {"decode_tps": str(ahead.decode), "prefill_tps": str(ahead.prefill)}


def _figure(value: Any) -> str:
    """A number, or a median with the least and the most."""
    if isinstance(value, int | float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int | float) for part in value):
        return f"{value[0]:.4g} ({value[1]:.4g} to {value[2]:.4g})"
    return "not measured"
