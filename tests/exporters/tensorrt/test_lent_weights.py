# SPDX-License-Identifier: Apache-2.0
"""External weights as the parser is lent them, against what `onnx` reads; places outside of the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.exporters.tensorrt.lent_weights import LentWeights
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    return export_onnx(tiny_checkpoint(folder / "c"), folder / "b").folder / "model.onnx"


class Parser:
    """Reads what it is lent, as TensorRT does."""

    def __init__(self, answer: bool = True) -> None:
        self.found: dict[str, bytes] = {}
        self.answer = answer

    def load_initializer(self, name: str, address: int, size: int) -> bool:
        import ctypes

        self.found[name] = ctypes.string_at(address, size)
        return self.answer


def test_the_parser_gets_the_bytes_that_onnx_reads(model: Path) -> None:
    lent, parser = LentWeights(model), Parser()
    lent.lend(parser)
    lent.forget()
    lent.lend(parser)
    listed = onnx.load(model, load_external_data=False).graph.initializer
    outside = {tensor.name for tensor in listed if tensor.external_data}
    assert set(parser.found) == outside and len(outside) > 50
    for tensor in onnx.load(model).graph.initializer:
        if tensor.name in outside:
            assert parser.found[tensor.name] == tensor.raw_data


def test_a_weight_that_is_refused_is_named(model: Path) -> None:
    with pytest.raises(NqEdgeError, match="does not take the weight") as caught:
        LentWeights(model).lend(Parser(answer=False))
    assert caught.value.code == "NQ-ENGINE"


def test_places_outside_of_the_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    (tmp_path / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(NqEdgeError, match="not valid ONNX") as caught:
        LentWeights(tmp_path / "model.onnx")
    assert caught.value.code == "NQ-BUNDLE"
    content = model.read_bytes().replace(b"model.onnx.data", b"../../../passwd")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(NqEdgeError) as caught:
        LentWeights(tmp_path / "model.onnx")
    assert caught.value.code == "NQ-PATH"
