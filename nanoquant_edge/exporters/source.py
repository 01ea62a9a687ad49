# SPDX-License-Identifier: Apache-2.0
"""What any exporter exports: a checkpoint, or an ONNX bundle whose graph is written again for another target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..formats.bundle import MANIFEST_FILE, Bundle
from ..formats.checkpoint import Checkpoint
from ..formats.graph import MODEL_FILE, OPERATOR_VERSION
from ..formats.kv_layout import KvLayout
from ..models import DecoderConfig
from ..models.config_reader import read_config
from ..system.files import read_json
from .onnx_weights import OnnxWeights
from .options import GraphOptions
from .requantized import Requantized
from .weights import WeightSource, table_modules

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        folder: where it lies; its tokenizer files travel on.
        config: sizes.
        weights: tensors, mapped from disk.
        layers: number of compressed layers.
        description: what a manifest says of the model, `Bundle.source_model`.
        target_bpw, true_bpw: bits per weight asked for and stored.
    """

    folder: Path
    config: DecoderConfig
    weights: WeightSource
    layers: int
    description: dict[str, Any]
    target_bpw: float
    true_bpw: float

    @classmethod
    def open(cls, source: str | Path | Checkpoint) -> Source:
        """Open a checkpoint's folder, a checkpoint that is open, or an ONNX bundle, by what lies in it.

        Raises:
            NqEdgeError: NQ-CKPT, NQ-BUNDLE, NQ-HASH, NQ-OPERATOR, NQ-ARCH or NQ-MODEL for what cannot be read, and
                NQ-TOKENIZER without a tokenizer.json.

        Example:
            >>> Source.open("checkpoint").layers
            14
        """
        if isinstance(source, Checkpoint):
            opened = cls._of_checkpoint(source)
        elif (Path(source) / MANIFEST_FILE).is_file():
            opened = cls._of_bundle(Bundle.open(source))
        else:
            opened = cls._of_checkpoint(Checkpoint(source))
        read_json(opened.folder / "tokenizer.json", "NQ-TOKENIZER")
        return opened

    @classmethod
    def _of_checkpoint(cls, checkpoint: Checkpoint) -> Source:
        config, settings = read_config(checkpoint.config), checkpoint.settings
        names = ("architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id")
        description = {name: checkpoint.config[name] for name in names if name in checkpoint.config}
        # What another exporter needs to write the graph again for its target; read like any config.json.
        entry = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
        description["config"] = entry
        description["name"] = checkpoint.name
        description["hidden_size"] = config.hidden_size
        description["scale_dtype"] = settings.scale_dtype
        return cls(
            folder=checkpoint.folder,
            config=config,
            weights=checkpoint,
            layers=len(checkpoint.layers),
            description=description,
            target_bpw=settings.target_bpw,
            true_bpw=settings.true_bpw,
        )

    @classmethod
    def _of_bundle(cls, bundle: Bundle) -> Source:
        if MODEL_FILE not in bundle.files:
            raise NqEdgeError(
                "NQ-BUNDLE",
                f"{bundle.folder} holds no {MODEL_FILE}, so that no other engine can be made of it.",
                "Pass the checkpoint, or the bundle that `nq-edge export --to onnx` wrote.",
            )
        weights = OnnxWeights(bundle.folder / MODEL_FILE)
        return cls(
            folder=bundle.folder,
            config=read_config(bundle.model_config()),
            weights=weights,
            layers=len(weights.layers),
            description=bundle.source_model,
            target_bpw=bundle.target_bpw,
            true_bpw=bundle.true_bpw,
        )

    @property
    def model_config(self) -> dict[str, Any]:
        """The model's config.json, without what the compression added."""
        entry: dict[str, Any] = self.description["config"]
        return entry

    def requantized(self, embedding: str | None) -> Source:
        """The model with its embedding and head stored otherwise.

        Args:
            embedding: "int8" or "int4" rounds them, "fp16" widens them; None leaves them.

        Raises:
            NqEdgeError: NQ-OPTION for a table that is stored in other codes already.
        """
        if embedding is None:
            return self
        return replace(self, weights=Requantized(self.weights, table_modules(self.config), embedding))

    def bundle(self, folder: Path, graph: GraphOptions, *, backend: str, versions: tuple[str, str]) -> Bundle:
        """The manifest of a bundle with this model, not written yet.

        Args:
            folder: of the bundle.
            graph: the form of its graph, or of the graph that its engine was built from.
            backend: what runs it, see `formats.backends`.
            versions: lowest and highest version of the backend; the highest may be "".
        """
        config = self.config
        return Bundle(
            folder=folder,
            backend=backend,
            backend_versions=versions,
            dialect=graph.dialect,
            dtype=graph.dtype,
            portable=graph.portable,
            operator_version=OPERATOR_VERSION,
            source_model={**self.description, **self._tables(graph)},
            target_bpw=self.target_bpw,
            true_bpw=self.true_bpw,
            compressed_linears=self.layers,
            vocab_size=config.vocab_size,
            kv=KvLayout(
                layers=config.num_layers,
                heads=config.num_kv_heads,
                head_dim=config.head_dim,
                dtype=graph.cache_dtype(config),
                capacity=graph.capacity or graph.length(config),
                in_place=graph.in_place,
            ),
        )

    def _tables(self, graph: GraphOptions) -> dict[str, str]:
        """How a graph stores embedding and head: a type, a table format, or "tied"."""
        found = []
        for module in table_modules(self.config):
            table = self.weights.table(module)
            if table is not None and graph.codes:
                found.append(table.kind)
            elif table is not None or graph.dtype != "float32":
                found.append(graph.dtype if graph.dtype != "float32" else "float16")
            else:
                found.append(str(self.weights.tensor(f"{module}.weight").dtype))
        return {"embedding": found[0], "head": "tied" if self.config.tied else found[1]}
