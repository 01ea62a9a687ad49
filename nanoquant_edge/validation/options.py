# SPDX-License-Identifier: Apache-2.0
"""What is compared, on how much text, and how the bundle is opened for it. Checked when made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import NqEdgeError
from ..runtimes.options import OpenKeywords, OpenOptions, check_whole

__all__ = ["ValidationKeywords", "ValidationOptions"]

#: More than any comparison needs: a wrong number is noticed before a model is loaded.
_MOST = 1 << 20


class ValidationKeywords(OpenKeywords, total=False):
    """The fields of `ValidationOptions`, as keywords of functions that take them one by one."""

    record: bool
    text: str | Path | None
    windows: int
    window_length: int
    prompts: Sequence[str]
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class ValidationOptions(OpenOptions):
    """What `validate` compares, and how it opens the bundle; `threads` are those of PyTorch too.

    Attributes:
        record: store PyTorch's side in the bundle, and the outcome in its manifest.
        text: UTF-8 file to compare on; None lets the reference model write the windows itself, with a fixed seed.
        windows: windows of text; `perplexity` needs 16 to pass.
        window_length: tokens of a window; `logits` needs 4096 positions in all to pass.
        prompts: starts of greedy continuations; none takes the starts of the first windows.
        new_tokens: tokens of each continuation.

    Raises:
        NqEdgeError: NQ-OPTION for a number that is out of its range, and as `OpenOptions`.

    Example:
        >>> ValidationOptions(windows=4, prompts=["The sky is"]).prompts
        ('The sky is',)
    """

    record: bool = False
    text: str | Path | None = None
    windows: int = 16
    window_length: int = 256
    prompts: Sequence[str] = ()
    new_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("windows", self.windows, low=1, high=_MOST)
        check_whole("window_length", self.window_length, low=2, high=_MOST)
        check_whole("new_tokens", self.new_tokens, low=0, high=_MOST)
        prompts = (self.prompts,) if isinstance(self.prompts, str) else tuple(self.prompts)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise NqEdgeError("NQ-OPTION", "prompts must be texts.", "Pass a list of strings.")
        object.__setattr__(self, "prompts", prompts)
