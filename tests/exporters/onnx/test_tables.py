# SPDX-License-Identifier: Apache-2.0
"""Quantized embeddings and heads in exported graphs: same logits as PyTorch with the same table, stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

import nanoquant_edge.hf  # noqa: F401  (registers the format)
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import check_file, check_model, export_onnx
from nanoquant_edge.exporters.onnx.build import build_model
from nanoquant_edge.exporters.source import Source
from nanoquant_edge.formats.checkpoint import TABLE_FORMATS, Checkpoint, quantize_table
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.validation.dense import dense_model
from tests.exporters.onnx.support import Decoder, have_kernel, reference_logits
from tests.families import ONE_EACH, family_config
from tests.tiny import tiny_checkpoint

IDS = np.random.default_rng(1).integers(0, 320, (1, 60))
#: Heads take hidden values in 16 bits.
HEAD_ERROR = 5e-5
needs_kernel = pytest.mark.skipif(not have_kernel(), reason="the native library is not built")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@needs_kernel
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_logits_equal_pytorch_with_the_same_table(tmp_path: Path, kind: str, tied: bool) -> None:
    tiny_checkpoint(tmp_path / "c", embedding=kind, tie_word_embeddings=tied)
    bundle = export_onnx(tmp_path / "c", tmp_path / "b")
    model = ir.load(tmp_path / "b" / "model.onnx")
    codes = [name for name in model.graph.initializers if name.endswith(".codes")]
    assert codes == ["model.embed_tokens.codes"] if tied else len(codes) == 2
    assert not any("embed_tokens.weight" in name or "lm_head.weight" in name for name in model.graph.initializers)
    expected = reference_logits(dense_model(tmp_path / "c"), IDS)
    assert relative(Decoder(bundle, capacity=64).feed(IDS), expected) < HEAD_ERROR
    assert bundle.source_model["embedding"] == kind
    assert bundle.source_model["head"] == ("tied" if tied else kind)


@pytest.mark.parametrize(
    ("options", "limit"), [({"dialect": "onnx24"}, 1e-3), ({"dtype": "float16"}, 1e-2)], ids=["onnx24", "float16"]
)
def test_targets_without_the_operators_get_a_widened_table(tmp_path: Path, options: dict, limit: float) -> None:
    tiny_checkpoint(tmp_path / "c", embedding="int4")
    bundle = export_onnx(tmp_path / "c", tmp_path / "b", portable=not have_kernel(), **options)
    table = ir.load(tmp_path / "b" / "model.onnx").graph.initializers["model.embed_tokens.weight"].const_value
    assert table is not None and table.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(table.numpy(), Checkpoint(tmp_path / "c").tensor("model.embed_tokens.weight"))
    expected = reference_logits(dense_model(tmp_path / "c"), IDS)
    assert relative(Decoder(bundle, capacity=64, kernel=have_kernel()).feed(IDS), expected) < limit
    assert bundle.source_model["embedding"] == "float16"


def test_a_portable_bundle_carries_a_widened_table(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", embedding="int8")
    bundle = export_onnx(tmp_path / "c", tmp_path / "b", portable=True)
    expected = reference_logits(dense_model(tmp_path / "c"), IDS)
    assert relative(Decoder(bundle, capacity=64, kernel=False).feed(IDS), expected) < 1e-3


@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_a_16_bit_table_is_rounded_at_export_on_request(tmp_path: Path, kind: str) -> None:
    plain = tiny_checkpoint(tmp_path / "c")
    bundle = export_onnx(tmp_path / "c", tmp_path / "b", embedding=kind)
    stored = ir.load(tmp_path / "b" / "model.onnx").graph.initializers
    expected = quantize_table(plain.tensor("model.embed_tokens.weight"), kind)
    np.testing.assert_array_equal(stored["model.embed_tokens.codes"].const_value.numpy(), expected.codes)
    np.testing.assert_array_equal(stored["model.embed_tokens.scales"].const_value.numpy(), expected.scales)
    assert bundle.source_model["embedding"] == kind


def test_a_quantized_table_is_never_rounded_twice(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", embedding="int8")
    with pytest.raises(
        NqEdgeError, match=r"stores model\.embed_tokens as int8; it is not rounded a second time"
    ) as error:
        export_onnx(tmp_path / "c", tmp_path / "b", embedding="int4")
    assert error.value.code == "NQ-OPTION" and not (tmp_path / "b").exists()
    same = export_onnx(tmp_path / "c", tmp_path / "same", embedding="int8")
    assert same.source_model["embedding"] == "int8"
    wide = export_onnx(tmp_path / "c", tmp_path / "wide", embedding="fp16")
    assert wide.source_model["embedding"] == "float16"
    assert "model.embed_tokens.weight" in ir.load(tmp_path / "wide" / "model.onnx").graph.initializers


@pytest.mark.parametrize("options", [{"dialect": "onnx24"}, {"dtype": "float16"}, {"portable": True}])
def test_codes_that_nothing_could_read_are_refused(tmp_path: Path, options: dict) -> None:
    tiny_checkpoint(tmp_path / "c")
    with pytest.raises(NqEdgeError, match="kept in codes only in float32 graphs of dialect ort") as error:
        export_onnx(tmp_path / "c", tmp_path / "b", embedding="int8", **options)
    assert error.value.code == "NQ-OPTION"


@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_an_engine_can_be_made_of_a_bundle_with_codes(tmp_path: Path, kind: str) -> None:
    written = tiny_checkpoint(tmp_path / "c", embedding=kind)
    export_onnx(tmp_path / "c", tmp_path / "b")
    source = Source.open(tmp_path / "b")
    table = source.weights.table("model.embed_tokens")
    assert table is not None and table.kind == kind
    np.testing.assert_array_equal(table.codes, written.table("model.embed_tokens").codes)  # type: ignore[union-attr]
    model = build_model(
        source.config, source.weights, dialect="trt103", dtype="float16", capacity=64, max_length=64, layout=1
    )
    wide = model.graph.initializers["model.embed_tokens.weight"].const_value
    assert wide is not None and wide.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(wide.numpy(), written.tensor("model.embed_tokens.weight"))


def test_nodes_that_contradict_their_data_are_refused(tmp_path: Path) -> None:
    written = tiny_checkpoint(tmp_path / "c", embedding="int4")
    config = read_config(written.config)

    def broken(**attributes: int) -> ir.Model:
        model = build_model(config, written)
        node = next(node for node in model.graph.all_nodes() if node.op_type == "NanoQuantHead")
        for name, value in attributes.items():
            node.attributes[name] = ir.AttrInt64(name, value)
        return model

    assert check_model(broken()) == len(written.layers)
    cases = [({"bits": 8}, "codes are"), ({"columns": 72}, "codes are"), ({"group_size": 64}, "scales have shape")]
    for attributes, message in [*cases, ({"bits": 3}, "do not go together"), ({"extra": 1}, "the attributes")]:
        with pytest.raises(NqEdgeError, match=message) as error:
            check_model(broken(**attributes))
        assert error.value.code == "NQ-OPERATOR"


def test_a_file_shorter_than_its_codes_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", embedding="int8")
    export_onnx(tmp_path / "c", tmp_path / "b")
    data = tmp_path / "b" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:4096])
    with pytest.raises(NqEdgeError, match="does not fit its place"):
        check_file(tmp_path / "b" / "model.onnx")


@needs_kernel
@pytest.mark.parametrize("family", ONE_EACH)
def test_every_family_takes_tables_in_codes(tmp_path: Path, family: str) -> None:
    tiny_checkpoint(tmp_path / "c", seed=7, embedding="int4", **family_config(family))
    bundle = export_onnx(tmp_path / "c", tmp_path / "b")
    expected = reference_logits(dense_model(tmp_path / "c"), IDS)
    # Logits that are capped (gemma2) are small beside what they were made of.
    assert relative(Decoder(bundle, capacity=64).feed(IDS), expected) < 5 * HEAD_ERROR
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    assert relative(reference_logits(loaded, IDS), expected) < 2e-5
