# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of one block: the first call has nothing to do, tuning helps, hardened layers stay as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.execution.block_call import BlockCall
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune import workbench
from nanoquant_edge.compression.tune.layers import module_at
from nanoquant_edge.compression.tune.reconstruction import BlockResult, reconstruct_block
from nanoquant_edge.compression.tune.workbench import Workbench
from nanoquant_edge.models import family_of
from nanoquant_edge.system.progress import Progress
from tests.compression.support import ORACLE, dense_llama, even_importances, short_run, signs_of
from tests.tiny import llama_config

LINEARS = family_of(llama_config()).linears


class Setting:
    """Block 0 of a tiny model, its inputs and its targets."""

    def __init__(self, **changes: Any) -> None:
        self.model = dense_llama(**changes)
        self.block = self.model.model.layers[0]
        ids = torch.randint(0, 320, (6, 24), generator=torch.Generator().manual_seed(2))
        recorded: list[dict[str, Any]] = []
        handle = self.block.register_forward_pre_hook(
            lambda _m, _a, keywords: recorded.append(dict(keywords)), with_kwargs=True
        )
        with torch.no_grad():
            states = self.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        handle.remove()
        mask = recorded[0]["attention_mask"]
        keywords = {**recorded[0], "attention_mask": None if mask is None else mask[:1]}
        keywords = {name: value for name, value in keywords.items() if name not in ("past_key_values", "hidden_states")}
        self.call = BlockCall(keywords, torch.device("cpu"), torch.float32)
        self.inputs, self.expected = states[0].detach(), states[1].detach()
        self.targets = self.call.over(self.block, self.inputs, 2)

    def reconstruct(self, run: Run, inputs: torch.Tensor | None = None) -> BlockResult:
        workbench = Workbench(self.block, LINEARS, self.call, run.recipe)
        workbench.load(
            self.block,
            inputs=self.inputs if inputs is None else inputs,
            targets=self.targets,
            loss_weights=torch.linspace(0.5, 1.5, 40),
        )
        importances = even_importances({name: module_at(self.block, name) for name in LINEARS}, outputs=1e-4)
        return reconstruct_block(workbench, dict.fromkeys(LINEARS, 24), importances, run)

    def loss(self, block: torch.nn.Module) -> float:
        """The block loss: weighted squares summed over tokens and channels, a mean over windows."""
        with torch.no_grad():
            difference = self.call.over(block, self.inputs, 6) - self.targets
        return float((difference.square() * torch.linspace(0.5, 1.5, 40)).sum() / len(self.inputs))


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(**ORACLE)


