# SPDX-License-Identifier: Apache-2.0
"""Loading through transformers: right with the import, an error without it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import nanoquant_edge.hf
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint, CheckpointParts, write_checkpoint
from nanoquant_edge.hf.linear import NanoQuantLinear
from nanoquant_edge.validation.dense import dense_model
from tests.tiny import tiny_checkpoint


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(3, 40)[None]).logits.float()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"mid": True, "scale_dtype": np.float32},
        {"embedding": "int8"},
        {"embedding": "int4", "tie_word_embeddings": False},
    ],
    ids=["tied", "untied-bias", "mid-float32", "int8", "int4-untied"],
)
def test_logits_equal_the_dense_model(tmp_path: Path, changes: dict) -> None:
    tiny_checkpoint(tmp_path / "model", **changes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert sum(isinstance(module, NanoQuantLinear) for module in model.modules()) == 14
    expected = _logits(dense_model(tmp_path / "model"))
    assert (_logits(model) - expected).norm() / expected.norm() < 1e-5
    new = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False)
    assert new.shape[1] > 3
    assert LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32) is not None


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_dtype_is_honoured(tmp_path: Path, dtype: torch.dtype, bound: float) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", scale_dtype=np.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    layer = model.model.layers[1].mlp.up_proj
    assert layer.scale_in.dtype == layer.scale_out.dtype == dtype
    stored = checkpoint.layer("model.layers.1.mlp.up_proj")
    np.testing.assert_array_equal(layer.u_packed.numpy(), stored.u_packed)
    np.testing.assert_array_equal(layer.v_packed.numpy(), stored.v_packed)
    expected = _logits(dense_model(tmp_path / "model"))
    assert (_logits(model) - expected).norm() / expected.norm() < bound


def test_sharded(tmp_path: Path) -> None:
    whole = tiny_checkpoint(tmp_path / "whole")
    layers = {name: whole.layer(name) for name in whole.layers}
    inside = tuple(f"{name}." for name in layers)
    others = {name: whole.tensor(name) for name in whole.tensor_names() if not name.startswith(inside)}
    parts = CheckpointParts(whole.config, whole.settings, layers, others)
    sharded = write_checkpoint(tmp_path / "sharded", parts, shard_bytes=20_000)
    assert sharded.settings.shards == len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded", dtype=torch.float32)
    assert torch.equal(
        _logits(model), _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32))
    )
    assert torch.equal(_logits(dense_model(tmp_path / "sharded")), _logits(dense_model(tmp_path / "whole")))


def test_without_the_import_loading_fails(tmp_path: Path) -> None:
    """One file and several, through both kinds of class, in one process: importing transformers takes seconds."""
    whole = tiny_checkpoint(tmp_path / "whole")
    parts = CheckpointParts(whole.config, whole.settings, {layer: whole.layer(layer) for layer in whole.layers}, {})
    write_checkpoint(tmp_path / "one", parts)
    write_checkpoint(tmp_path / "several", parts, shard_bytes=20_000)
    script = (
        "import sys, transformers\n"
        "for folder in sys.argv[1:]:\n"
        "    for kind in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):\n"
        "        try:\n            kind.from_pretrained(folder)\n"
        "        except OSError:\n            print('refused')\n"
        "assert 'nanoquant_edge' not in sys.modules"
    )
    folders = [str(tmp_path / name) for name in ("one", "several")]
    result = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["refused"] * 4


def test_a_second_import_leaves_the_first_one_s_classes(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    importlib.reload(nanoquant_edge.hf)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(model.hf_quantizer) is nanoquant_edge.hf.NanoQuantHfQuantizer
    assert sum(isinstance(module, NanoQuantLinear) for module in model.modules()) == 14


def test_save_pretrained_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with pytest.raises(NqEdgeError, match="save_pretrained does not write"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_disk_offload_is_refused(tmp_path: Path) -> None:
    config = nanoquant_edge.hf.NanoQuantConfig(**tiny_checkpoint(tmp_path / "model").settings.to_dict())
    quantizer = nanoquant_edge.hf.NanoQuantHfQuantizer(config)
    with pytest.raises(NqEdgeError, match="cannot be offloaded"):
        quantizer.validate_environment(device_map={"": "disk"})
    assert not quantizer.is_trainable


def _edit(folder: Path, drop: str | None = None, **replace: np.ndarray) -> None:
    tensors = load_file(folder / "nanoquant.safetensors")
    tensors.update(replace)
    tensors.pop(drop or "", None)
    save_file(tensors, folder / "nanoquant.safetensors", {"format": "np"})


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("model.layers.0.mlp.up_proj.scale_in", "up_proj.scale_in has shape None"),
        ("model.norm.weight", "no tensor model.norm.weight"),
    ],
)
def test_missing_tensors_are_an_error(tmp_path: Path, drop: str, message: str) -> None:
    tiny_checkpoint(tmp_path / "model")
    _edit(tmp_path / "model", drop)
    with pytest.raises(NqEdgeError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.bias", "model.norm.bias", "adapter.weight"])
def test_tensors_left_over_are_an_error(tmp_path: Path, name: str) -> None:
    tiny_checkpoint(tmp_path / "model")
    _edit(tmp_path / "model", **{name: np.ones(3, np.float16)})
    with pytest.raises(NqEdgeError, match=f"has the tensor {name}, which the model has no place for"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("layer", "message"),
    [("model.layers.9.mlp.up_proj", "no layer model.layers.9"), ("model.norm", "no linear layer")],
)
def test_foreign_layer_names_are_an_error(tmp_path: Path, layer: str, message: str) -> None:
    tiny_checkpoint(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["quantization_config"]["ranks"][layer] = 5
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(NqEdgeError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_other_format_version_is_an_error(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(NqEdgeError, match="format 99"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_dense_model_reports_a_tensor_that_does_not_fit(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    _edit(tmp_path / "model", "model.norm.weight")
    with pytest.raises(NqEdgeError, match=r"model\.norm\.weight"):
        dense_model(tmp_path / "model")


def test_configuration_round_trip(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    entry = checkpoint.settings.to_dict()
    assert nanoquant_edge.hf.NanoQuantConfig.from_dict(entry).to_dict() == entry
    assert dict(nanoquant_edge.hf.NanoQuantConfig(**entry)) == entry
    assert isinstance(checkpoint, Checkpoint)
