# SPDX-License-Identifier: Apache-2.0
"""GGUF headers: what an honest writer wrote, and files that claim more than they hold."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.gguf_header import read_gguf_header
from nanoquant_edge.models.loading import load_model
from tests.models.gguf_files import llama, write_gguf

Q = gguf.GGMLQuantizationType


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def field(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    head = string(name) + struct.pack("<I", len(dims))
    return head + b"".join(struct.pack("<Q", dim) for dim in dims) + struct.pack("<IQ", kind, offset)


def document(
    fields: list[bytes], tensors: list[bytes] | None = None, version: int = 3, data: bytes = b"\0" * 64
) -> bytes:
    tensors = tensors or []
    counts = struct.pack("<IQQ", version, len(tensors), len(fields))
    return b"GGUF" + counts + b"".join(fields) + b"".join(tensors) + data


def test_an_honest_header(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint32("a", 7)
    writer.add_float64("b", 2.5)
    writer.add_bool("c", True)
    writer.add_string("d", "naïve")
    writer.add_array("e", [1, 2, 3])
    writer.add_array("f", ["x", "yy"])
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("u", np.arange(4, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(tmp_path / "x.gguf")
    assert header.fields == {"general.architecture": "llama", "a": 7, "b": 2.5, "c": True, "d": "naïve"}
    assert header.arrays == {"e": 3, "f": 2}
    assert {name: (found.shape, found.kind) for name, found in header.tensors.items()} == {
        "t": ((2, 3), 0),
        "u": ((4,), 26),
    }
    reader = {found.name: found for found in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert all(found.start == reader[name].data_offset for name, found in header.tensors.items())


HUGE = 1 << 62
HOSTILE = {
    "no end": (b"GGUF", "ends inside its header"),
    "version": (document([], version=1), "version 1"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
    "many fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(64), "fields"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(64), "tensors"),
    "more fields than there are": (b"GGUF" + struct.pack("<IQQ", 3, 0, 9), "ends inside"),
    "a name without end": (document([struct.pack("<Q", HUGE)]), "a string claims"),
    "a string without end": (document([field(b"a", 8, struct.pack("<Q", (1 << 64) - 1))]), "a string claims"),
    "an array without end": (document([field(b"a", 9, struct.pack("<IQ", 4, HUGE))]), "an array claims"),
    "an array past the end": (document([field(b"a", 9, struct.pack("<IQ", 4, 1 << 20))]), "passes the end"),
    "an array of arrays": (document([field(b"a", 9, struct.pack("<IQ", 9, 1))]), "of type 9"),
    "an array of nothing known": (document([field(b"a", 9, struct.pack("<IQ", 77, 1))]), "unknown type 77"),
    "strings in an array without end": (document([field(b"a", 9, struct.pack("<IQQ", 8, 2, HUGE))]), "a string claims"),
    "an unknown type": (document([field(b"a", 77, b"")]), "unknown type 77"),
    "a field twice": (document([field(b"a", 4, bytes(4)), field(b"a", 4, bytes(4))]), "comes twice"),
    "alignment 0": (document([field(b"general.alignment", 4, bytes(4))]), "alignment"),
    "alignment 48": (document([field(b"general.alignment", 4, struct.pack("<I", 48))]), "alignment"),
    "alignment a string": (document([field(b"general.alignment", 8, string(b"x"))]), "alignment"),
    "many dimensions": (document([], [tensor(dims=(1,) * 5)]), "has 5 dimensions"),
    "a dimension of 0": (document([], [tensor(dims=(4, 0))]), "impossible shape"),
    "dimensions that overflow": (document([], [tensor(dims=(1 << 32, 1 << 32))]), "impossible shape"),
    "a tensor twice": (document([], [tensor(), tensor()]), "comes twice"),
    "a tensor past the end": (document([], [tensor(offset=HUGE)]), "past the end"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_headers(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    (tmp_path / "x.gguf").write_bytes(content)
    start = time.process_time()
    with pytest.raises(NqEdgeError, match=message) as caught:
        read_gguf_header(tmp_path / "x.gguf")
    assert caught.value.code == "NQ-MODEL"
    assert time.process_time() - start < 1


ARCHITECTURE = field(b"general.architecture", 8, string(b"llama"))


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (document([]), "NQ-MODEL", "names no architecture"),
        (document([field(b"general.architecture", 4, bytes(4))]), "NQ-MODEL", "names no architecture"),
        (document([field(b"general.architecture", 8, string(b"qwen3moe"))]), "NQ-ARCH", "'qwen3moe' is not supported"),
        (document([ARCHITECTURE, field(b"split.count", 2, b"\x03\0")]), "NQ-MODEL", "one of 3 parts"),
        (document([ARCHITECTURE], [tensor(kind=15)]), "NQ-MODEL", "the block type Q8_K"),
        (document([ARCHITECTURE], [tensor(kind=99)]), "NQ-MODEL", "the block type number 99"),
        (document([ARCHITECTURE], [tensor(dims=(31,), kind=2)]), "NQ-MODEL", "passes the end of the file"),
        (document([ARCHITECTURE], [tensor(dims=(1 << 20,))]), "NQ-MODEL", "passes the end of the file"),
    ],
)
def test_models_that_are_refused_before_any_library_reads_them(
    tmp_path: Path, content: bytes, code: str, message: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(NqEdgeError, match=message) as caught, load_model(tmp_path / "x.gguf"):
        pass
    assert caught.value.code == code


def blocks(kind: Q, rows: int, columns: int) -> np.ndarray:
    """Random blocks of a type that gguf does not write: any bits, and scales of a usual size."""
    rng = np.random.default_rng(int(kind))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // block, size), np.uint8)
    # Where the float16 scales of a block lie (ggml-common.h): Q2_K after 80 bytes, Q3_K and Q6_K last, others first.
    places = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q6_K: (208,)}.get(kind, (0, 2))
    for place in places:
        scales = rng.uniform(1e-3, 2e-3, raw.shape[:2]).astype(np.float16)
        raw[..., place : place + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize(
    "kind", [Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]
)
def test_block_types(tmp_path: Path, kind: Q) -> None:
    model = llama(hidden_size=256, num_hidden_layers=1)
    state = model.state_dict()
    name = "model.layers.0.mlp.gate_proj.weight"
    if kind.name.endswith("_K"):
        raw = blocks(kind, 72, 256)
    else:
        raw = quantize(state[name].numpy(), kind)
    path = write_gguf(tmp_path / "m.gguf", model, kinds={"blk.0.ffn_gate.weight": (raw, kind)})
    with load_model(path) as source:
        found = source.model.state_dict()
    expected = torch.from_numpy(np.array(dequantize(raw, kind), np.float32))
    assert torch.equal(found[name], expected)
    assert torch.isfinite(expected).all()
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], state["model.layers.0.mlp.up_proj.weight"])
