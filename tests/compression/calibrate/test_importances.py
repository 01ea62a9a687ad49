# SPDX-License-Identifier: Apache-2.0
"""Importances against a float64 computation written from the text of docs/METHOD.md, section 4."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.compression.calibrate.gradients import gradient_pass
from nanoquant_edge.compression.calibrate.importances import collect_importances, shrink
from tests.compression.support import ORACLE, dense_llama, linears_of, short_run


def observed(model: Any, ids: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and output gradients of every layer for one window, loss taken from the model's full float64 logits."""
    linears, inputs, outputs = linears_of(model), {}, {}

    def watch(name: str) -> Any:
        def hook(_module: Any, arguments: Any, output: torch.Tensor) -> None:
            inputs[name], outputs[name] = arguments[0].detach()[0].numpy(), output

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in linears.items()]
    logits = model(ids[None]).logits[0]
    loss = -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].mean()
    gradients = torch.autograd.grad(loss, [outputs[name] for name in linears])
    for handle in handles:
        handle.remove()
    return inputs, {name: value[0].numpy() for name, value in zip(linears, gradients, strict=True)}


def clipped_moment(parts: list[np.ndarray]) -> tuple[np.ndarray, bool]:
    """Running clip of token norms with the retroactive rescale; also whether the rescale was ever needed."""
    total, clip, grew = np.zeros(parts[0].shape[1]), 0.0, False
    for z in parts:
        norms = np.sqrt((z * z).sum(1))
        level = np.sort(norms)[-max(1, int(0.001 * len(z)))]
        if level > clip:
            if clip:
                total, grew = total * (level / clip) ** 2, True
            clip = level
        z = z * np.minimum(1.0, clip / (norms + 1e-8))[:, None]
        total += (z * z).mean(0)
    return total / len(parts), grew


#: Clipping begins at 2000 tokens.
LONG = {"num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.mark.parametrize(("count", "length", "changes"), [(3, 24, ORACLE), (2, 2100, LONG)], ids=["short", "clipping"])
def test_importances_equal_a_float64_computation(count: int, length: int, changes: dict) -> None:
    model = dense_llama(**{"max_position_embeddings": 4096, "num_hidden_layers": 1, **changes})
    windows = torch.randint(0, 320, (count, length), generator=torch.Generator().manual_seed(5))
    found = collect_importances(model, linears_of(model), windows, short_run())
    double = dense_llama(**{"max_position_embeddings": 4096, "num_hidden_layers": 1, **changes}).double()
    double.load_state_dict(model.state_dict())
    seen = [observed(double, window) for window in windows]
    grew = []
    for name in linears_of(model):
        i, i_grew = clipped_moment([inputs[name] for inputs, _ in seen])
        # In units of a mean over 2048 tokens, times 1e6 (section 4).
        o, o_grew = clipped_moment([1e6 * gradients[name] * length / 2048 for _, gradients in seen])
        i, o = 2 * i, o / 1e6  # the official hook counts each input twice (section 4)
        for ours, theirs in ((found[name].inputs, i), (found[name].outputs, o)):
            theirs = 0.8 * theirs + 0.2 * theirs.mean()
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-3, atol=1e-4 * theirs.mean())
        grew += [i_grew, o_grew]
    assert any(grew), "no window exercised the retroactive rescale"


@pytest.mark.parametrize("at_once", [2, 3, 8])
def test_windows_that_go_through_together_count_as_one_after_the_other(at_once: int) -> None:
    model = dense_llama(**ORACLE)
    windows = torch.randint(0, 320, (7, 40), generator=torch.Generator().manual_seed(5))
    alone = collect_importances(model, linears_of(model), windows, short_run())
    passes = functools.partial(gradient_pass, model, at_once=at_once)
    batched = collect_importances(model, linears_of(model), windows, short_run(), passes=passes)
    for name, expected in alone.items():
        torch.testing.assert_close(batched[name].inputs, expected.inputs, rtol=1e-4, atol=0)
        torch.testing.assert_close(batched[name].outputs, expected.outputs, rtol=1e-3, atol=1e-6)


def test_gradient_units_do_not_depend_on_the_window_length() -> None:
    model = dense_llama()
    ids = torch.randint(0, 320, (8, 128), generator=torch.Generator().manual_seed(1))
    long = collect_importances(model, linears_of(model), ids, short_run(gamma=0.0))
    short = collect_importances(model, linears_of(model), ids.reshape(32, 32), short_run(gamma=0.0))
    ratios = [float(long[name].outputs.mean() / short[name].outputs.mean()) for name in linears_of(model)]
    assert 0.5 < float(np.exp(np.mean(np.log(ratios)))) < 2  # without the units it would be 16 times less


def test_bfloat16_passes_find_the_same_channels() -> None:
    model = dense_llama(**ORACLE)
    windows = torch.randint(0, 320, (4, 64), generator=torch.Generator().manual_seed(5))
    exact = collect_importances(model, linears_of(model), windows, short_run())
    rounded = collect_importances(model, linears_of(model), windows, short_run(torch.bfloat16))
    for name, importance in exact.items():
        for ours, theirs in ((rounded[name].inputs, importance.inputs), (rounded[name].outputs, importance.outputs)):
            assert ours.dtype == torch.float32
            assert float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_layers_without_gradient_count_equally() -> None:
    model = dense_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = collect_importances(model, linears_of(model), torch.arange(32).reshape(2, 16), short_run())
    for importance in found.values():
        assert importance.outputs.eq(1).all()
        assert importance.inputs.gt(0).all()


def test_shrinking_keeps_the_mean() -> None:
    moments = torch.tensor([1.0, 2.0, 9.0])
    assert shrink(moments, 0.0).tolist() == [1, 2, 9]
    assert shrink(moments, 1.0).tolist() == [4, 4, 4]
    torch.testing.assert_close(shrink(moments, 0.2), torch.tensor([1.6, 2.4, 8.0]))


def test_the_model_is_left_as_it_was() -> None:
    model = dense_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.model.norm.weight.requires_grad_(False)
    collect_importances(model, linears_of(model), torch.arange(16)[None], short_run())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.model.embed_tokens.weight.requires_grad
    assert not model.model.norm.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in linears_of(model).values())
