# SPDX-License-Identifier: Apache-2.0
"""The whole of `compress` on tiny random models: what is written, what it computes, and which stream feeds what."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nanoquant_edge.hf  # noqa: F401  (registers the format)
from nanoquant_edge.compression import compress, compress_source
from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.sequence import reconstruct_blocks
from nanoquant_edge.compression.tune.layers import replace_module
from nanoquant_edge.compression.tune.reconstruction import BlockResult, reconstruct_block
from nanoquant_edge.compression.tune.workbench import Workbench
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint, true_bits_per_weight
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.validation.dense import dense_model
from tests.compression.support import (
    ORACLE,
    dense_folder,
    dense_llama,
    frozen_linear,
    short_recipe,
    short_run,
    write_text,
)

IDS = torch.arange(3, 60)[None]


def run(model: Path, output: Path, **options: Any) -> Checkpoint:
    settings: dict[str, Any] = {"recipe": short_recipe(), "device": "cpu", "compute_dtype": "float32", **options}
    return compress(model, output, **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()


def weights_file(folder: Path) -> bytes:
    return (folder / "nanoquant.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{}, ORACLE, {"num_key_value_heads": 4, "head_dim": 10, "attention_bias": True}],
    ids=["tied-grouped", "untied-bias", "odd-heads"],
)
def test_a_checkpoint_that_transformers_loads(tmp_path: Path, changes: dict) -> None:
    source = dense_folder(tmp_path / "m", **changes)
    checkpoint = run(source, tmp_path / "c", calibration=write_text(tmp_path), bpw=2.0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    rebuilt = logits(dense_model(tmp_path / "c"))
    assert (logits(model) - rebuilt).norm() < 1e-4 * rebuilt.norm()
    # What is not compressed is the source's: float16 tables, float32 norms.
    dense = dense_llama(**changes).state_dict()
    loaded = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(loaded[name], dense[name].half().float())
    assert torch.equal(loaded["model.layers.1.input_layernorm.weight"], dense["model.layers.1.input_layernorm.weight"])
    # The printed rate is that of the stored bytes.
    layers = [checkpoint.layer(name) for name in checkpoint.settings.ranks]
    stored = weights = 0
    for layer in layers:
        stored += sum(8 * part.nbytes for part in (layer.u_packed, layer.v_packed, layer.scale_out, layer.scale_in))
        weights += layer.in_features * layer.out_features
    assert checkpoint.settings.true_bpw == stored / weights == true_bits_per_weight(layers)
    assert len(layers) == 14
    assert checkpoint.settings.head == ("float16" if changes == ORACLE else "tied")
    # The tokenizer came along.
    ids = AutoTokenizer.from_pretrained(tmp_path / "c")("The quick brown fox")["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(source)("The quick brown fox")["input_ids"]
    assert (tmp_path / "c" / "generation_config.json").is_file()


def test_compression_keeps_the_function_better_at_more_bits(tmp_path: Path) -> None:
    source, text = dense_folder(tmp_path / "m"), write_text(tmp_path)
    wanted = logits(dense_llama()).log_softmax(-1)
    found = {}
    for bpw in (1.0, 8.0):
        run(source, tmp_path / f"{bpw}", calibration=text, bpw=bpw, recipe=short_recipe(admm_steps=60))
        other = logits(AutoModelForCausalLM.from_pretrained(tmp_path / f"{bpw}", dtype=torch.float32)).log_softmax(-1)
        found[bpw] = float((wanted.exp() * (wanted - other)).sum(-1).mean())
    assert found[8.0] < 0.5 * found[1.0]


def test_the_streams_of_later_blocks(tmp_path: Path) -> None:
    # Targets come from the dense model's own stream, inputs from hardened layers (docs/METHOD.md, section 8).
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def watched(workbench: Workbench, *arguments: Any) -> BlockResult:
        seen.append((workbench.inputs.clone(), workbench.targets.clone(), workbench.loss_weights.clone()))
        return reconstruct_block(workbench, *arguments)

    windows = torch.randint(3, 320, (4, 32), generator=torch.Generator().manual_seed(1))
    with load_model(dense_folder(tmp_path / "m", **ORACLE)) as source:
        layers = {name: source.model.get_submodule(name) for name in source.family.layer_names(2)}
        importances = collect_importances(source.model, layers, windows, short_run())
        source.model.requires_grad_(False)
        ranks = dict.fromkeys(layers, 32)
        factors = reconstruct_blocks(
            source, windows, importances=importances, ranks=ranks, run=short_run(), reconstruct=watched
        ).factors
    dense = dense_llama(**ORACLE)
    student = copy.deepcopy(dense)
    for name, value in factors.items():
        replace_module(student, name, frozen_linear(value))
    with torch.no_grad():
        wanted = dense(windows, output_hidden_states=True).hidden_states
        drifted = student(windows, output_hidden_states=True).hidden_states
    (first_inputs, first_targets, first_weights), (inputs, targets, weights) = seen
    torch.testing.assert_close(first_inputs, wanted[0])
    torch.testing.assert_close(first_targets, wanted[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs, drifted[1], rtol=1e-4, atol=1e-4)
    assert (drifted[1] - wanted[1]).norm() > 0.05 * wanted[1].norm(), "the streams must differ for this to mean much"
    # transformers' last hidden states have gone through the final norm.
    with torch.no_grad():
        torch.testing.assert_close(dense.model.norm(targets), wanted[2], rtol=1e-4, atol=1e-4)
    for block, found in enumerate((first_weights, weights)):
        assert torch.equal(found, importances[f"model.layers.{block}.mlp.down_proj"].outputs)


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    source, text = dense_folder(tmp_path / "m"), write_text(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(source, tmp_path / name, calibration=text, seed=seed)
    assert weights_file(tmp_path / "a") == weights_file(tmp_path / "b")
    assert weights_file(tmp_path / "a") != weights_file(tmp_path / "c")


def test_without_a_text_the_model_writes_its_own(tmp_path: Path) -> None:
    source = dense_folder(tmp_path / "m")
    checkpoint = run(source, tmp_path / "c")
    assert checkpoint.settings.calibration == {
        "text": "self-generated",
        "windows": 4,
        "conversations": 0,
        "window_length": 32,
        "seed": 0,
    }
    run(source, tmp_path / "again")
    assert weights_file(tmp_path / "c") == weights_file(tmp_path / "again")


def test_provenance_and_progress(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    checkpoint = run(
        dense_folder(tmp_path / "m"),
        tmp_path / "c",
        calibration=write_text(tmp_path),
        seed=3,
        bpw=0.8,
        scale_dtype="bfloat16",
        progress=lambda fraction, text: seen.append((fraction, text)),
    )
    settings = checkpoint.settings
    assert settings.target_bpw == 0.8
    assert settings.scale_dtype == "bfloat16"
    assert settings.calibration["text"] == "text.txt"
    recipe = settings.recipe
    assert recipe["seed"] == 3
    assert recipe["source"] == "m"
    assert recipe["compute_dtype"] == "float32"
    assert {name: recipe[name] for name in short_recipe().to_dict()} == short_recipe().to_dict()
    assert len(recipe["block_errors"]) == 2
    assert len(recipe["kd_loss"]) == 2
    fractions = [part for part, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert 0.9 < fractions[-1] <= 1
    assert any("block 2 of 2" in text for _, text in seen)


def test_bfloat16_products_give_a_model_as_good(tmp_path: Path) -> None:
    source, text = dense_folder(tmp_path / "m"), write_text(tmp_path)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        checkpoint = run(source, tmp_path / dtype, calibration=text, compute_dtype=dtype)
        losses[dtype] = checkpoint.settings.recipe["kd_loss"][0]
        assert checkpoint.settings.recipe["compute_dtype"] == dtype
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.35)  # two seeds differ as much


def test_the_source_model_is_unchanged(tmp_path: Path) -> None:
    with load_model(dense_folder(tmp_path / "m")) as source:
        before = {name: value.clone() for name, value in source.model.state_dict().items()}
        compress_source(
            source,
            tmp_path / "c",
            bpw=1.0,
            recipe=short_recipe(),
            calibration=write_text(tmp_path),
            device="cpu",
            compute_dtype="float32",
        )
        assert all(torch.equal(before[name], value) for name, value in source.model.state_dict().items())


def test_an_existing_checkpoint_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source, text = dense_folder(tmp_path / "m"), write_text(tmp_path)
    run(source, tmp_path / "c", calibration=text)
    first = weights_file(tmp_path / "c")
    run(source, tmp_path / "c", calibration=text, seed=1, overwrite=True)
    assert weights_file(tmp_path / "c") != first


@pytest.mark.parametrize(("kind", "changes"), [("int8", {}), ("int4", ORACLE)], ids=["int8", "int4-untied"])
def test_embedding_and_head_in_few_bits(tmp_path: Path, kind: str, changes: dict) -> None:
    source = dense_folder(tmp_path / "m", **changes)
    recipe = short_recipe(kd_epochs=0)
    checkpoint = run(source, tmp_path / "c", calibration=write_text(tmp_path), embedding=kind, recipe=recipe)
    settings = checkpoint.settings
    assert settings.embedding == kind and settings.head == (kind if changes else "tied")
    assert set(settings.tables) == {"model.embed_tokens", "lm_head"} if changes else {"model.embed_tokens"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32)
    rebuilt = logits(dense_model(tmp_path / "c"))
    assert (logits(model) - rebuilt).norm() < 1e-4 * rebuilt.norm()


def test_progress_has_a_former_name(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(NqEdgeError, match="does not exist"):
        compress(tmp_path / "m", tmp_path / "c", report=lambda _fraction, text: seen.append(text))
    assert seen == ["loading the model"]
