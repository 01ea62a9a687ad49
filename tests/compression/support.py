# SPDX-License-Identifier: Apache-2.0
"""Dense tiny models and short recipes for the compression's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nanoquant_edge.compression import Recipe
from nanoquant_edge.compression.calibrate.importances import Importance
from nanoquant_edge.compression.factorize.signs import unpacked_signs
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune.layers import SignFactors
from nanoquant_edge.models.source import SourceModel
from nanoquant_edge.system.progress import Progress
from tests.families import family_config
from tests.tiny import TEXT, llama_config, write_tokenizer

__all__ = [
    "ORACLE",
    "Killed",
    "dense_folder",
    "dense_llama",
    "even_importances",
    "family_folder",
    "frozen_linear",
    "linears_of",
    "short_recipe",
    "short_run",
    "signs_of",
    "source_of",
    "stop_at",
    "teacher_of",
    "write_text",
]

#: Every feature at once: untied head, biases, grouped queries, head_dim != hidden / heads.
ORACLE = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}


def dense_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama whose blocks do something: large weights, biases and norms away from their defaults."""
    config = LlamaConfig(**llama_config(**changes), attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    _randomize(model, seed)
    return model


@torch.no_grad()
def _randomize(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.add_(0.1 * noise)
    model.tie_weights()


def dense_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The same model as a Hugging Face folder with a tokenizer."""
    model = dense_llama(seed, **changes)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(llama_config(**changes)))
    write_tokenizer(folder)
    return folder


def family_folder(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random dense model of a family (tests/families.py) as a Hugging Face folder with a tokenizer."""
    config = family_config(name, **changes)
    entries = {key: value for key, value in config.items() if key != "model_type"}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **entries)).float()
    _randomize(model, 3)
    model.to(dtype).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def write_text(folder: Path) -> Path:
    """A calibration text of about 3,000 tokens."""
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def linears_of(model: LlamaForCausalLM) -> dict[str, torch.nn.Linear]:
    """Name -> layer of everything that is compressed."""
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


@torch.no_grad()
def teacher_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the head is given for each window, from the model itself."""
    states: torch.Tensor = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    return states


def source_of(model: Any) -> SourceModel:
    """A model as what is compressed, frozen, without a tokenizer."""
    config = model.requires_grad_(False).config.to_dict()
    tokenizers: Any = None
    return SourceModel("tiny", model, tokenizers, config, Path(), "")


def short_recipe(**changes: Any) -> Recipe:
    """Seconds, not hours; each stage still does something."""
    settings: dict[str, Any] = {
        "name": "test",
        "windows": 4,
        "window_length": 32,
        "admm_steps": 8,
        "fp_epochs": 1,
        "fp_batch": 2,
        "fp_lr": 0.01,
        "ste_epochs": 1,
        "ste_lr": 0.02,
        "ste_scale_lr": 0.01,
        "kd_epochs": 1,
        "kd_lr": 0.005,
        "kd_batch": 2,
        "relative_lr": True,
        "window_choice": "distinct",
        "admm_unit_size": True,
    }
    return Recipe(**{**settings, **changes})


def short_run(
    dtype: torch.dtype = torch.float32, seed: int = 0, progress: Progress | None = None, **changes: Any
) -> Run:
    """A run on the CPU with a short recipe; `changes` are those of `short_recipe`."""
    return Run(short_recipe(**changes), dtype=dtype, seed=seed, progress=progress or Progress())


def even_importances(linears: dict[str, torch.nn.Linear], outputs: float = 1.0) -> dict[str, Importance]:
    """Importances that weigh all channels alike: 1 for inputs, `outputs` for outputs."""
    return {
        name: Importance(torch.ones(layer.in_features), torch.full((layer.out_features,), outputs))
        for name, layer in linears.items()
    }


def signs_of(factors: SignFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """U (m, r) and V (r, n), int8 of -1 and +1."""
    u = unpacked_signs(factors.u_words, len(factors.v_words))
    return u, unpacked_signs(factors.v_words, factors.in_features)


def frozen_linear(factors: SignFactors) -> torch.nn.Linear:
    """An ordinary linear layer with the dense weight of hardened factors."""
    weight = factors.dense(torch.device("cpu"))
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=factors.bias is not None)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if factors.bias is not None:
        layer.bias = torch.nn.Parameter(factors.bias.clone(), requires_grad=False)
    return layer


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_at(words: str) -> Callable[[float, str], None]:
    """A progress function that ends the run where it begins what these words say."""

    def show(_fraction: float, text: str) -> None:
        if text.startswith(words):
            raise Killed

    return show