def test_a_recorded_call_gives_the_model_s_own_states(setting: Setting) -> None:
    torch.testing.assert_close(setting.targets, setting.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("relative", [True, False])
def test_the_first_tuning_of_block_0_has_zero_loss_and_moves_nothing(setting: Setting, relative: bool) -> None:
    result = setting.reconstruct(short_run(relative_lr=relative, fp_lr=0.01 if relative else 1e-4))
    first = result.losses["self_attn.q_proj"][0]
    scale = float(setting.targets.square().sum() / len(setting.targets))
    assert first.first < 1e-10 * scale
    assert first.last < 1e-8 * scale
    # From the second layer on there is an error to repair.
    assert result.losses["self_attn.v_proj"][0].first > 1e-6 * scale


def test_a_drifted_input_gives_the_first_tuning_something_to_do(setting: Setting) -> None:
    drifted = setting.inputs + 0.1 * torch.randn(setting.inputs.shape, generator=torch.Generator().manual_seed(4))
    outcome = setting.reconstruct(short_run(fp_epochs=3), drifted).losses["self_attn.q_proj"][0]
    assert outcome.last < outcome.first
    assert outcome.first > 0


def test_losses_are_in_the_method_s_unit(setting: Setting) -> None:
    # Without any tuning, the loss of the last stage's only epoch at rate 0 is that of the finished block.
    result = setting.reconstruct(short_run(fp_epochs=0, ste_lr=0.0, ste_scale_lr=0.0))
    assert result.losses["mlp.down_proj"][1].first == pytest.approx(setting.loss(result.block), rel=1e-4)
    assert math.isnan(result.losses["mlp.down_proj"][0].first)


def test_tuning_lowers_the_loss(setting: Setting) -> None:
    bare = setting.loss(setting.reconstruct(short_run(fp_epochs=0, ste_epochs=0)).block)
    dense = setting.loss(setting.reconstruct(short_run(fp_epochs=6, ste_epochs=0, fp_lr=0.02)).block)
    latent = setting.loss(setting.reconstruct(short_run(fp_epochs=0, ste_epochs=6)).block)
    both = setting.loss(setting.reconstruct(short_run(fp_epochs=6, ste_epochs=6, fp_lr=0.02)).block)
    assert dense < 0.9 * bare
    assert latent < 0.9 * bare
    assert both < min(dense, latent)


def test_hardened_layers_are_not_touched_again(setting: Setting) -> None:
    before = {name: value.clone() for name, value in setting.block.state_dict().items()}
    result = setting.reconstruct(short_run(fp_epochs=2, ste_epochs=2))
    for name in LINEARS:
        factors, layer = result.factors[name], module_at(result.block, name)
        u, v = signs_of(factors)
        core = u.double() @ v.double()
        expected = factors.scale_out[:, None].double() * core * factors.scale_in.double()
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(layer.bias, factors.bias)
        assert 0 < result.errors[name] < 1
    assert not any(parameter.requires_grad for parameter in result.block.parameters())
    for part in ("input_layernorm", "post_attention_layernorm"):
        torch.testing.assert_close(module_at(result.block, part).gain, before[f"{part}.weight"])
    assert all(torch.equal(before[name], value) for name, value in setting.block.state_dict().items())


def test_biases_are_trained_with_their_layer_only(setting: Setting) -> None:
    untrained = setting.reconstruct(short_run(ste_epochs=0))
    tuned = setting.reconstruct(short_run(ste_epochs=2))
    for name in LINEARS:
        original = module_at(setting.block, name).bias
        assert torch.equal(untrained.factors[name].bias, original)
        # A key bias shifts all scores of a query alike, so softmax gives it hardly any gradient.
        assert name == "self_attn.k_proj" or not torch.equal(tuned.factors[name].bias, original)


def test_the_seed_fixes_everything(setting: Setting) -> None:
    first, again, other = (setting.reconstruct(short_run(seed=seed)) for seed in (0, 0, 1))
    for name in LINEARS:
        assert torch.equal(first.factors[name].u_words, again.factors[name].u_words)
        assert torch.equal(first.factors[name].scale_in, again.factors[name].scale_in)
        assert not torch.equal(first.factors[name].u_words, other.factors[name].u_words)


def test_a_layer_whose_tuning_explodes_keeps_its_factors(setting: Setting) -> None:
    result = setting.reconstruct(short_run(ste_scale_lr=1e30, ste_lr=1e30, ste_epochs=2, ste_batch=2))
    assert any(ste.undone for _, ste in result.losses.values())
    for factors in result.factors.values():
        assert bool(torch.isfinite(factors.scale_out).all())
        assert bool(torch.isfinite(factors.scale_in).all())


def test_progress_is_reported_in_order(setting: Setting) -> None:
    seen: list[tuple[float, str]] = []
    progress = Progress(lambda fraction, text: seen.append((fraction, text)))
    setting.reconstruct(short_run(progress=progress, fp_epochs=0, ste_epochs=0, admm_steps=1))
    assert seen == [(pytest.approx(number / len(LINEARS)), name) for number, name in enumerate(LINEARS)]


def test_tuning_all_layers_at_once_goes_on_from_where_each_was_left(setting: Setting) -> None:
    short = {"fp_epochs": 1, "ste_epochs": 1}
    apart = setting.reconstruct(short_run(**short))
    unmoved = setting.reconstruct(short_run(**short, joint_epochs=1, joint_lr=0.0, ste_scale_lr=0.0))
    still = setting.reconstruct(short_run(**short, ste_scale_lr=0.0))
    together = setting.reconstruct(short_run(**short, joint_epochs=4, joint_lr=0.02))
    assert math.isnan(apart.together.first)
    for name in LINEARS:
        assert torch.equal(unmoved.factors[name].u_words, still.factors[name].u_words)
        torch.testing.assert_close(unmoved.factors[name].scale_out, still.factors[name].scale_out)
    assert together.together.last < together.together.first
    assert setting.loss(together.block) < 0.95 * setting.loss(apart.block)
    # The block that the compressed stream goes through has the factors that are stored.
    layer, factors = module_at(together.block, LINEARS[0]), together.factors[LINEARS[0]]
    torch.testing.assert_close(layer.weight, factors.dense(torch.device("cpu")))


@pytest.mark.parametrize("keep", [False, True])
def test_a_kept_workbench_tunes_all_layers_at_once_alike(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    run = short_run(joint_epochs=1, fp_epochs=0, admm_steps=2)
    bench = Workbench(setting.block, LINEARS, setting.call, run.recipe, keep=keep)
    monkeypatch.setattr(workbench, "_KEPT_BYTES", 0)
    streams = {"inputs": setting.inputs, "targets": setting.targets, "loss_weights": torch.ones(40)}
    importances = even_importances({name: module_at(setting.block, name) for name in LINEARS})
    results = []
    for _ in range(2):
        bench.load(setting.block, **streams)
        results.append(reconstruct_block(bench, dict.fromkeys(LINEARS, 24), importances, run))
    assert len(bench.latent) == (len(LINEARS) if keep else 0)
    assert results[0].together == results[1].together
