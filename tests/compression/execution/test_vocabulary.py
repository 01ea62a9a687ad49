# SPDX-License-Identifier: Apache-2.0
"""Losses in chunks equal the losses of all logits at once, values and gradients."""

from __future__ import annotations

import pytest
import torch

from nanoquant_edge.compression.execution.vocabulary import Head, cross_entropy, distillation_loss


@pytest.mark.parametrize("positions", [1, 255, 256, 257, 600])
def test_chunks_change_nothing(positions: int) -> None:
    generator = torch.Generator().manual_seed(positions)
    weight = torch.randn(50, 8, generator=generator)
    head = Head(weight)
    teacher = torch.randn(positions, 8, generator=generator)
    labels = torch.randint(0, 50, (positions,), generator=generator)
    ours, theirs = (teacher.clone().add_(0.3).requires_grad_() for _ in range(2))

    found = cross_entropy(ours[None] * 1.0, head, labels[None], backward=True)
    logits = theirs @ weight.T
    expected = -logits.log_softmax(-1)[torch.arange(positions), labels].mean()
    expected.backward()
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(ours.grad, theirs.grad)

    ours.grad = theirs.grad = None
    found = distillation_loss(ours * 1.0, teacher, head, backward=True)
    p = (teacher @ weight.T).softmax(-1)
    expected = (p * (p.log() - (theirs @ weight.T).log_softmax(-1))).sum(-1).mean()
    expected.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_each_window_has_its_own_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    head, hidden = Head(torch.randn(50, 8, generator=generator)), torch.randn(3, 200, 8, generator=generator)
    labels = torch.randint(0, 50, (3, 200), generator=generator)
    found = cross_entropy(hidden, head, labels, backward=False)
    alone = [torch.nn.functional.cross_entropy(x @ head.weight.T, y) for x, y in zip(hidden, labels, strict=True)]
    torch.testing.assert_close(found, torch.stack(alone).sum())


def test_without_backward_no_gradient_is_made() -> None:
    hidden = torch.ones(3, 2, requires_grad=True)
    cross_entropy(hidden[None], Head(torch.ones(4, 2)), torch.tensor([[0, 1, 2]]), backward=False)
    assert hidden.grad is None
    assert float(distillation_loss(hidden, hidden.detach(), Head(torch.ones(4, 2)), backward=False)) == pytest.approx(0)
