# SPDX-License-Identifier: Apache-2.0
"""Where a decoded token's time goes, by ONNX Runtime's own profile of the nodes that it runs."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.bundle import Bundle
from ..runtimes.onnxruntime.backend import OnnxRuntimeBackend
from .measure import BenchOptions

__all__ = ["Profile", "profile_step"]

_STEPS = 12


@dataclass(frozen=True)
class Profile:
    """Nodes of one step.

    Attributes:
        nodes: that are run, after ONNX Runtime's fusions.
        operators: operator type -> (nodes, microseconds a step in all); the clock's own cost, about a microsecond a
            node, is in them.
    """

    nodes: int
    operators: dict[str, tuple[int, float]]

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON, the costliest operator first."""
        order = sorted(self.operators.items(), key=lambda item: -item[1][1])
        return {"nodes": self.nodes, "operators": {name: list(entry) for name, entry in order}}


def profile_step(folder: str | Path, options: BenchOptions, *, context: int) -> Profile:
    """Profile decoding with `context` tokens in the cache; opens the bundle once more.

    Raises:
        NqEdgeError: as `OnnxRuntimeBackend`.
    """
    bundle = Bundle.open(folder, verify=False)
    with (
        tempfile.TemporaryDirectory() as scratch,
        OnnxRuntimeBackend(bundle, options, profile_prefix=str(Path(scratch, "profile"))) as backend,
    ):
        backend.forward(np.ones((1, context), np.int64))
        for _ in range(_STEPS):
            backend.forward(np.ones((1, 1), np.int64))
        events = json.loads(Path(backend.end_profile()).read_text(encoding="utf-8"))
    return _read(events)


def _read(events: list[dict[str, Any]]) -> Profile:
    """Median of a node's times over the last steps, summed by operator type."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (str(event["args"]["op_name"]), str(event["name"]))
            times.setdefault(key, []).append(float(event["dur"]))
    operators: dict[str, tuple[int, float]] = {}
    for (kind, _), found in times.items():
        count, total = operators.get(kind, (0, 0.0))
        operators[kind] = (count + 1, total + float(np.median(found[-_STEPS:])))
    return Profile(sum(count for count, _ in operators.values()), operators)
