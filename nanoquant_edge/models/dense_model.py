# SPDX-License-Identifier: Apache-2.0
"""A dense transformers model from a configuration and stored tensors: built empty, checked, then filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import NqEdgeError, first_line
from ..system.extras import install_command
from .agreement import check_agreement
from .config_reader import read_config
from .parameters import HEAD, ModelWeights, has_own_head, match_parameters
from .stored_tensors import StoredTensors

__all__ = ["DenseModel", "build_model", "put_parameter", "take_generation_settings", "transformers_config"]


class DenseModel(NamedTuple):
    """A model that was built.

    Attributes:
        model: transformers causal language model, float32, on the CPU, in evaluation mode, frozen.
        config: config.json content, as the tensors have it: `tie_word_embeddings` may differ from the file's.
        weights: where the parameters of the blocks are that are not in memory; None where all are.
    """

    model: Any
    config: dict[str, Any]
    weights: ModelWeights | None


def transformers_config(folder: Path) -> Any:
    """The configuration of a model folder, as transformers reads it; no code in the folder is run.

    Raises:
        NqEdgeError: NQ-MODEL with the reason when transformers refuses it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and huggingface_hub raise their own kinds
        raise _refused(f"config.json of {folder}", error) from error


def build_model(
    config: dict[str, Any], their_config: Any, tensors: StoredTensors, *, name: str, stream: bool = False
) -> DenseModel:
    """Build a model and fill it; nothing large is read before everything small has been checked.

    Args:
        config: config.json content.
        their_config: the same, as transformers reads it.
        tensors: what the weight files hold.
        name: what to call the model in messages.
        stream: leave the parameters of the blocks on the meta device.

    Raises:
        NqEdgeError: NQ-MODEL when the two readings of the configuration differ, when transformers cannot build the
            model, or when tensors are missing, left over, of another shape or quantized; NQ-MISSING without accelerate.
    """
    decoder = read_config(config)
    if decoder.tied and has_own_head(tensors, decoder.structure):
        config = {**config, "tie_word_embeddings": False}
        decoder = read_config(config)
    if decoder.num_layers > len(tensors.names()):
        raise NqEdgeError("NQ-MODEL", f"{name} has {decoder.num_layers} blocks, and {len(tensors.names())} tensors.")
    their_config.tie_word_embeddings = decoder.tied
    model = _empty_model(their_config, name)
    if decoder.tied:
        put_parameter(model, HEAD, model.get_input_embeddings().weight)
    check_agreement(decoder, model, name)
    weights = match_parameters(model, tensors, decoder, name)
    blocks = f"{decoder.structure.blocks}."
    for parameter in weights.names:
        if not (stream and parameter.startswith(blocks)):
            value = weights.read(parameter, torch.device("cpu"))
            put_parameter(model, parameter, nn.Parameter(value, requires_grad=False))
    if decoder.tied:
        put_parameter(model, HEAD, model.get_input_embeddings().weight)
    return DenseModel(model, config, weights if stream else None)


def take_generation_settings(model: Any, folder: Path) -> None:
    """Give a model the settings of a folder's generation_config.json, such as which tokens end a text, if it is there.

    Raises:
        NqEdgeError: NQ-MODEL with the reason when transformers refuses it.
    """
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers and huggingface_hub raise their own kinds
        raise _refused(f"generation_config.json of {folder}", error) from error


def put_parameter(module: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Set a parameter by its full name inside a module."""
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._parameters[name] = parameter


def _empty_model(their_config: Any, name: str) -> Any:
    """The model with its buffers and without its weights, which are on the meta device."""
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        hint = f"Install it: {install_command('compress')}."
        raise NqEdgeError("NQ-MISSING", "reading a model needs the package accelerate.", hint) from error
    from transformers import AutoModelForCausalLM

    try:
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(their_config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # transformers and torch each raise their own kinds
        raise _refused(f"the model of {name}", error) from error
    return model.eval()


def _refused(what: str, error: Exception) -> NqEdgeError:
    """What transformers refused and why; of a failed check of a field, the reason is the cause of the error."""
    cause = error.__cause__
    reason = first_line(cause if isinstance(cause, TypeError | ValueError) else error)
    return NqEdgeError("NQ-MODEL", f"{what} is refused by transformers: {reason}.")
