# SPDX-License-Identifier: Apache-2.0
"""Models whose blocks stay in their files: the weights and the function of a loaded model, in every family."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from tests.compression.support import dense_folder, family_folder
from tests.families import FAMILY_CONFIGS
from tests.models.test_loading import pickle_only, shards

IDS = torch.arange(3, 40)[None]


def same(streamed: SourceModel, resident: SourceModel) -> None:
    """All weights and the logits are equal, bit for bit."""
    ours, theirs = dict(streamed.weights()), dict(resident.weights())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], value) and ours[name].dtype == torch.float32 for name, value in theirs.items())
    blocks = streamed.model.get_submodule(streamed.family.blocks)
    assert all(parameter.is_meta for parameter in blocks.parameters())
    with contextlib.ExitStack() as stack, torch.no_grad():
        for index in range(len(blocks)):
            stack.enter_context(streamed.opened(f"{streamed.family.blocks}.{index}"))
        assert not any(parameter.is_meta for parameter in streamed.model.parameters())
        assert torch.equal(streamed.model(IDS).logits, resident.model(IDS).logits)
    assert all(parameter.is_meta for parameter in blocks.parameters())


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_blocks_that_are_read_are_those_that_were_loaded(tmp_path: Path, name: str) -> None:
    folder = family_folder(tmp_path / "m", name)
    with load_model(folder, stream=True) as streamed, load_model(folder) as resident:
        assert streamed.streamed and not resident.streamed
        same(streamed, resident)
        names = streamed.family.layer_names(streamed.decoder.num_layers)
        for source in (streamed, resident):
            rest = [name for name, _ in source.weights(without=names)]
            assert not any(name.rpartition(".")[0] in names for name in rest)
            assert len(rest) < len(list(source.weights()))
        ours, theirs = streamed.layers(names), resident.layers(names)
        assert list(ours) == list(theirs) == names and len(ours) == len(names)
        for name in names:
            assert torch.equal(ours[name].weight, theirs[name].weight)
            assert (ours[name].bias is None) == (theirs[name].bias is None)
        with streamed.opened(streamed.family.blocks, without=names) as blocks:
            kept = {name for name, parameter in blocks.named_parameters() if not parameter.is_meta}
        assert kept == {n.removeprefix(f"{streamed.family.blocks}.") for n in rest if "layers." in n}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_shards_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = family_folder(tmp_path / "m", "qwen3", dtype)
    shards(folder)
    with load_model(folder, stream=True) as streamed, load_model(folder) as resident:
        same(streamed, resident)


def test_names_without_their_first_part(tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "m", "opt")
    tensors = {name.removeprefix("model."): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with load_model(folder, stream=True) as streamed, load_model(folder) as resident:
        same(streamed, resident)


def test_a_loaded_model_gives_its_own_modules(tmp_path: Path) -> None:
    with load_model(dense_folder(tmp_path / "m")) as source, source.opened("model.layers.0") as block:
        assert block is source.model.model.layers[0]
        assert not block.mlp.up_proj.weight.is_meta
    assert not block.mlp.up_proj.weight.is_meta


def test_what_is_larger_than_the_limit_stays_on_disk(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    size = sum(4 * value.numel() for value in load_file(folder / "model.safetensors").values())
    for limit, streamed in ((size, False), (size - 1, True)):
        with load_model(folder, stream=None, limit=limit) as source:
            assert source.streamed is streamed
    pickle_only(folder)
    with load_model(folder, stream=None, allow_pickle=True) as source:
        assert not source.streamed


def test_only_safetensors_are_streamed(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    pickle_only(folder)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for path in (folder, tmp_path / "m.gguf"):
        with (
            pytest.raises(NqEdgeError, match="weights are streamed from safetensors only") as caught,
            load_model(path, stream=True, allow_pickle=True),
        ):
            pass
        assert caught.value.code == "NQ-OPTION"
        assert "--stream-weights" in caught.value.hint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "lacks 1 tensors, the first is model.layers.1.mlp.up_proj.weight"),
        ("shape", r"model.layers.1.mlp.up_proj.weight has shape \(3, 3\), not \(72, 40\)"),
        ("type", "model.layers.1.mlp.up_proj.weight of .* has type I32"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(tmp_path: Path, damage: str, message: str) -> None:
    folder = dense_folder(tmp_path / "m")
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3, 3) if damage == "shape" else tensors[name].int()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(folder, stream=True):
        pass
    assert caught.value.code == "NQ-MODEL"


def test_a_file_that_shrinks_meanwhile_is_one_error(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    with load_model(folder, stream=True) as source:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:4000])
        with pytest.raises(NqEdgeError, match="cannot be read") as caught, source.opened("model.layers.1"):
            pass
        assert caught.value.code == "NQ-MODEL"
        assert all(parameter.is_meta for parameter in source.model.model.layers.parameters())
