# SPDX-License-Identifier: Apache-2.0
"""Greedy choices and draws of nq_cuda_table.h on host memory, against the CPU's sampler.

Distributions are tested with many draws of the stand-in, which is quick; the kernels on the emulator must then draw
exactly the tokens that the stand-in draws, since a draw is determined by seed, place and token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.runtimes.sampling import SamplingConfig
from tests.plugins.choices import Chooser, expected_probabilities, surprise
from tests.plugins.emulated import Buffer
from tests.plugins.table_calls import load

CONFIGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.5},
    {"temperature": 1.1, "repetition_penalty": 0.5},
]
IDS = [", ".join(f"{key} {value}" for key, value in config.items()) for config in CONFIGS]
Memory = Callable[[np.ndarray], tuple[int, Callable[[], np.ndarray]]]


@pytest.fixture(scope="module")
def emulated(emulated_library: Path) -> Any:
    return load(emulated_library)


@pytest.fixture(scope="module")
def stand_in(host_build: Path) -> Any:
    return load(host_build / "tests" / "libnq_stand_in_cuda.so")


@pytest.fixture(params=["emulated", "stand_in"])
def lib(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def place() -> Iterator[Memory]:
    held: list[Buffer] = []

    def put(array: np.ndarray) -> tuple[int, Callable[[], np.ndarray]]:
        held.append(Buffer(array))
        return held[-1].pointer, held[-1].array.copy

    yield put
    assert all(buffer.whole for buffer in held)


def flat(vocabulary: int, sequences: int, seed: int = 0) -> np.ndarray:
    """The same random logits for all sequences."""
    row = np.random.default_rng(seed).normal(size=vocabulary) * 2
    return np.repeat(row[None].astype(np.float32), sequences, 0)


def history_of(sequences: int) -> np.ndarray:
    """Five tokens so far, one of them twice, one that is none, and what is past them."""
    return np.repeat(np.array([[3, 1, 3, 900, 2, 4, 5, 6]]), sequences, 0)


@pytest.mark.parametrize("vocabulary", [1, 37, 3000, 9001])
def test_greedy(lib: Any, place: Memory, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = (rng.normal(size=(7, vocabulary + 3)) * 10 - 20).astype(np.float32)
    logits[1] = -3.0  # all equal: the first
    logits[2, :vocabulary] = np.minimum(logits[2, :vocabulary], 7.0)
    logits[2, vocabulary // 2 : vocabulary] = 7.5  # many equal
    logits[3] = -np.inf
    logits[3, vocabulary - 1] = -1e30
    logits[:, vocabulary:] = np.inf  # not of the vocabulary
    chooser = Chooser(lib, place, vocabulary, [0, 3, 2, 1, 14, 15, -1])
    status, tokens, history, positions = chooser(logits, None)
    assert status == 0
    wanted = logits[:, :vocabulary].argmax(1)
    assert tokens.tolist() == [*wanted[:5], -7, -7]  # the sixth has no place left, the seventh is idle
    assert positions.tolist() == [1, 4, 3, 2, 15, 15, -1]
    assert [int(history[i, p]) for i, p in enumerate(positions[:5])] == wanted[:5].tolist()
    assert (history != -7).sum() == 5
    # Scratch memory is as it must be for the next call, and a penalty of 1 and temperature 0 are the same choice.
    again = chooser(logits, [SamplingConfig()] * 7)
    assert [part.tolist() for part in again[1:]] == [tokens.tolist(), history.tolist(), positions.tolist()]


def test_new_tokens_of_a_prompt_move_the_place(lib: Any, place: Memory) -> None:
    logits = flat(30, 4)
    chooser = Chooser(lib, place, 30, [2, 5, -1, 11])
    status, tokens, history, positions = chooser(logits, None, starts=[0, 6, 6, 8, 12])
    best = int(logits[0].argmax())
    assert status == 0
    assert tokens.tolist() == [best, -7, -7, best]  # no new tokens, and idle
    assert positions.tolist() == [8, 5, -1, 15]
    assert history[0, 8] == history[3, 15] == best


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token(lib: Any, place: Memory, temperature: float) -> None:
    logits = flat(40, 5)
    logits[0, 3], logits[1, 39], logits[2], logits[3, 7] = np.nan, np.inf, -np.inf, -np.inf
    config = SamplingConfig(temperature=temperature, seed=1)
    for configs in ([config] * 5, None):
        status, tokens, _, positions = Chooser(lib, place, 40, [0] * 5)(logits, configs)
        assert status == 0
        assert tokens[:3].tolist() == [-1, -1, -1]
        assert (tokens[3:] >= 0).all()
        assert positions.tolist() == [1] * 5


@pytest.mark.parametrize("options", CONFIGS, ids=IDS)
def test_draws_are_distributed_as_the_cpus(stand_in: Any, place: Memory, options: dict[str, Any]) -> None:
    count, vocabulary = 20000, 300
    logits, history = flat(vocabulary, count), history_of(count)
    chooser = Chooser(stand_in, place, vocabulary, [4] * count, capacity=8, history=history)
    status, tokens, _, _ = chooser(logits, [SamplingConfig(seed=seed, **options) for seed in range(count)])
    assert status == 0
    expected = expected_probabilities(logits[0], SamplingConfig(**options), history[0, :5])
    assert surprise(tokens, expected) < 5


@pytest.mark.parametrize("options", CONFIGS, ids=IDS)
def test_the_kernels_draw_what_the_stand_in_draws(
    emulated: Any, stand_in: Any, place: Memory, options: dict[str, Any]
) -> None:
    for vocabulary, count in ((300, 40), (5000, 3)):
        logits, history = flat(vocabulary, count, seed=1), history_of(count)
        configs = [SamplingConfig(seed=(seed * 0x9E3779B97F4A7C15) % 2**64, **options) for seed in range(count)]
        chooser = Chooser(emulated, place, vocabulary, [4] * count, capacity=8, history=history)
        found = chooser(logits, configs)
        wanted = Chooser(stand_in, place, vocabulary, [4] * count, capacity=8, history=history)(logits, configs)
        assert found[0] == wanted[0] == 0
        for mine, theirs in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        # The scratch memory was left ready: the same again.
        np.testing.assert_array_equal(chooser(logits, configs)[1], found[1])


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (0.0, {"temperature": 1.0, "top_p": 0.5}),
        (0.0, {"temperature": 1.0, "top_k": 7}),
        (0.0, {"temperature": 1.0, "top_k": 7, "top_p": 0.3, "min_p": 1.0}),
        (0.02, {"temperature": 1.0, "top_p": 0.95}),
        (0.02, {"temperature": 1.0, "top_k": 9500}),
        (1.0, {"temperature": 0.01, "top_k": 9000, "top_p": 0.9999}),
        (1.0, {"temperature": 0.001, "top_p": 0.99}),
    ],
    ids=str,
)
def test_ties_and_flat_or_steep_logits(
    emulated: Any, stand_in: Any, place: Memory, scale: float, options: dict[str, Any]
) -> None:
    """More equal or nearly equal tokens than the list of candidates holds, and distances that no key has."""
    vocabulary, count = 10001, 3
    logits = (flat(vocabulary, count) * np.float32(scale)).round(2)
    logits[2, ::2] = -np.inf
    configs = [SamplingConfig(seed=seed, **options) for seed in range(count)]
    found = Chooser(emulated, place, vocabulary, [1] * count)(logits, configs)
    wanted = Chooser(stand_in, place, vocabulary, [1] * count)(logits, configs)
    np.testing.assert_array_equal(found[1], wanted[1])
    for row, token in zip(logits, found[1], strict=True):
        assert expected_probabilities(row, configs[0])[token] > 0


def test_top_p_of_equals_keeps_those_with_the_largest_numbers(stand_in: Any, place: Memory) -> None:
    """As the CPU's stable sort does."""
    config = {"temperature": 1.0, "top_p": 0.5}
    count, vocabulary = 4000, 10
    logits = np.zeros((count, vocabulary), np.float32)
    chooser = Chooser(stand_in, place, vocabulary, [0] * count)
    tokens = chooser(logits, [SamplingConfig(seed=seed, **config) for seed in range(count)])[1]
    expected = expected_probabilities(logits[0], SamplingConfig(**config))
    assert surprise(tokens, expected) < 5


