# SPDX-License-Identifier: Apache-2.0
"""The table of external weights, read without `onnx`, against what `onnx` reads; hostile files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.exporters.tensorrt.memory import MemoryWatch
from nanoquant_edge.exporters.tensorrt.weights import LentWeights
from nanoquant_edge.formats.onnx_file import external_tensors
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


def test_the_table_and_the_bytes_are_onnxs(model: Path) -> None:
    lent, parser = LentWeights(model), Parser()
    lent.lend(parser)
    lent.forget()
    lent.lend(parser)
    proto = onnx.load(model, load_external_data=False)
    expected: dict[str, Any] = {}
    for tensor in proto.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if entry:
            expected[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
    assert external_tensors(model.read_bytes()) == expected and len(expected) > 50
    whole = onnx.load(model)
    for tensor in whole.graph.initializer:
        if tensor.name in expected:
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


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        external_tensors(content)
    except NqEdgeError as error:
        assert error.code == "NQ-BUNDLE"


def test_memory_is_watched() -> None:
    calls = []
    with MemoryWatch(lambda: calls.append(1)) as watch:
        block = bytearray(32 << 20)
        block[::4096] = b"x" * len(block[::4096])
        while not calls:
            pass
    assert watch.private > len(block) and calls
