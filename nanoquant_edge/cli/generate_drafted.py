# SPDX-License-Identifier: Apache-2.0
"""`nq-edge generate --draft`: the same text, with tokens guessed ahead, by the scheduler that serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtimes import Generation, OpenOptions, SamplingConfig, Target
from ..serving import Request
from ..serving.opening import open_model
from ..system.memory import peak_memory_mb

if TYPE_CHECKING:
    from ..serving.constraint import Grammar
    from ..serving.model import ServedModel

__all__ = ["Wanted", "write_drafted"]


@dataclass(frozen=True)
class Wanted:
    """A text to be written.

    Attributes:
        prompt: the text, or what the user says.
        chat: whether it goes through the chat template.
        system: a message before it, in a chat.
        max_new_tokens, sampling, stop: see `Request`.
        grammar: what the text keeps to.
    """

    prompt: str
    chat: bool
    system: str | None
    max_new_tokens: int
    sampling: SamplingConfig
    stop: Sequence[str]
    grammar: Grammar | None

    def request(self, model: ServedModel) -> Request:
        """What the model is asked for."""
        ids = self._chat_ids(model) if self.chat else model.encode_text(self.prompt)
        return Request(
            ids=ids,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            stop=self.stop,
            mask=None if self.grammar is None else model.constrainer.mask(self.grammar),
        )

    def _chat_ids(self, model: ServedModel) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return model.encode_chat([*system, {"role": "user", "content": self.prompt}])


def write_drafted(
    target: Target, options: OpenOptions, *, wanted: Wanted, draft: str, show: Callable[[str], None]
) -> Generation:
    """Write a text.

    Args:
        target: the model.
        options: how it is opened.
        wanted: the text.
        draft: see `open_model`.
        show: gets each piece.
    """
    with open_model(target, options, draft=draft) as model:
        with model.writer.submit(wanted.request(model)) as answer:
            for piece in answer:
                show(piece.text)
            outcome = answer.result()
        return Generation(
            text=outcome.text,
            ids=list(outcome.ids),
            finish_reason=outcome.finish_reason,
            prompt_tokens=outcome.prompt_tokens,
            prefill_tps=outcome.prompt_tokens / max(outcome.ttft_s, 1e-9),
            decode_tps=(len(outcome.ids) - 1) / max(outcome.decode_s, 1e-9),
            ttft_s=outcome.ttft_s,
            peak_memory_mb=peak_memory_mb(),
            kernel=model.settings.kernel,
        )
