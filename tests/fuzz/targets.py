# SPDX-License-Identifier: Apache-2.0
"""The readers under attack. Each takes a damaged file and may do two things only: read it, or raise `NqEdgeError`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint, TensorFile
from tests.families import FAMILY_CONFIGS, ONE_EACH
from tests.formats.support import ENTRY
from tests.fuzz.edits import damaged
from tests.fuzz.seeds import Yard, gguf_file, gguf_model, open_bundle, torch_archive

__all__ = ["TARGETS", "Target", "make_targets"]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the target.
        seed: an honest file.
        kind: how `edits.damaged` takes it apart.
        read: reads damaged content.
        yard: where it reads.
    """

    name: str
    seed: bytes
    kind: str
    read: Callable[[bytes], None]
    yard: Yard

    def attack(self, script: bytes) -> bool:
        """One case.

        Returns:
            True when the file was refused, False when it was read.

        Raises:
            AssertionError: when something beside the folder was touched.
            Exception: whatever else than a coded error comes out: a finding.
        """
        content = damaged(self.seed, self.kind, script)
        try:
            self.read(content)
            refused = False
        except NqEdgeError as error:
            error.message.encode("utf-8", "strict")  # a message must be printable
            refused = True
        assert self.yard.untouched(), "something beside the folder was touched"
        return refused


