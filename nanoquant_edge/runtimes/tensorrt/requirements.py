# SPDX-License-Identifier: Apache-2.0
"""Does this machine have what the manifest asks for? Pure comparisons, made before the engine file is opened.

Each refusal names what the bundle says, what is here, and the command that mends it.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import NqEdgeError
from ...formats.backends import ENGINE_BACKENDS, FLAVOURS
from ...formats.bundle import Bundle
from ...formats.engine import PLUGIN, EngineInfo
from ...system.files import sha256_of
from ...system.versions import release

__all__ = [
    "build_command",
    "check_capability",
    "check_memory",
    "check_plugin",
    "check_software",
    "engine_of",
]


def build_command(capability: str = "") -> str:
    """The command that builds an engine for this machine again."""
    target = f"sm_{capability.replace('.', '')}" if capability else "TARGET"
    return f"nq-edge build BUNDLE --target {target}"


def engine_of(bundle: Bundle) -> EngineInfo:
    """The bundle's engine entry.

    Raises:
        NqEdgeError: NQ-BACKEND when the bundle holds no engine.
    """
    if bundle.backend not in ENGINE_BACKENDS or bundle.engine is None:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle was made for {bundle.backend}, not for TensorRT.",
            f"Run `{build_command()}` to make an engine of it.",
        )
    return bundle.engine


def check_software(bundle: Bundle, engine: EngineInfo, *, found: str, trusted: bool) -> None:
    """Compare versions, and refuse code inside of the engine.

    Args:
        bundle: an opened bundle.
        engine: its entry.
        found: version of the installed TensorRT of the engine's flavour.
        trusted: the user allows code of the bundle to run.

    Raises:
        NqEdgeError: NQ-BACKEND when TensorRT's or the operator's version does not fit, NQ-TRUST.
    """
    bundle.check_operator_version()
    title, wanted = FLAVOURS[engine.flavour].title, engine.tensorrt_version
    built, here = release(wanted), release(found)
    same = here == built
    newer = engine.version_compatible and here[:1] == built[:1] and here >= built
    if not (same or newer):
        upward = f" or newer {built[0]}.x" if engine.version_compatible else ""
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the engine was built by {title} {wanted} and needs it{upward}; installed is {found}.",
            f"Run `{build_command()}` with the installed version, or install {title} {wanted}.",
        )
    if engine.host_code and not trusted:
        what = "the plugin library is" if engine.plugin.embedded else "a runtime of TensorRT is"
        raise NqEdgeError("NQ-TRUST", f"{what} embedded in {engine.file}, and loading the engine would run it.")


def check_plugin(engine: EngineInfo, library: Path) -> None:
    """Compare the plugin that the engine was built with, and the one that is installed.

    Raises:
        NqEdgeError: NQ-PLUGIN when it is another plugin, or another build of it.
    """
    plugin = engine.plugin
    wanted = (plugin.name, plugin.version, plugin.namespace)
    if wanted != PLUGIN:
        raise NqEdgeError(
            "NQ-PLUGIN",
            f"the engine was built with plugin {_plugin(wanted)}, this program has {_plugin(PLUGIN)}.",
            f"Run `{build_command()}`, or install the nanoquant-edge that built the engine.",
        )
    found = sha256_of(library)
    if found != plugin.sha256:
        raise NqEdgeError(
            "NQ-PLUGIN",
            f"the engine was built with a plugin library of SHA-256 {plugin.sha256[:16]}..., {library} has "
            f"{found[:16]}....",
            f"Run `{build_command()}` with the installed library, or install the nanoquant-edge that built the engine.",
        )


def check_capability(engine: EngineInfo, capability: str, gpu: str) -> None:
    """Compare the GPUs that the engine was built for with the one that is here.

    Raises:
        NqEdgeError: NQ-BACKEND.
    """
    if engine.compute_capabilities and capability not in engine.compute_capabilities:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the engine was built for compute capability {', '.join(engine.compute_capabilities)}; {gpu} has "
            f"{capability}.",
            f"Run `{build_command(capability)}`.",
        )


def check_memory(needed: dict[str, int], free: int, total: int) -> None:
    """See that the engine and its buffers fit before anything large is asked for.

    Args:
        needed: what takes memory -> bytes.
        free, total: the GPU's bytes.

    Raises:
        NqEdgeError: NQ-MEMORY with the figures.
    """
    whole = sum(needed.values())
    if whole > free:
        parts = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in needed.items())
        raise NqEdgeError(
            "NQ-MEMORY",
            f"{whole / 1e6:.1f} MB of GPU memory are needed ({parts}), {free / 1e6:.1f} of {total / 1e6:.1f} MB are "
            "free.",
        )


def _plugin(name: tuple[str, str, str]) -> str:
    return f"{name[2]}::{name[0]} version {name[1]}"
