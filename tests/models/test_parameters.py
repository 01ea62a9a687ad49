# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a file is used, or the file is refused: heads of their own, quantized weights, what is left over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.rotary import frequencies
from tests.compression.support import dense_folder, dense_llama, family_folder
from tests.tiny import llama_config

Tensors = dict[str, Tensor]
UP, TABLE, HEAD = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"
FREQUENCIES = torch.from_numpy(frequencies(read_config(llama_config()).rotary, 16))


def changed(folder: Path, change: Callable[[Tensors], object], pickled: bool = False) -> Path:
    """A folder whose tensors are changed, as safetensors or as a pickle file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def quantize(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP].to(torch.float8_e4m3fn)


#: what is wrong -> (change, words of the message)
FAULTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "an adapter": (
        lambda t: t.update({f"{UP}_lora_A": torch.ones(4, 40)}),
        f"1 tensors that its configuration has no place for, the first is {UP}_lora_A",
    ),
    "a bias": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.ones(72)}),
        "the first is model.layers.0.mlp.up_proj.bias",
    ),
    "a block more": (lambda t: t.update({UP.replace(".1.", ".2."): t[UP].clone()}), "the first is model.layers.2.mlp"),
    "scales of quantized weights": (lambda t: t.update({f"{UP}_scale": torch.ones(1)}), f"the first is {UP}_scale"),
    "a name twice": (lambda t: t.update({UP.removeprefix("model."): t[UP].clone()}), "the first is layers.1.mlp"),
    "frequencies of another base": (
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": FREQUENCIES / 2}),
        "the first is model.layers.0.self_attn.rotary_emb.inv_freq",
    ),
    "frequencies of another length": (
        lambda t: t.update({"model.rotary_emb.inv_freq": FREQUENCIES[:4].clone()}),
        "the first is model.rotary_emb.inv_freq",
    ),
    "float8": (quantize, f"{UP} of .* has type (F8_E4M3|float8_e4m3fn): its weights are quantized"),
    "int8": (lambda t: t.update({UP: torch.ones(72, 40, dtype=torch.int8)}), f"{UP} of .* has type (I8|int8)"),
    "uint8": (
        lambda t: t.update({TABLE: torch.ones(320, 40, dtype=torch.uint8)}),
        f"{TABLE} of .* has type (U8|uint8)",
    ),
}


@pytest.mark.parametrize("kind", ["safetensors", "streamed", "pickled"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_model_has_no_place_for_is_refused(tmp_path: Path, fault: str, kind: str) -> None:
    change, message = FAULTS[fault]
    folder = changed(dense_folder(tmp_path / "m"), change, kind == "pickled")
    with (
        pytest.raises(NqEdgeError, match=message) as caught,
        load_model(folder, stream=kind == "streamed", allow_pickle=True),
    ):
        pass
    assert caught.value.code == "NQ-MODEL" and str(folder) in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_that_repeat_the_configuration_are_no_fault(
    tmp_path: Path, dtype: torch.dtype, stream: bool
) -> None:
    names = ["model.rotary_emb.inv_freq", *(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2))]
    folder = changed(
        dense_folder(tmp_path / "m"), lambda t: t.update({name: FREQUENCIES.to(dtype, copy=True) for name in names})
    )
    with load_model(folder, stream=stream) as source:
        assert torch.equal(source.model.model.norm.weight, dense_llama().model.norm.weight)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "opt"])
def test_a_head_that_differs_is_used_though_the_configuration_ties_it(
    tmp_path: Path, family: str, stream: bool
) -> None:
    folder = family_folder(tmp_path / "m", family)
    table = load_file(folder / "model.safetensors")
    head = torch.randn_like(next(value for name, value in table.items() if name.endswith("embed_tokens.weight")))
    changed(folder, lambda t: t.update({HEAD: head.clone()}))
    with load_model(folder, stream=stream) as source:
        assert not source.decoder.tied and source.config["tie_word_embeddings"] is False
        assert torch.equal(source.model.lm_head.weight, head)
        assert not torch.equal(source.model.get_input_embeddings().weight, head)
        assert HEAD in dict(source.weights())


@pytest.mark.parametrize("stream", [False, True])
def test_a_head_that_repeats_the_table_is_one_with_it(tmp_path: Path, stream: bool) -> None:
    folder = changed(dense_folder(tmp_path / "m"), lambda t: t.update({HEAD: t[TABLE].clone()}))
    with load_model(folder, stream=stream) as source:
        assert source.decoder.tied and source.model.lm_head.weight is source.model.model.embed_tokens.weight


@pytest.mark.parametrize("stream", [False, True])
def test_a_tied_table_may_go_by_the_head_s_name(tmp_path: Path, stream: bool) -> None:
    folder = changed(dense_folder(tmp_path / "m"), lambda t: t.update({HEAD: t.pop(TABLE)}))
    with load_model(folder, stream=stream) as source:
        assert torch.equal(source.model.get_input_embeddings().weight, dense_llama().model.embed_tokens.weight)
        assert source.decoder.tied


@pytest.mark.parametrize("stream", [False, True])
def test_an_untied_model_needs_its_head(tmp_path: Path, stream: bool) -> None:
    folder = dense_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(llama_config(tie_word_embeddings=False)))
    with pytest.raises(NqEdgeError, match="lacks 1 tensors, the first is lm_head"), load_model(folder, stream=stream):
        pass


def test_more_blocks_than_tensors_are_refused_before_they_are_built(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(llama_config(num_hidden_layers=1 << 20)))
    with pytest.raises(NqEdgeError, match="has 1048576 blocks, and 20 tensors"), load_model(folder):
        pass
