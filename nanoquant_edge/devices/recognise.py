# SPDX-License-Identifier: Apache-2.0
"""Which device is this? From the device tree, NVIDIA's management library and /proc, whatever of them there is."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..system.cgroup import memory_limit
from ..system.processors import usable_processors
from .profile import Cpu, Target
from .targets import TARGETS, target_named

__all__ = ["Machine", "Nvidia", "describe_machine", "nvidia_gpus", "recognise", "this_target"]

#: /proc/cpuinfo's flag -> kernels that the processor gets, best first (plugins/kernels/cpu/dispatch.cpp).
_ISAS = (("avx512bw", "avx512"), ("avx2", "avx2"), ("asimd", "neon"))


@dataclass(frozen=True)
class Nvidia:
    """One GPU as NVML tells of it: name, compute capability, bytes of memory, driver version."""

    name: str
    capability: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """What this machine says of itself.

    Attributes:
        architecture: `uname -m`.
        compatible: strings of the device tree; empty on a PC.
        model: the board's or the processor's name.
        l4t: Jetson Linux release, such as "36.4.3"; "" elsewhere.
        isa, cores, ghz: kernels, number of cores and clock of the processor; ghz is 0 where it is not told.
        memory: bytes; 0 where it is not told.
        gpus: NVIDIA GPUs that NVML sees.
        usable_cores: processors that this process may use (affinity, quota); None where that is all of them.
        memory_limit: bytes that this process and its control group may take; None without a limit.
    """

    architecture: str
    compatible: tuple[str, ...]
    model: str
    l4t: str
    isa: str
    cores: int
    ghz: float
    memory: int
    gpus: tuple[Nvidia, ...]
    usable_cores: int | None = None
    memory_limit: int | None = None


def describe_machine(root: Path = Path("/"), gpus: tuple[Nvidia, ...] | None = None) -> Machine:
    """Read what this machine says of itself, and what this process may use of it.

    Args:
        root: folder that holds `proc`, `sys` and `etc`; tests pass one of their own, whose affinity is not asked for.
        gpus: its GPUs; None asks NVML.
    """
    tree = root / "proc/device-tree"
    cpuinfo = _text(root / "proc/cpuinfo")
    fields = dict(re.findall(r"^([\w ]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE))
    flags = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    kilobytes = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1
    usable = usable_processors(root, None if root == Path("/") else range(cores))
    memory = int(kilobytes[1]) * 1024 if kilobytes else 0
    limit = memory_limit(root)
    return Machine(
        architecture=platform.machine(),
        compatible=tuple(name for name in _text(tree / "compatible").split("\0") if name),
        model=_text(tree / "model").strip("\0\n") or fields.get("model name", "") or "unknown processor",
        l4t=f"{release[1]}.{release[2]}" if release else "",
        isa=next((isa for flag, isa in _ISAS if flag in flags), "scalar"),
        cores=cores,
        ghz=_ghz(root, fields),
        memory=memory,
        gpus=nvidia_gpus() if gpus is None else gpus,
        usable_cores=usable if usable < cores else None,
        memory_limit=limit if limit is not None and limit < memory else None,
    )


def recognise(machine: Machine) -> Target | None:
    """The profile of this machine: a board by its device tree, else a graphics card by its name; None for neither."""
    for target in TARGETS.values():
        if any(part in name for part in target.recognise for name in machine.compatible):
            if target.name.startswith("raspberry-pi"):
                return _nearest_memory("raspberry-pi-5", machine.memory)
            return target
    for gpu in machine.gpus:
        with contextlib.suppress(NqEdgeError):
            return target_named(re.sub(r"(?i)\s+(laptop gpu|\d+GB.*|sxm.*)$", "", gpu.name))
        if re.search(r"\bH[12]00\b", gpu.name):
            return TARGETS["h200" if "H200" in gpu.name else "h100"]
    return None


def this_target(machine: Machine | None = None) -> Target:
    """The recognised profile, or one made up from what /proc says, for the processor alone.

    Fewer processors or less memory than the machine has are counted where this process may not use more: it runs in a
    container, in a service with limits or under `taskset`.
    """
    machine = machine or describe_machine()
    found = recognise(machine)
    return _limited(_made_up(machine) if found is None else found, machine)


def _made_up(machine: Machine) -> Target:
    # No file tells a PC's memory bandwidth: the plain laptop's stands in, and `sources` says so.
    plain = TARGETS["x86-laptop"]
    return Target(
        name="this",
        title=machine.model[:80],
        memory_gb=round(machine.memory / (1 << 30), 1) or None,
        bandwidth_gbs=plain.bandwidth_gbs,
        unified=True,
        reserved_gb=min(plain.reserved_gb, machine.memory / (1 << 31)),
        cpu=Cpu(machine.isa, machine.cores, machine.ghz or 2.5),
        architecture=machine.architecture,
        backend="onnxruntime",
        dialect="ort",
        family="this machine",
        sources={
            "memory_gb": "/proc/meminfo",
            "cpu": "/proc/cpuinfo" + ("" if machine.ghz else "; 2.5 GHz are assumed"),
            "bandwidth_gbs": f"assumed: as of {plain.name}",
        },
    )


def _limited(target: Target, machine: Machine) -> Target:
    """A profile of this machine as far as this process may use it. A graphics card's memory is not the host's."""
    limit, cores = machine.memory_limit, machine.usable_cores
    sources, notes = dict(target.sources), list(target.notes)
    if target.cpu is not None and cores is not None and cores < target.cpu.cores:
        notes.append(f"This process may use {cores} of {target.cpu.cores} processor cores.")
        sources["cpu"] = f"{sources.get('cpu', 'profile')}; cores: affinity or quota of this process"
        target = replace(target, cpu=replace(target.cpu, cores=cores))
    if limit is not None and target.unified and limit < (target.memory_bytes or sys.maxsize):
        notes.append(f"This process may take {limit / (1 << 30):.1f} GB of the machine's memory.")
        sources["memory_gb"] = sources["reserved_gb"] = "limit of this process's control group, which holds no system"
        target = replace(target, memory_gb=limit / (1 << 30), reserved_gb=0.0)
    return replace(target, sources=sources, notes=tuple(notes))


def nvidia_gpus() -> tuple[Nvidia, ...]:
    """GPUs that NVML (nvidia-ml-py) sees; none without the package, the driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        return ()
    found = []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _word(pynvml.nvmlSystemGetDriverVersion())
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = 0
            with contextlib.suppress(pynvml.NVMLError):  # boards with unified memory do not tell
                memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append(Nvidia(_word(pynvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", memory, driver))
    except pynvml.NVMLError:
        pass
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return tuple(found)


def _nearest_memory(prefix: str, memory: int) -> Target:
    sizes = [target for name, target in TARGETS.items() if name.startswith(prefix)]
    return min(sizes, key=lambda target: abs((target.memory_gb or 0) * (1 << 30) - memory))


def _ghz(root: Path, fields: dict[str, str]) -> float:
    kilohertz = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if kilohertz.isdigit():
        return int(kilohertz) / 1e6
    with contextlib.suppress(ValueError):
        return round(float(fields.get("cpu MHz", "0")) / 1e3, 2)
    return 0.0


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _word(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
