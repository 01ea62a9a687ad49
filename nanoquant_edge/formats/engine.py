# SPDX-License-Identifier: Apache-2.0
"""What a bundle with a TensorRT engine says about the engine: the manifest's `engine` entry (docs/FORMAT.md).

An engine runs only with the TensorRT that built it, on the GPUs it was built for, and with the plugin it was built
with. All three stand here, so that a runtime can name both sides of a mismatch before it touches the engine file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import NqEdgeError
from .backends import FLAVOURS
from .graph import ACTIVATION_DTYPES, DOMAIN, LINEAR_OP
from .kv_layout import KvLayout

__all__ = ["ENGINE_FILE", "PLUGIN", "EngineInfo", "PluginInfo", "Profile", "Span", "read_engine"]

#: The usual name of the engine file.
ENGINE_FILE = "model.engine"
#: Name, version and namespace of the plugin that our library registers with TensorRT.
PLUGIN = (LINEAR_OP, "1", DOMAIN)
_LARGEST = 1 << 31
_MOST_NAMES = 100_000
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+){1,3}")

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


def read_engine(entry: Any) -> EngineInfo:
    """The `engine` entry of a manifest from a stranger, every value checked.

    Args:
        entry: from JSON.

    Returns:
        What it says; consistent in itself.

    Raises:
        NqEdgeError: NQ-BUNDLE naming the first value that is missing, of the wrong type or impossible.
    """
    main = _record(entry, EngineInfo, "engine")
    main["plugin"] = plugin = PluginInfo(**_record(main["plugin"], PluginInfo, "engine.plugin"))
    main["kv"] = kv = KvLayout.from_engine(main["kv"])
    main["profiles"] = profiles = _profiles(main["profiles"])
    for name in ("compute_capabilities", "debug_outputs"):
        main[name] = _names(main[name], f"engine.{name}")
    engine = EngineInfo(**main)
    _need(bool(_NUMBERS.fullmatch(engine.tensorrt_version)), "tensorrt_version", engine.tensorrt_version)
    _need(engine.flavour in FLAVOURS, "flavour", engine.flavour)
    for capability in engine.compute_capabilities:
        _need(bool(_CAPABILITY.fullmatch(capability)), "compute_capabilities", capability)
    _need(bool(_SHA256.fullmatch(plugin.sha256)), "plugin.sha256", plugin.sha256)
    _need(bool(engine.file), "file", engine.file)
    _need(engine.precision in ACTIVATION_DTYPES, "precision", engine.precision)
    for name in ("plugin_layers", "compressed_linears"):
        _need(0 <= getattr(engine, name) < _LARGEST, name, getattr(engine, name))
    _need(engine.plugin_layers <= engine.compressed_linears, "plugin_layers", engine.plugin_layers)
    for name, profile in profiles.items():
        _need(profile.total[2] >= kv.capacity, f"profiles.{name}.total", list(profile.total))
    return engine


def _profiles(entry: Any) -> dict[str, Profile]:
    _need(isinstance(entry, Mapping) and set(entry) >= {"decode", "prefill"} and len(entry) <= 16, "profiles", entry)
    found = {}
    for name, value in entry.items():
        spans = _record(value, Profile, f"engine.profiles.{name}")
        _need(0 <= spans["index"] < len(entry), f"profiles.{name}.index", spans["index"])
        for dimension in ("batch", "sequence", "positions", "total"):
            span = spans[dimension]
            good = isinstance(span, list | tuple) and len(span) == 3 and all(type(size) is int for size in span)
            good = good and 0 < span[0] <= span[1] <= span[2] < _LARGEST
            _need(good, f"profiles.{name}.{dimension}", span)
            spans[dimension] = tuple(span)
        found[name] = Profile(**spans)
    _need(len({profile.index for profile in found.values()}) == len(found), "profiles", "equal numbers")
    _need(found["decode"].sequence[0] == 1, "profiles.decode.sequence", list(found["decode"].sequence))
    for span in ("batch", "sequence", "positions"):
        smallest = getattr(found["prefill"], span)[0]
        _need(smallest == 1, f"profiles.prefill.{span}", list(getattr(found["prefill"], span)))
    return found


#: Annotation of a dataclass field -> type that JSON must hold there; others are checked by hand.
_PLAIN = {"str": str, "int": int, "bool": bool}


def _record(entry: Any, kind: type, place: str) -> dict[str, Any]:
    """The values of a dataclass from a JSON object that holds exactly its fields."""
    wanted = {field.name: field.type for field in fields(kind)}
    if not isinstance(entry, Mapping):
        raise _bad(place, entry)
    if odd := set(wanted) ^ set(entry):
        name = min(odd, key=str)
        state = "missing" if name in wanted else "unknown"
        raise NqEdgeError("NQ-BUNDLE", f"the manifest's {place}.{str(name)[:100]} is {state}.")
    for name, annotation in wanted.items():
        plain = _PLAIN.get(str(annotation))
        if plain is not None and type(entry[name]) is not plain:
            raise _bad(f"{place}.{name}", entry[name])
    return dict(entry)


def _names(value: Any, place: str) -> tuple[str, ...]:
    good = isinstance(value, list | tuple) and len(value) <= _MOST_NAMES
    if not (good and all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)):
        raise _bad(place, value)
    return tuple(value)


def _need(good: bool, place: str, value: Any) -> None:
    if not good:
        raise _bad(f"engine.{place}", value)


def _bad(place: str, value: Any) -> NqEdgeError:
    return NqEdgeError("NQ-BUNDLE", f"the manifest's {place} has the impossible value {str(value)[:100]!r}.")
