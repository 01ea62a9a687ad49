# SPDX-License-Identifier: Apache-2.0
"""Streaming: conversion by pieces, holes, values that do not fit, and a model above 2 GiB in little memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import tensors
from nanoquant_edge.exporters.onnx.tensors import StreamedTensor


def written(tensor: StreamedTensor) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    return file.getvalue()


@pytest.mark.parametrize("piece", [64, 4096, 8 << 20])
@pytest.mark.parametrize("dtype", [None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch, piece: int, dtype: ir.DataType | None) -> None:
    monkeypatch.setattr(tensors, "_PIECE_BYTES", piece)
    source = np.random.default_rng(0).standard_normal((37, 29)).astype(np.float32)
    source[5:30] = 0  # whole pieces of zeros, and partly zero ones
    tensor = StreamedTensor(source, dtype, "t")
    target = {None: np.float32, ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}
    expected = source.astype(target.get(dtype, ml_dtypes.bfloat16))
    assert written(tensor) == expected.tobytes() == tensor.tobytes()
    assert tensor.numpy().dtype == expected.dtype and tensor.nbytes == expected.nbytes


@pytest.mark.parametrize("size", [1, 1000, 5000])
def test_zeros_at_the_end_keep_the_length(size: int) -> None:
    assert written(StreamedTensor(np.zeros(size, np.int32))) == bytes(4 * size)


def test_negative_zero_is_not_a_hole() -> None:
    source = np.full(100, -0.0, np.float16)
    assert written(StreamedTensor(source)) == source.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_a_value_that_float16_cannot_hold_is_refused(value: float) -> None:
    source = np.array([1.0, value], np.float32)
    with pytest.raises(NqEdgeError, match="norm holds a value that is not finite as float16") as caught:
        written(StreamedTensor(source, ir.DataType.FLOAT16, "norm"))
    assert caught.value.code == "NQ-NUMERIC"


_BIG = """
import json, sys
from pathlib import Path
import numpy as np
import onnx_ir as ir
from nanoquant_edge.exporters.onnx import build_model, check_file
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.models import DecoderConfig
from tests.tiny import tiny_checkpoint

folder = Path(sys.argv[1])
tiny = tiny_checkpoint(folder / "c", hidden_size=72, num_hidden_layers=1)
rows = 16_000_000
config = read_config({**tiny.config, "vocab_size": rows})
with open(folder / "table", "wb") as file:
    file.truncate(rows * 72 * 2)
    file.seek((rows - 1) * 72 * 2)
    file.write(np.arange(72, dtype=np.float16).tobytes())

class Source:
    layer = staticmethod(tiny.layer)
    tensor_names = staticmethod(tiny.tensor_names)
    table = staticmethod(tiny.table)
    def tensor(self, name):
        if name == "model.embed_tokens.weight":
            return np.memmap(folder / "table", np.float16, "r", 0, (rows, 72))
        return tiny.tensor(name)

write_model(build_model(config, Source()), folder / "model.onnx")
nodes = check_file(folder / "model.onnx")
saved = {name: value.const_value for name, value in ir.load(folder / "model.onnx").graph.initializers.items()}
table, norm = saved["model.embed_tokens.weight"], saved["model.norm.weight"]
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
data = (folder / "model.onnx.data").stat()
print(json.dumps({
    "nodes": nodes, "peak_mb": peak / 1024, "size": data.st_size, "blocks_mb": data.st_blocks * 512 / 2**20,
    "last": table.numpy()[-1].tolist(), "first": table.numpy()[0].tolist(), "shape": list(table.shape),
    "norm_equal": bool((norm.numpy() == tiny.tensor("model.norm.weight").astype(np.float32)).all()),
    "after": int(max(tensor.offset for tensor in saved.values() if isinstance(tensor, ir.ExternalTensor))),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and needs sparse files")
def test_a_model_above_2_gib_round_trips(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _BIG, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["nodes"] == 7 and seen["shape"] == [16_000_000, 72]
    assert seen["last"] == list(range(72)) and not any(seen["first"]) and seen["norm_equal"]
    assert seen["size"] > 2**31 and seen["after"] > 2**31
    assert seen["blocks_mb"] < 64 and seen["peak_mb"] < 700, seen
