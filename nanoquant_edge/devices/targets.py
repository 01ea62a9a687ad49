# SPDX-License-Identifier: Apache-2.0
"""Devices by the names that people use for them, and which of them one engine can serve."""

from __future__ import annotations

import difflib
import re

from ..errors import NqEdgeError
from .profile import RTX_CAPABILITIES, Target, load_profiles

__all__ = ["RTX_CAPABILITIES", "TARGETS", "Target", "target_named", "targets_named"]

#: Name -> device.
TARGETS = load_profiles()

#: Spellings that people use -> ours.
_ALIASES = {
    "jetson-orin-nano": "jetson-orin-nano-8gb",
    "jetson-orin-nano-super": "jetson-orin-nano-8gb",
    "jetson-orin-nx": "jetson-orin-nx-16gb",
    "jetson-agx-orin": "jetson-agx-orin-64gb",
    "jetson-thor": "jetson-agx-thor",
    "jetson-xavier-nx": "jetson-xavier-nx-8gb",
    "raspberry-pi-5": "raspberry-pi-5-8gb",
    "rtx-3050-8gb": "rtx-3050",
    "laptop": "x86-laptop",
}


def target_named(name: str) -> Target:
    """The device with this name; case, "geforce" and the kind of dash do not matter.

    Raises:
        NqEdgeError: NQ-TARGET for an unknown name, with the nearest known ones.
    """
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("nvidia-").removeprefix("geforce-")
    plain = re.sub(r"^sm-?(\d+)a?$", r"sm_\1", plain)
    plain = re.sub(r"^(orin|agx|thor|xavier)", r"jetson-\1", plain)
    plain = re.sub(r"^(?:rpi|pi|raspberry-pi)-?(\d)", r"raspberry-pi-\1", plain)
    plain = re.sub(r"^rtx(\d)", r"rtx-\1", plain)
    plain = re.sub(r"^((?:jetson-[a-z-]+|raspberry-pi-\d)-\d+)$", r"\1gb", _ALIASES.get(plain, plain))
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
        NqEdgeError: NQ-TARGET when none is named, one is unknown or has no GPU that TensorRT serves, or they need
            different kinds of TensorRT.
    """
    found = [target_named(name) for entry in names for name in entry.split(",") if name.strip()]
    if not found:
        raise NqEdgeError("NQ-TARGET", "no target is named.", f"Known: {', '.join(TARGETS)}.")
    for target in found:
        if target.flavour == "none":
            raise NqEdgeError(
                "NQ-TARGET",
                f"{target.name} has no GPU that our TensorRT plugin serves.",
                "Its processor runs an ONNX bundle: nq-edge export --to onnx, then nq-edge deploy.",
            )
    flavours = {target.flavour for target in found}
    alone = [target for target in found if target.flavour == "standard"]
    if len(flavours) > 1 or len({target.compute_capability for target in alone}) > 1:
        raise NqEdgeError(
            "NQ-TARGET",
            f"{alone[0].name} needs an engine of its own, built by standard TensorRT on the device.",
            "Build for it separately.",
        )
    return list(dict.fromkeys(found))
