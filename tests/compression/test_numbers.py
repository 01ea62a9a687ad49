# SPDX-License-Identifier: Apache-2.0
"""Numbers that break naive code: each has its coded error, or gives a checkpoint whose every number is finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.compression import compress
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.validation.dense import dense_model
from tests.compression.support import dense_folder, dense_llama, short_recipe, write_text

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
TABLE = "model.embed_tokens.weight"


def changed_folder(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A dense folder whose tensors `change` has edited in place."""
    from safetensors.torch import load_file, save_file

    dense_folder(folder, num_hidden_layers=2)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(model: Path, output: Path, text: Path | None, **options: Any) -> Checkpoint:
    settings = {"recipe": short_recipe(windows=2), "device": "cpu", "compute_dtype": "float32", **options}
    return compress(model, output, calibration=text, **settings)


def all_finite(checkpoint: Checkpoint) -> bool:
    kept = [name for name in checkpoint.tensor_names() if not name.endswith("_packed")]
    return all(np.isfinite(np.asarray(checkpoint.tensor(name), np.float32)).all() for name in kept)


REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "a weight is NaN": (lambda t: t[UP].__setitem__((3, 4), float("nan")), f"{UP} of the source model holds NaN"),
    "a weight is infinite": (lambda t: t[UP].__setitem__((0, 0), float("-inf")), "NaN or infinity"),
    "a norm is NaN": (lambda t: t[NORM].__setitem__(0, float("nan")), "NaN or infinity"),
    "an embedding is infinite": (lambda t: t[TABLE].__setitem__((5, 5), float("inf")), "NaN or infinity"),
    "a table beyond float16": (lambda t: t[TABLE].__setitem__((5, 5), 7e4), "does not fit float16"),
    "activations overflow": (lambda t: [t[name].fill_(1e38) for name in t if "layernorm" in name], "is (nan|inf)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(REFUSED))
def test_what_is_refused(tmp_path: Path, fault: str) -> None:
    change, message = REFUSED[fault]
    source = changed_folder(tmp_path / "m", change)
    with pytest.raises(NqEdgeError, match=message) as caught:
        run(source, tmp_path / "c", write_text(tmp_path))
    assert caught.value.code == "NQ-NUMERIC"
    assert not (tmp_path / "c").exists()


def rows_of_zeros(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP][:7] = 0


def columns_of_zeros(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP][:, :9] = 0


def nothing_but_zeros(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP].zero_()


def a_dead_block(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "layers.1." in name and name.endswith("proj.weight"):
            tensors[name].zero_()


def denormal_weights(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] *= 1e-40


def one_enormous_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP][0, 0] = 1e4


@pytest.mark.parametrize(
    "change",
    [rows_of_zeros, columns_of_zeros, nothing_but_zeros, a_dead_block, denormal_weights, one_enormous_weight],
)
def test_odd_weights_give_finite_checkpoints(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    checkpoint = run(changed_folder(tmp_path / "m", change), tmp_path / "c", write_text(tmp_path), bpw=2.0)
    assert all_finite(checkpoint)
    model = dense_model(tmp_path / "c")
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(3, 40)[None]).logits).all()
    if change is nothing_but_zeros:
        # A matrix of zeros must stay one: signs cannot say zero, so the scales must.
        weight = model.state_dict()[UP]
        assert weight.norm() < 1e-3 * dense_llama().state_dict()[UP].norm()
    export_onnx(tmp_path / "c", tmp_path / "b")


@pytest.mark.parametrize("text", ["a" * 4000, "\n" * 4000, " a" * 2000, "<s>" * 600])
def test_constant_texts(tmp_path: Path, text: str) -> None:
    source = dense_folder(tmp_path / "m")
    (tmp_path / "text.txt").write_text(text)
    try:
        checkpoint = run(source, tmp_path / "c", tmp_path / "text.txt")
    except NqEdgeError as error:  # a text that makes too few tokens is told so
        assert error.code == "NQ-CALIBRATION"
        return
    assert all_finite(checkpoint)


def test_one_token_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(NqEdgeError, match="need at least") as caught:
        run(dense_folder(tmp_path / "m"), tmp_path / "c", tmp_path / "text.txt")
    assert caught.value.code == "NQ-CALIBRATION"
    with pytest.raises(NqEdgeError, match="window_length must be at least 8") as option:
        short_recipe(window_length=1)
    assert option.value.code == "NQ-OPTION"


def test_scales_that_float16_cannot_hold(tmp_path: Path) -> None:
    """Weights of 1e12 need scales beyond 65504 whatever the balance: told so, and stored in bfloat16."""

    def enormous(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] *= 1e12
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1e-12

    source, text = changed_folder(tmp_path / "m", enormous), write_text(tmp_path)
    with pytest.raises(NqEdgeError, match="does not fit float16") as caught:
        run(source, tmp_path / "c", text)
    assert caught.value.code == "NQ-NUMERIC"
    assert "bfloat16" in caught.value.hint
    checkpoint = run(source, tmp_path / "d", text, scale_dtype="bfloat16")
    assert all_finite(checkpoint)
