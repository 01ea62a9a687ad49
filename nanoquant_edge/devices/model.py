# SPDX-License-Identifier: Apache-2.0
"""What a forecast must know of a model: its sizes, and where there are any the bytes it really has.

A checkpoint's or a bundle's headers are read, of anything else config.json alone; no weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import NqEdgeError
from ..models import DecoderConfig
from ..models.config_reader import read_config
from ..models.rates import layer_bits, rank_for_rate
from ..system.files import read_json

__all__ = ["TABLE_BITS", "ModelFacts", "linear_groups", "open_model"]

#: Storage of embedding and head -> bits an element: int8 with a scale a row, int4 with a 16-bit scale for every 32.
TABLE_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.5}
_ITEM = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class ModelFacts:
    """A model at one rate.

    Attributes:
        name: name of the model, for people.
        kind: "checkpoint", "bundle", "configuration" or "hub".
        config: its decoder.
        bpw: bits per weight asked for.
        table: storage of the embedding table and the head, a key of `TABLE_BITS`.
        bytes_on_disk: of body and tables; None where they are computed from sizes.
    """

    name: str
    kind: str
    config: DecoderConfig
    bpw: float
    table: str = "float16"
    bytes_on_disk: tuple[int, int] | None = None

    def at(self, bpw: float | None = None, table: str | None = None) -> ModelFacts:
        """The same model at another rate or with other tables: its bytes are computed again then."""
        if (bpw is None or bpw == self.bpw) and (table is None or table == self.table):
            return self
        return replace(self, bpw=bpw or self.bpw, table=table or self.table, bytes_on_disk=None)

    @property
    def body_weights(self) -> int:
        """Weights that are compressed."""
        return self.config.num_layers * sum(m * n for group in linear_groups(self.config) for m, n in group)

    @property
    def table_elements(self) -> int:
        """Elements of the embedding table; an untied head has as many again."""
        return self.config.vocab_size * self.config.hidden_size

    @property
    def body(self) -> int:
        """Bytes of the packed layers, padding and scales counted, and of the norms."""
        if self.bytes_on_disk is not None:
            return self.bytes_on_disk[0]
        bits = sum(layer_bits(m, n, rank_for_rate(m, n, self.bpw)) for g in linear_groups(self.config) for m, n in g)
        return self.config.num_layers * (bits // 8) + self.norms

    @property
    def norms(self) -> int:
        """Bytes of all norms, which are stored in float32; those of query and key heads are left out."""
        blocks = self.config.num_layers * len(self.config.structure.block_norms)
        return 4 * self.config.hidden_size * (blocks + 1)

    @property
    def tables(self) -> int:
        """Bytes of the embedding table and, where it is another one, the head."""
        if self.bytes_on_disk is not None:
            return self.bytes_on_disk[1]
        return int(self.table_elements * (1 if self.config.tied else 2) * TABLE_BITS[self.table] / 8)

    @property
    def head(self) -> int:
        """Bytes of the head, all of which are read for each token; of an untied embedding one row is."""
        return self.tables if self.config.tied else self.tables // 2

    @property
    def dense(self) -> int:
        """Bytes of the uncompressed model in 16 bits."""
        return 2 * (self.body_weights + self.table_elements * (1 if self.config.tied else 2))


def linear_groups(config: DecoderConfig) -> list[list[tuple[int, int]]]:
    """(out, in) of a block's compressed layers; layers of a group share their input."""
    hidden, wide = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    up = [(wide, hidden)] * (2 if config.structure.gate else 1)
    return [[(query, hidden), (key, hidden), (key, hidden)], [(hidden, query)], up, [(hidden, wide)]]


