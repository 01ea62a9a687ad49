# SPDX-License-Identifier: Apache-2.0
"""Calibration windows of conversations: instructions, and the answers that the dense model itself gives to them.

An instruct model that is calibrated on an encyclopedia forgets how to answer: at one bit a 0.5B model then ends 28 % of
its answers instead of 78 % (docs/notes/quality.md). So half of its windows hold chats in its own format.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import NqEdgeError, first_line
from ...system.progress import Progress
from .instructions import follow_ups, instructions

__all__ = ["conversation_windows", "has_chat_format"]

#: Answers are sampled as a chat would sample them.
_TEMPERATURE = 0.8
_LONGEST_ANSWER = 256
#: One conversation in so many goes on with a second question.
_SECOND_QUESTION_EVERY = 4
#: Conversations that are answered at the same time: on a CPU, and at most on a GPU.
_CPU_AT_ONCE, _GPU_AT_ONCE = 16, 1024

Messages = list[dict[str, str]]


def has_chat_format(tokenizer: Any) -> bool:
    """Whether a tokenizer knows how its model's chats are written."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation_windows(
    model: Any, tokenizer: Any, windows: int, length: int, *, seed: int, text: str | None, progress: Progress
) -> Tensor:
    """Windows of conversations, each beginning with the beginning of one; the last one in a window is cut off.

    Args:
        model: the dense transformers causal language model, on its device.
        tokenizer: its transformers tokenizer, with a chat template.
        windows: how many windows.
        length: tokens of a window.
        seed: random seed of the instructions and the answers.
        text: calibration text that some of the instructions are about, or none.
        progress: told how many tokens there are.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: NQ-TEMPLATE when the chat template cannot be rendered.
    """
    turns = instructions(seed, text)
    questions = itertools.cycle(follow_ups())
    filled: list[Tensor] = []
    window: list[int] = []
    longest_answer = min(_LONGEST_ANSWER, max(8, length // 2))
    devices = [model.device] if model.device.type == "cuda" else []

    def answering(token: int, most: int) -> None:
        progress(len(filled) / windows, f"the model answers instructions, token {token} of at most {most}")

    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for conversation in _conversations(model, tokenizer, (turns, questions), longest_answer, answering):
            window += conversation
            if len(window) >= length:
                filled.append(torch.tensor(window[:length], dtype=torch.int64))
                window = []
                progress(len(filled) / windows, f"conversation window {len(filled)} of {windows}")
            if len(filled) == windows:
                break
    return torch.stack(filled)


def _conversations(
    model: Any,
    tokenizer: Any,
    asked: tuple[Iterator[str], Iterator[str]],
    longest_answer: int,
    answering: Callable[[int, int], None],
) -> Iterator[list[int]]:
    """Token ids of whole conversations, without end: first turns and further questions as they are `asked`."""
    turns, questions = asked
    at_once = _at_once(model)
    ending = _ending(model, tokenizer)
    while True:
        chats: list[Messages] = [[{"role": "user", "content": next(turns)}] for _ in range(at_once)]
        prompts = [_rendered(tokenizer, chat) for chat in chats]
        answers = _answers(model, tokenizer, prompts, longest_answer, answering)
        longer = range(0, at_once, _SECOND_QUESTION_EVERY)
        for index in longer:
            said = tokenizer.decode(answers[index], skip_special_tokens=True).strip()
            chats[index] += [{"role": "assistant", "content": said}, {"role": "user", "content": next(questions)}]
            prompts[index] = _rendered(tokenizer, chats[index])
        second = _answers(model, tokenizer, [prompts[index] for index in longer], longest_answer, answering)
        for index, answer in zip(longer, second, strict=True):
            answers[index] = answer
        for prompt, answer in zip(prompts, answers, strict=True):
            yield prompt + answer + ending


def _at_once(model: Any) -> int:
    """Conversations whose caches take a quarter of a GPU's free memory, 1024 at most; 16 on a CPU."""
    if model.device.type != "cuda":
        return _CPU_AT_ONCE
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * 4 * config.num_hidden_layers * heads * width * 2 * _LONGEST_ANSWER
    logits = 3 * 4 * config.vocab_size
    free = torch.cuda.mem_get_info(model.device)[0]
    return int(max(1, min(_GPU_AT_ONCE, free // 4 // (cache + logits))))


def _rendered(tokenizer: Any, chat: Messages) -> list[int]:
    """A chat up to where the model's answer begins."""
    try:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    except Exception as error:  # a template is a program of its own, which raises what it likes
        raise NqEdgeError("NQ-TEMPLATE", f"the model's chat template fails: {first_line(error)}.") from error
    return [int(token) for token in ids]


def _ending(model: Any, tokenizer: Any) -> list[int]:
    """What a template puts behind the token that ends an answer: most have a line break there."""
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception:  # a template that takes no finished answers has nothing behind them
        return []
    ids = tokenizer(text.rpartition("Hi")[2], add_special_tokens=False)["input_ids"]
    return list(ids[1:]) if ids and ids[0] in _end_tokens(model, tokenizer) else []


@torch.no_grad()
def _answers(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], longest: int, answering: Callable[[int, int], None]
) -> list[list[int]]:
    """An answer to each prompt, sampled, with the token that ends it where it ended by itself.

    A prompt that leaves the model no position for an answer has none.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    end_tokens = _end_tokens(model, tokenizer)
    padding = end_tokens[0] if end_tokens else 0
    answers: list[list[int]] = [[] for _ in prompts]
    answered = [index for index, prompt in enumerate(prompts) if len(prompt) < _positions(model)]
    if not answered:
        return answers
    width = max(len(prompts[index]) for index in answered)
    longest = min(longest, _positions(model) - width)
    ids = torch.full((len(answered), width), padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts[index] for index in answered):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    settings = GenerationConfig(
        do_sample=True,
        temperature=_TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=longest,
        eos_token_id=end_tokens or None,
        pad_token_id=padding,
    )

    def goes_on(so_far: Tensor, _scores: Tensor) -> Tensor:  # a criterion that never stops, told of every token
        answering(so_far.shape[1] - width, longest)
        return torch.zeros(len(so_far), dtype=torch.bool, device=so_far.device)

    written = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([goes_on]),
    )
    for index, row in zip(answered, written[:, width:].tolist(), strict=True):
        answers[index] = _until_end(row, end_tokens)
    return answers


def _positions(model: Any) -> int:
    """The longest text that the model was made for, in tokens."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer, as the model's generation settings, its configuration or its tokenizer name them."""
    for found in (
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    ):
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    return []


def _until_end(ids: list[int], end_tokens: list[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in end_tokens:
            return ids[: index + 1]
    return ids
