# SPDX-License-Identifier: Apache-2.0
"""Models of NanoQuantEmbedding and NanoQuantHead on one shared table, and a grid of them that runs as a script.

Shares no code with the package, and needs nothing but numpy, onnx and onnxruntime.

    python -m tests.plugins.one_table LIBRARY      prints {"onnxruntime": ..., "rows": [{case, error, limit}, ...]}
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.plugins.sessions import make_session, to_bytes

__all__ = ["Table", "grid", "make_model", "make_session", "make_table", "measure"]


@dataclass(frozen=True)
class Table:
    """Codes and scales as the nodes get them, and the dense rows in float64."""

    bits: int
    group: int
    codes: np.ndarray
    scales: np.ndarray
    dense: np.ndarray


def make_table(rows: int, columns: int, bits: int, group: int, scale_type: Any = np.float32, seed: int = 0) -> Table:
    """Random codes over their whole range, packed one by one."""
    rng = np.random.default_rng([seed, rows, columns, bits, group])
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns))
    groups = -(-columns // group)
    scales = rng.uniform(0.01, 0.02, (rows, groups)).astype(scale_type)
    dense = values * scales.astype(np.float64)[:, np.arange(columns) // group]
    if bits == 8:
        return Table(bits, group, values.astype(np.int8), scales, dense)
    codes = np.zeros((rows, (columns + 1) // 2), np.uint8)
    for column in range(columns):
        codes[:, column // 2] |= ((values[:, column] & 15) << (4 * (column % 2))).astype(np.uint8)
    return Table(bits, group, codes.view(np.int8), scales, dense)


def make_model(table: Table, **changes: int) -> bytes:
    """Both operators on one table; `changes` go into the attributes."""
    rows, columns = table.dense.shape
    attributes = {"columns": columns, "bits": table.bits, "group_size": table.group, **changes}
    tensors = [numpy_helper.from_array(table.codes, "codes"), numpy_helper.from_array(table.scales, "scales")]
    nodes = [
        helper.make_node("NanoQuantEmbedding", ["ids", "codes", "scales"], ["e"], domain="com.nanoquant", **attributes),
        helper.make_node("NanoQuantHead", ["x", "codes", "scales"], ["y"], domain="com.nanoquant", **attributes),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns]),
    ]
    outputs = [
        helper.make_tensor_value_info("e", TensorProto.FLOAT, ["batch", "length", columns]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", rows]),
    ]
    graph = helper.make_graph(nodes, "table", inputs, outputs, tensors)
    return to_bytes(graph)


def measure(table: Table, session: onnxruntime.InferenceSession, height: int, seed: int) -> float:
    """Largest error of a logit relative to the norms of its row and of X; looked-up rows must be exact to float32."""
    rng = np.random.default_rng(seed)
    rows, columns = table.dense.shape
    x = rng.standard_normal((height, columns)).astype(np.float32)
    x[..., 3::97] *= 1000
    ids = rng.integers(0, rows, (2, 3))
    found, looked_up = session.run(["y", "e"], {"x": x, "ids": ids})
    np.testing.assert_array_equal(looked_up, table.dense[ids].astype(np.float32))
    wanted = x.astype(np.float64) @ table.dense.T
    size = np.linalg.norm(x.astype(np.float64), axis=-1)[:, None] * np.linalg.norm(table.dense, axis=-1)
    error = np.abs(found - wanted) / np.where(size > 0, size, 1)
    return float(np.max(np.where(np.isfinite(error), error, np.inf)))


def grid() -> list[dict[str, Any]]:
    """Odd sizes, both widths, every grouping, heights on both sides of the kernels' blocks."""
    sizes = [(1, 1), (3, 31), (65, 33), (130, 64), (67, 95), (200, 130), (70, 576)]
    cases = []
    for (rows, columns), bits, group in itertools.product(sizes, (8, 4), (32, 64, 128, 1 << 20)):
        heights = [1, 2, 5] if len(cases) % 3 else [1, 9, 300]
        cases.append({"rows": rows, "columns": columns, "bits": bits, "group": group, "heights": heights})
    return cases


def main(library: str) -> None:
    """Run the grid and print the errors."""
    rows = []
    for index, case in enumerate(grid()):
        kind = (np.float32, np.float16)[index % 2]
        table = make_table(case["rows"], case["columns"], case["bits"], case["group"], kind)
        session = make_session(make_model(table), library)
        for height in case["heights"]:
            error = measure(table, session, height, seed=len(rows))
            rows.append({"case": {**case, "height": height}, "error": error, "limit": 5e-5})
    print(json.dumps({"onnxruntime": onnxruntime.__version__, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1])
