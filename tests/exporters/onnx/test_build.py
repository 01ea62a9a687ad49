# SPDX-License-Identifier: Apache-2.0
"""Structure of the graphs: names, types, shapes, versions, one table, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model, check_model, export_onnx
from nanoquant_edge.exporters.onnx.dtypes import ir_dtype
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from tests.tiny import tiny_checkpoint

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("build") / "c", attention_bias=True)


def build(checkpoint: Checkpoint, dialect: str = "ort", dtype: str = "float32", **options: Any) -> ir.Model:
    options = {"dialect": dialect, "dtype": dtype, **options}
    return build_model(read_config(checkpoint.config), checkpoint, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
def test_every_node_and_value_is_described(checkpoint: Checkpoint, dialect: str, dtype: str) -> None:
    model = build(checkpoint, dialect, dtype)
    assert model.ir_version == 10
    assert model.opset_imports[""] == {"ort": 18, "onnx24": 24}[dialect] and model.opset_imports["com.nanoquant"] == 1
    assert check_model(model) == 14
    names = [node.name for node in model.graph]
    assert all(names) and len(set(names)) == len(names)
    used = {node.domain for node in model.graph}
    assert (
        used == set(model.opset_imports) == ({"", "com.nanoquant"} | ({"com.microsoft"} if dialect == "ort" else set()))
    )
    for node in model.graph:
        for value in node.outputs:
            if value.name:
                assert value.dtype is not None and value.shape is not None, value.name
    proto = ir.to_proto(model)
    described = {info.name for info in proto.graph.value_info} | {info.name for info in proto.graph.output}
    assert {name for node in proto.graph.node for name in node.output if name} <= described
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in ("block.0.output", "block.1.output", "model.layers.1.mlp.down_proj.output"):
        assert values[name].dtype == ir_dtype(dtype), name
    assert all(name in names for name in checkpoint.layers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_interface(checkpoint: Checkpoint, dtype: str) -> None:
    for dialect in ("ort", "onnx24"):
        model = build(checkpoint, dialect, dtype)
        cache = (ir_dtype(dtype), ["batch", 2, "capacity", 16])
        integer = ir.DataType.INT64
        expected = {
            "input_ids": (integer, ["batch", "sequence"]),
            "attention_mask": (integer, ["batch", "total"]),
            "logits_indices": (integer, ["batch", "positions"]),
        }
        parts = [f"{block}.{part}" for block in range(2) for part in ("key", "value")]
        expected.update({f"past_key_values.{part}": cache for part in parts})
        outputs = {"logits": (ir.DataType.FLOAT, ["batch", "positions", 320])}
        outputs.update({f"present.{part}": cache for part in parts})

        def described(values: Any) -> dict[str, Any]:
            return {v.name: (v.dtype, [d if isinstance(d, int) else d.value for d in v.shape]) for v in values}

        assert described(model.graph.inputs) == expected
        assert described(model.graph.outputs) == outputs


def test_onnx24_is_what_tensorrt_parses(checkpoint: Checkpoint) -> None:
    model = build(checkpoint, "onnx24", "float16", capacity=64)
    for node in model.graph:
        assert node.domain in ("", "com.nanoquant")
        assert all(value is not None and value.name for value in node.inputs), node.name
        assert len(node.outputs) == 1, node.name  # Attention's cache outputs are not supported there
    assert model.graph.inputs[3].shape[2] == 64
    assert [value.shape[2] for value in model.graph.outputs[1:]] == [64] * 4


def test_a_tied_table_is_stored_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for dtype in DTYPES:
        table = "model.embed_tokens.weight"
        model = build(checkpoint, "ort", dtype)
        large = [value for value in model.graph.initializers.values() if 320 in value.shape]
        assert [value.name for value in large] == [table]
        # A float32 graph keeps the checkpoint's 16 bits: half the file, widened once at load.
        assert large[0].dtype == ir_dtype("float16" if dtype == "float32" else dtype)
    untied = build(tiny_checkpoint(tmp_path / "c", tie_word_embeddings=False))
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(untied.graph.initializers)


@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
def test_bfloat16_bundles_are_valid_onnx(checkpoint: Checkpoint, tmp_path: Path, dialect: str) -> None:
    bundle = export_onnx(checkpoint, tmp_path / "b", dtype="bfloat16", dialect=dialect)
    assert bundle.kv.dtype == bundle.dtype == "bfloat16"
    onnx.checker.check_model(str(bundle.folder / "model.onnx"))


def test_the_graph_is_deterministic(checkpoint: Checkpoint) -> None:
    first, second = (ir.to_proto(build(checkpoint)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"dialect": "trt7"}, "NQ-OPTION", "dialect 'trt7' is not one of ort, onnx24"),
        ({"dtype": "int8"}, "NQ-OPTION", "dtype 'int8' is not one of"),
        ({"max_length": 257}, "NQ-OPTION", "max_length 257 is not between 1 and the model's 256"),
        ({"max_length": 0}, "NQ-OPTION", "max_length 0"),
        ({"max_length": 64, "capacity": 65}, "NQ-OPTION", "a cache of 65 slots"),
    ],
)
def test_options_are_checked(checkpoint: Checkpoint, options: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        build(checkpoint, **options)
    assert caught.value.code == code and message in caught.value.message


def test_heads_that_the_ort_dialect_cannot_rotate(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", head_dim=10)
    with pytest.raises(NqEdgeError, match="head_dim 10 is not a multiple of 16") as caught:
        build(checkpoint)
    assert caught.value.code == "NQ-ARCH" and "onnx24" in caught.value.hint
    assert check_model(build(checkpoint, "onnx24")) == 14


class Changed:
    """A weight source with one thing wrong."""

    def __init__(self, source: Checkpoint, drop: str = "", swap: dict[str, str] | None = None) -> None:
        self.source, self.drop, self.swap = source, drop, swap or {}

    def layer(self, name: str) -> Any:
        return self.source.layer(self.swap.get(name, name))

    def tensor(self, name: str) -> Any:
        return self.source.tensor(self.swap.get(name, name))

    def table(self, module: str) -> Any:
        return self.source.table(module)

    def tensor_names(self) -> list[str]:
        return [name for name in self.source.tensor_names() if not (self.drop and name.startswith(self.drop))]


Q, UP, NORM = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.norm.weight"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"drop": Q}, f"layer {Q} is not in the checkpoint"),
        ({"swap": {Q: UP}}, f"layer {Q} is (72, 40), the configuration says (64, 40)"),
        ({"drop": NORM}, f"has no tensor {NORM}"),
        ({"swap": {NORM: "model.embed_tokens.weight"}}, f"{NORM} has shape (320, 40), not (40,)"),
    ],
)
def test_weights_that_do_not_fit_are_named(checkpoint: Checkpoint, fault: dict[str, Any], message: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        build_model(read_config(checkpoint.config), Changed(checkpoint, **fault))
    assert caught.value.code == "NQ-CKPT" and message in caught.value.message


def test_export_needs_no_pytorch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    script = (
        "import sys; from nanoquant_edge.exporters.onnx import export_onnx; "
        f"export_onnx({str(checkpoint.folder)!r}, {str(tmp_path / 'b')!r}, portable=True); "
        "bad = [m for m in ('torch', 'transformers', 'nanoquant_edge.compression') if m in sys.modules]; "
        "assert not bad, bad"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
