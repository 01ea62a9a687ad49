# SPDX-License-Identifier: Apache-2.0
"""Losses over a large vocabulary without holding all logits: the head is applied to a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Head", "cross_entropy", "distillation_loss", "in_chunks"]

#: Positions whose logits exist at one time; 256 x 49,152 floats are 50 MB.
_CHUNK = 256


def in_chunks(hidden: Tensor, loss_of: Callable[[Tensor, slice], Tensor], backward: bool) -> Tensor:
    """Sum of `loss_of` over chunks of positions; with `backward`, gradients go into `hidden`'s graph at once.

    Args:
        hidden: (positions, hidden_size), the input of the head.
        loss_of: takes a chunk of `hidden` and its slice of the positions, returns the summed loss (a scalar).
        backward: propagate the gradient of the total into the graph that made `hidden`.

    Returns:
        The detached total, a scalar.
    """
    cut = hidden.detach().requires_grad_(backward)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, hidden.shape[0], _CHUNK):
        part = slice(start, min(start + _CHUNK, hidden.shape[0]))
        loss = loss_of(cut[part], part)
        if backward:
            loss.backward()
        total += loss.detach().float()
    if backward:
        hidden.backward(cut.grad)
    return total


@dataclass(frozen=True)
class Head:
    """What makes logits of a model's last states.

    Attributes:
        weight: (vocab, hidden_size).
        cap: soft cap of the logits, as Gemma-2 has it.
    """

    weight: Tensor
    cap: float | None = None

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> Head:
        """That of a transformers causal language model, in the compute type."""
        weight = model.get_output_embeddings().weight.to(dtype)
        return cls(weight, getattr(model.config, "final_logit_softcapping", None))

    def logits(self, states: Tensor) -> Tensor:
        """Float32 (positions, vocab) of states (positions, hidden_size)."""
        logits = (states @ self.weight.T).float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def cross_entropy(hidden: Tensor, head: Head, labels: Tensor, backward: bool) -> Tensor:
    """Next-token cross-entropy, the mean of each window, added up over windows.

    Args:
        hidden: (windows, positions, hidden_size).
        head: of the model.
        labels: int64 (windows, positions).
        backward: propagate gradients into `hidden`'s graph.
    """
    flat, count = labels.flatten(), labels.shape[1]

    def loss_of(part: Tensor, positions: slice) -> Tensor:
        return torch.nn.functional.cross_entropy(head.logits(part), flat[positions], reduction="sum") / count

    return in_chunks(hidden.flatten(0, 1), loss_of, backward)


def distillation_loss(hidden: Tensor, teacher_hidden: Tensor, head: Head, backward: bool) -> Tensor:
    """Mean forward KL (teacher || student) over the full vocabulary, temperature 1 (docs/METHOD.md, section 9).

    Args:
        hidden, teacher_hidden: (positions, hidden_size) student and teacher inputs of the shared head.
        head: of both.
        backward: propagate gradients into `hidden`'s graph.
    """

    def loss_of(part: Tensor, positions: slice) -> Tensor:
        with torch.no_grad():
            teacher = head.logits(teacher_hidden[positions]).log_softmax(-1)
        student = head.logits(part).log_softmax(-1)
        divergence = torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
        return divergence / hidden.shape[0]

    return in_chunks(hidden, loss_of, backward)
