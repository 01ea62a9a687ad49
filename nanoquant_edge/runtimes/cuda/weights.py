# SPDX-License-Identifier: Apache-2.0
"""A model's weights on the device: where each part lies in one piece of memory, known before it is allocated."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import NqEdgeError
from ...formats.checkpoint import TABLE_FORMATS
from ...models import DecoderConfig, RotaryConfig
from .binding import CLinear, Layout, tile_words
from .device import Memory, aligned
from .model_files import HEAD, ModelFiles, TableFiles
from .number_types import C_TYPES, SPELLING
from .table_types import CTable

__all__ = [
    "Placing",
    "TableForm",
    "Weights",
    "check_runnable",
    "place_weights",
    "residual_scale",
    "rotaries",
    "table_form",
]

#: Residuals of up to 4.2e6 fit float16 so; those of Gemma-3-270M reach 1.04e5 (models/families.py).
_RESIDUAL_SCALE = 2.0**-6
_VECTORS = ("scale_in", "scale_mid", "scale_out", "bias")


@dataclass
class Placing:
    """Parts of one piece of memory, each aligned; by name.

    Attributes:
        places: name -> (offset, bytes).
        size: bytes of all of it.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, size: int) -> None:
        """Put another part behind the others."""
        self.places[name] = (self.size, size)
        self.size += aligned(size)

    def at(self, base: int, name: str) -> int:
        """A part's address, where the memory begins at `base`."""
        return base + self.places[name][0]


