# SPDX-License-Identifier: Apache-2.0
"""Which windows a model is calibrated on, and which fresh ones it is tuned on afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import NqEdgeError
from ...models.source import SourceModel
from ..execution.parallel import team
from ..recipe import Recipe
from ..run import Run
from .conversations import conversation_windows, has_chat_format
from .sources import CalibrationText, shared_out
from .text import sampled_windows, text_windows

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
    chats = chat_windows(source, recipe.chat_share, recipe.windows)
    parts = _plain(source, text, recipe.windows - chats, run.seed, recipe)
    return _mixed(source, text, parts, chats, run)


def fresh_windows(source: SourceModel, text: CalibrationText, run: Run) -> Tensor:
    """Windows for tuning from end to end: as many as the recipe's tokens make, or as the text has without overlap.

    They are drawn with another seed than the calibration windows, of which they may repeat some.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: as `calibration_windows`.
    """
    recipe = run.recipe
    wanted = max(1, recipe.end_to_end_tokens // recipe.window_length)
    chats = chat_windows(source, recipe.end_to_end_chat_share, wanted)
    parts = []
    counts = shared_out(wanted - chats, text.weights)
    for part, count in zip(text.texts, counts, strict=True):
        ids = source.tokenizer(part, verbose=False)["input_ids"]
        there = min(count, len(ids) // recipe.window_length)
        if there:
            parts += _plain(source, CalibrationText((part,)), there, run.seed + 1, recipe)
    return _mixed(source, text, parts, min(chats, sum(map(len, parts))), run)


def _plain(source: SourceModel, text: CalibrationText | None, count: int, seed: int, recipe: Recipe) -> list[Tensor]:
    """Windows (some, length) of plain text, source by source."""
    if not count:
        return []
    length = recipe.window_length
    if text is None:
        return [sampled_windows(source.model, count, length, seed=seed, start_id=source.start_token)]
    found = []
    for part, number in zip(text.texts, shared_out(count, text.weights), strict=True):
        source.tokenizers.check(part, source.name)
        if number:
            choice = recipe.window_choice
            found.append(text_windows(source.tokenizer, part, windows=number, length=length, seed=seed, choice=choice))
    return found


def _mixed(source: SourceModel, text: CalibrationText | None, parts: list[Tensor], chats: int, run: Run) -> Tensor:
    """Plain windows and conversations in one order, checked against the vocabulary, those of the first process."""
    if chats:
        written = conversation_windows(
            source.model,
            source.tokenizer,
            chats,
            run.recipe.window_length,
            seed=run.seed,
            text=None if text is None else text.texts[0],
            progress=run.progress,
        )
        parts = [*parts, written]
    windows = torch.cat(parts)
    if len(parts) > 1:
        windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(run.seed))]
    if int(windows.max()) >= source.decoder.vocab_size:
        raise NqEdgeError(
            "NQ-MODEL",
            f"the tokenizer makes id {int(windows.max())}, the vocabulary has {source.decoder.vocab_size} entries.",
        )
    shared = windows.to(run.device)  # a GPU's messages are a GPU's tensors
    team().take_first([shared])
    return shared.cpu()
