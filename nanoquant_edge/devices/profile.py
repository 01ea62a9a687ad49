# SPDX-License-Identifier: Apache-2.0
"""What is known of a device: one small JSON file a family in `profiles/`, every number with its source.

Memory sizes are the makers' GB, which for memory chips are 2^30 bytes; bandwidth is in 10^9 bytes a second.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["RTX_CAPABILITIES", "Cpu", "PowerMode", "Target", "load_profiles"]

#: Compute capabilities that TensorRT for RTX 1.7 builds for ahead of time (its `ComputeCapability`).
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")

_FOLDER = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Cpu:
    """Processor: `isa` of our kernels it gets ("avx512", "avx2", "neon", "scalar"), cores, GHz under load."""

    isa: str
    cores: int
    ghz: float


@dataclass(frozen=True)
class PowerMode:
    """A power mode: its name, watts, and where they are published the GPU's GHz and the memory's GB/s in it."""

    name: str
    watts: float
    gpu_ghz: float | None = None
    bandwidth_gbs: float | None = None


@dataclass(frozen=True)
class Target:
    """A device that a model is made for.

    Attributes:
        name: on the command line.
        title: name for people.
        compute_capability: such as "8.6"; "" where no GPU is used.
        memory_gb: GB of GPU memory, on boards shared with the CPU; None for an architecture, whose cards differ.
        bandwidth_gbs: GB/s of that memory at the highest power mode; None for an architecture.
        unified: CPU and GPU share the memory.
        jetpack: the JetPack whose TensorRT is meant, "" for anything but a Jetson.
        reserved_gb: memory that is not the model's: on a PC the CUDA context and the desktop, on a board the
            operating system too. Assumptions, not measured.
        multiprocessors, gpu_ghz: number of multiprocessors and clock of the GPU, at the highest power mode.
        cpu: the processor, where it is known.
        power_modes: in rising order of power.
        software: versions that a system image brings, newest last: jetpack, l4t, cuda, tensorrt, python, os.
        architecture: processor architecture as `uname -m` says it; "any" for a graphics card.
        backend: what runs a bundle there: "onnxruntime", "tensorrt", "tensorrt-rtx", "pytorch"; "" for an architecture.
        dialect: dialect of the graphs that this backend takes.
        family: the profile file's family.
        recognise: substrings of the device tree's `compatible`.
        notes: what a user of the device must know.
        sources: field -> where its numbers are from.
    """

    name: str
    title: str
    compute_capability: str = ""
    memory_gb: float | None = None
    bandwidth_gbs: float | None = None
    unified: bool = False
    jetpack: str = ""
    reserved_gb: float = 0.8
    multiprocessors: int | None = None
    gpu_ghz: float | None = None
    cpu: Cpu | None = None
    power_modes: tuple[PowerMode, ...] = ()
    software: tuple[dict[str, str], ...] = field(default=(), hash=False)
    architecture: str = "any"
    backend: str = ""
    dialect: str = ""
    family: str = ""
    recognise: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def flavour(self) -> str:
        """The TensorRT that serves it: "rtx" or "standard"; "none" where only the processor computes."""
        if not self.compute_capability:
            return "none"
        return "rtx" if self.compute_capability in RTX_CAPABILITIES and not self.jetpack else "standard"

    @property
    def bfloat16(self) -> bool:
        """Whether its tensor cores take bfloat16 (8.0 and later)."""
        return bool(self.compute_capability) and int(self.compute_capability.split(".")[0]) >= 8

    @property
    def memory_bytes(self) -> int | None:
        """Bytes that the model may take, or None when it is not known."""
        if self.memory_gb is None:
            return None
        return int((self.memory_gb - self.reserved_gb) * (1 << 30))

    def to_dict(self) -> dict[str, Any]:
        """For JSON reports."""
        entry: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        entry["cpu"] = None if self.cpu is None else vars(self.cpu)
        entry["power_modes"] = [vars(mode) for mode in self.power_modes]
        entry["flavour"] = self.flavour
        return entry


@functools.cache
def load_profiles() -> dict[str, Target]:
    """Name -> device, of all profile files in the order of their names."""
    found: dict[str, Target] = {}
    for path in sorted(_FOLDER.glob("*.json")):
        family = json.loads(path.read_text(encoding="utf-8"))
        for name, fields_of_device in family["devices"].items():
            if name in found:
                raise ValueError(f"{path.name} names {name} again")
            found[name] = _target(name, family, fields_of_device)
    return found


def _target(name: str, family: dict[str, Any], device: dict[str, Any]) -> Target:
    entry = {**family["defaults"], **device}
    cited = {**family["cited"], **entry.pop("cited", {})}
    entry["sources"] = {key: family["sources"][cited[key]] for key in cited if key in entry}
    entry["cpu"] = Cpu(**entry["cpu"]) if "cpu" in entry else None
    entry["power_modes"] = tuple(PowerMode(**mode) for mode in entry.get("power_modes", ()))
    for key in ("software", "recognise", "notes"):
        entry[key] = tuple(entry.get(key, ()))
    return Target(name=name, family=family["family"], **entry)
