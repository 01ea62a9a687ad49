# SPDX-License-Identifier: Apache-2.0
"""One-node models of NanoQuantLinear, their float64 reference, and a grid of them that runs as a script.

Shares no code with the package: the packer here is the specification written out bit by bit, and the script needs
nothing but numpy, onnx and onnxruntime, so that it also runs in an environment with the lowest supported versions or
with another instruction set forced.

    python -m tests.plugins.one_node LIBRARY      prints {"onnxruntime": ..., "rows": [{case, error, limit}, ...]}
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tests.plugins.sessions import make_session, to_bytes

__all__ = ["Layer", "from_float32", "grid", "make_layer", "make_model", "make_session", "run", "to_float64"]

FLOAT32, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
#: with tables of bytes, rounded to 16 bits; tables of floats stay within 1e-5 (plugins/tests/selftest.cpp)
LIMITS = {FLOAT32: 1e-4, FLOAT16: 1e-3, BFLOAT16: 2.5e-3}
INPUTS = ("x", "v_packed", "u_packed", "scale_in", "scale_mid", "scale_out", "bias")


def from_float32(array: np.ndarray, kind: int) -> np.ndarray:
    """Round to an ONNX type; bfloat16 comes as uint16, since numpy has no such type."""
    array = np.ascontiguousarray(array, np.float32)
    if kind == FLOAT32:
        return array
    if kind == FLOAT16:
        return array.astype(np.float16)
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float64(array: np.ndarray, kind: int) -> np.ndarray:
    """Undo `from_float32`, exactly."""
    if kind == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def pack(bits: np.ndarray, rng: np.random.Generator, garbage: bool) -> np.ndarray:
    """Column c is bit c mod 32 of word c div 32; the padding bits are 0, or random when `garbage`."""
    rows, columns = bits.shape
    words = np.zeros((rows, (columns + 31) // 32), np.uint32)
    if garbage:
        words = rng.integers(0, 2**32, words.shape, dtype=np.uint32)
    for column in range(columns):
        bit = np.uint32(1 << (column % 32))
        words[:, column // 32] &= ~bit
        words[:, column // 32] |= bit * bits[:, column].astype(np.uint32)
    return words.view(np.int32)


@dataclass(frozen=True)
class Layer:
    """A layer's tensors as the node gets them, and the signs they were made from."""

    n: int
    rank: int
    m: int
    kind: int
    scale_kind: int
    u: np.ndarray
    v: np.ndarray
    weights: dict[str, np.ndarray]
    attributes: dict[str, Any] = field(default_factory=dict)

    def reference(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Y in float64, and each row's norm.

        The norm is that of Y's addends, and of the product at least what random signs give: a lone output may cancel,
        itself or its bias.
        """
        scale = {name: to_float64(self.weights[name], self.scale_kind) for name in INPUTS[3:]}
        scaled = to_float64(x, self.kind) * scale["scale_in"]
        mid = scale["scale_mid"] if self.attributes["has_scale_mid"] else np.ones(self.v.shape[0])
        y = (scaled @ (1.0 - 2.0 * self.v).T * mid) @ (1.0 - 2.0 * self.u).T * scale["scale_out"]
        usual = (scaled**2).sum(-1) * (mid**2).sum() * (scale["scale_out"] ** 2).sum()
        norm = np.maximum((y**2).sum(-1), usual)
        if self.attributes["has_bias"]:
            y = y + scale["bias"]
            norm = norm + (scale["bias"] ** 2).sum()
        return y, np.sqrt(norm)

    def relative_error(self, x: np.ndarray, y: np.ndarray) -> float:
        """The largest relative error of a row of `y`."""
        wanted, norm = self.reference(x)
        if wanted.size == 0:
            return 0.0
        # NaN must not pass as small.
        error = np.linalg.norm(to_float64(y, self.kind) - wanted, axis=-1) / norm
        return float(np.max(np.where(np.isfinite(error), error, np.inf)))

    def changed(self, **attributes: Any) -> Layer:
        """The same layer with other attributes; None removes one."""
        kept = {k: v for k, v in {**self.attributes, **attributes}.items() if v is not None}
        return replace(self, attributes=kept)

    def with_weights(self, **weights: np.ndarray) -> Layer:
        """The same layer with other tensors."""
        return replace(self, weights={**self.weights, **weights})


def make_layer(
    n: int,
    rank: int,
    m: int,
    kind: int = FLOAT32,
    scale_kind: int = FLOAT32,
    *,
    mid: bool = True,
    bias: bool = True,
    garbage: bool = False,
    seed: int = 0,
) -> Layer:
    """A random layer."""
    rng = np.random.default_rng([seed, n, rank, m])
    v = rng.integers(0, 2, (rank, n), dtype=np.uint8)
    u = rng.integers(0, 2, (m, rank), dtype=np.uint8)
    scales = {
        "scale_in": rng.uniform(0.5, 1.5, n),
        "scale_mid": rng.uniform(0.5, 1.5, rank if mid else 1),
        "scale_out": rng.uniform(0.5, 1.5, m) / np.sqrt(n * rank),
        "bias": rng.normal(size=m if bias else 1) if bias else np.zeros(1),
    }
    weights = {"v_packed": pack(v, rng, garbage), "u_packed": pack(u, rng, garbage)}
    weights |= {name: from_float32(value, scale_kind) for name, value in scales.items()}
    attributes = {
        "in_features": n,
        "rank": rank,
        "out_features": m,
        "has_scale_mid": int(mid),
        "has_bias": int(bias),
        "layout": 0,
    }
    return Layer(n, rank, m, kind, scale_kind, u, v, weights, attributes)


def constant(name: str, array: np.ndarray, kind: int) -> TensorProto:
    element = kind if array.dtype in (np.float32, np.float16, np.uint16) else TensorProto.INT32
    return helper.make_tensor(name, element, array.shape, array.tobytes(), raw=True)


def make_model(
    layer: Layer, dims: tuple[Any, ...] = ("batch", "length"), *, weights_as_inputs: bool = False, x_last: Any = "n"
) -> bytes:
    """A model of one node; `x_last` overrides the declared last dimension of X."""
    last = layer.n if x_last == "n" else x_last
    tensors = [constant(name, array, layer.scale_kind) for name, array in layer.weights.items()]
    node = helper.make_node("NanoQuantLinear", INPUTS, ["y"], domain="com.nanoquant", **layer.attributes)
    inputs = [helper.make_tensor_value_info("x", layer.kind, [*dims, last])]
    if weights_as_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, [None] * len(t.dims)) for t in tensors]
    outputs = [helper.make_tensor_value_info("y", layer.kind, [*dims, None])]
    graph = helper.make_graph([node], "one", inputs, outputs, [] if weights_as_inputs else tensors)
    return to_bytes(graph, opset=21)


def run(session: onnxruntime.InferenceSession, layer: Layer, x: np.ndarray) -> np.ndarray:
    """Y, computed into a buffer that held NaN and that is guarded at both ends."""
    shape = [*x.shape[:-1], layer.m]
    size = int(np.prod(shape))
    dtype = np.float32 if layer.kind == FLOAT32 else np.uint16
    guard = 64
    buffer = np.full(size + 2 * guard, 0, dtype)
    buffer.view(np.uint8)[:] = 0xFF
    y = buffer[guard : guard + size]
    binding = session.io_binding()
    if layer.kind == BFLOAT16:
        value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(x, layer.kind)
        binding.bind_ortvalue_input("x", value)
    else:
        binding.bind_cpu_input("x", np.ascontiguousarray(x))
    binding.bind_output("y", "cpu", 0, layer.kind, shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    outside = np.concatenate([buffer[:guard], buffer[guard + size :]]).view(np.uint8)
    if not (outside == 0xFF).all():
        raise AssertionError("the kernel wrote outside its output")
    return (y.view(np.float16) if layer.kind == FLOAT16 else y).reshape(shape)


def make_x(layer: Layer, *dims: int, outliers: bool = False, seed: int = 0) -> np.ndarray:
    """Random X; with `outliers`, a few channels are a thousand times larger."""
    x = np.random.default_rng(seed).normal(size=(*dims, layer.n)).astype(np.float32)
    if outliers:
        x[..., 3::97] *= 1000.0
    return from_float32(x, layer.kind)


def grid() -> list[dict[str, Any]]:
    """Cases against float64: odd shapes, every pair of types, heights on both sides of the kernels' blocks."""
    shapes = [(1, 1, 32), (31, 1, 33), (64, 64, 64), (65, 33, 97), (100, 257, 40), (576, 280, 192), (4096, 70, 34)]
    heights = [(1, 1), (2, 1), (1, 7), (3, 65), (1, 193)]
    kinds = list(itertools.product((FLOAT32, FLOAT16, BFLOAT16), repeat=2))
    cases = []
    for index, (shape, (kind, scale_kind)) in enumerate(itertools.product(shapes, kinds)):
        cases.append(
            {
                "shape": shape,
                "kind": kind,
                "scale_kind": scale_kind,
                "mid": index % 2 == 0,
                "bias": index % 3 != 0,
                "outliers": index % 4 == 1,
                "garbage": index % 5 != 0,
                "heights": heights if shape[0] < 576 else heights[:3],
            }
        )
    return cases


def main(library: str) -> None:
    """Run the grid and print the errors."""
    rows = []
    for case in grid():
        flags = {name: case[name] for name in ("mid", "bias", "garbage")}
        layer = make_layer(*case["shape"], case["kind"], case["scale_kind"], **flags)
        session = make_session(make_model(layer), library)
        for dims in case["heights"]:
            x = make_x(layer, *dims, outliers=case["outliers"], seed=len(rows))
            error = layer.relative_error(x, run(session, layer, x))
            rows.append({"case": {**case, "heights": dims}, "error": error, "limit": LIMITS[case["kind"]]})
    print(json.dumps({"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1])
