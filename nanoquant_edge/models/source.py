# SPDX-License-Identifier: Apache-2.0
"""A dense model to compress, and the one call of transformers that every kind of input ends in."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NqEdgeError, first_line
from .config import DecoderConfig
from .config_reader import read_config
from .families import Family, family_of
from .streamed_weights import StoredWeights, hollow_model

__all__ = ["SourceModel", "load_dense", "load_streamed", "load_tokenizer", "not_streamed"]


@dataclass
class SourceModel:
    """A dense model to compress.

    Attributes:
        name: what to call it in reports.
        model: transformers causal language model, float32, on the CPU, in evaluation mode. Where the weights are
            streamed, those of the blocks are on the meta device outside of `opened`.
        tokenizer: its transformers tokenizer.
        config: config.json content, without any quantization entry.
        companions: folder with tokenizer and generation files, valid while the context of `load_model` is open.
        note: what a reader of its figures must know (a GGUF file holds dequantised weights).
        stored: where the blocks' weights are, when they are not in memory.
    """

    name: str
    model: Any
    tokenizer: Any
    config: dict[str, Any]
    companions: Path
    note: str
    stored: StoredWeights | None = None

    @property
    def streamed(self) -> bool:
        """Whether the blocks' weights are read when they are needed."""
        return self.stored is not None

    def place(self, device: torch.device) -> Any:
        """Move what is in memory to a device, where `opened` will put the rest; returns the model, frozen."""
        self.model.requires_grad_(False)
        if self.stored is None:
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
                _put(module, name, nn.Parameter(self._read(f"{path}.{name}"), requires_grad=False))
            yield module
        finally:
            for name, parameter in hollow.items():
                _put(module, name, parameter)

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
        assert self.stored is not None
        return self.stored.read(name, self.model.get_input_embeddings().weight.device)

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


def _put(module: nn.Module, path: str, parameter: nn.Parameter) -> None:
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._parameters[name] = parameter


def not_streamed(what: str) -> NqEdgeError:
    """That weights cannot be streamed from something other than safetensors; `what` says what was found."""
    hint = "Leave --stream-weights out, or convert the model to safetensors."
    return NqEdgeError("NQ-OPTION", f"{what}; weights are streamed from safetensors only.", hint)


def load_streamed(folder: Path, files: list[Path]) -> tuple[Any, StoredWeights]:
    """A model whose blocks stay in its files; embeddings, norms behind the blocks and head are read.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged, or a tensor is missing or of another shape.
    """
    stored, model = StoredWeights(folder, files), hollow_model(folder)
    tied = bool(model.config.tie_word_embeddings)
    names = [name for name, _ in model.named_parameters() if not (tied and name == "lm_head.weight")]
    stored.check({name: tuple(model.get_parameter(name).shape) for name in names})
    blocks = f"{family_of(model.config.to_dict()).blocks}."
    for name in names:
        if not name.startswith(blocks):
            _put(model, name, nn.Parameter(stored.read(name, torch.device("cpu")), requires_grad=False))
    if tied:
        _put(model, "lm_head.weight", model.get_input_embeddings().weight)
    return model, stored


def load_dense(path: Path, folder: Path, **options: Any) -> Any:
    """The model in float32; a tensor that is missing is an error, not a random start.

    Args:
        path: what the user named, for messages.
        folder: where transformers reads.
        options: further arguments of `from_pretrained`.

    Raises:
        NqEdgeError: NQ-MODEL when a file is damaged, a tensor is missing, or memory does not suffice.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers, safetensors, gguf and torch each raise their own kinds
        raise NqEdgeError("NQ-MODEL", f"{path} cannot be loaded: {first_line(error)}.") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise NqEdgeError("NQ-MODEL", f"{path} lacks {len(missing)} tensors, the first is {missing[0]}.")
    return model.eval()


def load_tokenizer(path: Path, folder: Path, **options: Any) -> Any:
    """The transformers tokenizer of a model.

    Raises:
        NqEdgeError: NQ-TOKENIZER when it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers is native code: its panics are no subclass of Exception
        raise NqEdgeError("NQ-TOKENIZER", f"the tokenizer of {path} cannot be loaded: {first_line(error)}.") from error
