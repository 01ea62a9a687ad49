# SPDX-License-Identifier: Apache-2.0
"""The bodies of the three text APIs, field by field.

https://platform.openai.com/docs/api-reference (completions, chat, responses); `top_k`, `min_p` and
`repetition_penalty` are those of vLLM and llama-server, and so are the response formats "regex" and "grammar" in kind.
"""

from __future__ import annotations

from ..requests import MAX_LOGPROBS
from .fields import Either, Field, Flag, Many, Number, Object, Record, Text, Word

__all__ = ["CHAT", "COMPLETION", "MAX_CHOICES", "RESPONSE"]

#: Most texts for one prompt (`n`).
MAX_CHOICES = 8
_MOST_MESSAGES, _MOST_TOOLS = 4096, 128
_TOKENS = Number(1, 1 << 31, whole=True)
_ID = Number(0, (1 << 31) - 1, whole=True)

_SAMPLING = (
    Field("temperature", Number(0, 2), "0 takes the most likely token; by default as the model's own configuration."),
    Field("top_p", Number(0, 1), "Keep the likeliest tokens of this mass."),
    Field("top_k", Number(-1, 1 << 31, whole=True), "Keep this many of the likeliest tokens; 0 and -1 keep all."),
    Field("min_p", Number(0, 1), "Drop tokens below this fraction of the likeliest one."),
    Field("repetition_penalty", Number(0.01, 100), "Above 1 makes tokens that occurred, prompt included, less likely."),
    Field("presence_penalty", Number(-2, 2), "Taken from the logit of tokens that were written already."),
    Field("frequency_penalty", Number(-2, 2), "Taken once for each time that they were written."),
    Field("seed", Number(-(1 << 63), (1 << 63) - 1, whole=True), "Equal seeds give equal texts."),
    Field("logit_bias", Object(Number(-100, 100), most=1024), "Token id -> what is added to its logit."),
)
_STOP = Field(
    "stop",
    Either((Text(1024), Many(Text(1024), 16)), "a text or a list of texts"),
    "Texts that end the answer and are not part of it.",
)
_STREAM = (
    Field("stream", Flag(), "Send the text as it comes, as server-sent events.", default=False),
    Field(
        "stream_options",
        Record((Field("include_usage", Flag(), "End with a chunk that counts tokens.", default=False),)),
    ),
)
_MODEL = Field("model", Text(512), "As /v1/models lists it; may be left out.")
_N = Field("n", Number(1, MAX_CHOICES, whole=True), "How many texts to write.", default=1)

COMPLETION = Record(
    (
        _MODEL,
        Field(
            "prompt",
            Either(
                (Text(), Many(Text(), 16, 1), Many(_ID, 1 << 20, 1), Many(Many(_ID, 1 << 20, 1), 16, 1)),
                "a text, a list of texts, or token ids",
            ),
            "A text, several, or token ids.",
            needed=True,
        ),
        Field("max_tokens", _TOKENS, "Most new tokens.", default=16),
        *_SAMPLING,
        _STOP,
        *_STREAM,
        _N,
        Field("logprobs", Number(0, MAX_LOGPROBS, whole=True), "Likeliest alternatives that come with each token."),
        Field("echo", Flag(), "Begin the text with the prompt.", default=False),
        Field("response_format", Object(), "As in chats."),
    )
)

_FUNCTION = Record(
    (
        Field("name", Text(64, 1), needed=True),
        Field("description", Text(1 << 16)),
        Field("parameters", Object()),
        Field("strict", Flag()),
    )
)
_CALL = Record(
    (
        Field("id", Text(256)),
        Field("type", Word(("function",)), default="function"),
        Field(
            "function",
            Record((Field("name", Text(64, 1), needed=True), Field("arguments", Text(), needed=True))),
            needed=True,
        ),
    )
)
_PART = Record((Field("type", Text(64), needed=True), Field("text", Text())))
_CONTENT = Either((Text(), Many(_PART, 1024)), "a text or a list of parts")
_MESSAGE = Record(
    (
        Field("role", Word(("system", "developer", "user", "assistant", "tool")), needed=True),
        Field("content", _CONTENT),
        Field("name", Text(64)),
        Field("reasoning_content", Text()),
        Field("tool_calls", Many(_CALL, _MOST_TOOLS)),
        Field("tool_call_id", Text(256)),
    )
)

CHAT = Record(
    (
        _MODEL,
        Field("messages", Many(_MESSAGE, _MOST_MESSAGES, 1), "The conversation so far.", needed=True),
        Field("max_completion_tokens", _TOKENS, "Most new tokens; by default what the context has room for."),
        Field("max_tokens", _TOKENS, "The older name of it."),
        *_SAMPLING,
        _STOP,
        *_STREAM,
        _N,
        Field("logprobs", Flag(), "Give each token's log-probability.", default=False),
        Field("top_logprobs", Number(0, MAX_LOGPROBS, whole=True), "Likeliest alternatives that come with each."),
        Field(
            "response_format",
            Object(),
            'What the text must keep to: {"type": "text" | "json_object"}, {"type": "json_schema", "json_schema": '
            '{"name", "schema"}}, {"type": "regex", "regex"} or {"type": "grammar", "grammar"} (Lark).',
        ),
        Field(
            "tools",
            Many(
                Record((Field("type", Word(("function",)), needed=True), Field("function", _FUNCTION, needed=True))),
                _MOST_TOOLS,
            ),
            "Functions that the model may call.",
        ),
        Field(
            "tool_choice",
            Either((Word(("none", "auto", "required")), Object()), "'none', 'auto', 'required' or a function"),
            'Whether it calls one: "none", "auto", "required" or {"type": "function", "function": {"name"}}.',
        ),
        Field("parallel_tool_calls", Flag(), "Whether it may call several at once.", default=True),
        Field("chat_template_kwargs", Object(most=32), "Further names for the chat template."),
    )
)

_INPUT_ITEM = Record(
    (
        Field("type", Word(("message", "function_call", "function_call_output", "reasoning")), default="message"),
        Field("role", Word(("system", "developer", "user", "assistant"))),
        Field("content", _CONTENT),
        Field("call_id", Text(256)),
        Field("name", Text(64, 1)),
        Field("arguments", Text()),
        Field("output", _CONTENT),
    )
)

RESPONSE = Record(
    (
        _MODEL,
        Field(
            "input",
            Either((Text(), Many(_INPUT_ITEM, _MOST_MESSAGES, 1)), "a text or a list of items"),
            "A text, or messages, function calls and their outputs.",
            needed=True,
        ),
        Field("instructions", Text(), "The system message."),
        Field("max_output_tokens", _TOKENS, "Most new tokens."),
        *_SAMPLING,
        _STREAM[0],
        Field("top_logprobs", Number(0, MAX_LOGPROBS, whole=True), "Likeliest alternatives that come with each token."),
        Field("text", Record((Field("format", Object()),)), "The form of the text, as response_format in chats."),
        Field(
            "tools",
            Many(
                Record((Field("type", Word(("function",)), needed=True), *_FUNCTION.fields)),
                _MOST_TOOLS,
            ),
            "Functions that the model may call.",
        ),
        Field(
            "tool_choice",
            Either((Word(("none", "auto", "required")), Object()), "'none', 'auto', 'required' or a function"),
        ),
        Field("parallel_tool_calls", Flag(), default=True),
        Field("previous_response_id", Text(256), "Not supported: nothing is stored."),
        Field("store", Flag(), "Ignored: nothing is stored."),
        Field("metadata", Object(most=16), "Given back as it came."),
    )
)
