# SPDX-License-Identifier: Apache-2.0
"""A model as it lies on disk, a checkpoint or a bundle: where every part's bytes are, checked before any is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import NqEdgeError
from ...formats.checkpoint import TABLE_FORMATS, Checkpoint, tiles_shape, words_for
from ...formats.stored_tensor import StoredTensor
from ...models import DecoderConfig
from ...models.config_reader import read_config

__all__ = ["HEAD", "LayerFiles", "ModelFiles", "TableFiles", "checkpoint_files"]

#: Module path of a head that is not the embedding table.
HEAD = "lm_head"
_VECTORS = ("scale_in", "scale_mid", "scale_out", "bias")
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class LayerFiles:
    """A compressed layer.

    Attributes:
        in_features, rank, out_features: sizes.
        tiled: its words are in layout 1 already (docs/OPERATOR.md).
        parts: v_packed, u_packed, scale_in, scale_out, and scale_mid and bias where it has them.
    """

    in_features: int
    rank: int
    out_features: int
    tiled: bool
    parts: dict[str, StoredTensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What each part's shape must be."""
        m, r, n = self.out_features, self.rank, self.in_features
        words = (tiles_shape(r, n), tiles_shape(m, r)) if self.tiled else ((r, words_for(n)), (m, words_for(r)))
        return {
            "v_packed": words[0],
            "u_packed": words[1],
            **{"scale_in": (n,), "scale_mid": (r,), "scale_out": (m,), "bias": (m,)},
        }

    def check(self, name: str) -> None:
        """See that the parts' shapes and types fit.

        Raises:
            NqEdgeError: NQ-CKPT naming the first that does not.
        """
        for part, stored in self.parts.items():
            kinds = _FLOATS if part in _VECTORS else ("I32",)
            if stored.shape != self.shapes[part] or stored.dtype not in kinds:
                raise NqEdgeError(
                    "NQ-CKPT", f"{name}.{part} is {stored.dtype} {stored.shape}, not {kinds[0]} {self.shapes[part]}."
                )


@dataclass(frozen=True)
class TableFiles:
    """An embedding or a head.

    Attributes:
        kind: "int8" or "int4" (docs/FORMAT.md), "" for plain numbers.
        codes: the numbers, or the codes.
        scales: float16, of codes only.
    """

    kind: str
    codes: StoredTensor
    scales: StoredTensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the table it stands for."""
        rows, width = self.codes.shape
        return rows, width * 8 // TABLE_FORMATS[self.kind].bits if self.kind else width


@dataclass(frozen=True)
class ModelFiles:
    """A whole model.

    Attributes:
        folder: where it lies, with its tokenizer.
        config: sizes.
        title: the model's name.
        layers: module path -> compressed layer.
        tables: module path -> embedding, head where it is another table, learned positions.
        vectors: tensor name -> a norm's weight or bias.
        plus_one: names of norm weights that are stored less one.
    """

    folder: Path
    config: DecoderConfig
    title: str
    layers: dict[str, LayerFiles]
    tables: dict[str, TableFiles]
    vectors: dict[str, StoredTensor]
    plus_one: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """See that everything is there and of the sizes that the configuration says.

        Raises:
            NqEdgeError: NQ-CKPT naming the first that is missing or differs.
        """
        config, family = self.config, self.config.structure
        shapes = config.linear_shapes()
        for name in family.layer_names(config.num_layers):
            if name not in self.layers:
                raise NqEdgeError("NQ-CKPT", f"layer {name} is not in {self.folder}.")
            layer = self.layers[name]
            layer.check(name)
            linear = name.removeprefix(f"{family.blocks}.").partition(".")[2]
            found = (layer.out_features, layer.in_features)
            if found != shapes[linear]:
                raise NqEdgeError("NQ-CKPT", f"layer {name} is {found}, the configuration says {shapes[linear]}.")
            if ("bias" in layer.parts) != config.has_bias(linear):
                raise NqEdgeError("NQ-CKPT", f"layer {name} and the configuration disagree about its bias.")
        expected = {family.embedding: (config.vocab_size, config.hidden_size)}
        if not config.tied:
            expected[HEAD] = expected[family.embedding]
        if family.positions:
            expected[family.positions] = (config.max_positions + family.position_offset, config.hidden_size)
        for module, shape in expected.items():
            if module not in self.tables:
                raise NqEdgeError("NQ-CKPT", f"the table {module} is not in {self.folder}.")
            self._check_table(module, shape)
        for name, shape_of in config.norm_shapes().items():
            stored = self.vectors.get(name)
            if stored is None or stored.shape != shape_of or stored.dtype not in _FLOATS:
                raise NqEdgeError("NQ-CKPT", f"{name} is not in {self.folder}, or is not of shape {shape_of}.")

    def _check_table(self, module: str, shape: tuple[int, int]) -> None:
        table = self.tables[module]
        kinds = ("I8",) if table.kind else _FLOATS
        good = len(table.codes.shape) == 2 and table.shape == shape and table.codes.dtype in kinds
        if table.kind:
            expected = (shape[0], TABLE_FORMATS[table.kind].groups(shape[1]))
            good = good and table.scales is not None
            good = good and table.scales.shape == expected and table.scales.dtype == "F16"  # type: ignore[union-attr]
        if not good:
            raise NqEdgeError("NQ-CKPT", f"the table {module} is not {shape[0]} rows of {shape[1]} columns.")

    @property
    def identity(self) -> str:
        """What tells this model from others, as one word: a digest of its configuration and of its weights' files."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path in sorted({stored.path for layer in self.layers.values() for stored in layer.parts.values()}):
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]

    @property
    def scale_type(self) -> str:
        """The type that scales and biases have on the device: theirs where all have one, else float32."""
        kinds = {
            stored.dtype for layer in self.layers.values() for part, stored in layer.parts.items() if part in _VECTORS
        }
        return kinds.pop() if len(kinds) == 1 else "F32"


def checkpoint_files(checkpoint: Checkpoint) -> ModelFiles:
    """The parts of a checkpoint.

    Raises:
        NqEdgeError: NQ-ARCH or NQ-MODEL for its configuration, NQ-CKPT for what does not fit it.

    Example:
        >>> checkpoint_files(Checkpoint("checkpoint")).config.family
        'llama'
    """
    config = read_config(checkpoint.config)
    family = config.structure
    layers = {}
    for name in checkpoint.layers:
        found = {part: f"{name}.{part}" for part in ("v_packed", "u_packed", *_VECTORS)}
        parts = {part: checkpoint.stored(tensor) for part, tensor in found.items() if tensor in checkpoint}
        n, m = parts["scale_in"].shape[0], parts["scale_out"].shape[0]
        layers[name] = LayerFiles(n, checkpoint.settings.ranks[name], m, False, parts)
    tables = {}
    for module in filter(None, (family.embedding, HEAD, family.positions)):
        kind = checkpoint.settings.tables.get(module, "")
        if kind:
            codes, scales = (checkpoint.stored(f"{module}.{part}") for part in ("codes", "scales"))
            tables[module] = TableFiles(kind, codes, scales)
        elif f"{module}.weight" in checkpoint:
            tables[module] = TableFiles("", checkpoint.stored(f"{module}.weight"))
    names = [name for name in config.norm_shapes() if name in checkpoint]
    less_one = family.norm == "rms_plus_one"
    return ModelFiles(
        folder=checkpoint.folder,
        config=config,
        title=checkpoint.name,
        layers=layers,
        tables=tables,
        vectors={name: checkpoint.stored(name) for name in names},
        plus_one=frozenset(names if less_one else ()),
    )
