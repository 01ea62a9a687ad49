# SPDX-License-Identifier: Apache-2.0
"""The three text APIs, over a real socket."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

CHAT = [{"role": "user", "content": "The quick brown fox"}]


def post(address: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json=body, timeout=60)


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """What the events of a stream hold; the last one of all is [DONE]."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def refusal(answer: httpx.Response, status: int = 400) -> tuple[str | None, str | None]:
    """(param, code) of a refusal."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error["param"], error["code"]


def test_a_text_comes_whole_or_in_pieces_and_is_the_same(address: str) -> None:
    asked = {"prompt": "The quick", "max_tokens": 12, "temperature": 0}
    whole = post(address, "completions", **asked).json()
    choice = whole["choices"][0]
    assert (whole["object"], choice["finish_reason"], whole["usage"]["completion_tokens"]) == (
        "text_completion",
        "length",
        12,
    )
    pieces = chunks(post(address, "completions", **asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in pieces[:-1]) == choice["text"]
    assert pieces[-2]["choices"][0]["finish_reason"] == "length"
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert not any("usage" in chunk for chunk in chunks(post(address, "completions", **asked, stream=True)))


def test_texts_of_several_prompts_and_choices(address: str) -> None:
    asked = {"prompt": ["The", "A model"], "n": 2, "max_tokens": 16, "temperature": 2, "seed": 5, "echo": True}
    asked["logit_bias"] = {str(token): 60 for token in range(66, 90)}  # letters
    first, second = (post(address, "completions", **asked).json() for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]]  # by the seed
    assert texts[0] != texts[1] and all(text.startswith("A model") for text in texts[2:])
    assert first["usage"]["completion_tokens"] == 64
    ids = post(address, "completions", prompt=[1, 5, 7], max_tokens=2).json()
    assert ids["usage"]["prompt_tokens"] == 3
    streamed = chunks(post(address, "completions", **asked, stream=True))
    for number in range(4):
        parts = [c["choices"][0]["text"] for c in streamed if c["choices"][0]["index"] == number]
        assert "".join(parts) == texts[number]


def test_log_probabilities_of_both_kinds(address: str) -> None:
    plain = post(address, "completions", prompt="The", max_tokens=3, logprobs=2, temperature=0).json()
    found = plain["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 3
    assert found["token_logprobs"][0] == max(found["top_logprobs"][0].values()) < 0
    asked = {"messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    entries = post(address, "chat/completions", **asked).json()["choices"][0]["logprobs"]["content"]
    assert len(entries) == 3 and entries[0]["logprob"] == entries[0]["top_logprobs"][0]["logprob"]
    streamed = chunks(post(address, "chat/completions", **asked, stream=True))
    again = [e for c in streamed if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"]]
    assert [e["token"] for e in again] == [e["token"] for e in entries]
    assert refusal(post(address, "chat/completions", messages=CHAT, top_logprobs=2))[0] == "top_logprobs"


def test_a_bias_and_stop_texts_change_the_answer(address: str) -> None:
    asked = {"prompt": "The", "max_tokens": 6, "temperature": 0}
    forced = post(address, "completions", **asked, logit_bias={"70": 100}).json()["choices"][0]["text"]
    assert len(set(forced)) == 1
    stopped = post(address, "completions", **asked, logit_bias={"70": 100}, stop=[forced[0] * 2]).json()
    assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == ("", "stop")
    assert refusal(post(address, "completions", prompt="x", logit_bias={"x": 1}))[0] == "logit_bias"


def test_a_chat_streams_a_role_first_and_a_reason_last(address: str) -> None:
    asked = {"messages": CHAT, "max_completion_tokens": 8, "temperature": 0, "model": "gpt"}
    whole = post(address, "chat/completions", **asked).json()
    message = whole["choices"][0]["message"]
    assert (message["role"], whole["object"], whole["model"]) == ("assistant", "chat.completion", "tiny")
    pieces = chunks(post(address, "chat/completions", **asked, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert {chunk["id"] for chunk in pieces} == {pieces[0]["id"]}
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


def test_parts_of_a_content_are_joined_and_pictures_refused(address: str) -> None:
    parts = [{"type": "text", "text": "The quick "}, {"type": "text", "text": "brown fox"}]
    one, other = (
        post(address, "chat/completions", messages=[{"role": "user", "content": content}], max_tokens=4, temperature=0)
        for content in (parts, "The quick brown fox")
    )
    assert one.json()["choices"][0]["message"] == other.json()["choices"][0]["message"]
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    assert refusal(post(address, "chat/completions", messages=picture)) == (
        "messages[0].content[0].type",
        "unsupported",
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": CHAT, "temperature": "hot"}, "temperature"),
        ({"messages": CHAT, "temperature": 1e400}, "temperature"),
        ({"messages": CHAT, "top_p": 1.5}, "top_p"),
        ({"messages": CHAT, "max_tokens": 0}, "max_tokens"),
        ({"messages": CHAT, "max_tokens": 1.5}, "max_tokens"),
        ({"messages": CHAT, "n": 99}, "n"),
        ({"messages": CHAT, "stream": "yes"}, "stream"),
        ({"messages": CHAT, "stop": [1]}, "stop"),
        ({"messages": CHAT, "seed": 10**400}, "seed"),
        ({"messages": CHAT, "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": CHAT, "response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"messages": CHAT, "tool_choice": "required"}, "tools"),
        ({"messages": CHAT, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": CHAT, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": CHAT, "model": "gpt-9"}, "model"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(address: str, body: dict[str, Any], param: str | None) -> None:
    data = json.dumps(body).replace("Infinity", "1e999")
    answer = httpx.post(f"{address}/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
    assert refusal(answer, 404 if param == "model" else 400)[0] == param


def test_fields_that_nobody_knows_and_nulls_are_ignored(address: str) -> None:
    asked = {"prompt": "The", "max_tokens": 2, "temperature": None, "stop": None, "user": "me", "best_of": 3, "x": [{}]}
    assert post(address, "completions", **asked).status_code == 200


def test_a_response_has_items_and_its_events_are_numbered(address: str) -> None:
    asked = {"input": "The quick", "instructions": "Be short.", "max_output_tokens": 6, "temperature": 0}
    whole = post(address, "responses", **asked).json()
    assert (whole["object"], whole["status"]) == ("response", "incomplete")
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    text = whole["output"][0]["content"][0]["text"]
    answer = post(address, "responses", **asked, stream=True)
    events = [json.loads(part.partition("data: ")[2]) for part in answer.text.split("\n\n") if part]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == text
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The quick"}]
    same = post(address, "chat/completions", messages=chat, max_tokens=6, temperature=0).json()
    assert same["choices"][0]["message"]["content"] == text
    assert refusal(post(address, "responses", input="x", previous_response_id="r"))[0] == "previous_response_id"
    items = [{"type": "function_call", "call_id": "c"}]
    assert refusal(post(address, "responses", input=items))[0] == "input[0].name"


def test_a_client_that_goes_away_frees_its_slot(address: str) -> None:
    asked = {"prompt": "The", "max_tokens": 2000, "logit_bias": {"2": -100}, "temperature": 1}
    before = metric(address, "nq_texts_cancelled_total")
    with httpx.stream("POST", f"{address}/v1/completions", json={**asked, "stream": True}) as answer:
        next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/completions", json={**asked, "n": 8}, timeout=0.05)
    deadline = time.monotonic() + 20
    while metric(address, "nq_texts_active") or metric(address, "nq_texts_cancelled_total") < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))
