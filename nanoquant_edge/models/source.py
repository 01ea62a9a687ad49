# SPDX-License-Identifier: Apache-2.0
"""A dense model to compress: what every kind of input becomes, its weights in memory or in its files."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NqEdgeError
from .config import DecoderConfig
from .config_reader import read_config
from .dense_model import put_parameter
from .families import Family, family_of
from .model_tokenizer import ModelTokenizer, load_tokenizer
from .parameters import ModelWeights

__all__ = ["SourceModel", "load_tokenizer", "not_streamed"]


@dataclass
class SourceModel:
    """A dense model to compress.

    Attributes:
        name: what to call it in reports.
        model: transformers causal language model, float32, on the CPU, in evaluation mode. Where the weights are
            streamed, those of the blocks are on the meta device outside of `opened`.
        tokenizers: its tokenizer, in our reading and transformers'.
        config: config.json content, without any quantization entry.
        companions: folder with tokenizer and generation files, valid while the context of `load_model` is open.
        note: what a reader of its figures must know (a GGUF file holds dequantised weights).
        streamed_weights: where the blocks' weights are, when they are not in memory.
    """

    name: str
    model: Any
    tokenizers: ModelTokenizer
    config: dict[str, Any]
    companions: Path
    note: str
    streamed_weights: ModelWeights | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that validation and prompts will use, with the methods of transformers' tokenizers."""
        return self.tokenizers.wrapped

    @property
    def streamed(self) -> bool:
        """Whether the blocks' weights are read when they are needed."""
        return self.streamed_weights is not None

    def move_to(self, device: torch.device) -> Any:
        """Move what is in memory to a device, where `opened` will put the rest; returns the model, frozen."""
        self.model.requires_grad_(False)
        if self.streamed_weights is None:
            return self.model.to(device)
        for module in self.model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and not parameter.is_meta:
                    parameter.data = parameter.data.to(device)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
        return self.model

    @contextlib.contextmanager
    def opened(self, path: str, without: Collection[str] = ()) -> Iterator[Any]:
        """A module with its weights, which are read for as long as the context lasts where they are streamed.

        Args:
            path: of the module in the model: a block, a layer, or the list of all blocks.
            without: full names of layers inside that stay as they are.
        """
        module: nn.Module = self.model.get_submodule(path)
        hollow = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.is_meta and f"{path}.{name}".rpartition(".")[0] not in without
        }
        try:
            for name in hollow:
                put_parameter(module, name, nn.Parameter(self._read(f"{path}.{name}"), requires_grad=False))
            yield module
        finally:
            for name, parameter in hollow.items():
                put_parameter(module, name, parameter)

    def weights(self, without: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each parameter in the model's order; streamed ones are read one at a time.

        Args:
            without: full names of layers whose parameters are left out, and not read.
        """
        for name, parameter in self.model.named_parameters():
            if name.rpartition(".")[0] not in without:
                yield name, self._read(name) if parameter.is_meta else parameter

    def layers(self, names: Sequence[str]) -> Mapping[str, nn.Linear]:
        """Linear layers by name; streamed ones are read when they are asked for, and not kept."""
        return _Layers(self, names)

    def _read(self, name: str) -> Tensor:
        assert self.streamed_weights is not None
        return self.streamed_weights.read(name, self.model.get_input_embeddings().weight.device)

    @property
    def start_token(self) -> int:
        """Id that a text begins with which the model writes itself: its BOS token, or 0 when it names none.

        Raises:
            NqEdgeError: NQ-MODEL when the configuration names what is not in the vocabulary.
        """
        named, size = self.config.get("bos_token_id"), self.decoder.vocab_size
        if named is None:
            return 0
        if type(named) is not int or not 0 <= named < size:
            raise NqEdgeError(
                "NQ-MODEL",
                f"config.json names {str(named)[:40]!r} as bos_token_id, and the vocabulary has ids from 0 to "
                f"{size - 1}.",
                "Correct config.json, or pass a calibration text.",
            )
        return named

    @property
    def family(self) -> Family:
        """The model's architecture family."""
        return family_of(self.config)

    @property
    def decoder(self) -> DecoderConfig:
        """The model's sizes."""
        return read_config(self.config)


class _Layers(Mapping[str, nn.Linear]):
    """Layers of a model, as copies of their own where the model's weights are streamed."""

    def __init__(self, source: SourceModel, names: Sequence[str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> nn.Linear:
        with self._source.opened(name) as layer:
            linear: nn.Linear = layer
            if self._source.streamed:  # whose parameters are gone from the model when the context ends
                linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
                linear.weight, linear.bias = layer.weight, layer.bias
            return linear

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def not_streamed(what: str) -> NqEdgeError:
    """That weights cannot be streamed from something other than safetensors; `what` says what was found."""
    hint = "Leave --stream-weights out, or convert the model to safetensors."
    return NqEdgeError("NQ-OPTION", f"{what}; weights are streamed from safetensors only.", hint)
