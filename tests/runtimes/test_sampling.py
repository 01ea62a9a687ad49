# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.filters import History, likeliest
from nanoquant_edge.runtimes.sampling import Sampler, SamplingConfig, log_probabilities, make_filters

VOCAB = 1000


def _scores(seed: int = 0, size: int = VOCAB) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def _transformers(config: SamplingConfig, scores: np.ndarray, ids: list[int]) -> np.ndarray:
    """Scores after the processors that transformers' generate itself puts together."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    settings = GenerationConfig(
        do_sample=not config.greedy,
        temperature=config.temperature or 1.0,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p or None,
        repetition_penalty=config.repetition_penalty,
    )
    prompt = torch.tensor([ids])
    processors = LlamaForCausalLM(tiny)._get_logits_processor(settings, input_ids_seq_length=len(ids))
    return processors(prompt, torch.tensor(scores[None]))[0].numpy()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(repetition_penalty=1.3),
        SamplingConfig(temperature=1.0),
        SamplingConfig(temperature=0.7),
        SamplingConfig(temperature=1.0, top_k=1),
        SamplingConfig(temperature=1.0, top_k=40),
        SamplingConfig(temperature=1.0, top_k=5 * VOCAB),
        SamplingConfig(temperature=1.0, top_p=0.9),
        SamplingConfig(temperature=1.0, top_p=0.999),
        SamplingConfig(temperature=1.0, top_p=0.0),
        SamplingConfig(temperature=1.0, min_p=0.05),
        SamplingConfig(temperature=1.0, min_p=1.0),
        SamplingConfig(temperature=1.5, top_k=50, top_p=0.8, min_p=0.02, repetition_penalty=1.1),
        SamplingConfig(temperature=0.3, top_k=7, top_p=0.95, repetition_penalty=0.8),
    ],
    ids=str,
)
def test_filtered_scores_equal_those_of_transformers(config: SamplingConfig) -> None:
    for seed in range(3):
        scores, ids = _scores(seed), [3, 5, 5, 999, int(_scores(seed).argmax())]
        before = scores.copy()
        expected = _transformers(config, scores.copy(), ids)
        found = scores
        for apply in make_filters(config):
            found = apply(found, History(ids))
        np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(scores, before)


def test_equals_of_the_last_kept_score_stay() -> None:
    (top_k,) = make_filters(SamplingConfig(temperature=1.0, top_k=2))
    kept = np.isfinite(top_k(np.array([1, 2, 1, 3, 2], np.float32), History()))
    assert kept.tolist() == [False, True, False, True, True]


def test_greedy_takes_the_first_of_equals_and_heeds_the_penalty() -> None:
    scores = np.array([0, 4, 4, 3], np.float32)
    assert Sampler(SamplingConfig()).choose(scores) == 1
    assert Sampler(SamplingConfig(repetition_penalty=2.0), [1, 2]).choose(scores) == 3


def test_equal_seeds_repeat_and_others_differ() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed))
        return [sampler.choose(_scores(1)) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_draws_follow_the_filtered_distribution() -> None:
    scores = np.log(np.array([0.5, 0.25, 0.2, 0.05], np.float32))
    sampler = Sampler(SamplingConfig(temperature=1.0, top_p=0.9, seed=0))
    counts = np.bincount([sampler.choose(scores) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5 / 0.95, 0.25 / 0.95, 0.2 / 0.95, 0], atol=0.015)


@pytest.mark.parametrize("size", [1, 4, 511, 512, 513, 3000])
def test_a_draw_is_where_the_sum_of_the_probabilities_passes_it(size: int) -> None:
    from nanoquant_edge.runtimes.sampling import _drawn

    scores = _scores(5, size)
    scores[size // 2 :: 3] = -np.inf
    scores[size - size // 4 :] = -np.inf
    scores[0] = 1.0
    wide = np.exp(scores.astype(np.float64) - float(scores.max()))
    ends = np.cumsum(wide / wide.sum())
    for chance in (*np.linspace(0, 1, 97, endpoint=False), np.nextafter(1, 0)):
        place = _drawn(scores, float(chance))
        assert np.isfinite(scores[place])
        before = ends[place - 1] if place else 0.0
        assert before - 1e-6 <= chance <= ends[place] + 1e-6


@pytest.mark.parametrize(("size", "count"), [(5, 2), (64, 3), (1000, 1), (1000, 20), (5000, 40), (5000, 4999)])
def test_the_likeliest_are_found_with_their_equals(size: int, count: int) -> None:
    scores = np.round(_scores(6, size) * 4)
    wanted = np.flatnonzero(scores >= np.sort(scores)[-count])
    np.testing.assert_array_equal(likeliest(scores, count), wanted)


@pytest.mark.parametrize("temperature", [1e-40, 1e-10, 1e-3, 100.0])
def test_extreme_temperatures_give_no_nan(temperature: float) -> None:
    sampler = Sampler(SamplingConfig(temperature=temperature, top_p=0.9, top_k=50, min_p=0.1, seed=0))
    index = sampler.choose(_scores(2))
    assert 0 <= index < VOCAB
    assert temperature > 1e-3 or index == int(_scores(2).argmax())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(value: float, temperature: float) -> None:
    scores = _scores()
    scores[17] = value
    with pytest.raises(NqEdgeError, match="not finite") as caught:
        Sampler(SamplingConfig(temperature=temperature)).choose(scores)
    assert caught.value.code == "NQ-NUMERIC"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("min_p", 2),
        ("min_p", "0.1"),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", -101),
        ("frequency_penalty", "1"),
        ("seed", -1),
        ("seed", 1.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(NqEdgeError, match=f"{option} must be a (whole )?number from .* got") as caught:
        SamplingConfig(**{option: value})
    assert caught.value.code == "NQ-OPTION"


@pytest.mark.parametrize("bias", [{-1: 1.0}, {1.5: 1.0}, {3: float("nan")}, {3: 1e9}, dict.fromkeys(range(1025), 0.0)])
def test_biases_out_of_range_are_refused(bias: dict[int, float]) -> None:
    with pytest.raises(NqEdgeError, match="logit_bias") as caught:
        SamplingConfig(logit_bias=bias)
    assert caught.value.code == "NQ-OPTION"


def test_a_bias_decides_and_may_name_tokens_that_do_not_exist() -> None:
    scores = np.array([0, 4, 3], np.float32)
    assert Sampler(SamplingConfig(logit_bias={2: 2.0, 1 << 30: 5.0})).choose(scores) == 2
    assert Sampler(SamplingConfig(logit_bias={1: -100.0})).choose(scores) == 2


def test_presence_and_frequency_count_what_was_written_and_not_the_prompt() -> None:
    scores = np.array([0, 4, 3, 2], np.float32)
    presence = Sampler(SamplingConfig(presence_penalty=1.5), [1, 1, 1])
    assert [presence.choose(scores) for _ in range(4)] == [1, 2, 1, 1]
    frequency = Sampler(SamplingConfig(frequency_penalty=1.5), [1])
    assert [frequency.choose(scores) for _ in range(4)] == [1, 2, 1, 3]


def test_a_mask_leaves_only_what_it_allows() -> None:
    scores = _scores(3)
    few = np.zeros((VOCAB + 31) // 32, np.int32)
    few[0], few[31] = 0b1010, np.int32(-(1 << 31))
    allowed = {1, 3, 31 * 32 + 31} & set(range(VOCAB))
    sampler = Sampler(SamplingConfig(temperature=50.0, seed=1))
    assert {sampler.choose(scores, few) for _ in range(200)} == allowed
    assert Sampler(SamplingConfig()).choose(scores, few[:1]) in {1, 3}
    with pytest.raises(NqEdgeError, match="no token is allowed"):
        Sampler(SamplingConfig()).choose(scores, np.zeros(1, np.uint32))


def test_log_probabilities_are_those_of_the_softmax() -> None:
    import torch

    scores = _scores(4)
    expected = torch.log_softmax(torch.tensor(scores, dtype=torch.float64), 0).numpy()
    own, best = log_probabilities(scores, 17, 5)
    assert own == pytest.approx(expected[17])
    assert [i for i, _ in best] == np.argsort(-expected, kind="stable")[:5].tolist()
    np.testing.assert_allclose([value for _, value in best], np.sort(expected)[::-1][:5])
    assert log_probabilities(scores, 0, 0)[1] == ()
    assert len(log_probabilities(scores[:3], 0, 9)[1]) == 3
