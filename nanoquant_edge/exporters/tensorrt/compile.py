# SPDX-License-Identifier: Apache-2.0
"""A graph and its plan to an engine file, in a process of its own (`python -m` and this module).

The builder is native code that can be killed for memory or abort; in a child that is an error message, not the end of
the program, and all its memory comes back. The request is one JSON object on standard input; events are JSON objects,
one a line, on standard output. Needs TensorRT and the standard library only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...formats.backends import FLAVOURS
from ...formats.engine import PLUGIN
from ...formats.graph import GROUP_OP, LINEAR_OP
from ...formats.graph_check import check_graph
from ...system.memory_watch import MemoryWatch
from .lent_weights import LentWeights
from .plan import BuildPlan, input_shapes

__all__ = ["compile_graph"]

_PLUGINS = (LINEAR_OP, GROUP_OP)
_LOG_LINES = 40

Event = Callable[[str, dict[str, Any]], None]


def compile_graph(
    folder: Path, output: Path, *, library: Path, timing_cache: Path | None = None, event: Event | None = None
) -> dict[str, Any]:
    """Build an engine.

    Args:
        folder: holds the graph and its plan.
        output: engine file to write.
        library: the plugin.
        timing_cache: read if it is there, and written afterwards.
        event: called with ("phase", {...}) as the builder proceeds.

    Returns:
        tensorrt_version, plugin_layers, compressed_linears, layers, parse_seconds, build_seconds, engine_bytes,
        peak_bytes (host memory of this process, mapped weights included) and peak_private_bytes (without them; 0
        where the system does not tell).

    Raises:
        NqEdgeError: NQ-ENGINE when parsing or building fails or the layers' numbers differ, NQ-PLUGIN when the plugin
            cannot be loaded, NQ-FIT when memory ran out, NQ-OPTION for an option that this TensorRT lacks.
    """
    import importlib

    plan = BuildPlan.read(folder)
    trt = importlib.import_module(FLAVOURS[plan.flavour].module)
    log: list[str] = []
    logger = _logger(trt, log)
    registry = trt.get_plugin_registry()
    if registry.load_library(str(library)) is None or registry.get_creator(*PLUGIN) is None:
        raise NqEdgeError("NQ-PLUGIN", f"TensorRT {trt.__version__} cannot load {library}. {_words(log)}".strip())
    builder = trt.Builder(logger)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if plan.version_compatible:
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)  # such engines allow no plugin for it
    start = time.perf_counter()
    check_graph((folder / plan.graph).read_bytes())  # the folder may be a stranger's, and the parser trusts it
    lent = LentWeights(folder / plan.graph) if hasattr(parser, "load_initializer") else None
    if not _parse(parser, folder / plan.graph, lent):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise NqEdgeError(
            "NQ-ENGINE",
            f"TensorRT {trt.__version__} does not parse {plan.graph}: {_words(errors or log)}",
            "Export again for this target; the dialect must suit the installed TensorRT.",
        )
    parsed = time.perf_counter()
    layers, linears = _count(trt, network)
    if (layers, linears) != (plan.plugin_layers, plan.compressed_linears):
        raise NqEdgeError(
            "NQ-ENGINE",
            f"the network has {layers} plugin layers with {linears} compressed layers, the graph {plan.plugin_layers} "
            f"with {plan.compressed_linears}.",
            "Export again; a graph with a portable body must not be given to TensorRT.",
        )
    _allow_decomposition(trt, network)
    config = _config(trt, builder, network, plan, library, timing_cache, event)
    with MemoryWatch(lent.forget if lent is not None else None) as memory:
        written = _build(trt, builder, network, config, output, log)
    if timing_cache is not None and (cache := config.get_timing_cache()) is not None:
        timing_cache.write_bytes(bytes(cache.serialize()))
    return {
        "tensorrt_version": str(trt.__version__),
        "plugin_layers": layers,
        "compressed_linears": linears,
        "layers": network.num_layers,
        "parse_seconds": round(parsed - start, 3),
        "build_seconds": round(time.perf_counter() - parsed, 3),
        "engine_bytes": written,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_private_bytes": memory.private,
    }


def _parse(parser: Any, model: Path, lent: LentWeights | None) -> bool:
    if lent is None:
        return bool(parser.parse_from_file(str(model)))
    if not parser.load_model_proto(lent.content, str(model)):
        return False
    lent.lend(parser)
    return bool(parser.parse_model_proto())


def _logger(trt: Any, log: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                log.append(str(message).strip()[:800])
                del log[:-_LOG_LINES]

    return Logger()


def _words(lines: Iterable[str]) -> str:
    """The last errors, in TensorRT's words."""
    return " | ".join(list(lines)[-3:])[:1200]


