# SPDX-License-Identifier: Apache-2.0
"""Calibrated rounding of tables: better on what the head meets, and equal to plain rounding without correlations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nanoquant_edge.compression.tables import hidden_moments, quantized_tables, round_with_feedback
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import TABLE_FORMATS, quantize_table
from tests.tiny import llama_config

CPU = torch.device("cpu")


def tiny_model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    entries = {key: value for key, value in llama_config(**changes).items() if key != "architectures"}
    return LlamaForCausalLM(LlamaConfig(**entries, initializer_range=0.3)).eval()


@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_without_correlations_it_rounds_to_nearest(kind: str) -> None:
    dense = torch.randn(300, 72, generator=torch.Generator().manual_seed(0))
    plain, fed = quantize_table(dense.numpy(), kind), round_with_feedback(dense, torch.eye(72), kind, damping=0.01)
    np.testing.assert_array_equal(fed.scales, plain.scales)
    # A quotient half-way between two codes may fall on either side.
    assert (fed.codes != plain.codes).mean() < 1e-3


@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_products_with_correlated_inputs_are_closer(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4000, 8, generator=generator) @ torch.randn(8, 72, generator=generator)
    inputs += 0.1 * torch.randn(4000, 72, generator=generator)
    dense = torch.randn(400, 72, generator=generator)
    moments = inputs.T @ inputs
    moments /= moments.diagonal().mean()
    wanted = inputs[:1000] @ dense.T

    def error(table: np.ndarray) -> float:
        return float((inputs[:1000] @ torch.from_numpy(table).T - wanted).norm() / wanted.norm())

    plain = error(quantize_table(dense.numpy(), kind).dense(np.float32))
    fed = error(round_with_feedback(dense, moments, kind, damping=0.01).dense(np.float32))
    assert fed < 0.6 * plain


@pytest.mark.parametrize("tied", [True, False])
def test_tables_of_a_model(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    windows = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(2))
    states = model.model(windows).last_hidden_state.detach()
    tables = quantized_tables(model, states, "int8", tied)
    assert list(tables) == (["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"])
    for name, table in tables.items():
        dense = model.get_submodule(name).weight.detach().numpy()
        assert np.linalg.norm(table.dense(np.float32) - dense) < 0.02 * np.linalg.norm(dense)
    moments = hidden_moments(states, CPU)
    states = states.flatten(0, 1)
    expected = states.T @ states
    torch.testing.assert_close(moments, expected / expected.diagonal().mean(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_rounded_is_refused() -> None:
    states = torch.zeros(1, 8, 40)
    with pytest.raises(NqEdgeError, match="33 columns"):
        round_with_feedback(torch.zeros(4, 33), torch.eye(33), "int4", damping=0.1)
    with pytest.raises(NqEdgeError, match="float16 scales") as error:
        round_with_feedback(torch.full((4, 32), 1e9), torch.eye(32), "int8", damping=0.1)
    assert error.value.code == "NQ-NUMERIC"
    with pytest.raises(NqEdgeError, match="not finite"):
        hidden_moments(states * float("nan"), CPU)
