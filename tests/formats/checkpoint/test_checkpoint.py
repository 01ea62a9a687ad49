# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoint folders, honest and hostile."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import (
    Checkpoint,
    CheckpointParts,
    TensorFile,
    true_bits_per_weight,
    write_checkpoint,
)
from tests.tiny import random_layer, tiny_checkpoint

GOLDEN = Path(__file__).parents[2] / "data/golden_checkpoint"
FIRST = "model.layers.0.self_attn.q_proj"


def _golden_bytes() -> bytes:
    lines = (GOLDEN / "weights.hex").read_text().splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))


def _golden(tmp_path: Path) -> Path:
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / "config.json").read_text())
    (folder / "nanoquant.safetensors").write_bytes(_golden_bytes())
    return folder


def test_golden_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(_golden(tmp_path))
    assert checkpoint.layers == ["layer"]
    assert checkpoint.shape("layer.u_packed") == (2, 1)
    assert checkpoint.dtype("layer.scale_in") == "F16"
    assert "layer.bias" not in checkpoint
    np.testing.assert_array_equal(checkpoint.layer("layer").dense(), [[-1, 2, 4], [0, 0, 0]])


def test_written_words_are_the_golden_ones(tmp_path: Path) -> None:
    golden = Checkpoint(_golden(tmp_path))
    layer = golden.layer("layer")
    parts = CheckpointParts({"model_type": "llama"}, golden.settings, {"layer": layer}, {})
    write_checkpoint(tmp_path / "again", parts)
    tensors = load_file(tmp_path / "again/nanoquant.safetensors")
    assert tensors["layer.u_packed"].tobytes().hex() == "0200000003000000"
    assert tensors["layer.v_packed"].tobytes().hex() == "0100000006000000"
    assert tensors["layer.scale_in"].tobytes().hex() == "003c00400044"
    assert tensors["layer.scale_out"].tobytes().hex() == "00380040"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 10_000])
def test_round_trip(tmp_path: Path, dtype: Any, shard_bytes: int) -> None:
    first = tiny_checkpoint(tmp_path / "first", scale_dtype=dtype, mid=True, attention_bias=True)
    layers = {name: first.layer(name) for name in first.layers}
    inside = tuple(f"{name}." for name in layers)
    others = {name: first.tensor(name) for name in first.tensor_names() if not name.startswith(inside)}
    parts = CheckpointParts(first.config, first.settings, layers, others)
    again = write_checkpoint(tmp_path / "again", parts, companions=first.folder, shard_bytes=shard_bytes)
    assert sorted(again.tensor_names()) == sorted(first.tensor_names())
    for name in first.tensor_names():
        assert again.tensor(name).dtype == first.tensor(name).dtype
        assert again.tensor(name).tobytes() == first.tensor(name).tobytes()
        assert not again.tensor(name).flags.writeable
    assert again.settings.ranks == first.settings.ranks
    assert (again.settings.shards > 1) == (shard_bytes == 10_000)
    assert (again.folder / "tokenizer.json").is_file()


def test_true_bits_per_weight() -> None:
    layer = random_layer(np.random.default_rng(0), 64, 96, 32)
    assert true_bits_per_weight([layer]) == (32 * 64 + 32 * 96 + 16 * (64 + 96)) / (64 * 96)


