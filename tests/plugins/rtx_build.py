# SPDX-License-Identifier: Apache-2.0
"""Builds networks of the plugin's two operators with the real TensorRT for RTX, on a CPU; runs as a script.

Each case runs in a process of its own, since a wrong plugin may end it. Needs numpy, onnx and tensorrt_rtx only.

    python rtx_build.py LIBRARY     with NQ_CASE, a JSON object of the options in `Case`; prints one JSON object
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

TYPES = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclass
class Case:
    """What is built, and what is wrong with it."""

    x: str = "f16"
    scale: str = "f16"
    n: int = 96
    ranks: tuple[int, ...] = (40, 33)
    outs: tuple[int, ...] = (72, 24)
    layout: int = 1
    load: bool = True  # the plugin library
    embed: bool = False  # it goes into the engine
    capabilities: tuple[str, ...] = ("SM86", "SM89", "SM120")
    domain: str = "com.nanoquant"
    attributes: dict[str, Any] = field(default_factory=dict)  # added to the first node
    short: bool = False  # one row of tiles is missing
    float_bias: bool = False  # one bias has another type than the scales


def import_tensorrt() -> Any:
    """TensorRT for RTX, with the unversioned library name that its parser opens, which the wheel lacks.

    The parser looks in its own folder; loaded first from a folder of ours, that is ours.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or []
    links = Path(tempfile.mkdtemp())
    core, parser = "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"
    for link, name in (("libtensorrt_rtx.so", core), (core, core), (parser, parser)):
        (links / link).symlink_to(Path(folder) / name)
    for name in (core, parser):
        ctypes.CDLL(str(links / name), ctypes.RTLD_GLOBAL)
    import tensorrt_rtx

    return tensorrt_rtx


def tensor(name: str, shape: tuple[int, ...], kind: int) -> TensorProto:
    """Random numbers, or random words."""
    rng = np.random.default_rng(0)
    if kind == TensorProto.INT32:
        values = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    else:
        values = np.ones(shape, np.float32 if kind == TensorProto.FLOAT else np.float16)
        if kind == TensorProto.BFLOAT16:
            values = np.full(shape, 0x3F80, np.uint16)
    return helper.make_tensor(name, kind, shape, values.tobytes(), raw=True)


def weights(case: Case, prefix: str, rank: int, m: int) -> list[TensorProto]:
    """The six tensors of one projection; scale_mid is used, the bias is not."""
    scale = TYPES[case.scale]
    tiles = [(-(-rows // 16) - case.short, 128 * -(-columns // 256)) for rows, columns in ((rank, case.n), (m, rank))]
    bias = TensorProto.FLOAT if case.float_bias else scale
    return [
        tensor(prefix + "v", tiles[0], TensorProto.INT32),
        tensor(prefix + "u", tiles[1], TensorProto.INT32),
        tensor(prefix + "in", (case.n,), scale),
        tensor(prefix + "mid", (rank,), scale),
        tensor(prefix + "out", (m,), scale),
        tensor(prefix + "bias", (1,), bias),
    ]


def model(case: Case) -> bytes:
    """A group of projections, and then a lone layer that reads its first output."""
    count = len(case.ranks)
    group = [one for i in range(count) for one in weights(case, f"g{i}", case.ranks[i], case.outs[i])]
    lone_case = Case(**{**case.__dict__, "n": case.outs[0]})
    lone = weights(lone_case, "l", 48, 32)
    common = {"layout": case.layout, "domain": case.domain}
    first = {"in_features": case.n, "ranks": case.ranks, "out_features": case.outs, "has_scale_mid": [1] * count}
    nodes = [
        helper.make_node(
            "NanoQuantLinearGroup",
            ["x", *(one.name for one in group)],
            [f"y{i}" for i in range(count)],
            name="group",
            **{**first, "has_bias": [0] * count, **common, **case.attributes},
        ),
        helper.make_node(
            "NanoQuantLinear",
            ["y0", *(one.name for one in lone)],
            ["z"],
            name="lone",
            in_features=case.outs[0],
            rank=48,
            out_features=32,
            has_scale_mid=1,
            has_bias=0,
            **common,
        ),
    ]
    kind = TYPES[case.x]
    info = [
        helper.make_tensor_value_info(name, kind, ["batch", "length", size])
        for name, size in (("x", case.n), ("z", 32), *((f"y{i}", case.outs[i]) for i in range(1, count)))
    ]
    graph = helper.make_graph(nodes, "two", info[:1], info[1:], group + lone)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(case.domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def build(case: Case, library: str) -> dict[str, Any]:
    """Parse and build; what came of it."""
    trt = import_tensorrt()
    log: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                log.append(message)

    logger = Logger()
    registry = trt.get_plugin_registry()
    found: dict[str, Any] = {"version": trt.__version__, "log": log, "creators": [], "reason": ""}
    if case.load:
        assert registry.load_library(library) is not None
        every = [(one.name, one.plugin_version, one.plugin_namespace) for one in registry.all_creators]
        found["creators"] = [one for one in every if one[0].startswith("NanoQuant")]
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    found["parsed"] = parser.parse(model(case))
    found["errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    if found["parsed"]:
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
        found["plugins"] = [layer.name for layer in plugins]
        found["shapes"] = [list(layer.get_output(i).shape) for layer in plugins for i in range(layer.num_outputs)]
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(case.capabilities)
        for i, name in enumerate(case.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
        if case.embed:
            config.plugins_to_serialize = [library]
        for length in (1, 512):
            profile = builder.create_optimization_profile()
            profile.set_shape("x", (1, 1, case.n), (1, length, case.n), (2, length, case.n))
            config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        found["engine_bytes"] = 0 if engine is None else engine.nbytes
    if case.load:
        last_error = ctypes.CDLL(library).nq_tensorrt_last_error
        last_error.restype = ctypes.c_char_p
        found["reason"] = last_error().decode()
    return found


if __name__ == "__main__":
    print(json.dumps(build(Case(**json.loads(os.environ["NQ_CASE"])), sys.argv[1])))
