# SPDX-License-Identifier: Apache-2.0
"""How a model answers: whether answers end, repeat themselves, are what the dense model says, and are right.

A figure on encyclopedia text is not use. So a model is asked 200 prompts in its own chat format (forms and subjects of
answers.json, none of which calibration uses) and answers greedily with at most 200 tokens:

- `ends`: share of answers that end by themselves;
- `repeats`: share of an answer's 4-grams of tokens that stood in it before, the mean over answers;
- `answer_loss`: mean loss in nats of the dense model's own greedy answers under the model;
- `right`: share of 30 questions with one right word that stands in the answer's first 30 tokens.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import torch

from nanoquant_edge.compression.calibrate.writing import Script, Turn, Writing, end_tokens, write
from nanoquant_edge.validation.perplexity import head_logits

__all__ = ["Answers", "repeated_share"]

_FILE = Path(__file__).with_suffix(".json")
_LONGEST, _SHORT, _NGRAM = 200, 30, 4

Ids = list[int]


def repeated_share(ids: Ids, length: int = _NGRAM) -> float:
    """Share of the n-grams of some tokens that stood among them before; 0 where there are none.

    Example:
        >>> repeated_share([1, 2, 1, 2, 1], 2)
        0.5
    """
    grams = [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Answers:
    """Prompts of a model with a chat format, and what the dense model answers to them.

    Args:
        tokenizer: the model's, with a chat template.
        prompts: how many of the 200 prompts.
    """

    def __init__(self, tokenizer: Any, prompts: int) -> None:
        texts = json.loads(_FILE.read_text(encoding="utf-8"))
        asked = [form.format(subject) for subject, form in itertools.product(texts["subjects"], texts["forms"])]
        self.tokenizer = tokenizer
        self.prompts = [self._prompt(text) for text in asked[:: max(1, len(asked) // prompts)][:prompts]]
        self.questions = [(self._prompt(text), right) for text, right in texts["questions"]]
        self._dense: list[Ids] | None = None

    def _prompt(self, text: str) -> Ids:
        chat = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))

    def dense(self, model: Any) -> dict[str, float]:
        """The dense model's own figures; its answers are kept."""
        figures, self._dense = self._asked(model)
        return {**figures, "answer_loss": round(self._loss(model, self._dense), 4)}

    def compressed(self, model: Any, dense: Any) -> dict[str, float]:
        """A compressed model's figures; `dense` is asked for its answers where they are not there yet."""
        if self._dense is None:
            _, self._dense = self._asked(dense)
        figures, _ = self._asked(model)
        return {**figures, "answer_loss": round(self._loss(model, self._dense), 4)}

    def _asked(self, model: Any) -> tuple[dict[str, float], list[Ids]]:
        answers = _greedy(model, self.tokenizer, self.prompts, _LONGEST)
        ends = end_tokens(model, self.tokenizer)
        short = _greedy(model, self.tokenizer, [prompt for prompt, _ in self.questions], _SHORT)
        right = [
            re.search(rf"\b(?:{pattern})\b", self.tokenizer.decode(answer, skip_special_tokens=True), re.IGNORECASE)
            for answer, (_, pattern) in zip(short, self.questions, strict=True)
        ]
        figures = {
            "ends": round(sum(answer[-1:] != [] and answer[-1] in ends for answer in answers) / len(answers), 4),
            "repeats": round(sum(map(repeated_share, answers)) / len(answers), 4),
            "right": round(sum(found is not None for found in right) / len(right), 4),
        }
        return figures, answers

    @torch.inference_mode()
    def _loss(self, model: Any, answers: list[Ids]) -> float:
        """Mean loss of answers under a model, over all their tokens."""
        total, tokens = 0.0, 0
        for prompt, answer in zip(self.prompts, answers, strict=True):
            ids = torch.tensor([prompt + answer], device=model.device)
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
            chances = head_logits(model, states).float().log_softmax(-1)
            total -= float(chances.gather(1, ids[0, len(prompt) :, None]).sum())
            tokens += len(answer)
        return total / tokens


def _greedy(model: Any, tokenizer: Any, prompts: list[Ids], longest: int) -> list[Ids]:
    """The greedy answer to each prompt, with its end token where it ended by itself."""
    answers: dict[int, Ids] = {}

    def asked(number: int) -> Script:
        answers[number] = yield Turn(prompts[number], longest)

    length = max(map(len, prompts)) + longest
    writing = Writing(length=length, temperature=0, ends=end_tokens(model, tokenizer), dtype=torch.float32)
    write(model, [asked(number) for number in range(len(prompts))], writing)
    return [answers[number] for number in range(len(prompts))]
