# SPDX-License-Identifier: Apache-2.0
"""What a deployment folder holds, as its scripts and its description tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices.assess import Assessment
from ..devices.profile import Target
from ..formats.bundle import Bundle

__all__ = ["Deployment"]


@dataclass(frozen=True)
class Deployment:
    """What a deployment folder holds.

    Attributes:
        folder: folder that was written.
        target: the device.
        bundle: what runs or is built there.
        python, glibc: version of Python and minor version of GLIBC 2.x of the board's system.
        libraries: prebuilt libraries.
        wheels: names of the wheels that travel along.
        complete: the wheels are all that the board needs, so that it needs no network.
        graph: a TensorRT graph is there, from which the board builds its engine.
        found: fit and forecast; None for bundles that do not hold the model's configuration.
    """

    folder: Path
    target: Target
    bundle: Bundle
    python: str
    glibc: int
    libraries: tuple[str, ...]
    wheels: tuple[str, ...]
    complete: bool
    graph: bool
    found: Assessment | None

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be installed on the board beforehand."""
        found = [f"Python {self.python} with venv"]
        tools = ["cmake", "g++"] if not self.libraries or self.graph else []
        if self.graph or self.bundle.backend == "tensorrt":
            found.append("TensorRT")
        if self.graph:
            tools.append("nvcc")
        return (*found, *tools)

    def to_dict(self) -> dict[str, Any]:
        """For `nq_deploy.json` and --json."""
        return {
            "deploy_version": 1,
            "device": self.target.name,
            "model": self.bundle.source_model.get("name", ""),
            "true_bpw": self.bundle.true_bpw,
            "backend": self.bundle.backend,
            "python": self.python,
            "architecture": self.target.architecture,
            "libraries": list(self.libraries),
            "wheels": list(self.wheels),
            "offline": self.complete,
            "needs": list(self.needs),
            "graph": self.graph,
            "fit": None if self.found is None else self.found.to_dict(),
        }
