# SPDX-License-Identifier: Apache-2.0
"""The runtime on a real GPU: every family against PyTorch in float32, graphs, choices on the device, slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.runtimes.cuda.backend import CudaBackend
from nanoquant_edge.runtimes.cuda.device import device_count
from nanoquant_edge.runtimes.cuda.model_files import checkpoint_files
from nanoquant_edge.runtimes.cuda.slots import CudaSlots
from nanoquant_edge.runtimes.sampling import SamplingConfig
from nanoquant_edge.runtimes.slots import SlotRow
from nanoquant_edge.validation.dense import dense_model
from tests.families import family_config
from tests.runtimes.cuda.against_pytorch import CONFIGS, LIMITS, Models, logits_of, relative_error
from tests.tiny import tiny_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(device_count() == 0, reason="needs an NVIDIA GPU and the library")]

#: Longer than a page and than a chunk of the smallest graphs; windows are shorter.
LONG = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("gpu"))


KINDS = ("float16", "bfloat16")
CASES = [(name, dtype, bits) for name in CONFIGS for dtype in KINDS for bits in (16, 8)]


@pytest.mark.parametrize(("name", "dtype", "bits"), CASES)
def test_logits_equal_pytorch(name: str, dtype: str, bits: int, made: Models) -> None:
    checkpoint, ids, expected = made(name)
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype, cache_bits=bits) as backend:
        for _ in range(3):  # eager, captured, replayed
            assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, bits]
            backend.reset()


@pytest.mark.parametrize("embedding", ["int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_tables_of_8_and_4_bits(name: str, embedding: str, made: Models) -> None:
    checkpoint, ids, expected = made(name, embedding)
    dtype = KINDS[0]
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype) as backend:
        assert relative_error(logits_of(backend, ids), expected) < LIMITS[dtype, 16]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "qwen3", "opt"])
def test_long_prompts_and_texts(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"tie_word_embeddings": False} if name == "llama" else family_config(name)
    checkpoint = tiny_checkpoint(tmp_path / "c", seed=3, **{**changes, "max_position_embeddings": 1024})
    ids = np.random.default_rng(1).integers(0, 320, (1, LONG))
    with torch.inference_mode():
        expected = dense_model(checkpoint.folder)(torch.from_numpy(ids)).logits.numpy()
    dtype = KINDS[-1]
    with CudaBackend.from_checkpoint(checkpoint, dtype=dtype) as backend:
        whole = backend.forward(ids, positions=np.arange(LONG)[None])
        assert np.linalg.norm(whole - expected) < 1.5 * LIMITS[dtype, 16] * np.linalg.norm(expected)
        backend.reset()
        pieces = [backend.forward(ids[:, a:b], positions=np.arange(b - a)[None]) for a, b in ((0, 33), (33, LONG))]
        cut = np.concatenate(pieces, 1)
        assert np.linalg.norm(cut - expected) < 1.5 * LIMITS[dtype, 16] * np.linalg.norm(expected)
        backend.reset()
        backend.forward(ids[:, :120])
        steps = [backend.forward(ids[:, place : place + 1])[0, 0] for place in range(120, LONG)]
        walked = np.stack(steps)
        assert np.linalg.norm(walked - expected[0, 120:]) < 1.5 * LIMITS[dtype, 16] * np.linalg.norm(expected[0, 120:])


def test_the_device_writes_what_its_logits_say(made: Models) -> None:
    checkpoint, _, _ = made("llama")
    ids, lengths = np.random.default_rng(2).integers(0, 320, (3, 21)), np.array([21, 5, 13])
    with CudaBackend.from_checkpoint(checkpoint) as backend:
        logits = backend.forward(ids, lengths=lengths)
        expected, margins = [logits[:, -1].argmax(-1)], []
        for _ in range(140):
            logits = backend.forward(expected[-1][:, None])
            top = np.sort(logits[:, -1], -1)[:, -2:]
            margins.append(top[:, 1] - top[:, 0])
            expected.append(logits[:, -1].argmax(-1))
        first = backend.start(ids, lengths)
        found = np.concatenate([first[:, None], backend.extend(140)], 1)
        np.testing.assert_array_equal(found, np.stack(expected, 1))
        written = list(backend.write(ids[0], 141, SamplingConfig()))
        assert written[:20] == found[0, :20].tolist()  # one row may round otherwise than three
        drawn = SamplingConfig(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=3)
        assert list(backend.write(ids[0], 60, drawn)) == list(backend.write(ids[0], 60, drawn))


def test_slots_share_prefixes(made: Models) -> None:
    checkpoint, _, _ = made("llama")
    text = np.random.default_rng(3).integers(0, 320, 200).tolist()
    with CudaSlots(checkpoint_files(checkpoint), count=4) as slots:
        slots.forward([SlotRow(0, text, logits=0), SlotRow(2, text[:7])])
        slots.copy_prefix(0, 1, 180)
        for _ in range(3):
            one, _ = slots.forward([SlotRow(1, [5]), SlotRow(2, [9])])
            slots.truncate(1, 180)
            slots.truncate(2, 7)
        (alone,) = slots.forward([SlotRow(3, [*text[:180], 5])])
        assert np.linalg.norm(one[0] - alone[0]) < 4e-3 * np.linalg.norm(alone[0])
        saved = slots.save(0, 150)
        slots.load(3, saved, 150)
        slots.truncate(0, 150)
        first, second = slots.forward([SlotRow(0, [3]), SlotRow(3, [3])])
        np.testing.assert_array_equal(first, second)
