# SPDX-License-Identifier: Apache-2.0
"""The operator's portable body: right for every shape and type, bounded in memory, and beaten by the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nanoquant_edge.exporters.onnx import check_model, export_onnx
from nanoquant_edge.exporters.onnx.graph_builder import GraphBuilder
from nanoquant_edge.exporters.onnx.operator import emit_linear
from nanoquant_edge.exporters.onnx.portable import linear_function
from nanoquant_edge.formats.checkpoint import PackedLayer
from nanoquant_edge.formats.graph import DOMAIN
from tests.exporters.onnx.support import Decoder, have_kernel, open_session, reference_logits, reference_model
from tests.tiny import random_layer, tiny_checkpoint

RNG = np.random.default_rng(0)


def one_node(layer: PackedLayer, dims: list[str], dtype: ir.DataType, opset: int = 18) -> ir.Model:
    g = GraphBuilder({"": opset, DOMAIN: 1})
    x = g.input("x", dtype, [*dims, layer.in_features])
    g.output(emit_linear(g, "layer", x, layer))
    model = g.model("one", {}, [linear_function(opset)])
    assert check_model(model) == 1
    return model


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 1, 3), (0, 4)])
@pytest.mark.parametrize(("m", "n", "rank"), [(1, 1, 1), (31, 33, 64), (64, 32, 7), (5, 100, 97)])
def test_equals_the_dense_product(shape: tuple[int, ...], m: int, n: int, rank: int, opset: int) -> None:
    layer = random_layer(RNG, m, n, rank, np.float32, bias=True, mid=rank % 2 == 1)
    model = one_node(layer, [f"d{axis}" for axis in range(len(shape))], ir.DataType.FLOAT, opset)
    x = RNG.standard_normal((*shape, n)).astype(np.float32)
    (found,) = open_session(serialized(model), kernel=False).run(None, {"x": x})
    expected = x.astype(np.float64) @ layer.dense().T + layer.bias.astype(np.float64)
    assert found.dtype == np.float32 and found.shape == (*shape, m)
    if found.size:
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6


@pytest.mark.parametrize("scale_dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_float16_input_and_every_scale_type(scale_dtype: type) -> None:
    layer = random_layer(RNG, 40, 72, 50, scale_dtype, bias=True)
    x = RNG.standard_normal((4, 72)).astype(np.float16)
    (found,) = open_session(serialized(one_node(layer, ["rows"], ir.DataType.FLOAT16)), kernel=False).run(
        None, {"x": x}
    )
    expected = x.astype(np.float64) @ layer.dense().T + layer.bias.astype(np.float64)
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
def test_a_portable_bundle_runs_on_plain_onnx_runtime(tmp_path: Path, dialect: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", mid=True, attention_bias=True)
    bundle = export_onnx(checkpoint, tmp_path / "b", dialect=dialect, portable=True)
    assert bundle.portable
    ids = RNG.integers(0, 320, (1, 20))
    expected = reference_logits(reference_model(checkpoint), ids)
    found = Decoder(bundle, kernel=False).feed(ids)
    assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()


def test_without_the_body_plain_onnx_runtime_refuses(tmp_path: Path) -> None:
    bundle = export_onnx(tiny_checkpoint(tmp_path / "c"), tmp_path / "b")
    assert not bundle.portable
    with pytest.raises(Exception, match="NanoQuantLinear"):
        open_session(bundle.folder / "model.onnx", kernel=False)


@pytest.mark.skipif(not have_kernel(), reason="the native library is not built")
def test_a_registered_kernel_wins_over_the_body() -> None:
    layer = random_layer(RNG, 8, 40, 20, bias=True)
    model = one_node(layer, ["rows"], ir.DataType.FLOAT)
    body = next(iter(model.functions.values()))
    doubled = next(node for node in body if node.name == "shifted")
    doubled.op_type = "Sub"  # a body that is wrong on purpose
    x = RNG.standard_normal((3, 40)).astype(np.float32)
    bias = layer.bias.astype(np.float64)
    expected = x.astype(np.float64) @ layer.dense().T
    (slow,) = open_session(serialized(model), kernel=False).run(None, {"x": x})
    (fast,) = open_session(serialized(model), kernel=True).run(None, {"x": x})
    assert np.abs(slow - (expected - bias)).max() < 1e-5
    assert np.abs(fast - (expected + bias)).max() < 1e-5


_MEMORY = """
import json, sys
import numpy as np, onnx_ir as ir, onnxruntime
from nanoquant_edge.exporters.onnx.graph_builder import GraphBuilder
from nanoquant_edge.exporters.onnx.operator import emit_linear
from nanoquant_edge.formats.graph import DOMAIN
from nanoquant_edge.exporters.onnx.portable import linear_function
from tests.tiny import random_layer
rng = np.random.default_rng(0)
g = GraphBuilder({"": 18, DOMAIN: 1})
x = g.input("x", ir.DataType.FLOAT, [1 if sys.argv[1] == "static" else "rows", 1024])
layer = random_layer(rng, 1024, 1024, 992)
for index in range(12):
    x = emit_linear(g, f"layer.{index}", x, layer)
g.output(x)
data = ir.to_proto(g.model("chain", {}, [linear_function(18)])).SerializeToString()

def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

before = resident("VmRSS")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
disabled = ["ConstantFolding"] if sys.argv[1] == "keep" else []
session = onnxruntime.InferenceSession(data, options, disabled_optimizers=disabled)
session.run(None, {"x": np.ones((1, 1024), np.float32)})
print(json.dumps({"growth": resident("VmHWM") - before, "packed": len(data) / 2**20}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("mode", "low", "high"), [("keep", 0, 60), ("fold", 0, 60), ("static", 93, 2000)])
def test_memory_stays_bounded(mode: str, low: float, high: float) -> None:
    """Unpacked, the chain's 12 layers are 93 MiB of float32; one layer's intermediates are about 16.

    "keep" is how portable sessions are opened. "fold" leaves constant folding on: symbolic shapes protect the graph.
    "static" has neither, which is the case that must not happen, and shows that the measurement would see it.
    """
    run = subprocess.run([sys.executable, "-c", _MEMORY, mode], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert low <= json.loads(run.stdout)["growth"] < high, run.stdout
