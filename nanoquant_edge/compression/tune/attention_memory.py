# SPDX-License-Identifier: Apache-2.0
"""The attention's output of a block, kept while only the layers behind it are tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ATTENTION", "AttentionMemory"]

#: What the families call the attention of a block.
ATTENTION = "self_attn"


class _RememberedModule(nn.Module):
    """Gives back what a module once computed for the chosen windows, while nothing inside or before it changes.

    Args:
        values: (windows, length, channels) outputs.
        rest: what follows the output in the module's returned tuple; None when it returns a tensor.
    """

    def __init__(self, values: Tensor, rest: tuple[Any, ...] | None) -> None:
        super().__init__()
        self.values, self.rest = values, rest
        self.chosen: Tensor | slice = slice(None)

    def forward(self, *_arguments: Any, **_keywords: Any) -> Any:
        """The remembered outputs of the chosen windows, in the form the module returned them."""
        value = self.values[self.chosen]
        return value if self.rest is None else (value, *self.rest)


class AttentionMemory:
    """The attention of a block, and its outputs for all windows, which can take its place.

    Args:
        block: its attention is replaced while the memory is in use.
        keep: keep the outputs where they are for further blocks.
    """

    def __init__(self, block: nn.Module, keep: bool) -> None:
        self._block, self._keep = block, keep
        self._attention: Any = getattr(block, ATTENTION, None)
        self._remembered: _RememberedModule | None = None
        self.in_use = False

    @property
    def values(self) -> Tensor | None:
        """The remembered outputs (windows, length, channels), where there are some."""
        return None if self._remembered is None else self._remembered.values

    @torch.no_grad()
    def fill(self, run: Callable[[Tensor], Tensor], inputs: Tensor, at_once: int) -> None:
        """Compute the attention's outputs for the last time and put them in its place; nothing without attention.

        Args:
            run: one forward pass of the block over (windows, length, hidden).
            inputs: (windows, length, hidden), where the outputs are kept too.
            at_once: windows that go through together.
        """
        if self.in_use or self._attention is None:
            return
        seen: list[Any] = []
        handle = self._attention.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
        parts = []
        try:
            for part in inputs.split(at_once):
                run(part)
                output = seen.pop()
                parts.append((output[0] if isinstance(output, tuple) else output).to(inputs.device))
        finally:
            handle.remove()
        values = torch.cat(parts)
        if self._remembered is None or not self._keep:
            rest = tuple(None for _ in output[1:]) if isinstance(output, tuple) else None
            self._remembered = _RememberedModule(values, rest)
        else:
            self._remembered.values.copy_(values)
        setattr(self._block, ATTENTION, self._remembered)
        self.in_use = True

    def choose(self, windows: Tensor) -> None:
        """The next forward pass is over these windows, int64 indices."""
        if self._remembered is not None and self.in_use:
            self._remembered.chosen = windows

    def release(self) -> None:
        """Let the attention compute again."""
        if self.in_use:
            setattr(self._block, ATTENTION, self._attention)
        self.in_use = False
