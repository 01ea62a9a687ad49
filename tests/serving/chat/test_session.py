# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes import SamplingConfig, Target
from nanoquant_edge.serving.chat import ChatOptions, ChatSession
from nanoquant_edge.serving.model import ServedModel

pytest.importorskip("onnxruntime")
GREEDY = SamplingConfig()


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[ServedModel]:
    from nanoquant_edge.serving.opening import open_model

    with open_model(Target.of(tiny_bundle)) as opened:
        yield opened


def said(session: ChatSession, text: str) -> tuple[str, int]:
    turn = session.ask(text)
    with turn:
        return "".join(turn), turn.dropped


def test_old_turns_leave_whole_when_the_context_is_full(model: ServedModel) -> None:
    session = ChatSession(model, ChatOptions(sampling=GREEDY, system="Short.", max_new_tokens=20))
    dropped = 0
    for number in range(12):
        _, gone = said(session, f"Question {number} of many")
        dropped += gone
        assert gone % 2 == 0
        assert session.messages[0]["role"] == "user"
        assert session.statistics()["context_tokens"] <= model.settings.max_context
    assert dropped and session.messages[-2]["content"] == "Question 11 of many"
    assert session.system == "Short."


def test_a_second_turn_reuses_the_first(model: ServedModel) -> None:
    session = ChatSession(model, ChatOptions(sampling=GREEDY, max_new_tokens=8))
    said(session, "The quick brown fox jumps over the lazy dog.")
    first = session.statistics()["last"]
    said(session, "And then?")
    second = session.statistics()["last"]
    assert second["reused_tokens"] >= first["prompt_tokens"] - 1


def test_trying_again_writes_the_same_when_greedy_and_other_words_when_not(model: ServedModel) -> None:
    session = ChatSession(model, ChatOptions(sampling=GREEDY, max_new_tokens=12))
    first, _ = said(session, "The")
    with session.retry() as turn:
        assert "".join(turn) == first
    assert [message["role"] for message in session.messages] == ["user", "assistant"]
    session.reset()
    with pytest.raises(NqEdgeError, match="nothing to try again"):
        session.retry()


def test_a_stopped_answer_stays_and_a_refused_message_does_not(model: ServedModel) -> None:
    session = ChatSession(model, ChatOptions(sampling=GREEDY, max_new_tokens=40))
    with session.ask("The quick brown fox") as turn:
        begin = next(turn)
    assert session.messages[-1] == {"role": "assistant", "content": begin}
    with pytest.raises(NqEdgeError, match="the context holds"):
        session.ask("x" * 4000)
    assert session.messages[-1]["role"] == "assistant"
    with pytest.raises(NqEdgeError, match="max_new_tokens"):
        ChatOptions(max_new_tokens=0)
