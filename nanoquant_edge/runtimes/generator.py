# SPDX-License-Identifier: Apache-2.0
"""Text generation in three layers: `generate_step` (ids), `stream` (pieces), `generate` (a text and its figures)."""

from __future__ import annotations

import itertools
import threading
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from ..formats.tokenizer import Tokenizer, load_tokenizer
from ..system.files import path_inside, read_json
from ..system.memory import peak_memory_mb
from .backend import Backend, WritingBackend
from .chat_template import ChatTemplate, load_chat_template
from .mask import TokenMask
from .options import OpenKeywords, OpenOptions
from .result import Generation, SharedIterator, TextRun
from .sampling import Sampler, SamplingConfig
from .streaming import StopMatcher, TextStream, stop_strings
from .target import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "Generator", "read_eos_ids"]

DEFAULT_MAX_NEW_TOKENS = 256
#: A text, or a chat as messages with "role" and "content".
Prompt = str | Sequence[Mapping[str, Any]]


class Generator:
    """A model that writes text. One text at a time; starting another ends the earlier one.

    Several threads may use it: the later text ends the earlier one, which raises NQ-OPTION at its next token, and
    `close` waits for the token that is being computed.

    Args:
        backend: the loaded model.
        tokenizer: the model's.
        eos_ids: ids that end a text.
        chat_template: needed for chats only.

    Example:
        >>> with Generator.from_bundle("bundle", threads=1) as generator:
        ...     result = generator.generate("The sky is", max_new_tokens=8)
        >>> result.prompt_tokens > 0 and len(result.ids) <= 8
        True
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int] | frozenset[int] = (),
        *,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        self.chat_template = chat_template
        # Held from the question whether a text is the current one until its token is computed.
        self._computing = threading.Lock()
        self._numbers = itertools.count(1)
        self._current = 0
        self._closed = False

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        options: OpenOptions | None = None,
        *,
        verify: bool | None = None,
        backend: Backend | None = None,
        chat: bool = False,
        **keywords: Unpack[OpenKeywords],
    ) -> Generator:
        """Open a bundle that `nq-edge export` wrote.

        Args:
            path: the bundle's folder.
            options: how it is opened.
            verify: True hashes every file, False none, None hashes at the first load only.
            backend: the model, when it is open already; the generator closes it.
            chat: chats will follow, so what renders them starts while the model loads.
            **keywords: fields of `OpenOptions`, instead of those in `options`.

        Raises:
            NqEdgeError: NQ-BUNDLE, NQ-HASH, NQ-TOKENIZER, NQ-TEMPLATE, and what `open_backend` raises.

        Example:
            >>> with Generator.from_bundle("bundle", threads=1, max_context=64) as generator:
            ...     generator.backend.max_context
            64
        """
        options = replace(options or OpenOptions(), **keywords)
        return cls._of(Target.of(Bundle.open(path, verify=verify), options), options, backend=backend, chat=chat)

    @classmethod
    def open(
        cls,
        path: str | Path | Target,
        options: OpenOptions | None = None,
        *,
        chat: bool = False,
        tell: Callable[[str], None] | None = None,
        **keywords: Unpack[OpenKeywords],
    ) -> Generator:
        """Open a checkpoint or a bundle, on a GPU or on the processor.

        Args:
            path: the folder, or what `Target.of` made of it with the same options.
            options: how it is opened; `device` says where it runs.
            chat: chats will follow, so what renders them starts while the model loads.
            tell: gets one line when a checkpoint is exported first, to run on the processor.
            **keywords: fields of `OpenOptions`, instead of those in `options`.

        Raises:
            NqEdgeError: NQ-CKPT, NQ-BUNDLE, NQ-HASH, NQ-TOKENIZER, NQ-TEMPLATE, NQ-CUDA and NQ-MEMORY for a GPU, and
                what `Target.of` and `open_backend` raise.

        Example:
            >>> with Generator.open("bundle", device="cpu", threads=1) as generator:
            ...     generator.backend.name
            'onnxruntime'
        """
        options = replace(options or OpenOptions(), **keywords)
        target = path if isinstance(path, Target) else Target.of(path, options, tell=tell)
        return cls._of(target, options, chat=chat)

    @classmethod
    def _of(
        cls, target: Target, options: OpenOptions, *, backend: Backend | None = None, chat: bool = False
    ) -> Generator:
        tokenizer = load_tokenizer(target.folder)
        template = load_chat_template(target.folder, tokenizer)
        if chat and template is not None:
            template.start()
        # Before a model is open that nobody would close.
        eos_ids = read_eos_ids(target.folder, target.model_config, tokenizer)
        return cls(backend or target.open(options), tokenizer, eos_ids, chat_template=template)

    def encode(self, prompt: Prompt, system: str | None = None) -> list[int]:
        """Token ids of a text, or of a chat through the model's template.

        An empty text becomes the BOS token, if the model has one.

        Args:
            prompt: a text, or messages with "role" and "content".
            system: system message put before the messages.

        Raises:
            NqEdgeError: NQ-PROMPT for an empty text without BOS and for what is neither text nor messages, NQ-OPTION
                for a system message beside a text, NQ-TEMPLATE for a chat without template.
        """
        if isinstance(prompt, str):
            if system is not None:
                raise NqEdgeError(
                    "NQ-OPTION",
                    "a system message is part of a chat, and the prompt is a plain text.",
                    'Pass the prompt as [{"role": "user", "content": ...}].',
                )
            ids = self.tokenizer.encode(prompt)
            bos = self.tokenizer.token_id("bos_token")
            if not ids and bos is not None:
                ids = [bos]
            if not ids:
                raise NqEdgeError("NQ-PROMPT", "the prompt is empty and the model has no BOS token.", "Pass a text.")
            return ids
        if not _is_chat(prompt):
            raise NqEdgeError(
                "NQ-PROMPT",
                f"the prompt is neither a text nor a list of messages but {type(prompt).__name__}.",
                'A message is {"role": "user", "content": "..."}.',
            )
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
        mask: TokenMask | None = None,
    ) -> Iterator[int]:
        """New ids one by one; the last one is an end-of-sequence id when the model ends the text.

        At most `max_new_tokens`, and no more than the context has room for.

        Args:
            ids: the prompt, at least one.
            max_new_tokens: 1 or more.
            sampling: None is greedy.
            mask: what the text keeps to; made for this text alone.

        Raises:
            NqEdgeError: NQ-PROMPT when the prompt is empty, longer than the context or not made of whole numbers,
                NQ-OPTION for a bad `max_new_tokens`, or when another text was started before this one ended.
        """
        limit = self.backend.max_context
        whole = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
        if not whole or max_new_tokens < 1:
            raise NqEdgeError("NQ-OPTION", f"max_new_tokens must be a whole number above 0, got {max_new_tokens!r}.")
        if not isinstance(sampling, SamplingConfig | None):
            raise NqEdgeError("NQ-OPTION", f"sampling must be a SamplingConfig, got {type(sampling).__name__}.")
        history = np.asarray(ids)
        if history.size == 0:
            raise NqEdgeError("NQ-PROMPT", "the prompt has no tokens.", "Pass a text.")
        if history.ndim != 1 or history.dtype.kind not in "iu":
            raise NqEdgeError("NQ-PROMPT", "the prompt's token ids are not a row of whole numbers.")
        if len(history) > limit:
            raise NqEdgeError("NQ-PROMPT", f"the prompt has {len(history)} tokens, the context holds {limit}.")
        # The last new token is never stored, hence the one more.
        count = min(int(max_new_tokens), limit - len(history) + 1)
        self._current = number = next(self._numbers)
        return SharedIterator(self._steps(number, history.tolist(), count, sampling or SamplingConfig(), mask))

    def _steps(
        self, number: int, history: list[int], count: int, sampling: SamplingConfig, mask: TokenMask | None
    ) -> typing.Generator[int, None, None]:
        if mask is None and isinstance(self.backend, WritingBackend) and self.backend.chooses(sampling):
            yield from self._written(number, history, count, sampling)
            return
        sampler = Sampler(sampling, history)
        new = history
        for step in range(count):
            with self._computing:
                self._check_current(number)
                if not step:
                    self.backend.reset()
                logits = self.backend.forward(np.asarray([new], dtype=np.int64))
            index = sampler.choose(logits[0, -1], None if mask is None else mask.allowed())
            new = [index]
            if mask is not None and index not in self.eos_ids:
                mask.push(index)
            yield index
            if index in self.eos_ids or (mask is not None and mask.finished):
                return

    def _written(
        self, number: int, history: list[int], count: int, sampling: SamplingConfig
    ) -> typing.Generator[int, None, None]:
        """The same, chosen by the backend."""
        assert isinstance(self.backend, WritingBackend)
        with self._computing:
            self._check_current(number)
            tokens = self.backend.write(np.asarray(history, dtype=np.int64), count, sampling)
        for _ in range(count):
            with self._computing:
                self._check_current(number)
                index = next(tokens)
            yield index
            if index in self.eos_ids:
                return

    def _check_current(self, number: int) -> None:
        """See that no other text was started since this one, whose tokens would go into the same cache."""
        if self._closed:
            raise NqEdgeError("NQ-OPTION", "the generator is closed.", "Open the bundle again.")
        if number != self._current:
            raise NqEdgeError(
                "NQ-OPTION", "another text was started with this generator.", "Finish one text before the next."
            )

    def stream(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampling: SamplingConfig | None = None,
        stop: str | Sequence[str] | None = (),
        mask: TokenMask | None = None,
    ) -> TextRun:
        """Text pieces as they come: whole characters, and nothing of a stop string.

        Args:
            prompt: a text, or messages for the chat template.
            system: system message put before the messages.
            max_new_tokens: most new tokens.
            sampling: None is greedy.
            stop: a string that ends the text and is not part of it, or several; special tokens count by their names.
            mask: what the text keeps to; made for this text alone.

        Returns:
            An iterator of non-empty pieces whose `result` is the `Generation` once it is used up.

        Raises:
            NqEdgeError: as `encode` and `generate_step`, and NQ-OPTION for stop strings that are none.

        Example:
            >>> with Generator.from_bundle("bundle", threads=1) as generator:
            ...     run = generator.stream("The sky is", max_new_tokens=8, stop="\\n")
            ...     pieces = list(run)  # or print each of them as it comes
            >>> run.result.text == "".join(pieces)
            True
        """
        begin = time.perf_counter()
        matcher = StopMatcher(stop_strings(stop), self.tokenizer.special_texts)
        ids = self.encode(prompt, system)
        steps = self.generate_step(ids, max_new_tokens=max_new_tokens, sampling=sampling, mask=mask)
        return TextRun(self._pieces(ids, steps, matcher, begin, mask))

    def _pieces(
        self, prompt: list[int], steps: Iterator[int], matcher: StopMatcher, begin: float, mask: TokenMask | None
    ) -> typing.Generator[str, None, Generation]:
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
            if piece := matcher.push(text.push(index) + matcher.mark(index)):
                pieces.append(piece)
                yield piece
            if matcher.stopped:
                break
        end = time.perf_counter()
        rest = matcher.push(text.flush()) + matcher.flush()
        if matcher.stopped or (mask is not None and mask.finished and reason != "eos"):
            reason = "stop"
        if rest:
            pieces.append(rest)
            yield rest
        return Generation(
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
        stop: str | Sequence[str] | None = (),
    ) -> Generation:
        """The whole text at once; arguments and errors as `stream`.

        Example:
            >>> chat = [{"role": "user", "content": "Why is the sky blue?"}]
            >>> with Generator.from_bundle("bundle", threads=1) as generator:
            ...     result = generator.generate(chat, system="Answer in one word.", max_new_tokens=4)
            >>> result.finish_reason in ("eos", "length")
            True
        """
        run = self.stream(prompt, system=system, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
        for _ in run:
            pass
        assert run.result is not None  # a run that is used up has its result
        return run.result

    def close(self) -> None:
        """Give back the model's memory; a text that is being written ends with NQ-OPTION."""
        self._closed = True
        with self._computing:
            self.backend.close()
        if self.chat_template is not None:
            self.chat_template.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _is_chat(prompt: Any) -> bool:
    """Whether it is a sequence of messages; a single message is none."""
    return isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)


def read_eos_ids(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a text: from generation_config.json, else the model's configuration, else the tokenizer's EOS.

    Args:
        folder: of the bundle or checkpoint.
        config: of the model, as far as it is known.
        tokenizer: the model's.
    """
    path = path_inside(folder, "generation_config.json")
    settings = read_json(path, "NQ-BUNDLE") if path.is_file() else {}
    for found in (settings.get("eos_token_id"), config.get("eos_token_id")):
        ids = [i for i in (found if isinstance(found, list) else [found]) if type(i) is int]
        if ids:
            return frozenset(ids)
    eos = tokenizer.token_id("eos_token")
    return frozenset() if eos is None else frozenset([eos])
