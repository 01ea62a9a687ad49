# SPDX-License-Identifier: Apache-2.0
"""GPUs and boards by name: what their makers say of them, and which TensorRT serves them.

Memory and bandwidth are NVIDIA's published figures: GeForce product pages (memory size, bus width times data rate) and
Jetson module data sheets. Compute capabilities are those of NVIDIA's CUDA GPU list. TensorRT for RTX 1.7 builds for
7.5, 8.0, 8.6, 8.9, 12.0 and 12.1 (its `ComputeCapability`); everything else needs standard TensorRT, which builds on
the device it builds for. None of these devices was measured by this project.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ..errors import NqEdgeError

__all__ = ["RTX_CAPABILITIES", "TARGETS", "Target", "target_named", "targets_named"]

#: Compute capabilities that TensorRT for RTX builds for ahead of time.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True)
class Target:
    """A device that an engine is built for.

    Attributes:
        name: on the command line.
        title: for people.
        compute_capability: such as "8.6".
        memory_gb: GB (10^9 bytes would be less; makers mean 2^30) of GPU memory, on boards shared with the CPU; None
            for an architecture, whose cards differ.
        bandwidth_gbs: GB/s of that memory; None for an architecture.
        unified: CPU and GPU share the memory.
        jetpack: the JetPack whose TensorRT is meant, "" for a PC.
        reserved_gb: memory that is not the model's: on a PC the CUDA context and the desktop, on a board the
            operating system too. Assumptions, not measured.
    """

    name: str
    title: str
    compute_capability: str
    memory_gb: float | None = None
    bandwidth_gbs: float | None = None
    unified: bool = False
    jetpack: str = ""
    reserved_gb: float = 0.8

    @property
    def flavour(self) -> str:
        """The TensorRT that serves it: "rtx" or "standard"."""
        return "rtx" if self.compute_capability in RTX_CAPABILITIES and not self.jetpack else "standard"

    @property
    def bfloat16(self) -> bool:
        """Whether its tensor cores take bfloat16 (8.0 and later)."""
        return int(self.compute_capability.split(".")[0]) >= 8

    @property
    def memory_bytes(self) -> int | None:
        """Bytes that the model may take, or None when it is not known."""
        if self.memory_gb is None:
            return None
        return int((self.memory_gb - self.reserved_gb) * (1 << 30))


def _cards() -> list[Target]:
    # name -> compute capability, GB, GB/s
    figures = {
        "rtx-2060": ("7.5", 6, 336),
        "rtx-2070": ("7.5", 8, 448),
        "rtx-2080": ("7.5", 8, 448),
        "rtx-2080-ti": ("7.5", 11, 616),
        "rtx-3050": ("8.6", 8, 224),
        "rtx-3060": ("8.6", 12, 360),
        "rtx-3060-ti": ("8.6", 8, 448),
        "rtx-3070": ("8.6", 8, 448),
        "rtx-3070-ti": ("8.6", 8, 608),
        "rtx-3080": ("8.6", 10, 760),
        "rtx-3080-ti": ("8.6", 12, 912),
        "rtx-3090": ("8.6", 24, 936),
        "rtx-3090-ti": ("8.6", 24, 1008),
        "rtx-4060": ("8.9", 8, 272),
        "rtx-4060-ti": ("8.9", 8, 288),
        "rtx-4060-ti-16gb": ("8.9", 16, 288),
        "rtx-4070": ("8.9", 12, 504),
        "rtx-4070-super": ("8.9", 12, 504),
        "rtx-4070-ti": ("8.9", 12, 504),
        "rtx-4070-ti-super": ("8.9", 16, 672),
        "rtx-4080": ("8.9", 16, 717),
        "rtx-4080-super": ("8.9", 16, 736),
        "rtx-4090": ("8.9", 24, 1008),
        "rtx-5050": ("12.0", 8, 320),
        "rtx-5060": ("12.0", 8, 448),
        "rtx-5060-ti": ("12.0", 8, 448),
        "rtx-5060-ti-16gb": ("12.0", 16, 448),
        "rtx-5070": ("12.0", 12, 672),
        "rtx-5070-ti": ("12.0", 16, 896),
        "rtx-5080": ("12.0", 16, 960),
        "rtx-5090": ("12.0", 32, 1792),
    }
    return [
        Target(name, f"GeForce {_title(name)}", capability, memory, bandwidth)
        for name, (capability, memory, bandwidth) in figures.items()
    ]


def _title(name: str) -> str:
    words = name.replace("rtx-", "RTX ").replace("-ti", " Ti").replace("-super", " Super")
    return words.replace("-16gb", " 16 GB")


def _boards() -> list[Target]:
    # name -> title, compute capability, GB, GB/s at the highest power mode, JetPack, GB that are not the model's
    figures = {
        "jetson-orin-nano-4gb": ("Jetson Orin Nano 4 GB", "8.7", 4, 51, "6.2", 1.4),
        "jetson-orin-nano-8gb": ("Jetson Orin Nano 8 GB (Super)", "8.7", 8, 102, "6.2", 2.0),
        "jetson-orin-nx-8gb": ("Jetson Orin NX 8 GB", "8.7", 8, 102, "6.2", 2.0),
        "jetson-orin-nx-16gb": ("Jetson Orin NX 16 GB", "8.7", 16, 102, "6.2", 2.5),
        "jetson-agx-orin-32gb": ("Jetson AGX Orin 32 GB", "8.7", 32, 205, "6.2", 3.0),
        "jetson-agx-orin-64gb": ("Jetson AGX Orin 64 GB", "8.7", 64, 205, "6.2", 3.0),
        "jetson-agx-thor": ("Jetson AGX Thor", "11.0", 128, 273, "7", 4.0),
    }
    return [
        Target(name, title, capability, memory, bandwidth, True, jetpack, reserved)
        for name, (title, capability, memory, bandwidth, jetpack, reserved) in figures.items()
    ]


def _architectures() -> list[Target]:
    names = {
        "sm_75": "Turing",
        "sm_80": "Ampere (A100)",
        "sm_86": "Ampere (RTX 30)",
        "sm_87": "Orin",
        "sm_89": "Ada (RTX 40)",
        "sm_90": "Hopper",
        "sm_100": "Blackwell (B200)",
        "sm_110": "Thor",
        "sm_120": "Blackwell (RTX 50)",
        "sm_121": "Blackwell (GB10)",
    }
    return [Target(name, f"any {title} GPU", f"{name[3:-1]}.{name[-1]}") for name, title in names.items()]


#: Name -> device.
TARGETS = {target.name: target for target in [*_cards(), *_boards(), *_architectures()]}

#: Spellings that people use -> ours.
_ALIASES = {
    "jetson-orin-nano": "jetson-orin-nano-8gb",
    "jetson-orin-nano-super": "jetson-orin-nano-8gb",
    "jetson-orin-nx": "jetson-orin-nx-16gb",
    "jetson-agx-orin": "jetson-agx-orin-64gb",
    "jetson-thor": "jetson-agx-thor",
}


def target_named(name: str) -> Target:
    """The device with this name; case, "geforce" and the kind of dash do not matter.

    Raises:
        NqEdgeError: NQ-TARGET for an unknown name, with the nearest known ones.
    """
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("nvidia-").removeprefix("geforce-")
    plain = re.sub(r"^sm-?(\d+)a?$", r"sm_\1", plain)
    plain = re.sub(r"^(orin|agx|thor)", r"jetson-\1", plain)
    plain = re.sub(r"^rtx(\d)", r"rtx-\1", plain)
    plain = re.sub(r"^(jetson-[a-z-]+-\d+)$", r"\1gb", _ALIASES.get(plain, plain))
    if plain in TARGETS:
        return TARGETS[plain]
    near = difflib.get_close_matches(plain, TARGETS, n=3, cutoff=0.5)
    raise NqEdgeError(
        "NQ-TARGET",
        f"target {name[:100]!r} is not known.",
        f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(TARGETS)}.",
    )


def targets_named(names: tuple[str, ...]) -> list[Target]:
    """Devices that one engine is to serve, named one by one or joined by commas.

    Raises:
        NqEdgeError: NQ-TARGET when none is named, one is unknown, or they need different kinds of TensorRT.
    """
    found = [target_named(name) for entry in names for name in entry.split(",") if name.strip()]
    if not found:
        raise NqEdgeError("NQ-TARGET", "no target is named.", f"Known: {', '.join(TARGETS)}.")
    flavours = {target.flavour for target in found}
    alone = [target for target in found if target.flavour == "standard"]
    if len(flavours) > 1 or len({target.compute_capability for target in alone}) > 1:
        raise NqEdgeError(
            "NQ-TARGET",
            f"{alone[0].name} needs an engine of its own, built by standard TensorRT on the device.",
            "Build for it separately.",
        )
    return list(dict.fromkeys(found))