def test_a_draw_depends_on_seed_and_place_alone(lib: Any, place: Memory) -> None:
    logits = flat(500, 6)
    configs = [SamplingConfig(temperature=1.5, seed=seed) for seed in (5, 6, 5, 5, 7, 5)]
    _, tokens, _, _ = Chooser(lib, place, 500, [0, 0, 0, 1, 2, -1])(logits, configs)
    alone = Chooser(lib, place, 500, [0])(logits[:1], configs[:1])[1]
    assert tokens[0] == tokens[2] == alone[0]
    assert tokens[5] == -7
    assert len({tokens[0], tokens[1], tokens[3], tokens[4]}) > 1


def test_refusals(lib: Any, place: Memory) -> None:
    logits = flat(30, 2)
    assert lib.nq_cuda_choice_workspace_bytes(0, 30) == 0
    assert lib.nq_cuda_choice_workspace_bytes(2, 0) == 0
    assert lib.nq_cuda_choice_workspace_bytes(1 << 16, 30) == 0
    assert lib.nq_cuda_choice_workspace_bytes(1, (1 << 20) + 1) == 0
    assert lib.nq_cuda_choose(None, None) == lib.nq_cuda_sample(None, None) == 1
    assert Chooser(lib, place, 31, [0, 0])(logits, None)[0] == 1  # rows shorter than the vocabulary
    short = Chooser(lib, place, 30, [0, 0])
    assert short(logits, None)[0] == 0
    short.workspace_bytes -= 1
    assert short(logits, None)[0] == 7