def open_model(name: str, bpw: float | None = None, table: str | None = None) -> ModelFacts:
    """Look at a model.

    Args:
        name: a bundle, a checkpoint, a folder with config.json, or a hub id, of which config.json alone is fetched.
        bpw: bits per weight; None takes the stored rate, or 1.0 for a model that is not compressed yet.
        table: storage of embedding and head; None takes what is stored, or float16.

    Raises:
        NqEdgeError: NQ-MODEL when there is nothing of the kind, NQ-ARCH for a family that is not supported, NQ-OPTION
            for an impossible rate, NQ-BUNDLE or NQ-CKPT for a damaged one, NQ-HUB or NQ-MISSING for a hub id that
            cannot be looked up.
    """
    if bpw is not None and not (math.isfinite(bpw) and 0.05 <= bpw <= 8):
        raise NqEdgeError("NQ-OPTION", f"bits per weight must lie between 0.05 and 8, not {bpw}.")
    if table is not None and table not in TABLE_BITS:
        raise NqEdgeError("NQ-OPTION", f"table type {table!r} is not one of {', '.join(TABLE_BITS)}.")
    folder = Path(name)
    if (folder / "nq_bundle.json").is_file():
        found = _of_bundle(folder)
    elif (folder / "config.json").is_file():
        entry = read_json(folder / "config.json", "NQ-MODEL")
        quantized = entry.get("quantization_config")
        if isinstance(quantized, dict) and quantized.get("quant_method") == "nanoquant":
            found = _of_checkpoint(folder)
        else:
            found = ModelFacts(folder.resolve().name, "configuration", read_config(entry), bpw or 1.0)
    elif folder.exists():
        raise NqEdgeError(
            "NQ-MODEL",
            f"{folder} has neither nq_bundle.json nor config.json.",
            "Pass a bundle, a checkpoint, a folder with a Hugging Face config.json, or a hub id.",
        )
    else:
        found = _of_hub(name, bpw or 1.0)
    return found.at(bpw, table)


def _of_bundle(folder: Path) -> ModelFacts:
    from ..formats.bundle import Bundle
    from ..formats.engine import ENGINE_FILE
    from ..formats.graph import DATA_FILE, MODEL_FILE

    bundle = Bundle.open(folder, verify=False)
    config = read_config(bundle.model_config())
    facts = ModelFacts(str(bundle.source_model.get("name", folder.name)), "bundle", config, bundle.target_bpw)
    held = (MODEL_FILE, DATA_FILE, ENGINE_FILE)
    weights = sum(file.size for name, file in bundle.files.items() if name in held)
    # The manifest tells all bytes and the rate; what the packed layers do not take is tables and small things.
    body = min(int(facts.body_weights * bundle.true_bpw / 8) + facts.norms, weights)
    tables = max(0, weights - body)
    bits = 8 * tables / (facts.table_elements * (1 if config.tied else 2))
    table = next((name for name, least in (("float32", 24), ("float16", 12), ("int8", 6)) if bits > least), "int4")
    return replace(facts, table=table, bytes_on_disk=(body, tables))


def _of_checkpoint(folder: Path) -> ModelFacts:
    from ..formats.checkpoint import Checkpoint

    checkpoint = Checkpoint(folder)
    sizes = {"table": 0, "body": 0}
    for name in checkpoint.tensor_names():
        table = "embed_tokens" in name or name.startswith("lm_head")
        size = math.prod(checkpoint.shape(name)) * _ITEM.get(checkpoint.dtype(name), 1)
        sizes["table" if table else "body"] += size
    settings = checkpoint.settings
    return ModelFacts(
        name=checkpoint.name,
        kind="checkpoint",
        config=read_config(checkpoint.config),
        bpw=settings.target_bpw,
        table=settings.embedding if settings.embedding in TABLE_BITS else "float16",
        bytes_on_disk=(sizes["body"], sizes["table"]),
    )


def _of_hub(name: str, bpw: float) -> ModelFacts:
    from ..models.hub import fetch_config, looks_like_id

    if not looks_like_id(name):
        raise NqEdgeError(
            "NQ-MODEL",
            f"{name[:200]!r} does not exist here and is not a hub id.",
            "Pass a bundle, a checkpoint, a folder with a Hugging Face config.json, or owner/name.",
        )
    path = fetch_config(name)
    return ModelFacts(name, "hub", read_config(read_json(path, "NQ-MODEL")), bpw)
