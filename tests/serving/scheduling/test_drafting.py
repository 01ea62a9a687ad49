# SPDX-License-Identifier: Apache-2.0
"""Guessed tokens change how long a text takes, and never the text."""

from __future__ import annotations

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import Tokenizer
from nanoquant_edge.runtimes.sampling import SamplingConfig
from nanoquant_edge.serving import Request, Scheduler, SchedulerOptions
from nanoquant_edge.serving.drafting import Guess, ModelDrafter, NgramDrafter
from nanoquant_edge.serving.pace import Chance, StepTimes
from tests.serving.scheduling.conftest import Make
from tests.serving.scheduling.fake_slots import FakeSlots
from tests.serving.scheduling.test_scheduler import lone, prompt


class OtherSlots(FakeSlots):
    """A model that agrees with the fake one about half of the tokens."""

    def logits(self, tokens: list[int]) -> np.ndarray:  # type: ignore[override]
        return super().logits(tokens if tokens[-1] % 2 else [*tokens[:-1], 0])


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the fake model take what Python takes; with this, guesses pay as they do with a real one."""
    monkeypatch.setattr(StepTimes, "share", lambda self, texts: 0.1)


def repeating(count: int = 25) -> list[int]:
    """A prompt after which the fake model, which looks at three tokens, writes what it has written before."""
    ids = prompt(6, 3)
    return [*ids, *lone(Request(ids=ids, max_new_tokens=count)), *ids[-3:]]


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(), SamplingConfig(temperature=0.3, seed=4)], ids=["greedy", "drawn"]
)
def test_what_stood_there_before_is_guessed(sampling: SamplingConfig, make: Make, cheap: None) -> None:
    request = Request(ids=repeating(), max_new_tokens=20, sampling=sampling)
    plain, slots = make(draft=0)
    assert list(plain.submit(request).result().ids) == lone(request)
    steps = len(slots.calls)
    drafting, slots = make(draft=4)
    outcome = drafting.submit(request).result()
    assert list(outcome.ids) == lone(request)
    if sampling.greedy:
        assert outcome.accepted >= 10 and len(slots.calls) <= steps - outcome.accepted
    assert outcome.drafted >= outcome.accepted == drafting.statistics().counters.accepted


@pytest.mark.parametrize("model", [FakeSlots, OtherSlots])
def test_a_model_that_writes_ahead_changes_nothing_but_the_steps(
    model: type[FakeSlots], tokenizer: Tokenizer, cheap: None
) -> None:
    slots, ahead = FakeSlots(count=3), model(count=3)
    requests = [
        Request(ids=prompt(50 - 20 * i, i), max_new_tokens=25, sampling=SamplingConfig(temperature=0.1 * i, seed=i))
        for i in range(3)
    ]
    drafter = ModelDrafter(ahead, slots.vocab_size, piece=16)
    with Scheduler(slots, tokenizer, options=SchedulerOptions(draft=4), drafter=drafter) as scheduler:
        for _ in range(2):
            answers = [scheduler.submit(request) for request in requests]
            for request, answer in zip(requests, answers, strict=True):
                assert list(answer.result().ids) == lone(request)
        outcome = scheduler.submit(requests[0]).result()
    assert outcome.accepted > 0
    assert (outcome.accepted == outcome.drafted) == (model is FakeSlots)


def test_where_steps_are_not_exact_nothing_is_guessed(tokenizer: Tokenizer) -> None:
    slots = FakeSlots(count=1)
    slots.exact = False
    with Scheduler(slots, tokenizer, options=SchedulerOptions(draft=4)) as scheduler:
        assert scheduler.submit(Request(ids=repeating(), max_new_tokens=20)).result().drafted == 0


def test_a_draft_model_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(NqEdgeError, match="the draft model has 300 tokens"):
        ModelDrafter(FakeSlots(300), 320)


def test_the_longest_and_latest_run_counts_and_texts_do_not_mix() -> None:
    drafter = NgramDrafter(longest=3, shortest=2)
    ids = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert drafter.guess([Guess(0, ids, 3)]) == [[4, 9, 2]]
    ids += [4, 2, 3]
    assert drafter.guess([Guess(0, ids, 2)]) == [[4, 2]]  # latest [2, 3], not the one before 5
    assert drafter.guess([Guess(0, [2, 3], 2), Guess(1, ids[:4], 2)]) == [[], []]


def test_guesses_are_as_many_as_pay() -> None:
    times, chance = StepTimes(), Chance()
    assert times.share(1) == times.share(4) == 0.35
    for _ in range(20):
        times.add(1, 0, 0.010)
        times.add(1, 4, 0.022)
        times.add(4, 0, 0.020)
    assert times.share(1) == pytest.approx(0.3) and times.share(4) == pytest.approx(0.6)
    times.add(1, 0, 10.0)  # the machine was busy
    assert times.share(1) == pytest.approx(0.3 / 1.1)
    for _ in range(40):
        chance.add(3, 3)
    assert chance.worth(0.3, 8) == 8
    for _ in range(40):
        chance.add(3, 0)
    assert chance.worth(0.3, 8) == 0
    for _ in range(100):
        chance.add(0, 0)
    assert chance.worth(0.3, 8) > 0