def _rewrite(folder: Path, drop: str | None = None, **changes: Any) -> None:
    path = folder / "nanoquant.safetensors"
    tensors = load_file(path)
    tensors.pop(drop or "", None)
    for part, value in changes.items():
        tensors[f"{FIRST}.{part}"] = value
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("u_packed", np.zeros((64, 1), np.int32), "u_packed has shape"),
        ("u_packed", np.zeros((64, 3), np.int64), "is I64, not int32"),
        ("v_packed", np.zeros((5, 2), np.int32), "v_packed has shape"),
        ("scale_in", np.zeros((70,), np.float16), "v_packed has shape"),
        ("scale_in", np.zeros((40,), np.float32), "scale_in is F32, not F16"),
        ("scale_in", np.zeros((40, 1), np.float16), "not a vector"),
        ("scale_mid", np.zeros((3,), np.float16), "scale_mid has shape"),
        ("bias", np.zeros((65,), np.float16), "bias has shape"),
        ("bias", np.zeros((64,), np.int32), "bias is I32, not BF16 or F16 or F32"),
    ],
)
def test_contradictory_layers_are_refused(tmp_path: Path, part: str, value: np.ndarray, message: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    if part == "u_packed" and value.dtype == np.int64:
        value = np.zeros(checkpoint.shape(f"{FIRST}.u_packed"), np.int64)
    _rewrite(tmp_path / "model", **{part: value})
    with pytest.raises(NqEdgeError, match=message) as caught:
        Checkpoint(tmp_path / "model")
    assert caught.value.code == "NQ-CKPT"


def test_missing_parts_are_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    with pytest.raises(NqEdgeError, match="no tensor nonsense"):
        checkpoint.tensor("nonsense")
    _rewrite(tmp_path / "model", drop=f"{FIRST}.scale_out")
    with pytest.raises(NqEdgeError, match="q_proj has no scale_out"):
        Checkpoint(tmp_path / "model")
    (tmp_path / "model/nanoquant.safetensors").unlink()
    with pytest.raises(NqEdgeError, match=r"has no nanoquant\.safetensors"):
        Checkpoint(tmp_path / "model")
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(NqEdgeError, match="cannot read"):
        Checkpoint(tmp_path / "model")
    with pytest.raises(NqEdgeError, match="is not a folder"):
        Checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "not a NanoQuant checkpoint"),
        ({"format_version": 2}, "has format 2"),
        ({"packing": "other"}, "packing 'other'"),
        ({"ranks": {}}, r"quantization_config\.ranks.* has the impossible value"),
        ({"ranks": {"a": 0}}, r"quantization_config\.ranks.* has the impossible value"),
        ({"ranks": {"a": 1 << 40}}, r"quantization_config\.ranks.* has the impossible value"),
        ({"ranks": {"a": True}}, r"quantization_config\.ranks.* has the impossible value"),
        ({"ranks": ["a"]}, r"quantization_config\.ranks.* has the impossible value"),
        ({"target_bpw": "1"}, r"quantization_config\.target_bpw.* has the impossible value"),
        ({"true_bpw": float("nan")}, r"quantization_config\.true_bpw.* has the impossible value"),
        ({"scale_dtype": "float8"}, r"quantization_config\.scale_dtype.* has the impossible value"),
        ({"recipe": []}, r"quantization_config\.recipe.* has the impossible value"),
        ({"calibration": 3}, r"quantization_config\.calibration.* has the impossible value"),
        ({"head": 3}, r"quantization_config\.head.* has the impossible value"),
        ({"shards": 0}, r"quantization_config\.shards.* has the impossible value"),
        ({"shards": "x"}, r"quantization_config\.shards.* has the impossible value"),
        ({"target_bpw": 10**400}, r"quantization_config\.target_bpw has the impossible value"),
        (
            {"calibration": {"seed": 10**400}},
            r"calibration\.seed has the impossible value",
        ),
        ({"shards": 2}, r"has no nanoquant\.safetensors\.index\.json"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = _golden(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NqEdgeError, match=message):
        Checkpoint(folder)


def test_a_configuration_that_is_not_an_object(tmp_path: Path) -> None:
    folder = _golden(tmp_path)
    (folder / "config.json").write_text('{"quantization_config": [1]}')
    with pytest.raises(NqEdgeError, match="not a NanoQuant checkpoint"):
        Checkpoint(folder)


def _sharded(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    golden = Checkpoint(_golden(tmp_path))
    folder = tmp_path / "sharded"
    parts = CheckpointParts({}, golden.settings, {"layer": golden.layer("layer")}, {})
    write_checkpoint(folder, parts, shard_bytes=16)
    return folder, json.loads((folder / "nanoquant.safetensors.index.json").read_text())


@pytest.mark.parametrize(
    ("weight_map", "code", "message"),
    [
        (None, "NQ-CKPT", "no weight_map"),
        ({"layer.u_packed": 3}, "NQ-CKPT", "no weight_map"),
        ({"layer.u_packed": "../golden/nanoquant.safetensors"}, "NQ-PATH", "has a '..' in it"),
        ({"layer.u_packed": "/etc/passwd"}, "NQ-PATH", "not a file name inside"),
        ({"layer.u_packed": "nanoquant-00001-of-00002.safetensors"}, "NQ-CKPT", "disagree about tensor layer.v"),
        ({"layer.u_packed": "absent.safetensors"}, "NQ-CKPT", "not a readable safetensors"),
    ],
)
def test_bad_indexes_are_refused(tmp_path: Path, weight_map: Any, code: str, message: str) -> None:
    folder, index = _sharded(tmp_path)
    index["weight_map"] = weight_map
    (folder / "nanoquant.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NqEdgeError, match=message) as caught:
        Checkpoint(folder)
    assert caught.value.code == code


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused(tmp_path: Path, length: int) -> None:
    folder = _golden(tmp_path)
    (folder / "nanoquant.safetensors").write_bytes(_golden_bytes()[:length])
    with pytest.raises(NqEdgeError, match="not a readable safetensors file"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        b"PK\x03\x04" + bytes(64),
        b"\x80\x04" + b"." * 64,
    ],
    ids=["huge-header", "not-an-object", "zip", "pickle"],
)
def test_foreign_weights_are_refused(tmp_path: Path, raw: bytes) -> None:
    folder = _golden(tmp_path)
    (folder / "nanoquant.safetensors").write_bytes(raw)
    with pytest.raises(NqEdgeError, match="not a readable safetensors file"):
        Checkpoint(folder)


def test_links_of_the_hub_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    golden = _golden(tmp_path)
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b/blobs").mkdir()
    for name in ("config.json", "nanoquant.safetensors"):
        (golden / name).rename(tmp_path / "models--a--b/blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert Checkpoint(snapshot).layer("layer").rank == 2
    (tmp_path / "models--a--b/blobs/nanoquant.safetensors").rename(tmp_path / "elsewhere")
    (snapshot / "nanoquant.safetensors").unlink()
    (snapshot / "nanoquant.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NqEdgeError, match="leads outside"):
        Checkpoint(snapshot)


def _tensor_file(path: Path, entries: dict[str, Any], data: bytes, pad: int = 0) -> TensorFile:
    header = json.dumps(entries).encode() + b" " * pad
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return TensorFile(path)


def test_tensor_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        "odd": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
        "half": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 4]},
        "none": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
        "one": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]},
    }
    file = _tensor_file(tmp_path / "x", entries, b"\0\0" + b"\x80\x3f" + struct.pack("<f", 2.5))
    with pytest.raises(NqEdgeError, match="type F8_E4M3"):
        file.tensor("odd")
    with pytest.raises(NqEdgeError, match="empty tensor, none"):
        file.tensor("none")
    assert file.tensor("half")[0] == 1
    assert file.tensor("one").shape == ()
    assert file.tensor("one") == 2.5
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(NqEdgeError, match="holds bfloat16"):
        file.tensor("half")


@pytest.mark.parametrize("pad", range(4))
def test_unaligned_data_is_read(tmp_path: Path, pad: int) -> None:
    entries = {"x": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}
    file = _tensor_file(tmp_path / "x", entries, struct.pack("<2i", 7, -8), pad)
    np.testing.assert_array_equal(file.tensor("x"), [7, -8])
