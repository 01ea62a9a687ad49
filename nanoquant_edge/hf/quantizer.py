# SPDX-License-Identifier: Apache-2.0
"""The quantizer that transformers finds under "nanoquant", and its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import NqEdgeError
from ..formats.checkpoint import QUANT_METHOD, TABLE_FORMATS, QuantizationSettings, TensorFile, words_for
from ..formats.checkpoint.reader import INDEX_FILE, WEIGHTS_FILE
from .linear import NanoQuantLinear
from .table import QuantizedEmbedding, QuantizedHead, TiedHead

__all__ = ["NanoQuantConfig", "NanoQuantHfQuantizer"]


class NanoQuantConfig(QuantizationConfigMixin):
    """The `quantization_config` entry, as transformers holds it.

    Args:
        entry: the fields of the entry, see `nanoquant_edge.formats.checkpoint.QuantizationSettings`.

    Raises:
        NqEdgeError: NQ-CKPT when the entry is of another version or impossible.
    """

    def __init__(self, **entry: Any) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.settings = QuantizationSettings.from_dict({"quant_method": QUANT_METHOD, **entry})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of config.json."""
        return self.settings.to_dict()

    def __iter__(self) -> Any:
        yield from self.to_dict().items()


class NanoQuantHfQuantizer(HfQuantizer):
    """Puts `NanoQuantLinear` in place of each compressed layer and names the weights file to load."""

    requires_calibration = True
    quantization_config: NanoQuantConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse offloading to disk, which would write the words through a path that was never tested."""
        device_map = kwargs.get("device_map")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise NqEdgeError("NQ-OPTION", "a NanoQuant model cannot be offloaded to disk.", "Choose another device.")

    def update_attn_implementation(self, config: Any) -> Any:
        """Name our weights file: this hook is the last one before transformers looks for files."""
        sharded = self.quantization_config.settings.shards > 1
        config.transformers_weights = INDEX_FILE if sharded else WEIGHTS_FILE
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        shapes: dict[str, tuple[int, ...]] = {}
        for path in checkpoint_files or []:
            file = TensorFile(Path(path))
            shapes.update({name: file.shape(name) for name in file.names()})
        for name, rank in self.quantization_config.settings.ranks.items():
            self._replace(model, name, rank, shapes, dtype or torch.get_default_dtype())
        for name, kind in self.quantization_config.settings.tables.items():
            self._replace_table(model, name, kind, shapes, dtype or torch.get_default_dtype())
        # Transformers fills what is missing with random numbers, drops what is left over, and logs a line of it.
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        missing = sorted(set(model.state_dict()) - set(shapes) - tied)
        if missing:
            raise NqEdgeError("NQ-CKPT", f"the checkpoint has no tensor {missing[0]} ({len(missing)} missing).")
        odd = sorted(set(shapes) - set(model.state_dict()))
        if odd:
            message = f"the checkpoint has the tensor {odd[0]}, which the model has no place for ({len(odd)} in all)."
            raise NqEdgeError("NQ-CKPT", message)
        return model

    @staticmethod
    def _replace(
        model: nn.Module, name: str, rank: int, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        parent_name, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            linear = parent.get_submodule(leaf)
        except AttributeError as error:
            raise NqEdgeError("NQ-CKPT", f"the model has no layer {name}, which the checkpoint compresses.") from error
        if not isinstance(linear, nn.Linear):
            raise NqEdgeError("NQ-CKPT", f"the checkpoint compresses {name}, which is no linear layer.")
        m, n = linear.out_features, linear.in_features
        has_bias = linear.bias is not None
        expected = {
            "u_packed": (m, words_for(rank)),
            "v_packed": (rank, words_for(n)),
            "scale_out": (m,),
            "scale_in": (n,),
        }
        if has_bias:
            expected["bias"] = (m,)
        has_mid = f"{name}.scale_mid" in shapes
        if has_mid:
            expected["scale_mid"] = (rank,)
        for part, shape in expected.items():
            found = shapes.get(f"{name}.{part}")
            if found != shape:
                raise NqEdgeError("NQ-CKPT", f"{name}.{part} has shape {found}, the model needs {shape}.")
        replacement = NanoQuantLinear(n, m, rank=rank, has_mid=has_mid, bias=has_bias, scale_dtype=dtype, device="meta")
        setattr(parent, leaf, replacement)

    @staticmethod
    def _replace_table(
        model: Any, name: str, kind: str, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        try:
            table = model.get_submodule(name)
        except AttributeError as error:
            raise NqEdgeError("NQ-CKPT", f"the model has no table {name}, which the checkpoint stores.") from error
        if table is not model.get_input_embeddings() and table is not model.get_output_embeddings():
            raise NqEdgeError("NQ-CKPT", f"the checkpoint stores {name} as a table, which the model has not.")
        rows, columns = table.weight.shape
        form = TABLE_FORMATS[kind]
        for part, shape in (("codes", (rows, form.row_bytes(columns))), ("scales", (rows, form.groups(columns)))):
            found = shapes.get(f"{name}.{part}")
            if found != shape:
                raise NqEdgeError("NQ-CKPT", f"{name}.{part} has shape {found}, the model needs {shape}.")
        if isinstance(table, nn.Linear):
            model.set_output_embeddings(QuantizedHead(rows, columns, kind=kind, dtype=dtype, device="meta"))
            return
        scale = float(getattr(table, "scalar_embed_scale", 1.0))
        embedding = QuantizedEmbedding(rows, columns, kind=kind, dtype=dtype, device="meta", scale=scale)
        model.set_input_embeddings(embedding)
        if model.config.get_text_config().tie_word_embeddings:
            model.set_output_embeddings(TiedHead(embedding))
            # Nothing is left that transformers could tie: the head has no weight of its own.
            model._tied_weights_keys = None
            model.all_tied_weights_keys = {}

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Refuse `save_pretrained`.

        Raises:
            NqEdgeError: NQ-OUTPUT always: it would name the file `model.safetensors`, which stock transformers opens
                and completes with random weights.
        """
        raise NqEdgeError(
            "NQ-OUTPUT",
            "save_pretrained does not write NanoQuant checkpoints.",
            "Copy the checkpoint folder, or write it with nanoquant_edge.formats.checkpoint.write_checkpoint.",
        )

    @property
    def is_trainable(self) -> bool:
        """Whether the compressed layers can be trained through transformers: no."""
        return False


if not hasattr(HfQuantizer, "update_attn_implementation"):
    raise NqEdgeError(
        "NQ-MISSING",
        "this transformers version has no quantizer hook before it looks for weight files.",
        "Install transformers >= 5.23.",
    )
if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:  # a reload of this module keeps the first registration
    register_quantization_config(QUANT_METHOD)(NanoQuantConfig)
if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantizer(QUANT_METHOD)(NanoQuantHfQuantizer)
