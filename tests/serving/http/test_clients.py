# SPDX-License-Identifier: Apache-2.0
"""Programs that people use: the openai package, LangChain, curl and schemathesis (extra `[clients]`)."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any, Literal

import pytest

CHAT: Any = [{"role": "user", "content": "The quick brown fox"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather somewhere.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2, 9]}},
                "required": ["place", "days"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture
def client(address: str) -> Any:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_openai_models_texts_and_errors(client: Any) -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["tiny", "gpt"]
    assert client.models.retrieve("gpt").object == "model"
    done = client.completions.create(model="tiny", prompt="The", max_tokens=4, logprobs=2, echo=False)
    assert len(done.choices[0].logprobs.tokens) == 4
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=CHAT, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=CHAT)


def test_openai_streams(client: Any) -> None:
    asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage or parts[-1].usage.completion_tokens == 8
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_openai_without_waiting(address: str) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=CHAT, max_tokens=6, seed=number, stream=True, temperature=0
                )
                return "".join([part.choices[0].delta.content or "" async for part in stream])

            return list(await asyncio.gather(*(one(number) for number in range(5))))

    assert len(set(asyncio.run(ask()))) == 1  # greedy: nobody sees who else is served


def test_openai_parsed_schemas(client: Any) -> None:
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        mood: Literal["good", "bad"]
        tall: bool
        ages: tuple[Literal[1, 2], Literal[3]]

    parsed = client.chat.completions.parse(model="tiny", messages=CHAT, response_format=Person, temperature=1)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    answer = client.responses.parse(model="tiny", input="Who?", text_format=Person)
    assert isinstance(answer.output_parsed, Person)


def test_openai_tools(client: Any) -> None:
    pytest.importorskip("llguidance")
    asked: Any = {"model": "tiny", "messages": CHAT, "tools": TOOLS, "temperature": 1}
    choice: Any
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        done = client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False).choices[0]
        assert done.finish_reason == "tool_calls" and done.message.content is None
        arguments = json.loads(done.message.tool_calls[0].function.arguments)
        assert arguments["place"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9
    with client.chat.completions.stream(**asked, tool_choice="required", parallel_tool_calls=False) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.name == "weather"
    call = done.message.tool_calls[0]
    history = [
        *CHAT,
        done.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "4"},
    ]
    again = client.chat.completions.create(model="tiny", messages=history, tools=TOOLS, max_tokens=4)
    assert again.usage.completion_tokens >= 1
    none = client.chat.completions.create(**asked, tool_choice="none", max_tokens=4)
    assert none.choices[0].message.tool_calls is None


def test_openai_responses(client: Any) -> None:
    done = client.responses.create(model="tiny", input=[{"role": "user", "content": "The"}], max_output_tokens=16)
    assert done.output_text and done.usage.output_tokens <= 16
    with client.responses.stream(model="tiny", input="The", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.incomplete", "response.completed")
    pytest.importorskip("llguidance")
    tool: Any = {"type": "function", "strict": True, **TOOLS[0]["function"]}
    called = client.responses.create(
        model="tiny", input="The", tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    assert called.output[0].type == "function_call" and json.loads(called.output[0].arguments)["days"]


def test_langchain(address: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=f"{address}/v1", api_key="none", model="tiny", max_tokens=8, max_retries=0)
    assert model.invoke("The quick").usage_metadata["output_tokens"] <= 8
    assert "".join(str(part.content) for part in model.stream("The quick")) is not None
    pytest.importorskip("llguidance")
    long = model.model_copy(update={"max_tokens": 200})
    bound = long.bind_tools(TOOLS, tool_choice="weather").invoke("Rome?")
    assert bound.tool_calls[0]["args"]["place"] in ("Rome", "Oslo")
    schema = TOOLS[0]["function"]["parameters"] | {"title": "Trip"}
    assert long.with_structured_output(schema, method="json_schema").invoke("Where?")["days"] >= 1


def test_curl(address: str) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("there is no curl")
    body = json.dumps({"messages": CHAT, "max_tokens": 4, "stream": True})
    command = [curl, "-sN", f"{address}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_schemathesis_finds_no_answer_that_the_document_does_not_have(address: str) -> None:
    """A short campaign; `python -m benchmarks.serving --fuzz N` makes longer ones."""
    pytest.importorskip("schemathesis")
    from benchmarks.serving_fuzz import campaign

    assert campaign(address, examples=15) == []
