# SPDX-License-Identifier: Apache-2.0
"""One quantized table as embedding and head: our operators beside ONNX Runtime's own, each in a process of its own.

    python -m benchmarks.head [--rows 49152] [--columns 576] [--append]

ONNX Runtime's are GatherBlockQuantized and MatMulNBits over one initializer; `accuracy_level` 4 lets the latter round
activations to 8 bits. `anonymous_mb` and `mapped_mb` are what the session adds to the process: memory of its own, and
pages of the file. Errors are relative to float64 with the same table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.figures import append_rows

_GROUP = 32


def variants() -> list[dict[str, Any]]:
    """What is compared: our formats, and the nearest ones that ONNX Runtime has."""
    ours = [{"operators": "ours", "bits": bits} for bits in (8, 4)]
    theirs = [
        {"operators": "onnxruntime", "bits": bits, "accuracy_level": level} for bits in (8, 4) for level in (0, 4)
    ]
    return ours + theirs


def build(variant: dict[str, Any], rows: int, columns: int, folder: Path) -> np.ndarray:
    """Write a model with both ends on one random table; returns the dense table."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from nanoquant_edge.formats.checkpoint import quantize_table

    dense = np.random.default_rng(0).standard_normal((rows, columns), np.float32) / 10
    bits = variant["bits"]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["m"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", rows]),
        helper.make_tensor_value_info("e", TensorProto.FLOAT, ["m", columns]),
    ]
    if variant["operators"] == "ours":
        table = quantize_table(dense, f"int{bits}")
        tensors = [numpy_helper.from_array(table.codes, "codes"), numpy_helper.from_array(table.scales, "scales")]
        entries: dict[str, Any] = {"columns": columns, "bits": bits, "group_size": table.group_size}
        nodes = [
            helper.make_node(
                "NanoQuantEmbedding", ["ids", "codes", "scales"], ["e"], domain="com.nanoquant", **entries
            ),
            helper.make_node("NanoQuantHead", ["x", "codes", "scales"], ["y"], domain="com.nanoquant", **entries),
        ]
        dense = table.dense(np.float32)
    else:
        top = 1 << (bits - 1)
        blocks = dense.reshape(rows, -1, _GROUP)
        scales = np.abs(blocks).max(-1) / (top - 1)
        codes = np.rint(blocks / scales[..., None])
        dense = (codes * scales[..., None]).reshape(rows, columns).astype(np.float32)
        packed = (codes + top).astype(np.uint8)
        if bits == 4:
            packed = packed[..., 0::2] | packed[..., 1::2] << 4
        tensors = [
            numpy_helper.from_array(packed.reshape(rows, -1), "codes"),
            numpy_helper.from_array(scales.astype(np.float32), "scales"),
            numpy_helper.from_array(np.asarray(packed.shape, np.int64), "shape"),
        ]
        common = {"bits": bits, "block_size": _GROUP}
        level = {"accuracy_level": variant["accuracy_level"]}
        nodes = [
            helper.make_node(
                "GatherBlockQuantized",
                ["codes", "ids", "scales"],
                ["e"],
                domain="com.microsoft",
                gather_axis=0,
                quantize_axis=1,
                **common,
            ),
            helper.make_node("Reshape", ["codes", "shape"], ["blocks"]),
            helper.make_node(
                "MatMulNBits",
                ["x", "blocks", "scales"],
                ["y"],
                domain="com.microsoft",
                K=columns,
                N=rows,
                **common,
                **level,
            ),
        ]
    graph = helper.make_graph(nodes, "head", inputs, outputs, tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 18), ("com.microsoft", 1))]
    opsets.append(helper.make_opsetid("com.nanoquant", 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="data", size_threshold=64)
    return dense


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))}


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """Time, memory and error of the model in `folder`; runs in a process of its own."""
    import onnxruntime

    from nanoquant_edge.system.native import ort_library_path

    dense = np.load(folder / "dense.npy", mmap_mode="r")
    rng = np.random.default_rng(1)
    feed = {"x": rng.standard_normal((1, dense.shape[1])).astype(np.float32), "ids": np.array([5, 77])}
    before = _memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.register_custom_ops_library(str(ort_library_path()))
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter() - started
    found = session.run(["y"], feed)[0]
    times = []
    while len(times) < 50 and sum(times) < 3:
        started = time.perf_counter()
        session.run(["y"], feed)
        times.append(time.perf_counter() - started)
    after = _memory()
    wanted = feed["x"].astype(np.float64) @ np.asarray(dense, np.float64).T
    return {
        "onnxruntime": onnxruntime.__version__,
        "ms": round(1e3 * statistics.median(times), 3),
        "best_ms": round(1e3 * min(times), 3),
        "load_s": round(loaded, 3),
        "anonymous_mb": round((after["RssAnon"] - before["RssAnon"]) * 1024 / 1e6, 1),
        "mapped_mb": round((after["RssFile"] - before["RssFile"]) * 1024 / 1e6, 1),
        "error": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
        "repetitions": len(times),
    }


@click.command()
@click.option("--rows", default=49152, show_default=True)
@click.option("--columns", default=576, show_default=True, help="A multiple of 32.")
@click.option("--threads", default=2, show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/head.json.")
@click.option("--inside", type=click.Path(path_type=Path), hidden=True)
def main(rows: int, columns: int, threads: int, append: bool, inside: Path | None) -> None:
    """Measure one token's head, and the memory of both ends."""
    if inside is not None:
        click.echo(json.dumps(measure(inside, threads)))
        return
    results = []
    for variant in variants():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "dense.npy", build(variant, rows, columns, folder))
            command = [sys.executable, "-m", "benchmarks.head", "--threads", str(threads), "--inside", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        # The machine's load says how far the times are worth comparing with other runs.
        figures["load"] = round(os.getloadavg()[0], 1)
        row = {**variant, "rows": rows, "columns": columns, "threads": threads, **figures}
        results.append(row)
        click.echo(json.dumps(row))
    if append:
        click.echo(f"written to {append_rows('head', results)}")


if __name__ == "__main__":
    main()
