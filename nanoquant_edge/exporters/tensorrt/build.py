# SPDX-License-Identifier: Apache-2.0
"""A checkpoint or an ONNX bundle to an engine bundle: preflight, graph, compilation, manifest; all of it or nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...devices import ModelSizes, Target, check_host
from ...devices.targets import targets_named
from ...errors import NqEdgeError
from ...formats.backends import BOARD_BUILD, FLAVOURS
from ...formats.bundle import MANIFEST_FILE, REFERENCE_FILE, Bundle
from ...formats.checkpoint import COMPANION_FILES
from ...formats.engine import ENGINE_FILE, PLUGIN, EngineInfo, PluginInfo
from ...formats.graph import OPERATOR_VERSION
from ...system.extras import install_command
from ...system.files import check_new_folder, new_folder, read_json, sha256_of
from ...system.native import tensorrt_library_path
from ...system.versions import release
from .board import write_board_files
from .options import EngineOptions
from .plan import BuildPlan
from .runner import can_build, run_compiler

__all__ = ["build_engine"]

#: Files that travel from the source to the bundle: the tokenizer's, and what PyTorch computed, to validate against.
_COMPANIONS = (*COMPANION_FILES, REFERENCE_FILE)
#: First standard TensorRT whose parser takes the operators of dialect onnx24.
_ATTENTION_VERSION = (10, 15)

Progress = Callable[[float, str], None]


def build_engine(
    source: str | Path,
    output: str | Path,
    *,
    target: str | tuple[str, ...],
    options: EngineOptions | None = None,
    overwrite: bool = False,
    library: str | Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Build a TensorRT engine, or the folder that a board builds it from.

    Args:
        source: a checkpoint, a bundle that `export_onnx` wrote, or a folder that this function wrote for a board.
        output: bundle folder; it appears only when it is complete.
        target: one or several names of `devices.TARGETS`; several share an engine.
        options: see `EngineOptions`.
        overwrite: replace a bundle that stands there.
        library: the plugin; None takes the installed one.
        progress: called with (fraction done, what is being done).

    Returns:
        The bundle, read back. Its backend is "tensorrt-rtx" or "tensorrt", or "tensorrt-build" when the target's
        TensorRT is not installed here: then it is to be built on the board. `measured["build"]` has the preflight,
        times, sizes and peak host memory.

    Raises:
        NqEdgeError: NQ-TARGET, NQ-FIT, NQ-OPTION, NQ-MISSING, NQ-NATIVE-MISSING, NQ-PLUGIN, NQ-ENGINE, NQ-OUTPUT, or
            what opening the source raises; nothing is left behind.
    """
    options = options or EngineOptions()
    start = time.perf_counter()
    source, output = Path(source), Path(output)
    targets = targets_named((target,) if isinstance(target, str) else target)
    _check_options(targets, options)
    check_new_folder(output, overwrite)
    if (source / MANIFEST_FILE).is_file() and read_json(source / MANIFEST_FILE, "NQ-BUNDLE").get("backend") == (
        BOARD_BUILD
    ):
        return _build_on_board(source, output, targets, options, overwrite, library, progress, start)
    flavour = targets[0].flavour
    here = can_build(flavour)
    if flavour == "rtx" and not here:
        raise NqEdgeError(
            "NQ-MISSING",
            f"building for {targets[0].name} needs the package tensorrt_rtx.",
            f"Install it: {install_command('rtx')}.",
        )
    plugin = _library(library) if here else None
    try:
        from .graph import plan_graph
        from .source import open_source
    except ModuleNotFoundError as error:
        hint = f"Install them: {install_command('export')}."
        raise NqEdgeError("NQ-MISSING", f"writing a graph needs the package {error.name}.", hint) from error
    report = progress or (lambda _fraction, _text: None)
    report(0.0, "reading the model")
    model = open_source(source)
    read_json(model.folder / "tokenizer.json", "NQ-TOKENIZER")
    planned = plan_graph(model, targets, _dialect(flavour), options)
    plan = planned.plan
    host = check_host(plan.weights, planned.code, output, builds=here)
    measured: dict[str, Any] = {"preflight": [fit.to_dict() for fit in planned.fits], "host": host}
    with new_folder(output, overwrite) as scratch:
        graph = scratch / "graph" if here else scratch
        graph.mkdir(exist_ok=True)
        report(0.02, "writing the graph")
        planned.write(graph)
        for name in _COMPANIONS:
            if (model.folder / name).is_file():
                shutil.copyfile(model.folder / name, scratch / name)
        shell = Bundle(
            folder=scratch,
            backend=BOARD_BUILD,
            backend_versions=("10.3", ""),
            dialect=plan.dialect,
            dtype=plan.precision,
            portable=False,
            operator_version=OPERATOR_VERSION,
            source_model=model.source_model,
            target_bpw=model.target_bpw,
            true_bpw=model.true_bpw,
            compressed_linears=plan.compressed_linears,
            vocab_size=model.config.vocab_size,
            kv=plan.kv,
        )
        if plugin is None:
            write_board_files(scratch, plan, targets[0])
            measured["seconds"] = round(time.perf_counter() - start, 3)
            bundle = replace(shell, measured={"build": measured}).write()
        else:
            result = _compile(graph, scratch, plugin, options, lambda done, text: report(0.05 + 0.95 * done, text))
            shutil.rmtree(graph)
            bundle = _engine_bundle(shell, plan, plugin, result, measured, start)
    return replace(bundle, folder=output)


