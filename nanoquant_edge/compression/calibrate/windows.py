# SPDX-License-Identifier: Apache-2.0
"""Which windows a model is calibrated on, and which fresh ones it is tuned on afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import NqEdgeError
from ...models.source import SourceModel
from ..execution.parallel import team
from ..run import Run
from .conversations import conversation_windows, has_chat_format
from .own_text import own_windows
from .sources import CalibrationText, OwnText, shared_out
from .text import cut_windows, start_and_body, token_ids

__all__ = ["calibration_windows", "chat_windows", "fresh_windows"]


def chat_windows(source: SourceModel, share: float, count: int) -> int:
    """How many of `count` windows hold conversations: none where the model has no chat format or is streamed."""
    if source.streamed or not has_chat_format(source.tokenizer):
        return 0
    return round(share * count)


def calibration_windows(source: SourceModel, text: CalibrationText | None, run: Run) -> Tensor:
    """The windows of a run's recipe, the same in all processes.

    Args:
        source: the dense model, on the run's device.
        text: to take windows from; None lets the model write them.
        run: with its recipe's number, length and choice of windows, and its share of conversations.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: NQ-CALIBRATION for too short a text, NQ-MODEL when the tokenizer and the vocabulary disagree,
            NQ-TEMPLATE when the chat template fails.
    """
    recipe = run.recipe
    text = text or CalibrationText((OwnText(),))
    chats = chat_windows(source, recipe.chat_share, recipe.windows)
    plain = shared_out(recipe.windows - chats, text.weights)
    parts = []
    for number, count in enumerate(plain):
        if isinstance(text.texts[number], str):
            _tokens(source, text, number)  # a text that does not fit the model is refused also where none is taken
        if count:
            parts.append(_part(source, text, number, count=count, run=run.part(0.0, 0.5)))
    return _mixed(source, text, parts, chats, run.part(0.5, 1.0))


def fresh_windows(source: SourceModel, text: CalibrationText, run: Run) -> Tensor:
    """Windows for tuning from end to end: as many as the recipe's tokens make, or as there are without overlap.

    Of each text those come first that the calibration has not seen. Where a text is too short for its share the others
    give more.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: as `calibration_windows`.
    """
    recipe = run.recipe
    wanted = max(1, recipe.end_to_end_tokens // recipe.window_length)
    chats = chat_windows(source, recipe.end_to_end_chat_share, wanted)
    seen = shared_out(recipe.windows - chat_windows(source, recipe.chat_share, recipe.windows), text.weights)
    most = [
        _most(source, text, number, length=recipe.window_length, before=before) for number, before in enumerate(seen)
    ]
    parts = []
    for number, count in enumerate(shared_out(wanted - chats, text.weights, most)):
        if count:
            parts.append(_part(source, text, number, count=count, run=run.part(0.0, 0.5), after=seen[number]))
    chats = min(chats, sum(map(len, parts)))
    return _mixed(source, text, parts, chats, run.part(0.5, 1.0), seed=run.seed + 1)


def _tokens(source: SourceModel, text: CalibrationText, number: int) -> Tensor:
    """The token ids of a text, which is tokenized and checked against the model once."""
    if number not in text.tokens:
        words = text.texts[number]
        assert isinstance(words, str)
        source.tokenizers.check(words, source.name)
        text.tokens[number] = token_ids(source.tokenizer, words)
    return text.tokens[number]


def _most(source: SourceModel, text: CalibrationText, number: int, *, length: int, before: int) -> int:
    """How many windows a source has without overlap; of its own text, those that it has not written `before`."""
    words = text.texts[number]
    if isinstance(words, OwnText):
        return 1 << 62 if words.tokens is None else max(0, words.tokens // length - before)
    start, body = start_and_body(source.tokenizer, _tokens(source, text, number))
    return len(body) // (length - len(start))


def _part(source: SourceModel, text: CalibrationText, number: int, *, count: int, run: Run, after: int = 0) -> Tensor:
    """Windows (count, length) of one source, when `after` of them were taken before."""
    words, recipe = text.texts[number], run.recipe
    length = recipe.window_length
    if isinstance(words, OwnText):
        if words.tokens is not None and words.tokens // length < after + count:
            message = (
                f"{count} windows of {length} tokens are more than the {words.tokens} tokens of self:{words.tokens}."
            )
            raise NqEdgeError("NQ-CALIBRATION", message, "Let the model write more, such as self:2M.")
        return own_windows(source, count, length, seed=run.seed, first=after, progress=run.progress)
    start, body = start_and_body(source.tokenizer, _tokens(source, text, number))
    choice = "distinct" if after else recipe.window_choice
    return cut_windows(body, start, windows=count, length=length, seed=run.seed, choice=choice, after=after)


def _mixed(
    source: SourceModel, text: CalibrationText, parts: list[Tensor], chats: int, run: Run, seed: int | None = None
) -> Tensor:
    """Plain windows and conversations in one order, checked against the vocabulary, those of the first process."""
    seed = run.seed if seed is None else seed
    if chats:
        written = conversation_windows(
            source.model,
            source.tokenizer,
            chats,
            run.recipe.window_length,
            seed=seed,
            text=text.passages,
            progress=run.progress,
        )
        parts = [*parts, written]
    windows = torch.cat(parts)
    if len(parts) > 1:
        windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))]
    if int(windows.max()) >= source.decoder.vocab_size:
        raise NqEdgeError(
            "NQ-MODEL",
            f"the tokenizer makes id {int(windows.max())}, the vocabulary has {source.decoder.vocab_size} entries.",
        )
    shared = windows.to(run.device)  # a GPU's messages are a GPU's tensors
    team().take_first([shared])
    return shared.cpu()
