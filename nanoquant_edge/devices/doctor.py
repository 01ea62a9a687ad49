# SPDX-License-Identifier: Apache-2.0
"""What is here, what is missing for running bundles, and what to do about each gap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import NqEdgeError, first_line
from ..system.extras import install_command
from ..system.versions import release
from .probes import Probes
from .profile import Target
from .recognise import Machine, describe_machine, recognise

__all__ = ["Check", "Report", "examine"]

#: Status of a check: all is well; worth knowing; something that this machine needs does not work.
OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, its status, what was found, and what to do ("" if nothing)."""

    name: str
    status: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of a machine; `healthy` when none found a problem."""

    device: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether bundles can run examined."""
        return all(check.status != PROBLEM for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        checks = [asdict(check) for check in self.checks]
        return {"device": self.device, "healthy": self.healthy, "checks": checks}


@dataclass(frozen=True)
class _Examined:
    machine: Machine
    target: Target | None
    probes: Probes


def examine(machine: Machine | None = None, probes: Probes | None = None) -> Report:
    """Look at a machine; nothing is changed, and a check that fails in an unforeseen way is a problem itself.

    Args:
        machine: what it says of itself; None asks this one.
        probes: how it is looked at; None looks at this one.

    Example:
        >>> isinstance(examine().healthy, bool)
        True
    """
    found = machine or describe_machine()
    known = _Examined(found, recognise(found), probes or Probes())
    checks: list[Check] = []
    for check in _CHECKS:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            checks += check(known)
        except Exception as error:  # a report with one broken line is worth more than none
            checks.append(Check(name, PROBLEM, f"cannot be told: {first_line(error)}", "Report this."))
    return Report(known.target.name if known.target else found.model, tuple(checks))


def _machine(examined: _Examined) -> Iterator[Check]:
    machine, target = examined.machine, examined.target
    title = target.title if target else f"{machine.model}, no profile of its own"
    yield Check("device", OK, f"{title}; {machine.architecture}, {machine.cores} cores, {machine.memory / 1e9:.1f} GB")
    if machine.usable_cores is not None or machine.memory_limit is not None:
        parts = [] if machine.usable_cores is None else [f"{machine.usable_cores} of {machine.cores} cores"]
        parts += [] if machine.memory_limit is None else [f"{machine.memory_limit / 1e9:.1f} GB of memory"]
        advice = "Affinity, or the limits of a container or service; forecasts for `this` count what is allowed."
        yield Check("limits of this process", NOTE, " and ".join(parts), advice)
    free = examined.probes.free_memory()
    if free is not None:
        low = free < 500_000_000
        advice = "End other programs; a desktop alone takes about 800 MB of a board." if low else ""
        yield Check("free memory", NOTE if low else OK, f"{free / 1e9:.1f} GB", advice)
    version, old = examined.probes.python, examined.probes.python < (3, 10)
    advice = "Install Python 3.10 or newer." if old else ""
    yield Check("Python", PROBLEM if old else OK, ".".join(map(str, version)), advice)
    if target and target.jetpack and machine.l4t:
        series = {row["l4t"].split(".")[0] for row in target.software if "l4t" in row}
        known = machine.l4t.split(".")[0] in series
        wanted = " or ".join(f"{row['jetpack']} (L4T {row['l4t']})" for row in target.software)
        advice = "" if known else f"This project knows JetPack {wanted} on this board."
        yield Check("Jetson Linux", OK if known else NOTE, f"L4T {machine.l4t}", advice)


def _requirements(examined: _Examined) -> Iterator[Check]:
    lines = examined.probes.requirements()
    if lines is None:
        yield Check("nanoquant-edge", NOTE, "runs without being installed", "pip install .")
        return
    yield Check("nanoquant-edge", OK, examined.probes.version("nanoquant-edge") or "of unknown version")
    for line in lines:
        match = re.match(r"^([\w-]+)\s*>=\s*([\d.]+)[^;]*$", line)
        if match is not None:
            yield _package(examined, match[1], match[2])


def _onnxruntime(examined: _Examined) -> Iterator[Check]:
    found = {name: examined.probes.version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    installed = [name for name, version in found.items() if version]
    if len(installed) == 2:
        advice = "They overwrite each other's files: pip uninstall both, then install one of them."
        yield Check("ONNX Runtime", PROBLEM, " and ".join(f"{name} {found[name]}" for name in installed), advice)
        return
    if not installed:
        advice = f"{install_command('cpu')}, unless only TensorRT engines run examined."
        yield Check("ONNX Runtime", NOTE, "not installed", advice)
        return
    yield _package(examined, installed[0], "1.23")
    yield Check("its providers", OK, ", ".join(examined.probes.providers()))
    try:
        examined.probes.register()
    except NqEdgeError:
        return  # the library's own check says so
    except Exception as error:  # ONNX Runtime raises several types
        advice = "Build the library again with this compiler: the message of nq-edge generate says how."
        yield Check("operator in ONNX Runtime", PROBLEM, first_line(error), advice)
        return
    yield Check("operator in ONNX Runtime", OK, "registers")


def _operator_library(examined: _Examined) -> Iterator[Check]:
    try:
        info = examined.probes.operator_library()
    except NqEdgeError as error:
        yield Check("operator's library", PROBLEM, error.message, error.hint)
        return
    package = examined.probes.version("nanoquant-edge")
    isa = info.get("isa") or "none"
    found = f"{isa} kernels, version {info.get('version')}, {info['path']}"
    if isa == "none":
        advice = "NQ_CPU_ISA names kernels that this processor lacks: unset it."
        yield Check("operator's library", PROBLEM, found, advice)
    elif package and info.get("version") not in (package, "0+unknown"):
        yield Check("operator's library", NOTE, found, f"The package is {package}: build or install the library again.")
    elif isa == "scalar":
        yield Check("operator's library", NOTE, found, "Neither AVX2 nor NEON was found: texts will be slow.")
    else:
        yield Check("operator's library", OK, found)


def _gpus(examined: _Examined) -> Iterator[Check]:
    machine, target, probes = examined.machine, examined.target, examined.probes
    board = target is not None and bool(target.jetpack) and target.flavour != "none"
    driver = probes.program("nvidia-smi") is not None
    if probes.version("nvidia-ml-py") is None and not board:
        advice = f"{install_command('devices')} to see GPUs and their energy." if driver else ""
        yield Check("NVIDIA GPU", NOTE, "not looked for: nvidia-ml-py is not installed", advice)
    elif not machine.gpus and not board:
        shown = "a driver is there, but shows no GPU" if driver else "none"
        yield Check("NVIDIA GPU", NOTE if driver else OK, shown)
    for gpu in machine.gpus:
        yield Check("NVIDIA GPU", OK, f"{gpu.name}, compute capability {gpu.capability}, driver {gpu.driver}")
    capabilities = {gpu.capability for gpu in machine.gpus}
    if board and target is not None:
        capabilities.add(target.compute_capability)
    if capabilities:
        yield from _gpu_software(probes, capabilities, board)


def _gpu_software(probes: Probes, capabilities: set[str], board: bool) -> Iterator[Check]:
    nvcc = probes.program("nvcc") or probes.program("/usr/local/cuda/bin/nvcc")
    advice = "" if nvcc else "Needed only to build our libraries."
    yield Check("nvcc", OK if nvcc else NOTE, nvcc or "not found", advice)
    yield _gpu_library("CUDA kernels", probes.cuda_library, capabilities)
    yield _gpu_library("TensorRT plugin", probes.tensorrt_library, capabilities)
    found = {name: probes.module_version(name) for name in ("tensorrt", "tensorrt_rtx")}
    for name, version in found.items():
        if version is not None:
            good = release(version) >= ((10, 0) if name == "tensorrt" else (1, 7))
            advice = "" if good else "TensorRT 10.0 or newer has the plugin interface that ours needs."
            yield Check(name, OK if good else PROBLEM, version, advice)
    if not any(found.values()):
        install = "sudo apt-get install nvidia-jetpack" if board else install_command("rtx")
        yield Check("TensorRT", NOTE, "its Python package is not there", f"For engines: {install}.")
    binding = probes.version("cuda-python") or probes.version("cuda-bindings")
    advice = "" if binding else f"For engines: {install_command('tensorrt')}."
    yield Check("CUDA's Python binding", OK if binding else NOTE, binding or "not installed", advice)


def _gpu_library(name: str, ask: Callable[[], dict[str, Any]], capabilities: set[str]) -> Check:
    try:
        info = ask()
    except NqEdgeError as error:
        return Check(name, NOTE, error.message, error.hint)
    compiled = info["architectures"]
    wanted = {capability.replace(".", "") for capability in capabilities}
    missing = sorted(wanted - set(compiled))
    # Code runs on GPUs of the same major number and a minor number that is not smaller.
    missing = [one for one in missing if not any(have[:-1] == one[:-1] and have <= one for have in compiled)]
    found = f"compute capability {', '.join(compiled)}, version {info.get('version')}"
    if not missing:
        return Check(name, OK, found)
    return Check(name, PROBLEM, found, f"Build it for {', '.join(missing)}: make native CUDA_ARCHS={missing[0]}.")


def _power(examined: _Examined) -> Iterator[Check]:
    sources, absent = examined.probes.power()
    for source in sources:
        source.close()
    if sources:
        yield Check("power sensors", OK, ", ".join(source.name for source in sources))
    else:
        yield Check("power sensors", NOTE, "; ".join(absent.values()), "nq-edge bench --power will report no energy.")


def _package(examined: _Examined, name: str, lowest: str) -> Check:
    found = examined.probes.version(name)
    if found is None:
        return Check(name, PROBLEM, "not installed", f"pip install '{name}>={lowest}'")
    if release(found) < release(lowest):
        return Check(name, PROBLEM, f"{found} is older than {lowest}", f"pip install --upgrade '{name}>={lowest}'")
    return Check(name, OK, found)


_CHECKS: tuple[Callable[[_Examined], Iterable[Check]], ...] = (
    _machine,
    _requirements,
    _onnxruntime,
    _operator_library,
    _gpus,
    _power,
)