def _in_place(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
    """A reader of a file that stands somewhere in the yard; the file is put back afterwards."""
    honest = path.read_bytes() if path.is_file() else None

    def attack(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read()
        finally:
            if honest is None:
                path.unlink()
            else:
                path.write_bytes(honest)

    return attack


def _all_tensors(path: Path) -> None:
    file = TensorFile(path)
    for name in file.names():
        np.asarray(file.tensor(name)).sum()


def _checkpoint(folder: Path) -> None:
    from nanoquant_edge.exporters.weights import check_weights
    from nanoquant_edge.models.config_reader import read_config
    from nanoquant_edge.runtimes.cuda.model_files import checkpoint_files

    checkpoint = Checkpoint(folder)
    for name in checkpoint.layers:
        assert checkpoint.layer(name).stored_bits > 0
    check_weights(read_config(checkpoint.config), checkpoint)
    checkpoint_files(checkpoint)


def _tables(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    for module in ("model.embed_tokens", "lm_head"):
        checkpoint.table(module)
    _checkpoint(folder)


def _tokenizer(folder: Path) -> None:
    from nanoquant_edge.formats.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    tokenizer.decode(tokenizer.encode("The quick brown fox 🙂\ud800")[:64])
    tokenizer.token_id("eos_token")


def _chat(folder: Path) -> None:
    from nanoquant_edge.formats.tokenizer import load_tokenizer
    from nanoquant_edge.runtimes.chat_template import load_chat_template

    template = load_chat_template(folder, load_tokenizer(folder))
    if template is not None:
        template.render([{"role": "user", "content": "Hello"}])


def _end_ids(folder: Path) -> None:
    from nanoquant_edge.formats.tokenizer import load_tokenizer
    from nanoquant_edge.runtimes.generator import read_eos_ids

    bundle = open_bundle(folder)
    read_eos_ids(folder, bundle.source_model, load_tokenizer(folder))


def _manifest(folder: Path) -> None:
    from nanoquant_edge.formats.bundle import Bundle

    for verify in (False, True):
        Bundle.open(folder, verify=verify)


def _graph(content: bytes) -> None:
    from nanoquant_edge.formats.graph_check import check_graph
    from nanoquant_edge.formats.onnx_file import external_tensors, initializers, rename_data, strip_functions

    refusals = []
    for read in (check_graph, initializers, external_tensors, strip_functions):
        try:
            read(content)
        except NqEdgeError as error:
            refusals.append(error)
    rename_data(content, {"model.onnx.data": "0123"})
    if refusals:
        raise refusals[0]


def _schema(folder: Path) -> None:
    from nanoquant_edge.exporters.schema import check_file

    check_file(folder / "model.onnx")


def _gpu_bundle(folder: Path) -> None:
    """A bundle's weights as a GPU's own decoder finds them."""
    from nanoquant_edge.runtimes.cuda.bundle_files import bundle_files

    bundle_files(open_bundle(folder))


def _session(folder: Path) -> None:
    """ONNX Runtime with our operators, as `generate` opens it, and one step."""
    from nanoquant_edge.runtimes.selection import open_backend

    backend = open_backend(open_bundle(folder), threads=1)
    try:
        backend.forward(np.array([[3, 4, 5]]))
    finally:
        backend.close()


def _reference(folder: Path) -> None:
    from nanoquant_edge.validation.recorded import RecordedReference

    recorded = RecordedReference(open_bundle(folder))
    for index in range(len(recorded.windows)):
        recorded.window(index)
    recorded.greedy()


def _with_size(folder: Path, name: str, read: Callable[[Path], None]) -> Callable[[bytes], None]:
    """A file of a bundle whose manifest states the damaged size, as a hostile bundle would."""
    manifest = folder / "nq_bundle.json"
    honest = json.loads(manifest.read_text())

    def attack() -> None:
        entry = json.loads(json.dumps(honest))
        entry["files"][name]["size"] = (folder / name).stat().st_size
        manifest.write_text(json.dumps(entry))
        try:
            read(folder)
        finally:
            manifest.write_text(json.dumps(honest))

    return _in_place(folder / name, attack)


def _gguf(path: Path) -> None:
    from nanoquant_edge.formats.gguf_header import read_gguf_header
    from nanoquant_edge.importers.files import read_foreign
    from nanoquant_edge.importers.layers import foreign_layers
    from nanoquant_edge.models.config_reader import read_config
    from tests.tiny import llama_config

    read_gguf_header(path)
    foreign_layers(read_foreign(path, read_config(llama_config())))


def _gguf_model(path: Path) -> None:
    from nanoquant_edge.models.gguf.config import read_gguf_config
    from nanoquant_edge.models.gguf.content import GgufContent
    from nanoquant_edge.models.gguf.tokenizer import end_tokens, read_gguf_tokenizer

    content = GgufContent(path)
    read_gguf_config(content)
    read_gguf_tokenizer(content).encode("The fox 12")
    end_tokens(content)


def _model_config(content: bytes, path: Path) -> None:
    from nanoquant_edge.models.config_reader import read_config
    from nanoquant_edge.system.files import read_json

    path.write_bytes(content)
    read_config(read_json(path, "NQ-MODEL"))


def _families(content: bytes, path: Path) -> None:
    """A file with a configuration of each family; each is read for itself."""
    from nanoquant_edge.models.config_reader import read_config
    from nanoquant_edge.system.files import read_json

    path.write_bytes(content)
    refusals = []
    for config in read_json(path, "NQ-MODEL").values():
        try:
            read_config(config if isinstance(config, dict) else {})
        except NqEdgeError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _engine(content: bytes, path: Path) -> None:
    from nanoquant_edge.formats.engine import read_engine
    from nanoquant_edge.formats.entry import Entry
    from nanoquant_edge.system.files import read_json

    path.write_bytes(content)
    read_engine(Entry(read_json(path, "NQ-BUNDLE"), "engine"))


def _torch(path: Path) -> None:
    from nanoquant_edge.importers.files import read_foreign
    from nanoquant_edge.importers.layers import foreign_layers
    from nanoquant_edge.models.config_reader import read_config
    from tests.tiny import llama_config

    foreign_layers(read_foreign(path, read_config(llama_config())))


def _shards(folder: Path) -> None:
    from nanoquant_edge.models.hf_folder import check_weight_files

    check_weight_files(folder, allow_pickle=False)


def make_targets(yard: Yard) -> dict[str, Target]:
    """All targets over one yard."""
    checkpoint, sharded, bundle = yard.checkpoint, yard.sharded, yard.bundle
    weights, index = checkpoint / "nanoquant.safetensors", sharded / "nanoquant.safetensors.index.json"
    model_index = yard.sharded / "model.safetensors.index.json"
    scratch = yard.inside / "scratch"

    def seed(path: Path) -> bytes:
        return path.read_bytes()

    def at(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
        return _in_place(path, read)

    rows: list[tuple[str, bytes, str, Callable[[bytes], None]]] = [
        ("safetensors", seed(weights), "safetensors", at(scratch, lambda: _all_tensors(scratch))),
        ("checkpoint-weights", seed(weights), "safetensors", at(weights, lambda: _checkpoint(checkpoint))),
        ("checkpoint-config", seed(checkpoint / "config.json"), "json",
         at(checkpoint / "config.json", lambda: _checkpoint(checkpoint))),
        ("checkpoint-index", seed(index), "json", at(index, lambda: _checkpoint(sharded))),
        ("model-config", seed(checkpoint / "config.json"), "json", lambda data: _model_config(data, scratch)),
        ("family-configs", json.dumps({name: FAMILY_CONFIGS[name] for name in ONE_EACH}).encode(), "json",
         lambda data: _families(data, scratch)),
        ("table-config", seed(yard.tables / "config.json"), "json",
         at(yard.tables / "config.json", lambda: _tables(yard.tables))),
        ("table-weights", seed(yard.tables / "nanoquant.safetensors"), "safetensors",
         at(yard.tables / "nanoquant.safetensors", lambda: _tables(yard.tables))),
        ("engine", json.dumps(ENTRY).encode(), "json", lambda data: _engine(data, scratch)),
        ("model-index", seed(index), "json", at(model_index, lambda: _shards(sharded))),
        ("tokenizer", seed(checkpoint / "tokenizer.json"), "json",
         at(checkpoint / "tokenizer.json", lambda: _tokenizer(checkpoint))),
        ("tokenizer-config", seed(checkpoint / "tokenizer_config.json"), "json",
         at(checkpoint / "tokenizer_config.json", lambda: _chat(checkpoint))),
        ("special-tokens-map",
         b'{"eos_token": {"content": "</s>", "rstrip": true}, "additional_special_tokens": ["fox"]}', "json",
         at(checkpoint / "special_tokens_map.json", lambda: _tokenizer(checkpoint))),
        ("added-tokens", b'{"<|tool|>": 320, "fox": 321}', "json",
         at(checkpoint / "added_tokens.json", lambda: _tokenizer(checkpoint))),
        ("chat-template", json.loads(seed(checkpoint / "tokenizer_config.json"))["chat_template"].encode(), "bytes",
         at(checkpoint / "chat_template.jinja", lambda: _chat(checkpoint))),
        ("generation-config", seed(bundle / "generation_config.json"), "json",
         _with_size(bundle, "generation_config.json", _end_ids)),
        ("manifest", seed(bundle / "nq_bundle.json"), "json",
         at(bundle / "nq_bundle.json", lambda: _manifest(bundle))),
        ("graph", seed(bundle / "model.onnx"), "onnx", _graph),
        ("schema", seed(bundle / "model.onnx"), "onnx", at(bundle / "model.onnx", lambda: _schema(bundle))),
        ("gpu-bundle", seed(bundle / "model.onnx"), "onnx", _with_size(bundle, "model.onnx", _gpu_bundle)),
        ("session", seed(bundle / "model.onnx"), "onnx", _with_size(bundle, "model.onnx", _session)),
        ("reference", seed(bundle / "reference.safetensors"), "safetensors",
         _with_size(bundle, "reference.safetensors", _reference)),
        ("gguf", gguf_file(), "bytes", at(scratch, lambda: _gguf(scratch))),
    ]  # fmt: skip
    with contextlib.suppress(ImportError):
        rows.append(("gguf-model", gguf_model(), "bytes", at(scratch, lambda: _gguf_model(scratch))))
    with contextlib.suppress(ImportError):  # a board has no PyTorch, and so no such reader
        rows.append(("torch-archive", torch_archive(), "zip", at(scratch, lambda: _torch(scratch))))
    return {name: Target(name, content, kind, read, yard) for name, content, kind, read in rows}


#: Names of all targets.
TARGETS = (
    "safetensors", "checkpoint-weights", "checkpoint-config", "checkpoint-index", "model-config", "family-configs",
    "table-config", "table-weights", "engine", "model-index",
    "tokenizer", "tokenizer-config", "chat-template", "generation-config", "manifest", "graph", "schema", "gpu-bundle",
    "session",
    "reference", "gguf", "gguf-model", "special-tokens-map", "added-tokens", "torch-archive",
)  # fmt: skip
