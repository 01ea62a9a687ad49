# SPDX-License-Identifier: Apache-2.0
"""Intermediate values as outputs, by appending bytes to the model file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.graph import block_output, linear_output
from nanoquant_edge.formats.onnx_file import MAX_MODEL_BYTES
from nanoquant_edge.formats.onnx_outputs import FOLDER_OPTION, with_extra_outputs
from tests.exporters.onnx.support import have_kernel, open_session, reference_model
from tests.tiny import tiny_checkpoint

KERNEL = have_kernel()
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 2e-6), ("float16", 6e-3)])
@pytest.mark.parametrize("dialect", ["ort", "onnx24"])
def test_block_and_layer_outputs_equal_transformers(tmp_path: Path, dialect: str, dtype: str, limit: float) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    bundle = export_onnx(checkpoint, tmp_path / "b", dialect=dialect, dtype=dtype, portable=not KERNEL)
    names = [block_output(0), block_output(1), linear_output(UP)]
    data = with_extra_outputs(bundle.folder / "model.onnx", names, dtype)
    session = open_session(data, KERNEL, **{FOLDER_OPTION: str(bundle.folder)})
    ids = np.random.default_rng(0).integers(0, 320, (1, 12))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits_indices": np.array([[11]])}
    for entry in session.get_inputs()[3:]:
        feeds[entry.name] = np.zeros((1, 2, 16, 16), np.dtype(dtype))
    found = session.run(names, feeds)

    model = reference_model(checkpoint)
    seen: list[torch.Tensor] = []
    for module in (*model.model.layers, model.get_submodule(UP)):
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.tensor(ids))
    expected = [seen[0], seen[2], seen[1]]  # the layer is called before its block returns
    for value, reference in zip(found, expected, strict=True):
        reference = (reference[0] if isinstance(reference, tuple) else reference).numpy()
        assert value.dtype == np.dtype(dtype)
        assert np.abs(value - reference).max() < limit * np.abs(reference).max()


def test_the_bytes_are_one_valid_model(tmp_path: Path) -> None:
    bundle = export_onnx(tiny_checkpoint(tmp_path / "c"), tmp_path / "b")
    long = linear_output("model.layers.0.self_attn.q_proj")
    model = onnx.load_from_string(with_extra_outputs(bundle.folder / "model.onnx", [long, long], "bfloat16"))
    assert [output.name for output in model.graph.output][-1] == long
    assert len(model.graph.output) == 1 + 4 + 1
    assert model.graph.output[-1].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


def test_refusals(tmp_path: Path) -> None:
    file = export_onnx(tiny_checkpoint(tmp_path / "c"), tmp_path / "b").folder / "model.onnx"
    for name in ("block.9.output", ""):
        with pytest.raises(NqEdgeError, match="the model has no value") as caught:
            with_extra_outputs(file, [name])
        assert caught.value.code == "NQ-OPTION"
    with pytest.raises(NqEdgeError, match="dtype 'int8' is not one of"):
        with_extra_outputs(file, ["block.0.output"], "int8")
    with pytest.raises(NqEdgeError, match=r"cannot read .*absent\.onnx") as caught:
        with_extra_outputs(file.with_name("absent.onnx"), ["block.0.output"])
    assert caught.value.code == "NQ-BUNDLE"
    with file.open("r+b") as opened:
        opened.truncate(MAX_MODEL_BYTES + 1)
    with pytest.raises(NqEdgeError, match="a graph without weights has less"):
        with_extra_outputs(file, ["block.0.output"])


def test_a_board_without_onnx_can_do_it() -> None:
    script = (
        "import sys\nfrom nanoquant_edge.formats.onnx_outputs import with_extra_outputs\n"
        "assert not {'onnx', 'onnx_ir', 'ml_dtypes', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
