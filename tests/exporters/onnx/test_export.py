# SPDX-License-Identifier: Apache-2.0
"""The bundle folder: all of it or nothing, with everything a board needs, and refusals before any work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export, export_onnx
from nanoquant_edge.formats import graph
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from tests.tiny import tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return tiny_checkpoint(tmp_path / "c")


def test_the_manifest_says_what_the_bundle_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    seen: list[float] = []
    bundle = export_onnx(
        checkpoint, tmp_path / "b", dtype="float16", max_length=64, progress=lambda done, _text: seen.append(done)
    )
    assert bundle.folder == tmp_path / "b"
    again = Bundle.open(bundle.folder, verify=True)
    assert again.files == bundle.files and again.kv == bundle.kv
    assert (again.backend, again.dialect, again.dtype, again.portable) == ("onnxruntime", "ort", "float16", False)
    assert again.backend_versions == ("1.23", "") and again.operator_version == 1
    assert again.compressed_linears == 14 and again.vocab_size == 320
    kv = again.kv
    assert (kv.layers, kv.heads, kv.head_dim, kv.dtype, kv.capacity) == (2, 2, 16, "float16", 64)
    assert again.true_bpw == checkpoint.settings.true_bpw and again.target_bpw == 1.0
    model = again.source_model
    assert model["model_type"] == "llama" and model["eos_token_id"] == 2 and model["name"] == "c"
    wanted = {"model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert set(again.files) == wanted
    for name in wanted - {"model.onnx", "model.onnx.data"}:
        assert (bundle.folder / name).read_bytes() == (checkpoint.folder / name).read_bytes()
    assert len(seen) > 50 and seen == [pytest.approx((index + 1) / len(seen)) for index in range(len(seen))]


def test_all_weights_are_in_the_data_file_at_natural_alignment(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = export_onnx(checkpoint, tmp_path / "b").folder
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    sizes = {onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.FLOAT: 4, onnx.TensorProto.INT32: 4}
    for tensor in model.graph.initializer:
        if tensor.name.startswith("constant."):
            assert len(tensor.raw_data) <= 64  # where shape inference can read it
        elif np.prod(tensor.dims) * sizes[tensor.data_type] > 64:
            entry = {item.key: item.value for item in tensor.external_data}
            assert entry["location"] == "model.onnx.data", tensor.name
            assert int(entry.get("offset", 0)) % sizes[tensor.data_type] == 0


def test_max_length_shortens_the_tables(checkpoint: Checkpoint, tmp_path: Path) -> None:
    long = export_onnx(checkpoint, tmp_path / "long").files["model.onnx.data"].size
    short = export_onnx(checkpoint, tmp_path / "short", max_length=16).files["model.onnx.data"].size
    assert long - short == (256 - 16) * 2 * 8 * 4


def test_a_missing_or_damaged_tokenizer_stops_before_any_work(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "build_model", lambda *_a, **_k: pytest.fail("work was done"))
    tokenizer = checkpoint.folder / "tokenizer.json"
    tokenizer.write_text("{")
    with pytest.raises(NqEdgeError, match="not valid JSON") as caught:
        export_onnx(checkpoint, tmp_path / "b")
    assert caught.value.code == "NQ-TOKENIZER"
    tokenizer.unlink()
    with pytest.raises(NqEdgeError, match=r"cannot read .*tokenizer\.json") as caught:
        export_onnx(checkpoint.folder, tmp_path / "b")
    assert caught.value.code == "NQ-TOKENIZER" and not (tmp_path / "b").exists()


def test_a_failure_leaves_nothing_or_the_old_bundle(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "b"
    monkeypatch.setattr(export, "check_file", lambda _path: 13)
    with pytest.raises(NqEdgeError, match=r"13 of 14 compressed layers") as caught:
        export_onnx(checkpoint, output)
    assert caught.value.code == "NQ-OPERATOR" and not any(output.parent.iterdir())
    monkeypatch.undo()
    first = export_onnx(checkpoint, output)
    with pytest.raises(NqEdgeError, match="exists already") as caught:
        export_onnx(checkpoint, output, max_length=16)
    assert caught.value.code == "NQ-OUTPUT"
    assert Bundle.open(output, verify=True).files == first.files
    second = export_onnx(checkpoint, output, max_length=16, overwrite=True)
    assert second.kv.capacity == 16 and [path.name for path in output.parent.iterdir()] == ["b"]


def test_a_folder_of_someone_else_is_not_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(NqEdgeError, match="not written by nq-edge"):
        export_onnx(checkpoint, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    file = checkpoint.folder / "nanoquant.safetensors"
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start = 8 + int.from_bytes(data[:8], "little") + header["model.norm.weight"]["data_offsets"][0]
    data[start : start + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(NqEdgeError, match=r"model\.norm\.weight holds a value that is not finite") as caught:
        export_onnx(checkpoint.folder, tmp_path / "b")
    assert caught.value.code == "NQ-NUMERIC" and not (tmp_path / "b").exists()


def test_a_checkpoint_may_be_moved_after_export(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = export_onnx(checkpoint, tmp_path / "b")
    shutil.rmtree(checkpoint.folder)
    assert Bundle.open(bundle.folder, verify=True).files == bundle.files


def test_the_document_describes_the_operator_that_is_emitted() -> None:
    text = (Path(__file__).parents[3] / "docs" / "OPERATOR.md").read_text(encoding="utf-8")
    first = text.partition("\n## Attributes")[0]  # other operators follow
    table = re.findall(r"^\| (\d) \| `(\w+)` \|", first, re.MULTILINE)
    assert table == [(str(index), name) for index, name in enumerate(graph.LINEAR_INPUTS)]
    for name in graph.LINEAR_ATTRIBUTES:
        assert f"`{name}`" in text
    assert f"`{graph.DOMAIN}::{graph.LINEAR_OP}`, version {graph.OPERATOR_VERSION}" in text
    words: Any = np.array([6], np.int32)
    from nanoquant_edge.formats.checkpoint import unpack_signs

    assert unpack_signs(words[None], 4).tolist() == [[1, -1, -1, 1]]
