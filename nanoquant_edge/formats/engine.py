# SPDX-License-Identifier: Apache-2.0
"""What a bundle with a TensorRT engine says about the engine: the manifest's `engine` entry (docs/FORMAT.md).

An engine runs only with the TensorRT that built it, on the GPUs it was built for, and with the plugin it was built
with. All three stand here, so that a runtime can name both sides of a mismatch before it touches the engine file.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from .backends import FLAVOURS
from .entry import Entry
from .graph import ACTIVATION_DTYPES, DOMAIN, LINEAR_OP
from .kv_layout import KvLayout

__all__ = ["ENGINE_FILE", "PLUGIN", "EngineInfo", "PluginInfo", "Profile", "Span", "read_engine", "read_profiles"]

#: The usual name of the engine file.
ENGINE_FILE = "model.engine"
#: Name, version and namespace of the plugin that our library registers with TensorRT.
PLUGIN = (LINEAR_OP, "1", DOMAIN)
_MOST_PROFILES = 16
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,3}")

#: (smallest, most usual, largest) value of a dimension.
Span = tuple[int, int, int]


@dataclass(frozen=True)
class PluginInfo:
    """The plugin library that the engine was built with.

    Attributes:
        name: of the plugin, "NanoQuantLinear".
        version: of the plugin, "1".
        namespace: of the plugin, "com.nanoquant".
        sha256: hex hash of the library file.
        embedded: the library is inside the engine, and would be run from there.
    """

    name: str
    version: str
    namespace: str
    sha256: str
    embedded: bool


@dataclass(frozen=True)
class Profile:
    """An optimization profile, as ranges of the graph's symbolic dimensions.

    Attributes:
        index: its number in the engine.
        batch: sequences.
        sequence: columns of `input_ids`.
        positions: columns of `logits_indices`.
        total: columns of `attention_mask`; its largest value is at least the cache's capacity.
    """

    index: int
    batch: Span
    sequence: Span
    positions: Span
    total: Span

    def holds(self, batch: int, sequence: int, positions: int) -> bool:
        """Whether inputs of these sizes fit."""
        sizes = zip((batch, sequence, positions), (self.batch, self.sequence, self.positions), strict=True)
        return all(span[0] <= size <= span[2] for size, span in sizes)


@dataclass(frozen=True)
class EngineInfo:
    """The manifest's `engine` entry.

    Attributes:
        file: name of the engine in the bundle.
        tensorrt_version: `__version__` of the TensorRT that built it, such as "1.7.1.116".
        flavour: "rtx" or "standard"; goes with the bundle's backend "tensorrt-rtx" or "tensorrt".
        compute_capabilities: GPUs it was built for, such as ["8.6", "8.9"]; empty for every GPU of the flavour.
        plugin: the library with the compressed layers' kernels.
        precision: activation type.
        kv: the cache.
        profiles: "decode" (one token a sequence) and "prefill" (prompts), by name.
        refit: weights can be exchanged.
        version_compatible: newer TensorRT of the same major version may load it.
        plugin_layers: nodes of the plugin.
        compressed_linears: compressed layers in them; a grouped node holds several.
        debug_outputs: inner values that the engine returns beside the logits, in order of computation.
        timing_cache: file name of the builder's timing cache, or "".
        runtime_cache: file name of TensorRT-RTX's cache of compiled kernels, or "".
    """

    file: str
    tensorrt_version: str
    flavour: str
    compute_capabilities: tuple[str, ...]
    plugin: PluginInfo
    precision: str
    kv: KvLayout
    profiles: dict[str, Profile]
    refit: bool
    version_compatible: bool
    plugin_layers: int
    compressed_linears: int
    debug_outputs: tuple[str, ...] = ()
    timing_cache: str = ""
    runtime_cache: str = ""

    @property
    def host_code(self) -> bool:
        """Whether loading the engine would run machine code of the CPU out of the file.

        An embedded plugin does, and so does a version-compatible engine of the standard flavour, which carries a small
        runtime.
        """
        return self.plugin.embedded or (self.version_compatible and self.flavour == "standard")

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `read_engine` reads."""
        return {**asdict(self), "kv": self.kv.to_engine()}


def read_engine(entry: Entry) -> EngineInfo:
    """The `engine` entry of a manifest from a stranger, every value checked.

    Args:
        entry: of the manifest.

    Returns:
        What it says; consistent in itself.

    Raises:
        NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown, of the wrong type or impossible.
    """
    entry.exactly(*(item.name for item in fields(EngineInfo)))
    plugin, kv = _read_plugin(entry.entry("plugin")), KvLayout.from_engine(entry.entry("kv"))
    profiles = read_profiles(entry)
    for name, profile in profiles.items():
        entry.need(profile.total[2] >= kv.capacity, f"profiles.{name}.total", list(profile.total))
    linears = entry.integer("compressed_linears")
    return EngineInfo(
        file=entry.text("file"),
        tensorrt_version=entry.text("tensorrt_version", pattern=_VERSION),
        flavour=entry.text("flavour", choices=tuple(FLAVOURS)),
        compute_capabilities=entry.texts("compute_capabilities", _CAPABILITY),
        plugin=plugin,
        precision=entry.text("precision", choices=ACTIVATION_DTYPES),
        kv=kv,
        profiles=profiles,
        refit=entry.flag("refit"),
        version_compatible=entry.flag("version_compatible"),
        plugin_layers=entry.integer("plugin_layers", 0, linears),
        compressed_linears=linears,
        debug_outputs=entry.texts("debug_outputs"),
        timing_cache=entry.text("timing_cache", empty=True),
        runtime_cache=entry.text("runtime_cache", empty=True),
    )


def _read_plugin(entry: Entry) -> PluginInfo:
    entry.exactly(*(item.name for item in fields(PluginInfo)))
    return PluginInfo(
        name=entry.text("name", empty=True),
        version=entry.text("version", empty=True),
        namespace=entry.text("namespace", empty=True),
        sha256=entry.text("sha256", pattern=_SHA256),
        embedded=entry.flag("embedded"),
    )


def read_profiles(entry: Entry) -> dict[str, Profile]:
    """The `profiles` of an engine, or of the plan that it is built from.

    Args:
        entry: that holds them.

    Raises:
        NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown or impossible, or contradicts others.
    """
    given = entry.entries("profiles")
    entry.need(set(given) >= {"decode", "prefill"} and len(given) <= _MOST_PROFILES, "profiles", list(given))
    found = {}
    for name, profile in given.items():
        profile.exactly(*(item.name for item in fields(Profile)))
        index = profile.integer("index", 0, len(given) - 1)
        found[name] = Profile(index, *(_span(profile, part) for part in ("batch", "sequence", "positions", "total")))
    entry.need(len({profile.index for profile in found.values()}) == len(found), "profiles", "equal numbers")
    entry.need(found["decode"].sequence[0] == 1, "profiles.decode.sequence", list(found["decode"].sequence))
    for part in ("batch", "sequence", "positions"):
        span = getattr(found["prefill"], part)
        entry.need(span[0] == 1, f"profiles.prefill.{part}", list(span))
    return found


def _span(profile: Entry, name: str) -> Span:
    smallest, usual, largest = profile.integers(name, 3, least=1)
    profile.need(smallest <= usual <= largest, name, [smallest, usual, largest])
    return smallest, usual, largest
