# SPDX-License-Identifier: Apache-2.0
"""Reading Hugging Face folders: exact weights from good ones, one clear refusal for each kind of bad one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.loading import load_model, locate
from tests.compression.support import ORACLE, dense_folder, dense_llama
from tests.formats.test_lfs_pointer import POINTER


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


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").rename(folder / "x")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shards(folder: Path, changes: dict[str, str] | None = None) -> None:
    """Two shards and their index, changed by `changes`."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    homes = {name: "a.safetensors" if place < 8 else "b.safetensors" for place, name in enumerate(names)}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in names if homes[name] == home}, folder / home, {"format": "pt"})
    entry = {"metadata": {}, "weight_map": {**homes, **(changes or {})}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(entry))


#: what is wrong -> (how it comes about, code, words of the message)
FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "architecture": (lambda f: edit(f / "config.json", model_type="mixtral"), "NQ-ARCH", "'mixtral' is not supported"),
    "no config": (lambda f: (f / "config.json").unlink(), "NQ-MODEL", "has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "NQ-MODEL", "is not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "NQ-MODEL", "not hold a JSON object"),
    "quantized": (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), "NQ-MODEL", "quantized already"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "NQ-TOKENIZER", "has no tokenizer.json"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "NQ-TOKENIZER", "is not a valid tokenizer"),
    "missing tensor": (drop_tensor, "NQ-MODEL", "lacks 1 tensors, the first is model.layers.1.mlp.up_proj.weight"),
    "wrong shape": (resize_tensor, "NQ-MODEL", "cannot be loaded"),
    "truncated": (truncate, "NQ-MODEL", "is not a readable safetensors file"),
    "pickle": (pickle_only, "NQ-MODEL", "has no safetensors weights"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "NQ-MODEL", "has no safetensors weights"),
    "lost shard": (lost_shard, "NQ-MODEL", "lacks the weight file"),
    "index no map": (lambda f: index(f, None), "NQ-MODEL", "has no weight_map"),
    "index empty": (lambda f: index(f, {}), "NQ-MODEL", "has no weight_map"),
    "index of numbers": (lambda f: index(f, {"a": 3}), "NQ-MODEL", "has no weight_map"),
    "index that lies": (lambda f: shards(f, {"lm_head.weight": "a.safetensors"}), "NQ-MODEL", "disagree about tensor"),
    "index that leaves": (lambda f: index(f, {"a": "../x"}), "NQ-PATH", "leads outside"),
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


@pytest.mark.parametrize("stream", [False, True])
def test_generation_settings_are_those_of_the_folder(tmp_path: Path, stream: bool) -> None:
    folder = dense_folder(tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[2, 4])
    with load_model(folder, stream=stream) as source:
        assert source.model.generation_config.eos_token_id == [2, 4]
    (folder / "generation_config.json").write_text("[1")
    with pytest.raises(NqEdgeError, match=r"generation_config\.json of .* is refused") as caught, load_model(folder):
        pass
    assert caught.value.code == "NQ-MODEL"
    (folder / "generation_config.json").unlink()
    with load_model(folder, stream=stream) as source:
        assert source.model.generation_config.eos_token_id == 2


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
    assert str(folder) in caught.value.message or code == "NQ-ARCH" or "lies" in fault


def test_shards_give_exactly_the_weights(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    shards(folder)
    with load_model(folder) as source:
        expected = dense_llama().state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in source.model.state_dict().items())


def test_pickle_is_read_when_asked_for_and_as_tensors_only(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    pickle_only(folder)
    with load_model(folder, allow_pickle=True) as source:
        expected = dense_llama().state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in source.model.state_dict().items())


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def test_a_pickle_with_code_runs_none(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(NqEdgeError, match="as tensors only") as caught, load_model(folder, allow_pickle=True):
        pass
    assert caught.value.code == "NQ-MODEL"
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_is_no_plain_archive(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with pytest.raises(NqEdgeError, match="is not a zip archive of torch"), load_model(folder, allow_pickle=True):
        pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb: 64 MiB out of 64 KiB
        archive.writestr("m/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(NqEdgeError, match="not an archive as"), load_model(folder, allow_pickle=True):
        pass


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="does not exist") as caught, load_model(tmp_path / "absent"):
        pass
    assert caught.value.code == "NQ-MODEL"


def test_a_hub_id_is_fetched_unless_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def fetched(name: str, allow_pickle: bool) -> Path:
        asked.append((name, allow_pickle))
        return tmp_path / "snapshots/0123"

    assert locate("owner/tiny", allow_pickle=True, download=fetched) == (tmp_path / "snapshots/0123", "owner/tiny")
    assert asked == [("owner/tiny", True)]
    (tmp_path / "owner/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/tiny", download=fetched) == (Path("owner/tiny"), "tiny")
    assert len(asked) == 1


def test_links_into_the_hub_s_blobs_are_followed_and_no_others(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "models--a--b/snapshots/0123")
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir()
    (folder / "model.safetensors").rename(blobs / "x")
    (folder / "model.safetensors").symlink_to("../../blobs/x")
    with load_model(folder) as source:
        assert source.decoder.hidden_size == 40
    (blobs / "x").rename(tmp_path / "x")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "x")
    with pytest.raises(NqEdgeError, match="leads outside") as caught, load_model(folder):
        pass
    assert caught.value.code == "NQ-PATH"


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


def test_control_characters_of_a_library_s_message_are_not_passed_on(tmp_path: Path) -> None:
    folder = dense_folder(tmp_path / "m")
    edit(folder / "config.json", bos_token_id="bad \x1b[2J name\nsecond line")
    with pytest.raises(NqEdgeError) as caught, load_model(folder):
        pass
    assert "bad ?[2J name" in caught.value.message or r"bad \x1b[2J name" in caught.value.message
    assert "\x1b" not in caught.value.message


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NqEdgeError, match="transformers is not installed") as caught, load_model(tmp_path):
        pass
    assert caught.value.code == "NQ-MISSING"
    assert "'transformers>=" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
             "pytorch_model.bin"],
)  # fmt: skip
def test_a_pointer_of_git_lfs_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    folder = dense_folder(tmp_path / "m")
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(NqEdgeError, match=f"{name} is a pointer of Git LFS"), load_model(folder, allow_pickle=True):
        pass
