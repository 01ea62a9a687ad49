# SPDX-License-Identifier: Apache-2.0
"""Everything that compiling a graph needs to know, as one JSON file beside the graph: `nq_build.json`.

It is written where the graph is made and read where the engine is built, which may be a board that got the folder from
a stranger; so every value is checked, and no path is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...formats.backends import FLAVOURS
from ...formats.engine import Profile
from ...formats.graph import ATTENTION_MASK, INPUT_IDS, LOGITS_INDICES
from ...formats.kv_layout import KvLayout
from ...system.files import read_json, write_json

__all__ = ["PLAN_FILE", "BuildPlan", "input_shapes"]

PLAN_FILE = "nq_build.json"
PLAN_VERSION = 1
_LARGEST = 1 << 31


@dataclass(frozen=True)
class BuildPlan:
    """How a graph becomes an engine.

    Attributes:
        graph: file name of the model, its weights beside it.
        targets: names of the devices.
        flavour: "rtx" or "standard".
        capabilities: compute capabilities, such as "8.6".
        dialect: of the graph.
        precision: "float16" or "bfloat16".
        kv: the cache.
        profiles: "decode" and "prefill".
        plugin_layers: plugin layers that the parsed network must have.
        compressed_linears: compressed layers in them.
        weights: bytes of the graph's initializers.
        refit, version_compatible, embed_plugin, optimization_level, workspace_mb: see `EngineOptions`.
        debug_outputs: graph outputs beside logits and cache.
    """

    graph: str
    targets: tuple[str, ...]
    flavour: str
    capabilities: tuple[str, ...]
    dialect: str
    precision: str
    kv: KvLayout
    profiles: dict[str, Profile]
    plugin_layers: int
    compressed_linears: int
    weights: int
    refit: bool = False
    version_compatible: bool = False
    embed_plugin: bool = False
    optimization_level: int | None = None
    workspace_mb: int | None = None
    debug_outputs: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        write_json(folder / PLAN_FILE, {"plan_version": PLAN_VERSION, **asdict(self), "kv": self.kv.to_engine()})

    @classmethod
    def read(cls, folder: Path) -> BuildPlan:
        """Read it from a folder.

        Raises:
            NqEdgeError: NQ-BUNDLE naming the first value that is missing, unknown or impossible.
        """
        entry = read_json(folder / PLAN_FILE, "NQ-BUNDLE")
        if entry.pop("plan_version", None) != PLAN_VERSION:
            raise _bad("plan_version", "another version")
        main = _record(entry, cls, "")
        for name in ("targets", "capabilities", "debug_outputs"):
            if not isinstance(main[name], list) or not all(isinstance(item, str) and item for item in main[name]):
                raise _bad(name, main[name])
            main[name] = tuple(main[name])
        for name in ("optimization_level", "workspace_mb"):
            if main[name] is not None and (type(main[name]) is not int or not 0 <= main[name] < _LARGEST):
                raise _bad(name, main[name])
        for name in ("plugin_layers", "compressed_linears", "weights"):
            if not 0 < main[name] < 1 << 48:
                raise _bad(name, main[name])
        main["kv"] = KvLayout.from_engine(main["kv"], "kv")
        if not isinstance(main["profiles"], dict) or set(main["profiles"]) != {"decode", "prefill"}:
            raise _bad("profiles", main["profiles"])
        main["profiles"] = {name: _profile(name, value) for name, value in main["profiles"].items()}
        if sorted(profile.index for profile in main["profiles"].values()) != [0, 1]:
            raise _bad("profiles", "indexes other than 0 and 1")
        if main["flavour"] not in FLAVOURS or Path(main["graph"]).name != main["graph"]:
            raise _bad("flavour or graph", (main["flavour"], main["graph"]))
        return cls(**main)


_PLAIN = {"str": str, "int": int, "bool": bool}


def _record(entry: Any, kind: type, place: str) -> dict[str, Any]:
    """The values of a JSON object that holds exactly the fields of a dataclass."""
    wanted = {field.name: str(field.type) for field in fields(kind)}
    if not isinstance(entry, Mapping) or set(entry) != set(wanted):
        odd = sorted(set(wanted) ^ set(entry), key=str)[0] if isinstance(entry, Mapping) else "everything"
        raise _bad(f"{place}{odd}", "missing or unknown")
    for name, annotation in wanted.items():
        if annotation in _PLAIN and type(entry[name]) is not _PLAIN[annotation]:
            raise _bad(f"{place}{name}", entry[name])
    return dict(entry)


def _profile(name: str, entry: Any) -> Profile:
    values = _record(entry, Profile, f"profiles.{name}.")
    for part in ("batch", "sequence", "positions", "total"):
        span = values[part]
        good = isinstance(span, list) and len(span) == 3 and all(type(size) is int for size in span)
        if not (good and 0 < span[0] <= span[1] <= span[2] < _LARGEST):
            raise _bad(f"profiles.{name}.{part}", span)
        values[part] = tuple(span)
    return Profile(**values)


def _bad(name: str, value: object) -> NqEdgeError:
    return NqEdgeError("NQ-BUNDLE", f"{PLAN_FILE} has an impossible {name}: {str(value)[:100]}.", "Export it again.")


def input_shapes(
    profile: Profile, name: str, dims: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, usual and largest shape of a graph input in a profile.

    Args:
        profile: the ranges.
        name: the input.
        dims: its shape in the network, -1 where it is symbolic; for the cache only the batch is.
    """
    second = {INPUT_IDS: profile.sequence, ATTENTION_MASK: profile.total, LOGITS_INDICES: profile.positions}
    tail = second.get(name)
    shapes = [
        (profile.batch[place], tail[place]) if tail is not None else (profile.batch[place], *dims[1:])
        for place in range(3)
    ]
    return shapes[0], shapes[1], shapes[2]
