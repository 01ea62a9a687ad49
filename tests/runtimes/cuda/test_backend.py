# SPDX-License-Identifier: Apache-2.0
"""The backend's promises, over the stand-in: chunks, growth, batches, choices on the device, refusals, being closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.runtimes.backend import Backend, WritingBackend
from nanoquant_edge.runtimes.cuda import plan
from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.runtimes.sampling import Sampler, SamplingConfig
from tests.tiny import tiny_checkpoint

#: A head of its own: with a tied one a random model writes the same token over and over.
CONFIG: dict[str, Any] = {"tie_word_embeddings": False, "max_position_embeddings": 700}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("cuda") / "checkpoint", seed=1, **CONFIG)


@pytest.fixture
def opened(checkpoint: Checkpoint, stand_in: Path) -> Any:
    found: list[CudaBackend] = []

    def make(**options: Any) -> CudaBackend:
        found.append(CudaBackend.from_checkpoint(checkpoint, **options))
        return found[-1]

    yield make
    for backend in found:
        backend.close()


def tokens(count: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 320, (batch, count))


def refused(call: Callable[[], Any], code: str, *words: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        call()
    assert caught.value.code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_it_keeps_both_protocols(opened: Any) -> None:
    backend = opened()
    assert isinstance(backend, Backend) and isinstance(backend, WritingBackend)
    assert (backend.name, backend.kernel, backend.vocab_size, backend.max_context) == ("cuda", "nanoquant", 320, 700)


def test_pieces_give_what_the_whole_gives(opened: Any) -> None:
    ids = tokens(90)
    whole = opened().forward(ids, positions=np.arange(90)[None])
    backend = opened()
    cut = [backend.forward(ids[:, a:b], positions=np.arange(b - a)[None]) for a, b in ((0, 40), (40, 41), (41, 90))]
    np.testing.assert_array_equal(np.concatenate(cut, 1), whole)


def test_chunks_give_what_one_pass_gives(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, lengths = tokens(90, 3), np.array([90, 33, 64])
    expected = opened().forward(ids, lengths=lengths)
    monkeypatch.setattr(plan, "WORK_BYTES", 0)
    backend = opened()
    assert backend.engine.workspace.work.rows == 32
    np.testing.assert_array_equal(backend.forward(ids, lengths=lengths), expected)


def test_places_may_be_asked_for_in_any_order_and_twice(opened: Any) -> None:
    ids = tokens(9)
    every = opened().forward(ids, positions=np.arange(9)[None])
    np.testing.assert_array_equal(opened().forward(ids, positions=np.array([[7, 2, 7]])), every[:, [7, 2, 7]])


def test_a_growing_cache_keeps_what_it_holds(opened: Any) -> None:
    ids = tokens(650)
    whole = opened().forward(ids)
    backend = opened()
    backend.forward(ids[:, :500])
    assert backend.capacity == 512
    for start in range(500, 650):
        last = backend.forward(ids[:, start : start + 1])
    assert backend.capacity >= 650
    np.testing.assert_array_equal(last, whole)


def test_a_reset_gives_pages_back_and_begins_anew(opened: Any) -> None:
    backend, ids = opened(), tokens(200)
    first = backend.forward(ids)
    held = backend.engine.device.held
    backend.reset()
    assert backend.lengths.size == 0
    assert backend.engine.cache.free == backend.engine.cache.pages
    np.testing.assert_array_equal(backend.forward(ids), first)
    assert backend.engine.device.held == held


@pytest.mark.parametrize("batch", [1, 3])
def test_the_device_writes_what_its_logits_say(batch: int, opened: Any) -> None:
    ids, lengths = tokens(21, batch), np.array([21, 5, 13])[:batch]
    backend = opened()
    logits = backend.forward(ids, lengths=lengths)
    expected = [logits[:, -1].argmax(-1)]
    for _ in range(140):  # past a page
        expected.append(backend.forward(expected[-1][:, None])[:, -1].argmax(-1))
    first = backend.start(ids, lengths)
    found = np.concatenate([first[:, None], backend.extend(60), backend.extend(80)], 1)
    np.testing.assert_array_equal(found, np.stack(expected, 1))
    assert backend.lengths.tolist() == (lengths + 140).tolist()
    if batch == 1:
        assert list(backend.write(ids[0], 141, SamplingConfig())) == found[0].tolist()


def test_a_rewound_text_is_written_again(opened: Any) -> None:
    backend = opened()
    backend.start(tokens(20))
    first = backend.extend(10)
    backend.rewind(20)
    assert backend.lengths.tolist() == [20]
    assert backend.extend(10).shape == first.shape


def test_a_text_fills_the_context_to_the_last_token(opened: Any) -> None:
    backend = opened(max_context=128)
    assert len(list(backend.write(tokens(100)[0], 29, SamplingConfig()))) == 29
    assert backend.lengths.tolist() == [128]
    refused(lambda: backend.write(tokens(100)[0], 30, SamplingConfig()), "NQ-PROMPT", "129", "128")
    refused(lambda: backend.forward(tokens(129)), "NQ-PROMPT")


def test_draws_follow_the_samplers_distribution(opened: Any) -> None:
    backend, ids = opened(), tokens(12)
    config = SamplingConfig(temperature=0.7, top_k=4, repetition_penalty=1.3, seed=5)
    logits = backend.forward(ids)[0, -1]
    allowed = {Sampler(SamplingConfig(temperature=0.7, top_k=4, repetition_penalty=1.3, seed=s), ids[0].tolist())
               .choose(logits) for s in range(60)}  # fmt: skip
    drawn = {next(iter(backend.write(ids[0], 1, SamplingConfig(
        temperature=0.7, top_k=4, repetition_penalty=1.3, seed=seed)))) for seed in range(60)}  # fmt: skip
    assert drawn <= allowed and len(drawn) > 1
    assert list(backend.write(ids[0], 20, config)) == list(backend.write(ids[0], 20, config))
    assert not backend.chooses(SamplingConfig(presence_penalty=1.0))


def test_a_text_that_another_call_interrupts_ends(opened: Any) -> None:
    backend = opened()
    text = backend.write(tokens(5)[0], 20, SamplingConfig())
    next(text)
    backend.forward(tokens(3, 1))
    refused(lambda: next(text), "NQ-OPTION", "another text")


def test_inner_values_have_the_shapes_of_their_layers(opened: Any, checkpoint: Checkpoint) -> None:
    names = ("model.layers.0.self_attn.q_proj.output", "model.layers.1.mlp.down_proj.output", "block.1.output")
    backend = CudaBackend.from_checkpoint(checkpoint)
    plain = backend.forward(tokens(70))
    backend.close()
    from nanoquant_edge.runtimes.cuda.model_files import checkpoint_files

    with CudaBackend(checkpoint_files(checkpoint), extra_outputs=names) as watched:
        np.testing.assert_allclose(watched.forward(tokens(70)), plain, atol=1e-6)
        assert {name: value.shape for name, value in watched.extra.items()} == {
            names[0]: (1, 70, 64),
            names[1]: (1, 70, 40),
            names[2]: (1, 70, 40),
        }
        assert all(np.isfinite(value).all() and value.any(2).all() for value in watched.extra.values())


def test_refusals_name_what_would_do(checkpoint: Checkpoint, stand_in: Path, tmp_path: Path) -> None:
    refused(lambda: CudaBackend.from_checkpoint(checkpoint, device="cuda:1"), "NQ-CUDA", "1 NVIDIA GPU")
    refused(lambda: CudaBackend.from_checkpoint(checkpoint, device="gpu"), "NQ-OPTION", "cuda:N")
    refused(lambda: CudaBackend.from_checkpoint(checkpoint, max_context=701), "NQ-OPTION", "700")
    odd = tiny_checkpoint(tmp_path / "odd", intermediate_size=70)
    refused(lambda: CudaBackend.from_checkpoint(odd), "NQ-ARCH", "multiples of 8")
    small = tiny_checkpoint(tmp_path / "small", embedding="int4")
    refused(lambda: CudaBackend.from_checkpoint(small, table="int8"), "NQ-OPTION", "int4")


def test_memory_is_refused_before_it_is_taken(
    checkpoint: Checkpoint, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQ_STAND_IN_MEMORY", str(60 << 20))
    refused(lambda: CudaBackend.from_checkpoint(checkpoint), "NQ-MEMORY", "weights", "--table")
    # The margin, loading's staging, and a little: a page is 2 layers x 2 x 2 heads x 16 channels x 128 tokens x 2 B.
    monkeypatch.setenv("NQ_STAND_IN_MEMORY", str((64 << 20) + (33 << 20)))
    with CudaBackend.from_checkpoint(checkpoint) as backend:
        limit = backend.max_context
    assert limit == 700
    needed = backend.max_context * 2 * 2 * 2 * 16 * 2
    assert needed < 1 << 20


def test_no_kernel_for_the_gpu_is_said(checkpoint: Checkpoint, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_STAND_IN_NO_KERNEL", "1")
    refused(lambda: CudaBackend.from_checkpoint(checkpoint), "NQ-CUDA")


def test_closing_waits_for_the_call_that_runs(opened: Any) -> None:
    backend = opened()
    done: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: done.append(backend.forward(tokens(300))))
    thread.start()
    backend.engine  # noqa: B018
    thread.join(0.01)
    backend.close()
    thread.join()
    backend.close()
    assert done and np.isfinite(done[0]).all()
    refused(lambda: backend.forward(tokens(2)), "NQ-OPTION", "closed")
    refused(lambda: backend.write(tokens(2)[0], 1, SamplingConfig()), "NQ-OPTION", "closed")


def test_everything_is_given_back(checkpoint: Checkpoint, stand_in: Path) -> None:
    from nanoquant_edge.runtimes.cuda.device import Device

    watching = Device()
    free = watching.memory()[0]
    with CudaBackend.from_checkpoint(checkpoint) as backend:
        backend.start(tokens(20, 2))
        backend.extend(3)
        assert watching.memory()[0] < free
    assert watching.memory()[0] == free
    with pytest.raises(NqEdgeError):
        CudaBackend.from_checkpoint(checkpoint, max_context=701)
    assert watching.memory()[0] == free
    watching.close()
