# SPDX-License-Identifier: Apache-2.0
"""The scheduler over fake slots: every text equals that of a lone run, whoever comes and goes beside it."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import Tokenizer
from nanoquant_edge.runtimes.sampling import Sampler, SamplingConfig
from nanoquant_edge.serving import BusyError, Request, Scheduler, SchedulerOptions
from tests.serving.scheduling.conftest import Make
from tests.serving.scheduling.fake_slots import FakeSlots

EOS = (7, 11)


def lone(request: Request, eos_ids: tuple[int, ...] = (), max_context: int = 96) -> list[int]:
    """The new ids of a request that has the model for itself, without any of the code under test."""
    model, ids = FakeSlots(count=1, max_context=max_context), list(request.ids)
    sampler = Sampler(request.sampling, ids)
    new: list[int] = []
    while len(new) < min(request.max_new_tokens, max_context - len(request.ids) + 1):
        token = sampler.choose(model.logits(ids))
        new.append(token)
        ids.append(token)
        if token in eos_ids and not request.ignore_eos:
            break
    return new


def prompt(length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(12, 320, length).tolist()
    return found


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


def test_a_text_comes_in_pieces_with_its_tokens(make: Make, tokenizer: Tokenizer) -> None:
    scheduler, _ = make()
    request = Request(ids=prompt(5), max_new_tokens=20, logprobs=2)
    with scheduler.submit(request) as answer:
        pieces = list(answer)
    outcome = answer.outcome
    wanted = lone(request)
    assert list(outcome.ids) == [token.id for piece in pieces for token in piece.tokens] == wanted
    assert outcome.text == "".join(piece.text for piece in pieces) == tokenizer.decode(wanted)
    assert (outcome.finish_reason, outcome.prompt_tokens, outcome.reused_tokens) == ("length", 5, 0)
    assert outcome.ttft_s > 0 and outcome.decode_s > 0
    for piece in pieces[:20]:
        (token,) = piece.tokens
        assert token.logprob == token.top[0][1] and token.id == token.top[0][0] and len(token.top) == 2


def test_texts_end_for_their_reasons(make: Make, tokenizer: Tokenizer) -> None:
    scheduler, _ = make(eos_ids=EOS)
    free = Request(ids=prompt(4, 3), max_new_tokens=60, ignore_eos=True)
    wanted = lone(free)
    text = tokenizer.decode(wanted)
    assert scheduler.submit(free).result().text == text
    ended = Request(ids=free.ids, max_new_tokens=60, sampling=SamplingConfig(logit_bias={7: 3.0}))
    outcome = scheduler.submit(ended).result()
    assert outcome.finish_reason == "eos" and outcome.ids[-1] in EOS and list(outcome.ids) == lone(ended, EOS)
    cut = next(text[i : i + 3] for i in range(10, 60) if text.find(text[i : i + 3]) == i and text[i : i + 3].isascii())
    outcome = scheduler.submit(Request(ids=free.ids, max_new_tokens=60, stop=[cut], ignore_eos=True)).result()
    assert (outcome.finish_reason, outcome.text) == ("stop", text[: text.find(cut)])
    full = scheduler.submit(Request(ids=prompt(90), max_new_tokens=60, ignore_eos=True)).result()
    assert (full.finish_reason, len(full.ids)) == ("length", 7)
    whole = scheduler.submit(Request(ids=prompt(96), max_new_tokens=60, ignore_eos=True)).result()
    assert len(whole.ids) == 1


@settings(max_examples=25)
@given(data=st.data())
def test_any_mix_of_requests_gives_what_each_gives_alone(data: st.DataObject, tokenizer: Tokenizer) -> None:
    draw = data.draw
    options = SchedulerOptions(
        chunk=draw(st.sampled_from([1, 3, 16])),
        keep_prefixes=draw(st.booleans()),
        cache_tokens=draw(st.sampled_from([None, 120, 200])),
        draft=draw(st.sampled_from([0, 1, 4])),
    )
    requests = [
        Request(
            ids=prompt(draw(st.integers(1, 80)), draw(st.integers(0, 2))),  # few seeds: beginnings are shared
            max_new_tokens=draw(st.integers(1, 30)),
            sampling=draw(
                st.sampled_from(
                    [
                        SamplingConfig(),
                        SamplingConfig(temperature=0.8, top_k=4, seed=3),
                        SamplingConfig(temperature=1.5, repetition_penalty=1.3, frequency_penalty=0.4, seed=5),
                    ]
                )
            ),
        )
        for _ in range(draw(st.integers(1, 9)))
    ]
    slots = FakeSlots(count=draw(st.integers(1, 3)))
    with Scheduler(slots, tokenizer, eos_ids=EOS, options=options) as scheduler:
        answers = []
        for request in requests:
            answers.append(scheduler.submit(request))
            if draw(st.booleans()):
                time.sleep(0.001)
            if draw(st.integers(0, 5)) == 0:
                answers[draw(st.integers(0, len(answers) - 1))].close()
        for request, answer in zip(requests, answers, strict=True):
            outcome, wanted = answer.result(), lone(request, EOS)
            if outcome.finish_reason == "cancelled":
                wanted = wanted[: len(outcome.ids)]
            assert list(outcome.ids) == wanted
        statistics = scheduler.statistics()
    assert statistics.waiting == statistics.active == 0
    assert statistics.cache_tokens <= statistics.cache_limit
    assert statistics.counters.finished + statistics.counters.cancelled == len(requests)


def test_texts_decode_together_and_prompts_come_in_pieces_beside_them(make: Make) -> None:
    scheduler, slots = make(chunk=8, slots={"delay_s": 0.002})
    requests = [Request(ids=prompt(n, n), max_new_tokens=most) for n, most in ((3, 60), (50, 20), (40, 20))]
    answers = [scheduler.submit(requests[0])]
    next(answers[0])
    before = len(slots.calls)
    answers += [scheduler.submit(request) for request in requests[1:]]
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.result().ids) == lone(request)
    beside = [call for call in slots.calls[before:] if len(call) > 1]
    assert any(len(call) == 3 and set(call.values()) == {1} for call in beside), "no step of three texts"
    assert all(sum(call.values()) <= 1 + 1 + 8 + 1 for call in beside), "a text waited for more than a chunk"


def test_a_prompt_alone_takes_the_largest_pieces(make: Make) -> None:
    scheduler, slots = make(chunk=8)
    scheduler.submit(Request(ids=prompt(90), max_new_tokens=2)).result()
    assert [sum(call.values()) for call in slots.calls] == [64, 26, 1]


def test_what_was_computed_is_not_computed_again(make: Make) -> None:
    scheduler, slots = make()
    first = Request(ids=prompt(40), max_new_tokens=10)
    done = scheduler.submit(first).result()
    turn = Request(ids=[*first.ids, *done.ids, *prompt(5, 9)], max_new_tokens=5)
    slots.calls.clear()
    outcome = scheduler.submit(turn).result()
    assert list(outcome.ids) == lone(turn)
    assert outcome.reused_tokens == 40 + 9 and sum(slots.calls[0].values()) == 6
    # Two other questions to the same beginning: one copies it, and the conversation stays.
    slots.calls.clear()
    branch = Request(ids=[*first.ids[:30], *prompt(6, 5)], max_new_tokens=3)
    assert scheduler.submit(branch).result().reused_tokens == 30
    assert scheduler.submit(turn).result().reused_tokens == len(turn.ids) - 1
    assert scheduler.statistics().counters.reused_tokens == 49 + 30 + len(turn.ids) - 1


def test_kept_tokens_stay_within_their_limit_and_the_oldest_go_first(make: Make) -> None:
    scheduler, _ = make(cache_tokens=100)
    texts = [Request(ids=prompt(30, seed), max_new_tokens=4) for seed in range(4)]
    for text in texts:
        scheduler.submit(text).result()
        assert scheduler.statistics().cache_tokens <= 100
    assert scheduler.statistics().counters.evicted_tokens == 33
    assert scheduler.submit(texts[3]).result().reused_tokens == 29
    assert scheduler.submit(texts[0]).result().reused_tokens == 0
    with pytest.raises(NqEdgeError, match="the context holds 96"):
        scheduler.submit(Request(ids=prompt(97)))


def test_nothing_is_kept_where_that_is_not_wanted(make: Make) -> None:
    scheduler, _ = make(keep_prefixes=False)
    request = Request(ids=prompt(40), max_new_tokens=10)
    scheduler.submit(request).result()
    assert scheduler.statistics().cache_tokens == 0
    assert scheduler.submit(request).result().reused_tokens == 0


def test_a_caller_who_leaves_frees_the_slot_within_a_step(make: Make) -> None:
    scheduler, slots = make(slots={"count": 1, "delay_s": 0.005})
    with scheduler.submit(Request(ids=prompt(3), max_new_tokens=90)) as answer:
        next(answer)
        calls = len(slots.calls)
    assert answer.result().finish_reason == "cancelled"
    assert len(slots.calls) <= calls + 2
    waiting = [scheduler.submit(Request(ids=prompt(3), max_new_tokens=90)) for _ in range(2)]
    waiting[1].close()
    assert waiting[1].result().ids == () and waiting[1].result().finish_reason == "cancelled"
    waiting[0].close()
    waiting[0].close()
    assert scheduler.statistics().counters.cancelled >= 2


def test_a_full_queue_refuses_with_a_time_to_come_back(make: Make) -> None:
    scheduler, _ = make(queue=1, slots={"count": 1, "delay_s": 0.01})
    taken = [scheduler.submit(Request(ids=prompt(3), max_new_tokens=40)) for _ in range(2)]
    with pytest.raises(BusyError, match="Try again in") as caught:
        scheduler.submit(Request(ids=prompt(3)))
    assert caught.value.code == "NQ-BUSY" and 1 <= caught.value.retry_after_s <= 60 and not caught.value.closing
    assert scheduler.statistics().counters.refused == 1
    for answer in taken:
        assert answer.result().finish_reason == "length"


@pytest.mark.parametrize("drain", [True, False])
def test_closing_finishes_what_was_taken_or_cancels_it(drain: bool, make: Make) -> None:
    scheduler, _ = make(slots={"count": 1, "delay_s": 0.002})
    answers = [scheduler.submit(Request(ids=prompt(3), max_new_tokens=20)) for _ in range(3)]
    next(answers[0])
    scheduler.close(drain=drain)
    reasons = {answer.result().finish_reason for answer in answers}
    assert reasons == ({"length"} if drain else {"cancelled"})
    with pytest.raises(BusyError) as caught:
        scheduler.submit(Request(ids=prompt(3)))
    assert caught.value.closing
    scheduler.close()


def test_a_drain_that_takes_too_long_ends(make: Make) -> None:
    scheduler, _ = make(slots={"count": 1, "delay_s": 0.05})
    answer = scheduler.submit(Request(ids=prompt(3), max_new_tokens=90))
    begin = time.monotonic()
    scheduler.close(drain=True, timeout_s=0.2)
    assert time.monotonic() - begin < 2 and answer.result().finish_reason == "cancelled"


class Half:
    """A mask that allows the tokens below 160 and ends after six of them."""

    def __init__(self, fails_at: int = 99) -> None:
        self.tokens: list[int] = []
        self._fails_at = fails_at

    @property
    def finished(self) -> bool:
        return len(self.tokens) == 6

    def allowed(self) -> np.ndarray | None:
        if len(self.tokens) == self._fails_at:
            raise ValueError("a fault of the mask")
        return np.full(5, 0xFFFFFFFF, np.uint32)

    def push(self, token: int) -> None:
        self.tokens.append(token)


def test_a_mask_holds_the_text_and_its_faults_hit_no_other(make: Make) -> None:
    scheduler, _ = make(slots={"delay_s": 0.002})
    mask = Half()
    beside = scheduler.submit(Request(ids=prompt(5), max_new_tokens=30))
    held = scheduler.submit(Request(ids=prompt(4), max_new_tokens=30, mask=mask))
    broken = scheduler.submit(Request(ids=prompt(4), max_new_tokens=30, mask=Half(fails_at=2)))
    outcome = held.result()
    assert outcome.finish_reason == "stop" and list(outcome.ids) == mask.tokens and max(outcome.ids) < 160
    with pytest.raises(ValueError, match="a fault of the mask"):
        broken.result()
    with pytest.raises(ValueError, match="a fault of the mask"):
        list(broken)
    assert list(beside.result().ids) == lone(Request(ids=prompt(5), max_new_tokens=30))
    assert scheduler.statistics().counters.failed == 1


def test_a_step_that_fails_loses_its_texts_and_nothing_else(make: Make) -> None:
    scheduler, slots = make()
    slots.fail = NqEdgeError("NQ-MEMORY", "there is no memory left.")
    with pytest.raises(NqEdgeError, match="no memory"):
        scheduler.submit(Request(ids=prompt(5))).result()
    request = Request(ids=prompt(5), max_new_tokens=9)
    assert list(scheduler.submit(request).result().ids) == lone(request)


def test_over_a_real_model_texts_are_those_of_a_generator(tiny_bundle: Path) -> None:
    from nanoquant_edge.formats.bundle import Bundle
    from nanoquant_edge.runtimes import Generator, open_slots

    sampling = [SamplingConfig(), SamplingConfig(temperature=0.9, top_p=0.9, seed=1), SamplingConfig(min_p=0.1, seed=2)]
    with Generator.from_bundle(tiny_bundle, threads=1) as generator:
        ids = [generator.encode(text) for text in ("The quick brown", "A model", "emoji \U0001f642 and")]
        wanted = [
            generator.generate(text, max_new_tokens=20, sampling=how)
            for text, how in zip(("The quick brown", "A model", "emoji \U0001f642 and"), sampling, strict=True)
        ]
        slots = open_slots(Bundle.open(tiny_bundle), threads=1, count=2)
        with Scheduler(slots, generator.tokenizer, eos_ids=generator.eos_ids) as scheduler:
            for _ in range(2):  # and once more, where the prompts are kept
                answers = [
                    scheduler.submit(Request(ids=prompt, max_new_tokens=20, sampling=how))
                    for prompt, how in zip(ids, sampling, strict=True)
                ]
                for answer, one in zip(answers, wanted, strict=True):
                    found = answer.result()
                    assert (found.text, list(found.ids), found.finish_reason) == (one.text, one.ids, one.finish_reason)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ids": []}, "NQ-PROMPT"),
        ({"ids": [320]}, "NQ-PROMPT"),
        ({"ids": [-1]}, "NQ-PROMPT"),
        ({"ids": [1.5]}, "NQ-PROMPT"),
        ({"ids": [[1]]}, "NQ-PROMPT"),
        ({"ids": [1] * 97}, "NQ-PROMPT"),
        ({"max_new_tokens": 0}, "NQ-OPTION"),
        ({"max_new_tokens": 1.0}, "NQ-OPTION"),
        ({"logprobs": 21}, "NQ-OPTION"),
        ({"logprobs": -1}, "NQ-OPTION"),
        ({"stop": [3]}, "NQ-OPTION"),
    ],
    ids=str,
)
def test_bad_requests_are_refused_before_they_wait(changes: dict[str, Any], code: str, make: Make) -> None:
    scheduler, _ = make()
    with pytest.raises(NqEdgeError) as caught:
        scheduler.submit(Request(**{"ids": [5], **changes}))
    assert caught.value.code == code
    assert scheduler.statistics().counters.requests == 0


@pytest.mark.parametrize("changes", [{"queue": -1}, {"chunk": 0}, {"draft": 65}, {"cache_tokens": 0}], ids=str)
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NqEdgeError, match="must be a whole number"):
        SchedulerOptions(**changes)


def test_an_event_loop_is_told_and_never_waits(make: Make) -> None:
    scheduler, _ = make()
    told = threading.Event()
    request = Request(ids=prompt(6), max_new_tokens=12)
    answer = scheduler.submit(request, notify=told.set)
    pieces = []
    while not answer.finished:
        assert told.wait(10)
        told.clear()
        pieces += answer.poll()
    pieces += answer.poll()
    assert [token.id for piece in pieces for token in piece.tokens] == lone(request)


def test_a_crowd_that_comes_and_goes_leaves_nothing_behind(make: Make) -> None:
    scheduler, _ = make(queue=200, cache_tokens=300)
    rng = np.random.default_rng(0)

    def crowd(seed: int) -> None:
        for number in range(25):
            request = Request(ids=prompt(int(rng.integers(1, 60)), seed % 4), max_new_tokens=int(rng.integers(1, 20)))
            answer = scheduler.submit(request)
            if number % 3 == 0:
                answer.close()
            outcome = answer.result()
            assert list(outcome.ids) == lone(request)[: len(outcome.ids)]

    threads = [threading.Thread(target=crowd, args=(seed,)) for seed in range(8)]
    before = threading.active_count()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gc.collect()
    statistics = scheduler.statistics()
    assert threading.active_count() == before
    assert statistics.active == statistics.waiting == 0 and statistics.cache_tokens <= 300
    assert statistics.counters.requests == 200 == statistics.counters.finished + statistics.counters.cancelled
