# SPDX-License-Identifier: Apache-2.0
"""The PyTorch backend on a GPU: layers against float64, the model against transformers, graphs and streams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_decoder import SMALL, random_decoder, random_layer
from nanoquant_edge.hf.linear import NanoQuantLinear
from nanoquant_edge.runtimes.cuda import binding
from nanoquant_edge.runtimes.torch import TiledLayer, TorchBackend
from nanoquant_edge.runtimes.torch.model import DecoderModel
from nanoquant_edge.runtimes.torch.passes import LinearGroup, Workspace
from nanoquant_edge.validation.dense import dense_model
from tests.tiny import random_layer as random_packed_layer
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.gpu
IDS = np.random.default_rng(0).integers(0, 320, (3, 17))
NORMED = replace(SMALL, head_norms=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "checkpoint"
    tiny_checkpoint(path, mid=True, attention_bias=True, head_dim=64, hidden_size=136, intermediate_size=200)
    return path


def applied(layer: TiledLayer, x: torch.Tensor) -> torch.Tensor:
    """One layer's product on the GPU, in x's type."""
    group = LinearGroup([layer], Workspace(x.device))
    out = torch.empty((x.shape[0], group.width), dtype=x.dtype, device=x.device)
    group(x, out)
    return out[:, : layer.out_features]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 8, 40])
def test_a_layer_against_float64(dtype: torch.dtype, rows: int) -> None:
    packed = random_packed_layer(np.random.default_rng(rows), 200, 344, 150, mid=True, bias=True)
    reference = NanoQuantLinear.from_packed(packed, torch.float64)
    reference.compute_dtype = torch.float64
    x = torch.randn(rows, 344)
    x[:, ::97] *= 100
    x = x.to(dtype)
    expected = reference(x.double())
    found = applied(TiledLayer.from_packed(packed), x.cuda()).cpu().double()
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() <= (1e-3 if dtype == torch.float16 else 2.5e-3)


def test_a_layer_in_a_graph() -> None:
    layer = random_layer(192, 256, rank=128, generator=torch.Generator("cuda").manual_seed(0))
    x = torch.randn(2, 256, device="cuda").half()
    expected = applied(layer, x)
    group = LinearGroup([layer], Workspace(x.device))
    captured = torch.empty((2, group.width), dtype=x.dtype, device="cuda")
    group(x, captured)  # scratch memory grows here, not in the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        group(x, captured)
    for _ in range(3):
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured[:, :192], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_and_greedy_tokens_against_transformers(folder: Path, dtype: torch.dtype) -> None:
    dense = dense_model(folder)
    backend = TorchBackend.from_checkpoint(folder, dtype=dtype)
    assert backend.kernel == "nanoquant"
    everywhere = np.tile(np.arange(17), (3, 1))
    found = torch.from_numpy(backend.forward(IDS, positions=everywhere))
    with torch.no_grad():
        expected = dense(torch.from_numpy(IDS)).logits
    assert torch.nn.functional.cosine_similarity(found, expected, -1).min() > 0.999
    worst = float((found - expected).abs().max())
    first = backend.start(IDS)
    tokens = np.concatenate([first[:, None], backend.extend(24)], 1)
    for row in range(3):
        ids = np.concatenate([IDS[row], tokens[row]])[None]
        with torch.no_grad():
            logits = dense(torch.from_numpy(ids)).logits[0, 16:-1]
        chosen = logits.gather(1, torch.from_numpy(tokens[row])[:, None])[:, 0]
        # Teacher-forced: a token may differ from the reference's only where its logit is a near tie.
        assert float((logits.max(-1).values - chosen).max()) <= 2 * worst + 1e-6


def test_decode_steps_equal_the_prompt_pass(folder: Path) -> None:
    backend = TorchBackend.from_checkpoint(folder, dtype=torch.float16)
    whole = backend.forward(IDS[:1], positions=np.arange(17)[None])[0]
    backend.reset()
    steps = np.stack([backend.forward(IDS[:1, i : i + 1])[0, 0] for i in range(17)])
    cosine = (whole * steps).sum(-1) / np.linalg.norm(whole, axis=-1) / np.linalg.norm(steps, axis=-1)
    assert cosine.min() > 0.9995


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_graph_replay_equals_plain_launches(batch: int) -> None:
    model = random_decoder(NORMED, lambda m, n: 96)
    ids = np.random.default_rng(batch).integers(0, 512, (batch, 9))
    results = []
    for graphs in (True, False, True):
        backend = TorchBackend(model, graphs=graphs, max_context=128)
        first = backend.start(ids)
        tokens = np.concatenate([first[:, None], backend.extend(40)], 1)
        assert np.array_equal(np.concatenate([backend.start(ids)[:, None], backend.extend(40)], 1), tokens)
        results.append(tokens)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_streams_do_not_disturb_each_other() -> None:
    models = [random_decoder(SMALL, lambda m, n: 96, seed=seed) for seed in range(3)]
    ids = np.random.default_rng(5).integers(0, 512, (2, 12))
    alone = []
    for model in models:
        backend = TorchBackend(model, max_context=128)
        backend.start(ids)
        alone.append(backend.extend(60))
    streams = [torch.cuda.Stream() for _ in models]
    backends = [TorchBackend(model, max_context=128) for model in models]
    for backend, stream in zip(backends, streams, strict=True):
        with torch.cuda.stream(stream):
            backend.start(ids)
            backend.extend(1)  # captures
    pieces: list[list[np.ndarray]] = [[] for _ in models]
    for backend, stream in zip(backends, streams, strict=True):
        with torch.cuda.stream(stream):
            backend.start(ids)
    steps = []
    for backend in backends:
        assert backend._step is not None
        steps.append(backend._step)
    for _ in range(60):  # nothing waits in between, so the three overlap
        for step, stream in zip(steps, streams, strict=True):
            with torch.cuda.stream(stream):
                step()
    torch.cuda.synchronize()
    for step, expected, piece in zip(steps, alone, pieces, strict=True):
        piece.append(step.chosen[:, 12:72].cpu().numpy())
        assert np.array_equal(piece[0], expected)


def test_a_captured_prompt_equals_a_plain_one() -> None:
    model = random_decoder(SMALL, lambda m, n: 96)
    graphs, plain = TorchBackend(model, max_context=128), TorchBackend(model, max_context=128, graphs=False)
    generator = np.random.default_rng(9)
    for batch, tokens in ((2, 20), (2, 31), (2, 32), (2, 5), (2, 33), (2, 40), (1, 127), (1, 100), (1, 127)):
        ids = generator.integers(0, 512, (batch, tokens))
        lengths = generator.integers(1, tokens + 1, batch) if batch > 1 else None
        found, expected = (backend.start(ids, lengths) for backend in (graphs, plain))
        assert np.array_equal(found, expected)
        if tokens < 120:
            assert np.array_equal(graphs.extend(8), plain.extend(8))
    assert graphs._prompts is not None
    assert set(graphs._prompts._captured) == {128}


def test_an_embedding_in_host_memory_changes_nothing(tmp_path: Path) -> None:
    untied = tmp_path / "untied"
    sizes = {"head_dim": 64, "hidden_size": 136, "intermediate_size": 200, "tie_word_embeddings": False}
    tiny_checkpoint(untied, **sizes)
    plain = DecoderModel.from_checkpoint(untied)
    host = DecoderModel.from_checkpoint(untied, host_embedding=True)
    assert host.embedding.device.type == "cpu"
    results = []
    for model in (plain, host):
        backend = TorchBackend(model)
        results.append(np.concatenate([backend.start(IDS)[:, None], backend.extend(10)], 1))
    assert np.array_equal(*results)


@pytest.mark.parametrize("vocabulary", [1, 37, 8192, 151936])
def test_the_greedy_choice_is_the_first_of_the_largest(vocabulary: int) -> None:
    generator = torch.Generator("cuda").manual_seed(vocabulary)
    logits = torch.randn(5, vocabulary, generator=generator, device="cuda") * 10 - 20
    logits[1] = -3.0  # all equal: the first
    logits[2] = logits[2].clamp(max=7.0)
    logits[2, vocabulary // 2 :] = 7.5  # many equal
    logits[3] = -torch.inf
    logits[3, -1] = -1e30
    tokens, history = torch.full((5,), -1, device="cuda"), torch.full((5, 5), -1, device="cuda")
    positions = torch.tensor([0, 3, 2, 1, 4], device="cuda")
    size = binding.library().nq_cuda_choice_workspace_bytes(5, vocabulary)
    slots = torch.zeros(size, dtype=torch.uint8, device="cuda")
    choice = binding.CChoice(
        sequences=5,
        vocabulary=vocabulary,
        logits=logits.data_ptr(),
        logits_stride=vocabulary,
        tokens=tokens.data_ptr(),
        history=history.data_ptr(),
        capacity=5,
        positions=positions.data_ptr(),
        workspace=slots.data_ptr(),
        workspace_bytes=size,
    )
    stream = torch.cuda.current_stream().cuda_stream
    binding.check(binding.library().nq_cuda_choose(choice, stream), "choice")
    expected = [int(row.argmax()) if i != 1 else 0 for i, row in enumerate(logits.cpu())]
    expected[2] = vocabulary // 2
    assert tokens.tolist() == [*expected[:4], -1]  # the last sequence has no place left
    assert positions.tolist() == [1, 4, 3, 2, 4]
    assert [int(history[i, p]) for i, p in enumerate([1, 4, 3, 2])] == expected[:4]
    assert not slots.any()


def test_growth_keeps_the_text() -> None:
    model = random_decoder(SMALL, lambda m, n: 96)
    ids = np.random.default_rng(7).integers(0, 512, (1, 10))
    small, large = TorchBackend(model, start_capacity=16), TorchBackend(model, start_capacity=256)
    for backend in (small, large):
        backend.start(ids)
    found = np.concatenate([small.extend(n) for n in (3, 10, 60)], 1)
    assert small.capacity >= 83
    assert np.array_equal(found, large.extend(73))


def test_a_model_takes_the_memory_of_its_bits() -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    model = random_decoder(SMALL, lambda m, n: 256)
    taken = torch.cuda.memory_allocated() - before
    assert isinstance(model, DecoderModel)
    groups = [group for layer in model.layers for group in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    bits = sum(tiled.bytes for group in groups for tiled in group.layers)  # type: ignore[attr-defined]
    assert bits <= taken <= 1.3 * bits + 2 * model.embedding.nbytes
