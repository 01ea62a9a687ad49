# SPDX-License-Identifier: Apache-2.0
"""A look into model files without `onnx`, against what `onnx` reads; files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.onnx_file import external_tensors, initializers, strip_functions, summarize
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    return export_onnx(tiny_checkpoint(folder / "c"), folder / "b", portable=True).folder / "model.onnx"


def test_the_initializers_are_onnxs(model: Path) -> None:
    content, whole = model.read_bytes(), onnx.load(model)
    found = initializers(content)
    expected = {tensor.name: (tuple(tensor.dims), len(tensor.raw_data)) for tensor in whole.graph.initializer}
    assert found == expected and len(found) > 60
    locations: dict[str, Any] = {}
    for tensor in onnx.load(model, load_external_data=False).graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if entry:
            locations[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
    assert external_tensors(content) == locations and len(locations) > 50


def test_functions_are_cut_out_and_nothing_else_is(model: Path) -> None:
    content = model.read_bytes()
    summary = summarize(content)
    assert summary.functions == {"NanoQuantLinear"} and summary.operators == {"NanoQuantLinear": 14}
    assert summary.external_files == {"model.onnx.data"}
    expected = onnx.load(model, load_external_data=False)
    del expected.functions[:]
    assert onnx.load_from_string(strip_functions(content)) == expected


@pytest.mark.parametrize("text", ["", "-1", "+1", "1_0", " 1", "²", "٣", "1" * 30, "1e3", "0x10"])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_places_that_are_no_numbers(key: str, text: str) -> None:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    for name, value in {"location": "w.data", "offset": "0", "length": "4", key: text}.items():
        tensor.external_data.add(key=name, value=value)
    content = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString()
    with pytest.raises(NqEdgeError, match="is no offset or length") as caught:
        external_tensors(content)
    assert caught.value.code == "NQ-BUNDLE"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for read in (summarize, initializers, external_tensors, strip_functions):
        try:
            read(content)
        except NqEdgeError as error:
            assert error.code == "NQ-BUNDLE"
