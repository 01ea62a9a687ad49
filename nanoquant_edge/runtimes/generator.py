# SPDX-License-Identifier: Apache-2.0
"""Text generation in three layers: `generate_step` (ids), `stream` (pieces), `generate` (a text and its figures)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from ..system.files import path_inside, read_json
from ..system.memory import peak_memory_mb
from .backend import Backend
from .chat_template import ChatTemplate, load_chat_template
from .options import OpenOptions
from .sampling import SamplingConfig, make_sampler
from .selection import open_backend
from .streaming import StopMatcher, TextStream
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "Generation", "Generator", "TextRun"]

DEFAULT_MAX_NEW_TOKENS = 256
#: A text, or a chat as messages with "role" and "content".
Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Generation:
    """A finished text.

    Attributes:
        text: what was generated, without special tokens and without the stop string.
        ids: all generated ids; the end-of-sequence id is the last one when the model ended the text.
        finish_reason: "eos", "stop" (a stop string) or "length".
        prompt_tokens: tokens of the prompt.
        prefill_tps: prompt tokens a second until the first new token.
        decode_tps: new tokens a second after the first; 0 when there is only one.
        ttft_s: seconds from the call to the first new token, tokenization included.
        peak_memory_mb: most resident memory of the process so far, 10^6 bytes.
        kernel: what computed the compressed layers, see `Backend`.
    """

    text: str
    ids: list[int]
    finish_reason: str
    prompt_tokens: int
    prefill_tps: float
    decode_tps: float
    ttft_s: float
    peak_memory_mb: float
    kernel: str

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


class TextRun(Iterator[str]):
    """Text pieces as they come; `result` is there once they are used up."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self.result: Generation | None = None

    def __next__(self) -> str:
        return next(self._pieces)


