# SPDX-License-Identifier: Apache-2.0
"""A checkpoint or an ONNX bundle to an engine bundle: preflight, graph, compilation, manifest; all of it or nothing."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...devices import ModelSizes, Target, check_host
from ...devices.targets import targets_named
from ...errors import NqEdgeError
from ...formats.backends import BOARD_BUILD, FLAVOURS
from ...formats.bundle import MANIFEST_FILE, REFERENCE_FILE, Bundle
from ...formats.companions import COMPANION_FILES, copy_companions
from ...formats.engine import ENGINE_FILE, PLUGIN, EngineInfo, PluginInfo
from ...system.extras import install_command
from ...system.files import check_new_folder, new_folder, read_json, sha256_of
from ...system.native import tensorrt_library_path
from ...system.progress import Progress, Show
from .board import write_board_files
from .options import EngineOptions
from .plan import BuildPlan
from .toolchain import Toolchain

__all__ = ["build_engine"]

#: Files that travel from the source to the bundle: the tokenizer's, and what PyTorch computed, to validate against.
_COMPANIONS = (*COMPANION_FILES, REFERENCE_FILE)
#: What the compiler measured and the manifest keeps.
_MEASURED = ("layers", "parse_seconds", "build_seconds", "engine_bytes", "peak_bytes", "peak_private_bytes")


def build_engine(
    source: str | Path,
    output: str | Path,
    options: EngineOptions | None = None,
    *,
    target: str | tuple[str, ...],
    overwrite: bool = False,
    progress: Show | None = None,
    toolchain: Toolchain | None = None,
    **keywords: Any,
) -> Bundle:
    """Build a TensorRT engine, or the folder that a board builds it from.

    Args:
        source: a checkpoint, a bundle that `export_onnx` wrote, or a folder that this function wrote for a board.
        output: bundle folder; it appears only when it is complete.
        options: what the engine is to be.
        target: one or several names of `devices.TARGETS`; several share an engine.
        overwrite: replace a bundle that stands there.
        progress: told how far it is.
        toolchain: another compiler than the installed TensorRT.
        **keywords: fields of `EngineOptions`, instead of those in `options`.

    Returns:
        The bundle, read back. Its backend is "tensorrt-rtx" or "tensorrt", or "tensorrt-build" when the target's
        TensorRT is not installed here: then it is to be built on the board. `measured["build"]` has the preflight,
        times, sizes and peak host memory.

    Raises:
        NqEdgeError: NQ-TARGET, NQ-FIT, NQ-OPTION, NQ-MISSING, NQ-NATIVE-MISSING, NQ-PLUGIN, NQ-ENGINE, NQ-OUTPUT, or
            what opening the source raises; nothing is left behind.

    Example:
        >>> bundle = build_engine("checkpoint", "board", target="jetson-orin-nano-8gb", capacity=128)
        >>> bundle.backend, bundle.kv.capacity  # the board builds the engine from what lies there
        ('tensorrt-build', 128)
    """
    started = time.perf_counter()
    options = replace(options or EngineOptions(), **keywords)
    source, output = Path(source), Path(output)
    targets = targets_named((target,) if isinstance(target, str) else target)
    _check_targets(targets, options)
    check_new_folder(output, overwrite)
    build = _Build(
        output=output,
        overwrite=overwrite,
        targets=targets,
        options=options,
        toolchain=toolchain or Toolchain(),
        progress=Progress.to(progress),
        started=started,
    )
    return build.from_board_folder(source) if _is_board_folder(source) else build.from_model(source)


def _is_board_folder(source: Path) -> bool:
    manifest = source / MANIFEST_FILE
    return manifest.is_file() and read_json(manifest, "NQ-BUNDLE").get("backend") == BOARD_BUILD


def _check_targets(targets: list[Target], options: EngineOptions) -> None:
    """Refuse what TensorRT for RTX cannot do, before any work. Seen with 1.7.1."""
    if targets[0].flavour != "rtx":
        return
    if options.refit and len({target.compute_capability for target in targets}) > 1:
        raise NqEdgeError("NQ-OPTION", "a refittable engine is for one compute capability.", "Name one target.")
    if options.version_compatible:
        raise NqEdgeError(
            "NQ-OPTION",
            "TensorRT for RTX builds no version-compatible engine.",
            "Leave it out, and build again after an update; that takes seconds.",
        )
    if options.timing_cache is not None:
        raise NqEdgeError("NQ-OPTION", "TensorRT for RTX measures nothing while it builds, so no timing cache is used.")


@dataclass(frozen=True)
class _Build:
    """One call of `build_engine`, its arguments checked."""

    output: Path
    overwrite: bool
    targets: list[Target]
    options: EngineOptions
    toolchain: Toolchain
    progress: Progress
    started: float

    def from_model(self, source: Path) -> Bundle:
        """Write a graph for the targets, and compile it where their TensorRT is installed."""
        flavour = self.targets[0].flavour
        compiles = self.toolchain.has(flavour)
        if flavour == "rtx" and not compiles:
            raise NqEdgeError(
                "NQ-MISSING",
                f"building for {self.targets[0].name} needs the package {FLAVOURS[flavour].module}.",
                f"Install it: {install_command(FLAVOURS[flavour].extra)}.",
            )
        plugin = self._plugin() if compiles else None
        try:
            from ..onnx.dialects.base import dialect_named
            from ..source import Source
            from .planned_graph import plan_graph
        except ModuleNotFoundError as error:
            hint = f"Install them: {install_command('export')}."
            raise NqEdgeError("NQ-MISSING", f"writing a graph needs the package {error.name}.", hint) from error
        self.progress(0.0, "reading the model")
        model = Source.open(source)
        planned = plan_graph(model, self.targets, dialect=self.toolchain.dialect_of(flavour), options=self.options)
        plan, graph = planned.plan, planned.options
        host = check_host(plan.weights, planned.code, folder=self.output, builds=compiles)
        measured: dict[str, Any] = {"preflight": [fit.to_dict() for fit in planned.fits], "host": host}
        versions = dialect_named(graph.dialect).backend_versions(model.config, graph)
        with new_folder(self.output, self.overwrite) as scratch:
            folder = scratch / "graph" if compiles else scratch
            folder.mkdir(exist_ok=True)
            planned.write(folder, self.progress.part(0.02, 0.05))
            copy_companions(model.folder, scratch, _COMPANIONS)
            shell = model.bundle(scratch, graph, backend=BOARD_BUILD, versions=versions)
            if plugin is None:
                write_board_files(scratch, plan, self.targets[0])
                bundle = replace(shell, measured={"build": self._timed(measured)}).write()
            else:
                result = self._compile(folder, scratch, plugin, self.progress.part(0.05, 1.0))
                shutil.rmtree(folder)
                bundle = self._engine_bundle(shell, plan, plugin, result, measured)
        return replace(bundle, folder=self.output)

    def from_board_folder(self, source: Path) -> Bundle:
        """Compile the graph of a build folder; needs no `onnx` package."""
        prepared = Bundle.open(source)
        plan = BuildPlan.read(source)
        wanted = tuple(dict.fromkeys(target.compute_capability for target in self.targets))
        if plan.capabilities != wanted:
            names = ", ".join(target.name for target in self.targets)
            raise NqEdgeError(
                "NQ-TARGET",
                f"{source} was prepared for {', '.join(plan.targets)}, not for {names}.",
                "Export the checkpoint again with this target.",
            )
        if plan.graph not in prepared.files:
            raise NqEdgeError("NQ-BUNDLE", f"{source} does not list {plan.graph}.", "Copy the folder again.")
        if not self.toolchain.has(plan.flavour):
            raise NqEdgeError(
                "NQ-TARGET",
                f"TensorRT is not installed here, and an engine for {plan.targets[0]} is built on the device.",
                "Copy the folder to the device and run build.sh there.",
            )
        plugin = self._plugin()
        host = check_host(plan.weights, ModelSizes.code_of(plan.kv.layers), folder=self.output)
        with new_folder(self.output, self.overwrite) as scratch:
            copy_companions(source, scratch, [name for name in _COMPANIONS if name in prepared.files])
            result = self._compile(source, scratch, plugin, self.progress)
            shell = replace(prepared, folder=scratch)
            bundle = self._engine_bundle(shell, plan, plugin, result, {"host": host})
        return replace(bundle, folder=self.output)

    def _plugin(self) -> Path:
        """The plugin library that the options name, or the installed one."""
        if self.options.library is None:
            return tensorrt_library_path()
        path = Path(self.options.library).resolve()
        if not path.is_file():
            raise NqEdgeError("NQ-NATIVE-MISSING", f"The plugin library {path} does not exist.")
        return path

    def _compile(self, graph: Path, scratch: Path, plugin: Path, progress: Progress) -> dict[str, Any]:
        cache = self.options.timing_cache
        return self.toolchain.compile(
            graph, scratch / ENGINE_FILE, library=plugin, timing_cache=cache, progress=progress
        )

    def _timed(self, measured: dict[str, Any]) -> dict[str, Any]:
        return {**measured, "seconds": round(time.perf_counter() - self.started, 3)}

    def _engine_bundle(
        self, shell: Bundle, plan: BuildPlan, plugin: Path, result: dict[str, Any], measured: dict[str, Any]
    ) -> Bundle:
        """Write the manifest of an engine that stands in the bundle's folder."""
        version = result["tensorrt_version"]
        engine = EngineInfo(
            file=ENGINE_FILE,
            tensorrt_version=version,
            flavour=plan.flavour,
            compute_capabilities=plan.capabilities,
            plugin=PluginInfo(*PLUGIN, sha256_of(plugin), plan.embed_plugin),
            precision=plan.precision,
            kv=plan.kv,
            profiles=plan.profiles,
            refit=plan.refit,
            version_compatible=plan.version_compatible,
            plugin_layers=result["plugin_layers"],
            compressed_linears=result["compressed_linears"],
            debug_outputs=plan.debug_outputs,
        )
        figures = {**measured, **{name: result[name] for name in _MEASURED}, "graph_bytes": plan.weights}
        return replace(
            shell,
            backend=FLAVOURS[plan.flavour].backend,
            backend_versions=(version, "" if plan.version_compatible else version),
            measured={**shell.measured, "build": self._timed(figures)},
            engine=engine,
        ).write()