@dataclass(frozen=True)
class TableForm:
    """How a table is held on the device.

    Attributes:
        bits: 16, 8 or 4.
        group: columns that share a scale.
        rows, columns: sizes.
    """

    bits: int
    group: int
    rows: int
    columns: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's codes."""
        return -(-self.columns * self.bits // 8)

    @property
    def groups(self) -> int:
        """Scales of one row; none in 16 bits."""
        return 0 if self.bits == 16 else -(-self.columns // self.group)


def table_form(table: TableFiles, wanted: str | None) -> TableForm:
    """How a table shall be held: as it is stored, or rounded while it is loaded.

    Args:
        table: as it lies on disk.
        wanted: "fp16", "int8" or "int4"; None keeps what is stored.

    Raises:
        NqEdgeError: NQ-OPTION for a table that is stored in other codes already.
    """
    rows, columns = table.shape
    kind = {None: table.kind, "fp16": ""}.get(wanted, wanted)
    if table.kind and kind != table.kind:
        raise NqEdgeError(
            "NQ-OPTION",
            f"the embedding is stored as {table.kind}, which cannot become {wanted}.",
            "Leave --table out, or compress with another --embedding.",
        )
    if not kind:
        return TableForm(16, columns, rows, columns)
    form = TABLE_FORMATS[kind]
    if columns * form.bits % 8:
        raise NqEdgeError("NQ-OPTION", f"a table of {columns} columns cannot be {kind}.", "Use int8.")
    return TableForm(form.bits, form.group or columns, rows, columns)


def rotaries(files: ModelFiles) -> list[RotaryConfig]:
    """The different position embeddings of a model's blocks."""
    found: list[RotaryConfig] = []
    for block in range(files.config.num_layers):
        rotary = files.config.rotary_of(block)
        if rotary is not None and rotary not in found:
            found.append(rotary)
    return found


def check_runnable(files: ModelFiles, dtype: str, capability: int) -> None:
    """Refuse what the kernels would compute wrongly or not at all.

    Args:
        files: the model.
        dtype: of activations.
        capability: of the GPU, 10 major + minor.

    Raises:
        NqEdgeError: NQ-OPTION for a type that the model or the GPU cannot have, NQ-ARCH for sizes.
    """
    config = files.config
    if dtype not in ("float16", "bfloat16"):
        raise NqEdgeError("NQ-OPTION", f"a GPU computes in float16 or bfloat16, not {dtype}.")
    if dtype == "bfloat16" and capability < 80:
        raise NqEdgeError(
            "NQ-OPTION", "GPUs before compute capability 8.0 have no bfloat16.", "Use float16, or --device cpu."
        )
    widths = (config.hidden_size, config.intermediate_size)
    if any(width % 8 for width in widths) or config.head_dim % 16 or config.head_dim > 256:
        raise NqEdgeError(
            "NQ-ARCH",
            f"widths {widths} with heads of {config.head_dim} channels: the GPU kernels take multiples of 8, and heads "
            "of multiples of 16 up to 256.",
            "Run it with --device cpu.",
        )


def residual_scale(config: DecoderConfig, dtype: str) -> float:
    """A power of two by which the sums that run through all blocks are held, so that they fit float16.

    Everything that reads them norms them first, and what is added to them comes out of a norm (Gemma), so no result
    changes but by rounding: the norms' weights and the embedding take the factor, and epsilons its square. float16 has
    eight times bfloat16's precision: Gemma-3-270M's logits had cosines down to 0.9966 in bfloat16.
    """
    family = config.structure
    fits = dtype != "float16" or family.float16 or not (family.attention_out_norm and family.feed_out_norm)
    return 1.0 if fits else _RESIDUAL_SCALE


def place_weights(files: ModelFiles, table: str | None) -> Placing:
    """Where every weight will lie.

    Args:
        files: the model.
        table: see `table_form`.
    """
    placing = Placing()
    width = C_BYTES[files.scale_type]
    for name, layer in files.layers.items():
        placing.add(f"{name}.v_packed", 4 * tile_words(layer.rank, layer.in_features))
        placing.add(f"{name}.u_packed", 4 * tile_words(layer.out_features, layer.rank))
        for part in _VECTORS:
            if part in layer.parts:
                placing.add(f"{name}.{part}", width * layer.parts[part].shape[0])
    for module, stored in files.tables.items():
        if module == HEAD and files.config.tied:
            continue
        form = table_form(stored, None if module == files.config.structure.positions else table)
        placing.add(f"{module}.codes", form.rows * form.row_bytes)
        if form.groups:
            placing.add(f"{module}.scales", 2 * form.rows * form.groups)
    for name, vector in files.vectors.items():
        placing.add(name, 4 * vector.shape[0])
    for index, _ in enumerate(rotaries(files)):
        placing.add(f"frequencies.{index}", 2 * files.config.head_dim)
    return placing


#: Bytes of a number by type.
C_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class Weights:
    """The weights of a model as the kernels' structures.

    Args:
        files: the model.
        placing: of `place_weights`.
        memory: that holds them.
        dtype: of activations and 16-bit tables, "float16" or "bfloat16".
        table: see `table_form`.

    Attributes:
        config: of the model.
        residual_scale: see the function of that name.
        layers: module path -> compressed layer.
        embedding, head: tables.
        frequencies: position embedding -> address of its frequencies.
        learned: address and rows of the learned positions; (0, 0) where there are none.
    """

    def __init__(self, files: ModelFiles, placing: Placing, *, memory: Memory, dtype: str, table: str | None) -> None:
        self._placing, self.memory = placing, memory
        self.config, self.dtype = files.config, dtype
        self.residual_scale = residual_scale(files.config, dtype)
        config, family = files.config, files.config.structure
        kind = C_TYPES[files.scale_type]
        self.layers = {
            name: CLinear(
                in_features=layer.in_features,
                rank=layer.rank,
                out_features=layer.out_features,
                layout=Layout.TILES_16X256,
                scale_type=kind,
                v_words=self.address(f"{name}.v_packed"),
                u_words=self.address(f"{name}.u_packed"),
                **{part: self.address(f"{name}.{part}") for part in _VECTORS if part in layer.parts},
            )
            for name, layer in files.layers.items()
        }

        def described(module: str) -> CTable:
            form = table_form(files.tables[module], table)
            return CTable(
                rows=form.rows,
                columns=form.columns,
                group=form.group if form.groups else form.columns,
                bits=form.bits,
                type=C_TYPES[SPELLING[dtype]],
                scale_type=C_TYPES["F16"],
                codes=self.address(f"{module}.codes"),
                scales=self.address(f"{module}.scales") if form.groups else None,
            )

        self.embedding = described(family.embedding)
        self.head = self.embedding if config.tied else described(HEAD)
        self.frequencies = {rotary: self.address(f"frequencies.{i}") for i, rotary in enumerate(rotaries(files))}
        self.learned = (0, 0)
        if family.positions:
            self.learned = (self.address(f"{family.positions}.codes"), files.tables[family.positions].shape[0])

    def address(self, name: str) -> int:
        """Where a part lies."""
        return self._placing.at(self.memory.address, name)

    def norm(self, module: str) -> tuple[int, int | None]:
        """Addresses of a norm's weight and bias; no bias of an RMS norm."""
        bias = f"{module}.bias"
        return self.address(f"{module}.weight"), self.address(bias) if bias in self._placing.places else None
