# SPDX-License-Identifier: Apache-2.0
"""The PyTorch backend on the CPU (its slow reference): the protocol, against transformers on dense weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_decoder import SHAPES, random_decoder
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes.backend import Backend
from nanoquant_edge.runtimes.torch import DecoderModel, TorchBackend
from nanoquant_edge.validation.dense import dense_model
from tests.tiny import tiny_checkpoint

IDS = np.random.default_rng(0).integers(0, 320, (3, 17))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "checkpoint"
    tiny_checkpoint(path, mid=True, attention_bias=True)
    return path


@pytest.fixture(scope="module")
def dense(folder: Path) -> torch.nn.Module:
    return dense_model(folder)


@pytest.fixture
def backend(folder: Path) -> TorchBackend:
    return TorchBackend.from_checkpoint(folder, device="cpu")


@torch.no_grad()
def logits_of(dense: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    return dense(torch.from_numpy(ids)).logits.numpy()


def test_it_is_a_backend(backend: TorchBackend) -> None:
    assert isinstance(backend, Backend)
    assert (backend.name, backend.kernel, backend.vocab_size, backend.max_context) == ("torch", "portable", 320, 256)
    assert backend.lengths.size == 0
    assert backend.extra == {}


def test_logits_equal_those_of_pytorch(backend: TorchBackend, dense: torch.nn.Module) -> None:
    everywhere = np.tile(np.arange(17), (3, 1))
    np.testing.assert_allclose(backend.forward(IDS, positions=everywhere), logits_of(dense, IDS), atol=2e-4)
    assert backend.lengths.tolist() == [17, 17, 17]
    longer = np.concatenate([IDS, IDS[:, :1]], 1)
    np.testing.assert_allclose(backend.forward(IDS[:, :1])[:, 0], logits_of(dense, longer)[:, -1], atol=2e-4)


def test_a_batch_of_unequal_lengths_continues_each_row_where_it_ended(
    backend: TorchBackend, dense: torch.nn.Module
) -> None:
    lengths = np.array([17, 4, 9])
    first = backend.forward(IDS, lengths=lengths)
    second = backend.forward(np.array([[5], [6], [7]]))
    for row, length in enumerate(lengths):
        ids = np.concatenate([IDS[row : row + 1, :length], [[5 + row]]], 1)
        expected = logits_of(dense, ids)[0]
        np.testing.assert_allclose(first[row, 0], expected[-2], atol=2e-4)
        np.testing.assert_allclose(second[row, 0], expected[-1], atol=2e-4)
    assert backend.lengths.tolist() == [18, 5, 10]


def test_chunks_growth_and_continued_prompts_change_nothing(folder: Path, dense: torch.nn.Module) -> None:
    model = DecoderModel.from_checkpoint(folder, device="cpu")
    backend = TorchBackend(model, start_capacity=8, prefill_rows=5, logit_rows=3)
    ids = np.random.default_rng(1).integers(0, 320, (1, 40))
    expected = logits_of(dense, ids)[0]
    first = backend.forward(ids[:, :7], positions=np.arange(7)[None])
    assert backend.capacity == 8
    second = backend.forward(ids[:, 7:30], positions=np.arange(23)[None])
    assert backend.capacity == 32
    third = [backend.forward(ids[:, i : i + 1])[0, 0] for i in range(30, 40)]
    assert backend.capacity == 64
    np.testing.assert_allclose(np.concatenate([first[0], second[0], np.stack(third)]), expected, atol=2e-4)


def test_greedy_tokens_equal_those_of_transformers(folder: Path, dense: torch.nn.Module) -> None:
    backend = TorchBackend(DecoderModel.from_checkpoint(folder, device="cpu"), start_capacity=20)
    first = backend.start(IDS)
    rest = np.concatenate([backend.extend(5), backend.extend(15)], 1)  # grows in between
    found = np.concatenate([first[:, None], rest], 1)
    ids = torch.from_numpy(IDS)
    expected = dense.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=21, do_sample=False, eos_token_id=None
    )
    assert found.tolist() == expected[:, 17:].tolist()
    again = backend.start(IDS)
    assert np.array_equal(again, first)
    assert np.array_equal(backend.extend(20), rest)


def test_rewinding_forgets_the_end(backend: TorchBackend, dense: torch.nn.Module) -> None:
    backend.forward(IDS)
    backend.rewind(9)
    assert backend.lengths.tolist() == [9, 9, 9]
    expected = logits_of(dense, np.concatenate([IDS[:, :9], IDS[:, :1]], 1))[:, -1]
    np.testing.assert_allclose(backend.forward(IDS[:, :1])[:, 0], expected, atol=2e-4)
    for length in (0, 11):
        with pytest.raises(NqEdgeError, match=f"go back to {length}"):
            backend.rewind(length)


def test_a_batch_of_another_size_needs_a_reset(backend: TorchBackend, dense: torch.nn.Module) -> None:
    backend.forward(IDS)
    with pytest.raises(NqEdgeError, match="holds 3 sequences"):
        backend.forward(IDS[:1])
    backend.reset()
    assert backend.lengths.size == 0
    np.testing.assert_allclose(backend.forward(IDS[:1])[0, 0], logits_of(dense, IDS[:1])[0, -1], atol=2e-4)


def test_misuse_is_refused(backend: TorchBackend, folder: Path) -> None:
    with pytest.raises(NqEdgeError, match="extend needs a prompt"):
        backend.extend(1)
    with pytest.raises(NqEdgeError, match="token id 320"):
        backend.forward(np.array([[320]]))
    with pytest.raises(NqEdgeError, match="257 tokens do not fit"):
        backend.forward(np.zeros((1, 257), np.int64))
    backend.start(IDS)
    with pytest.raises(NqEdgeError, match="257 tokens do not fit"):
        backend.extend(240)
    with pytest.raises(NqEdgeError, match="from 1 to the model's 256"):
        TorchBackend.from_checkpoint(folder, device="cpu", max_context=257)
    backend.close()
    backend.close()
    with pytest.raises(NqEdgeError, match="closed"):
        backend.forward(IDS)


def test_a_tied_table_cannot_leave_the_gpu(folder: Path) -> None:
    with pytest.raises(NqEdgeError, match="host_embedding needs a head of its own"):
        DecoderModel.from_checkpoint(folder, device="cpu", host_embedding=True)


def test_head_norms_are_those_of_qwen3() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_layers": 2}
    sizes |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "max_positions": 64}
    shape = SHAPES["qwen3-0.6b"]
    small = replace(shape, config=replace(shape.config, **sizes))  # type: ignore[arg-type]
    model = random_decoder(small, lambda m, n: 40, device="cpu", dtype=torch.float32)
    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-6,
            tie_word_embeddings=True, rope_theta=1e6, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ).eval()  # fmt: skip
    inner = reference.model
    with torch.no_grad():
        inner.embed_tokens.weight.copy_(model.embedding)
        inner.norm.weight.copy_(model.final_norm)
        for block, layer in zip(inner.layers, model.layers, strict=True):
            assert layer.head_norms is not None
            block.self_attn.q_norm.weight.copy_(layer.head_norms.query)
            block.self_attn.k_norm.weight.copy_(layer.head_norms.key)
            block.input_layernorm.weight.copy_(layer.qkv.norm_weight)  # type: ignore[attr-defined]
            block.post_attention_layernorm.weight.copy_(layer.gate_up.norm_weight)  # type: ignore[attr-defined]
            attention, feed = block.self_attn, block.mlp
            linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
            linears += [feed.gate_proj, feed.up_proj, feed.down_proj]
            groups = (layer.qkv, layer.output, layer.gate_up, layer.down)
            tiles = [tiled for group in groups for tiled in group.layers]  # type: ignore[attr-defined]
            for linear, tiled in zip(linears, tiles, strict=True):
                linear.weight.copy_(tiled.dense(torch.float32))
    ids = np.random.default_rng(2).integers(0, 96, (2, 11))
    found = TorchBackend(model).forward(ids, positions=np.tile(np.arange(11), (2, 1)))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_16_bit_model_stays_near_the_dense_one(folder: Path, dense: torch.nn.Module) -> None:
    backend = TorchBackend.from_checkpoint(folder, device="cpu", dtype=torch.bfloat16)
    found, expected = backend.forward(IDS)[:, 0], logits_of(dense, IDS)[:, -1]
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.999


def test_widths_that_the_fused_kernels_cannot_take_are_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "odd", intermediate_size=70)
    assert isinstance(checkpoint, Checkpoint)
    with pytest.raises(NqEdgeError, match="not multiples of 8"):
        DecoderModel.from_checkpoint(checkpoint, device="cpu")
