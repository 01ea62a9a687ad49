# SPDX-License-Identifier: Apache-2.0
"""Honest files to start from: a tiny checkpoint, its bundle, a recorded reference, a GGUF and a torch archive."""

from __future__ import annotations

import io
import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint, CheckpointParts, write_checkpoint
from tests.tiny import random_layer, tiny_checkpoint

__all__ = ["Yard", "gguf_file", "gguf_model", "torch_archive"]

#: One block, narrow: a case should take milliseconds.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


class Yard:
    """A folder with everything that readers are pointed at, and a neighbour that nothing may touch.

    Args:
        root: an empty folder, best in memory.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.inside = root, root / "inside"
        self.inside.mkdir(parents=True)
        (root / "outside").write_text("nobody writes here")
        self.checkpoint = self.inside / "checkpoint"
        tiny_checkpoint(self.checkpoint, **SMALL)
        self.tables = self.inside / "tables"  # with tables of 4 bits
        tiny_checkpoint(self.tables, embedding="int4", **{**SMALL, "hidden_size": 64, "tie_word_embeddings": False})
        self.sharded = self._sharded()
        self.bundle = self._bundle()
        for folder in (self.checkpoint, self.sharded, self.tables, self.bundle):
            (folder / "link").symlink_to(root / "outside")
            (folder / "loop").symlink_to("loop")
        self._listing = self._look()

    def _sharded(self) -> Path:
        whole = Checkpoint(self.checkpoint)
        layers = {name: whole.layer(name) for name in whole.layers}
        inside = tuple(f"{name}." for name in layers)
        others = {name: whole.tensor(name) for name in whole.tensor_names() if not name.startswith(inside)}
        target = self.inside / "sharded"
        parts = CheckpointParts(whole.config, whole.settings, layers, others)
        write_checkpoint(target, parts, shard_bytes=4000)
        return target

    def _bundle(self) -> Path:
        from nanoquant_edge.exporters.onnx import export_onnx

        target = self.inside / "bundle"
        bundle = export_onnx(self.checkpoint, target)
        (target / "reference.safetensors").write_bytes(reference(bundle.vocab_size))
        bundle.write()
        return target

    def _look(self) -> tuple[Any, ...]:
        return (sorted(path.name for path in self.root.iterdir()), (self.root / "outside").read_text())

    def untouched(self) -> bool:
        """Whether nothing was written, made or removed beside the folder."""
        return self._look() == self._listing


def open_bundle(folder: Path) -> Bundle:
    """The bundle without looking at hashes, which a hostile file would bring right."""
    return Bundle.open(folder, verify=False)


def reference(vocabulary: int) -> bytes:
    """A `reference.safetensors` of one window (the table in nanoquant_edge/validation/recorded.py)."""
    rng = np.random.default_rng(0)
    tensors = {
        "windows": np.arange(8, dtype=np.int32)[None],
        "loss": np.ones(1),
        "top_ids": np.zeros((1, 8, 4), np.int32),
        "top_logits": np.zeros((1, 8, 4), np.float32),
        "log_sum": np.ones((1, 8)),
        "whole_places": np.array([[0, 1], [0, 3]], np.int32),
        "whole_logits": rng.normal(size=(2, vocabulary)).astype(np.float32),
        "inner.0": np.zeros((4, 16), np.float32),
        "prompt.0": np.arange(3, dtype=np.int32),
        "greedy.0": np.arange(4, dtype=np.int32),
        "gap.0": np.ones(4, np.float32),
    }
    return save(tensors, {"nq_reference": "1", "text": "t", "inner": json.dumps(["block 0"])})


@lru_cache
def gguf_file() -> bytes:
    """A GGUF file with a value of every type, arrays, and a layer as arelath/NanoQuant keeps it."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def field(name: bytes, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    fields = [field(b"n%d" % kind, kind, struct.pack(f"<{code}", 1)) for kind, code in numbers.items()]
    fields.append(field(b"general.architecture", 8, text(b"llama")))
    fields.append(field(b"tokens", 9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"bc")))
    fields.append(field(b"scores", 9, struct.pack("<IQ3f", 6, 3, 0, 1, 2)))
    # One layer of 8 x 8 at rank 2: (name, ggml type, dimensions with the fastest first), 32 bytes each.
    rows = (("nq_v", 26, (1, 2)), ("nq_u", 26, (1, 8)), ("nq_scale_pre", 0, (8,)), ("nq_scale_post", 0, (8,)))
    tensors = [
        text(f"blk.0.attn_q.{name}".encode()) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, 32 * place)
        for place, (name, kind, dims) in enumerate(rows)
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields + tensors)
    return head + b"\0" * (-len(head) % 32) + bytes(128)


@lru_cache
def gguf_model() -> bytes:
    """A GGUF file of a tiny Llama with a tokenizer; the data of its tensors is left away."""
    import tempfile

    import gguf
    from tokenizers import Tokenizer

    from tests.models.gguf_files import vocabulary
    from tests.tiny import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        fields = vocabulary(Tokenizer.from_file(f"{folder}/tokenizer.json"))
        writer = gguf.GGUFWriter(Path(folder) / "m.gguf", "llama")
        sizes = {"context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8,
                 "attention.head_count": 2}  # fmt: skip
        for key, value in sizes.items():
            writer.add_uint32(f"llama.{key}", value)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        for key, entry in fields.items():
            if isinstance(entry, list):
                writer.add_array(key, entry)
            elif entry is not None:
                (writer.add_uint32 if isinstance(entry, int) else writer.add_string)(key, entry)
        writer.add_tensor("token_embd.weight", np.zeros((320, 1), np.float32))
        writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(folder) / "m.gguf").read_bytes()


@lru_cache
def torch_archive() -> bytes:
    """Two layers as the official code saves them."""
    import torch

    layer = random_layer(np.random.default_rng(0), 40, 33, 7)
    state = {}
    for name in ("a", "b"):
        state[f"{name}.V_packed"] = torch.from_numpy(layer.v_packed.copy())
        state[f"{name}.U_packed"] = torch.from_numpy(layer.u_packed.copy())
        state[f"{name}.V_shape"], state[f"{name}.U_shape"] = torch.tensor([7, 33]), torch.tensor([40, 7])
        state[f"{name}.scale_pre"] = torch.ones(1, 33, dtype=torch.bfloat16)
        state[f"{name}.scale_post"] = torch.ones(1, 40, dtype=torch.bfloat16)
    target = io.BytesIO()
    torch.save(state, target)
    return target.getvalue()