def _check_options(targets: list[Target], options: EngineOptions) -> None:
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


def _library(library: str | Path | None) -> Path:
    if library is None:
        return tensorrt_library_path()
    path = Path(library).resolve()
    if not path.is_file():
        raise NqEdgeError("NQ-NATIVE-MISSING", f"The plugin library {path} does not exist.")
    return path


def _dialect(flavour: str) -> str:
    """The newest dialect that the TensorRT in question takes; for one that is not here, the oldest."""
    if flavour == "rtx":
        return "onnx24"
    if can_build(flavour):
        import importlib

        version = str(importlib.import_module(FLAVOURS[flavour].module).__version__)
        return "onnx24" if release(version) >= _ATTENTION_VERSION else "trt103"
    return "trt103"


def _compile(
    graph: Path, scratch: Path, plugin: Path, options: EngineOptions, progress: Progress | None
) -> dict[str, Any]:
    return run_compiler(graph, scratch / ENGINE_FILE, plugin, options.timing_cache, progress)


def _engine_bundle(
    shell: Bundle, plan: BuildPlan, plugin: Path, result: dict[str, Any], measured: dict[str, Any], start: float
) -> Bundle:
    """Write the manifest of an engine that stands in the bundle's folder."""
    engine = EngineInfo(
        file=ENGINE_FILE,
        tensorrt_version=result["tensorrt_version"],
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
    names = ("layers", "parse_seconds", "build_seconds", "engine_bytes", "peak_bytes", "peak_private_bytes")
    measured = {**measured, **{name: result[name] for name in names}, "graph_bytes": plan.weights}
    measured["seconds"] = round(time.perf_counter() - start, 3)
    version = result["tensorrt_version"]
    return replace(
        shell,
        backend=FLAVOURS[plan.flavour].backend,
        backend_versions=(version, "" if plan.version_compatible else version),
        measured={**shell.measured, "build": measured},
        engine=engine,
    ).write()


def _build_on_board(
    source: Path,
    output: Path,
    targets: list[Target],
    options: EngineOptions,
    overwrite: bool,
    library: str | Path | None,
    progress: Progress | None,
    start: float,
) -> Bundle:
    """Compile the graph of a build folder; needs no `onnx` package."""
    prepared = Bundle.open(source)
    plan = BuildPlan.read(source)
    found = tuple(dict.fromkeys(target.compute_capability for target in targets))
    if plan.capabilities != found:
        raise NqEdgeError(
            "NQ-TARGET",
            f"{source} was prepared for {', '.join(plan.targets)}, not for {', '.join(t.name for t in targets)}.",
            "Export the checkpoint again with this target.",
        )
    if plan.graph not in prepared.files:
        raise NqEdgeError("NQ-BUNDLE", f"{source} does not list {plan.graph}.", "Copy the folder again.")
    if not can_build(plan.flavour):
        raise NqEdgeError(
            "NQ-TARGET",
            f"TensorRT is not installed here, and an engine for {plan.targets[0]} is built on the device.",
            "Copy the folder to the device and run build.sh there.",
        )
    plugin = _library(library)
    measured: dict[str, Any] = {"host": check_host(plan.weights, ModelSizes.code_of(plan.kv.layers), output)}
    with new_folder(output, overwrite) as scratch:
        for name in _COMPANIONS:
            if name in prepared.files:
                shutil.copyfile(source / name, scratch / name)
        result = _compile(source, scratch, plugin, options, progress)
        bundle = _engine_bundle(replace(prepared, folder=scratch), plan, plugin, result, measured, start)
    return replace(bundle, folder=output)
