# SPDX-License-Identifier: Apache-2.0
"""Everything that compiling a graph needs to know, as one JSON file beside the graph: `nq_build.json`.

It is written where the graph is made and read where the engine is built, which may be a board that got the folder from
a stranger; so every value is checked, and no path is in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...formats.backends import FLAVOURS
from ...formats.engine import Profile, read_profiles
from ...formats.entry import Entry
from ...formats.graph import ATTENTION_MASK, INPUT_IDS, LOGITS_INDICES, MODEL_FILE
from ...formats.kv_layout import KvLayout
from ...system.files import read_json, write_json

__all__ = ["PLAN_FILE", "BuildPlan", "input_shapes"]

PLAN_FILE = "nq_build.json"
PLAN_VERSION = 1
_MOST_BYTES, _LARGEST_WEIGHTS = 16 << 20, 1 << 48


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
        content = read_json(folder / PLAN_FILE, "NQ-BUNDLE", _MOST_BYTES)
        entry = Entry(content, owner=f"{PLAN_FILE}'s")
        entry.exactly("plan_version", *(item.name for item in fields(cls)))
        entry.integer("plan_version", PLAN_VERSION, PLAN_VERSION)
        profiles = read_profiles(entry)
        entry.need(set(profiles) == {"decode", "prefill"}, "profiles", list(profiles))
        return cls(
            graph=entry.text("graph", choices=(MODEL_FILE,)),
            targets=entry.texts("targets"),
            flavour=entry.text("flavour", choices=tuple(FLAVOURS)),
            capabilities=entry.texts("capabilities"),
            dialect=entry.text("dialect"),
            precision=entry.text("precision"),
            kv=KvLayout.from_engine(entry.entry("kv")),
            profiles=profiles,
            plugin_layers=entry.integer("plugin_layers", 1),
            compressed_linears=entry.integer("compressed_linears", 1),
            weights=entry.integer("weights", 1, _LARGEST_WEIGHTS),
            refit=entry.flag("refit"),
            version_compatible=entry.flag("version_compatible"),
            embed_plugin=entry.flag("embed_plugin"),
            optimization_level=None if entry.null("optimization_level") else entry.integer("optimization_level"),
            workspace_mb=None if entry.null("workspace_mb") else entry.integer("workspace_mb"),
            debug_outputs=entry.texts("debug_outputs"),
        )


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
        (profile.batch[which], tail[which]) if tail is not None else (profile.batch[which], *dims[1:])
        for which in range(3)
    ]
    return shapes[0], shapes[1], shapes[2]
