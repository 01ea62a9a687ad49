# SPDX-License-Identifier: Apache-2.0
"""Reading Hugging Face folders: exact weights from good ones, one clear refusal for each kind of bad one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model
from tests.compression.support import ORACLE, dense_folder, dense_llama


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def resize_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lost_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


#: what is wrong -> (how it comes about, code, words of the message)
FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "architecture": (lambda f: edit(f / "config.json", model_type="mixtral"), "NQ-ARCH", "'mixtral' is not supported"),
    "no config": (lambda f: (f / "config.json").unlink(), "NQ-MODEL", "has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "NQ-MODEL", "is not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "NQ-MODEL", "not hold a JSON object"),
    "quantized": (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), "NQ-MODEL", "quantized already"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "NQ-TOKENIZER", "has no tokenizer.json"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "NQ-TOKENIZER", "cannot be loaded"),
    "missing tensor": (drop_tensor, "NQ-MODEL", "lacks 1 tensors, the first is model.layers.1.mlp.up_proj.weight"),
    "wrong shape": (resize_tensor, "NQ-MODEL", "cannot be loaded"),
    "truncated": (truncate, "NQ-MODEL", "cannot be loaded"),
    "pickle": (pickle_only, "NQ-MODEL", "has no safetensors weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "NQ-MODEL", "has no safetensors weights"),
    "lost shard": (lost_shard, "NQ-MODEL", "cannot be loaded"),
}


@pytest.mark.parametrize("changes", [{}, ORACLE], ids=["tied", "untied-bias"])
def test_a_folder_gives_exactly_its_weights(tmp_path: Path, changes: dict) -> None:
    folder = dense_folder(tmp_path / "m", **changes)
    with load_model(folder) as source:
        expected = dense_llama(**changes).state_dict()
        found = source.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not source.model.training
        assert source.name == "m"
        assert source.companions == folder
        assert source.decoder.tied == (changes != ORACLE)
        assert source.family.name == "llama"
        assert source.tokenizer("The quick")["input_ids"]


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    tensors = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", dtype="bfloat16")
    with load_model(folder) as source:
        assert {parameter.dtype for parameter in source.model.parameters()} == {torch.float32}
        norm = source.model.model.norm.weight
        assert torch.equal(norm, tensors["model.norm.weight"].float())


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_are_refused(tmp_path: Path, fault: str) -> None:
    make, code, message = FAULTS[fault]
    folder = dense_folder(tmp_path / "m")
    make(folder)
    with pytest.raises(NqEdgeError) as caught, load_model(folder):
        pass
    assert caught.value.code == code
    assert message in caught.value.message
    assert str(folder) in caught.value.message or code == "NQ-ARCH"


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="does not exist") as caught, load_model(tmp_path / "absent"):
        pass
    assert caught.value.code == "NQ-MODEL"


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass E: pass\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.E", "evil.E"]}, tokenizer_class="E")
    try:
        with load_model(folder) as source:
            assert type(source.model).__module__.startswith("transformers.")
            assert type(source.tokenizer).__module__.startswith("transformers.")
    except NqEdgeError as error:
        assert error.code in ("NQ-MODEL", "NQ-TOKENIZER")
    assert not marker.exists()


def test_control_characters_of_a_library_s_message_are_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*_arguments: Any, **_keywords: Any) -> None:
        raise ValueError("bad \x1b[2J name\nsecond line")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(NqEdgeError) as caught, load_model(dense_folder(tmp_path / "m")):
        pass
    assert "bad ?[2J name" in caught.value.message
    assert "second" not in caught.value.message


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NqEdgeError, match="transformers is not installed") as caught, load_model(tmp_path):
        pass
    assert caught.value.code == "NQ-MISSING"
    assert "nanoquant-edge[compress]" in caught.value.hint