class Generator:
    """A model that writes text. One text at a time; starting another ends the earlier one.

    Args:
        backend: the loaded model.
        tokenizer: the model's.
        eos_ids: ids that end a text.
        chat_template: needed for chats only.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int] | frozenset[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        self.chat_template = chat_template
        self._run = 0

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        options: OpenOptions | None = None,
        *,
        verify: bool | None = None,
        backend: Backend | None = None,
        **keywords: Any,
    ) -> Generator:
        """Open a bundle that `nq-edge export` wrote.

        Args:
            path: the bundle's folder.
            options: how it is opened.
            verify: True hashes every file, False none, None hashes at the first load only.
            backend: the model, when it is open already; the generator closes it.
            **keywords: fields of `OpenOptions`, instead of those in `options`.

        Raises:
            NqEdgeError: NQ-BUNDLE, NQ-HASH, NQ-TOKENIZER, NQ-TEMPLATE, and what `open_backend` raises.

        Example:
            >>> with Generator.from_bundle("bundle", threads=2) as generator:
            ...     print(generator.generate("The sky is", max_new_tokens=16).text)
        """
        options = replace(options or OpenOptions(), **keywords)
        bundle = Bundle.open(path, verify=verify)
        tokenizer = load_tokenizer(bundle.folder)
        template = load_chat_template(bundle.folder, tokenizer)
        return cls(backend or open_backend(bundle, options), tokenizer, read_eos_ids(bundle, tokenizer), template)

    def encode(self, prompt: Prompt, system: str | None = None) -> list[int]:
        """Token ids of a text, or of a chat through the model's template.

        An empty text becomes the BOS token, if the model has one.

        Raises:
            NqEdgeError: NQ-PROMPT for an empty text without BOS, NQ-TEMPLATE for a chat without template.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
            bos = self.tokenizer.token_id("bos_token")
            if not ids and bos is not None:
                ids = [bos]
            if not ids:
                raise NqEdgeError("NQ-PROMPT", "the prompt is empty and the model has no BOS token.", "Pass a text.")
            return ids
        if self.chat_template is None:
            raise NqEdgeError("NQ-TEMPLATE", "the bundle has no chat template.", "Pass a plain prompt, without --chat.")
        messages = ([{"role": "system", "content": system}] if system is not None else []) + [dict(m) for m in prompt]
        return self.tokenizer.encode(self.chat_template.render(messages), add_special_tokens=False)

    def generate_step(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: SamplingConfig | None = None,
    ) -> Iterator[int]:
        """New ids one by one; the last one is an end-of-sequence id when the model ends the text.

        At most `max_new_tokens`, and no more than the context has room for.

        Args:
            ids: the prompt, at least one.
            max_new_tokens: 1 or more.
            sampling: None is greedy.

        Raises:
            NqEdgeError: NQ-PROMPT when the prompt is empty or longer than the context, NQ-OPTION for a bad
                `max_new_tokens`, or when another text was started before this one ended.
        """
        limit = self.backend.max_context
        if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
            raise NqEdgeError("NQ-OPTION", f"max_new_tokens must be a whole number above 0, got {max_new_tokens!r}.")
        if len(ids) == 0:
            raise NqEdgeError("NQ-PROMPT", "the prompt has no tokens.", "Pass a text.")
        if len(ids) > limit:
            raise NqEdgeError("NQ-PROMPT", f"the prompt has {len(ids)} tokens, the context holds {limit}.")
        # The last new token is never stored, hence the one more.
        count = min(max_new_tokens, limit - len(ids) + 1)
        self._run += 1
        return self._steps(list(ids), count, sampling or SamplingConfig(), self._run)

    def _steps(self, history: list[int], count: int, sampling: SamplingConfig, run: int) -> Iterator[int]:
        sample = make_sampler(sampling)
        self.backend.reset()
        new = history
        for _ in range(count):
            if run != self._run:
                raise NqEdgeError(
                    "NQ-OPTION", "another text was started with this generator.", "Finish one text before the next."
                )
            logits = self.backend.forward(np.asarray([new], dtype=np.int64))
            index = sample(logits[0, -1], history)
            history.append(index)
            new = [index]
            yield index
            if index in self.eos_ids:
                return

    def stream(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] = (),
    ) -> TextRun:
        """Text pieces as they come: whole characters, and nothing of a stop string.

        Args:
            prompt: a text, or messages for the chat template.
            system: system message put before the messages.
            max_new_tokens: most new tokens.
            sampling: None is greedy.
            stop: strings that end the text and are not part of it.

        Returns:
            An iterator of non-empty pieces whose `result` is the `Generation` once it is used up.

        Raises:
            NqEdgeError: as `encode` and `generate_step`.
        """
        begin = time.perf_counter()
        ids = self.encode(prompt, system)
        steps = self.generate_step(ids, max_new_tokens=max_new_tokens, sampling=sampling)
        run = TextRun(iter(()))
        run._pieces = self._pieces(run, ids, steps, StopMatcher(stop), begin)
        return run

    def _pieces(
        self, run: TextRun, prompt: list[int], steps: Iterator[int], matcher: StopMatcher, begin: float
    ) -> Iterator[str]:
        text = TextStream(self.tokenizer)
        ids: list[int] = []
        pieces: list[str] = []
        reason, first, start = "length", 0.0, time.perf_counter()
        for index in steps:
            if not ids:
                first = time.perf_counter()
            ids.append(index)
            if index in self.eos_ids:
                reason = "eos"
                break
            if piece := matcher.push(text.push(index)):
                pieces.append(piece)
                yield piece
            if matcher.stopped:
                break
        end = time.perf_counter()
        rest = matcher.push(text.flush()) + matcher.flush()
        if matcher.stopped:
            reason = "stop"
        if rest:
            pieces.append(rest)
            yield rest
        run.result = Generation(
            text="".join(pieces),
            ids=ids,
            finish_reason=reason,
            prompt_tokens=len(prompt),
            prefill_tps=len(prompt) / max(first - start, 1e-9),
            decode_tps=(len(ids) - 1) / max(end - first, 1e-9),
            ttft_s=first - begin,
            peak_memory_mb=peak_memory_mb(),
            kernel=self.backend.kernel,
        )

    def generate(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """The whole text at once; arguments as `stream`."""
        run = self.stream(prompt, system=system, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
        for _ in run:
            pass
        assert run.result is not None  # a run that is used up has its result
        return run.result

    def close(self) -> None:
        """Give back the model's memory."""
        self._run += 1
        self.backend.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_eos_ids(bundle: Bundle, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a text: from generation_config.json, else the model's configuration, else the tokenizer's EOS."""
    path = path_inside(bundle.folder, "generation_config.json")
    settings = read_json(path, "NQ-BUNDLE") if path.is_file() else {}
    for found in (settings.get("eos_token_id"), bundle.source_model.get("eos_token_id")):
        ids = [i for i in (found if isinstance(found, list) else [found]) if type(i) is int]
        if ids:
            return frozenset(ids)
    eos = tokenizer.token_id("eos_token")
    return frozenset() if eos is None else frozenset([eos])