def _count(trt: Any, network: Any) -> tuple[int, int]:
    """Plugin layers of ours, and the compressed layers in them (one an output)."""
    layers = linears = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.PLUGIN_V3:
            continue
        layer.__class__ = trt.IPluginV3Layer
        core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        if core.plugin_name in _PLUGINS:
            layers += 1
            linears += layer.num_outputs
    return layers, linears


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let attention be taken apart where no fused kernel takes it (seen: fewer than four heads)."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # TensorRT 10.14 and later
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _config(
    trt: Any,
    builder: Any,
    network: Any,
    plan: BuildPlan,
    library: Path,
    timing_cache: Path | None,
    event: Event | None,
) -> Any:
    config = builder.create_builder_config()
    for profile in sorted(plan.profiles.values(), key=lambda profile: profile.index):
        ranges = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            value = network.get_input(index)
            ranges.set_shape(value.name, *input_shapes(profile, value.name, tuple(value.shape)))
        if config.add_optimization_profile(ranges) < 0:
            raise NqEdgeError("NQ-ENGINE", f"TensorRT refuses the profile {profile}.", "Export again.")
    flags = {"REFIT": plan.refit, "VERSION_COMPATIBLE": plan.version_compatible}
    for name, wanted in flags.items():
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))
    if plan.embed_plugin:
        config.plugins_to_serialize = [str(library)]
    if plan.optimization_level is not None:
        config.builder_optimization_level = plan.optimization_level
    if plan.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_mb << 20)
    if plan.flavour == "rtx":
        config.num_compute_capabilities = len(plan.capabilities)
        for index, capability in enumerate(plan.capabilities):
            name = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if timing_cache is not None:
        old = timing_cache.read_bytes() if timing_cache.is_file() else b""
        cache = config.create_timing_cache(old)
        config.set_timing_cache(cache, ignore_mismatch=False)
    if event is not None:
        config.progress_monitor = _monitor(trt, event)
    return config


def _monitor(trt: Any, event: Event) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            event("phase", {"name": name, "parent": parent or "", "done": 0, "of": steps})

        def step_complete(self, name: str, step: int) -> bool:
            event("phase", {"name": name, "done": step + 1, "of": self.steps.get(name, 0)})
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


def _build(trt: Any, builder: Any, network: Any, config: Any, output: Path, log: list[str]) -> int:
    """Write the engine; returns its bytes."""
    written = 0
    with output.open("wb") as file:
        if hasattr(builder, "build_serialized_network_to_stream"):

            class Writer(trt.IStreamWriter):
                def __init__(self) -> None:
                    trt.IStreamWriter.__init__(self)

                def write(self, data: Any) -> int:
                    return file.write(data)

            done = builder.build_serialized_network_to_stream(network, config, Writer())
        else:
            memory = builder.build_serialized_network(network, config)
            done = memory is not None and bool(file.write(memory))
        written = file.tell()
    if done and written:
        return written
    output.unlink(missing_ok=True)
    words = _words(log)
    if "outofmemory" in words.lower().replace(" ", "").replace("_", ""):
        raise NqEdgeError(
            "NQ-FIT",
            f"memory ran out while the engine was built: {words}",
            "End other programs, or use a smaller --capacity, --prefill or --workspace.",
        )
    raise NqEdgeError(
        "NQ-ENGINE",
        f"TensorRT {trt.__version__} did not build the engine: {words or 'it gave no reason'}.",
        "Without a GPU, TensorRT for RTX builds no refittable engine; otherwise report this message.",
    )


def main() -> int:
    """Serve one request; the exit status is 0, or 3 after an error that was reported."""
    # Native libraries print to file descriptor 1 too: events get a copy of it, and 1 becomes standard error.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def send(kind: str, entry: dict[str, Any]) -> None:
        events.write(json.dumps({"event": kind, **entry}) + "\n")

    request = json.load(sys.stdin)
    cache = request.get("timing_cache")
    try:
        result = compile_graph(
            Path(request["folder"]),
            Path(request["output"]),
            library=Path(request["library"]),
            timing_cache=None if cache is None else Path(cache),
            event=send,
        )
    except NqEdgeError as error:
        send("error", {"code": error.code, "message": error.message, "hint": error.hint})
        return 3
    except MemoryError:
        send("error", {"code": "NQ-FIT", "message": "memory ran out while the engine was built.", "hint": None})
        return 3
    send("done", result)
    events.flush()
    # TensorRT's objects die in any order at interpreter exit; the engine is on disk, so nothing is left to do.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
