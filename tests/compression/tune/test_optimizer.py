# SPDX-License-Identifier: Apache-2.0
"""The shared training loop: schedule, sample order, and undoing what is not finite."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nanoquant_edge.compression.tune.optimizer import Cosine, Outcome, ParameterGroup, Tuner
from nanoquant_edge.system.progress import Progress


def train(
    group: ParameterGroup,
    step_loss: Callable[[Tensor], Tensor],
    *,
    samples: int,
    batch: int,
    epochs: int,
    **options: Any,
) -> Outcome:
    """Tune one group once."""
    seed = options.pop("seed", 0)
    return Tuner([group], batch, step_loss, **options).run(samples, epochs, seed)


def quadratic(x: Tensor, targets: Tensor, seen: list[list[int]] | None = None):  # type: ignore[no-untyped-def]
    def step_loss(chosen: Tensor) -> Tensor:
        if seen is not None:
            seen.append(chosen.tolist())
        loss = (x - targets[chosen]).square().sum(-1).mean()
        loss.backward()
        return loss.detach()

    return step_loss


def test_the_loss_falls_and_is_a_mean_over_samples() -> None:
    x, targets = torch.zeros(3), torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) + 4
    start = float((x - targets).square().sum(-1).mean())
    outcome = train(ParameterGroup([x], 0.0), quadratic(x, targets), samples=5, batch=2, epochs=1)
    assert outcome.first == outcome.last == pytest.approx(start)  # uneven last batch weighted by its size
    outcome = train(ParameterGroup([x], 0.3), quadratic(x, targets), samples=5, batch=2, epochs=30)
    assert outcome.last < 0.2 * outcome.first
    assert not outcome.undone
    assert not x.requires_grad
    assert x.grad is None


def test_each_epoch_is_a_new_permutation_of_all_samples_that_the_seed_fixes() -> None:
    def order(seed: int) -> list[list[int]]:
        x, seen = torch.zeros(1), []
        step_loss = quadratic(x, torch.ones(7, 1), seen)
        train(ParameterGroup([x], 0.1), step_loss, samples=7, batch=3, epochs=2, seed=seed)
        return seen

    first = order(3)
    assert [len(batch) for batch in first] == [3, 3, 1, 3, 3, 1]
    for epoch in (first[:3], first[3:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(7))
    assert first[:3] != first[3:]
    assert order(3) == first
    assert order(4) != first


@pytest.mark.parametrize(("final_fraction", "relative"), [(1e-4, False), (0.0, False), (1e-4, True)])
def test_the_rate_follows_a_cosine(final_fraction: float, relative: bool) -> None:
    # With a constant gradient Adam moves by the learning rate itself in every step.
    x = torch.full((1,), 100.0, dtype=torch.float64)
    values = [100.0]

    def step_loss(_chosen: Tensor) -> Tensor:
        values.append(float(x.detach()))
        loss = 1e3 * x.sum()
        loss.backward()
        return loss.detach()

    group = ParameterGroup([x], 0.01, relative)
    train(group, step_loss, samples=1, batch=1, epochs=10, decay=Cosine(final_fraction))
    moves = [a - b for a, b in zip(values[1:], [*values[2:], float(x)], strict=True)]
    base = 1.0 if relative else 0.01  # relative: times the tensor's root mean square at the start
    cosine = [final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    assert moves == pytest.approx([base * c for c in cosine], rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_loss_that_is_not_finite_undoes_its_epoch_and_ends_the_stage(bad: float, at: int) -> None:
    targets = torch.ones(4, 3)

    def tuned(epochs: int, fail_at: int) -> tuple[Outcome, Tensor]:
        x, calls = torch.zeros(3), iter(range(100))
        inner = quadratic(x, targets)

        def step_loss(chosen: Tensor) -> Tensor:
            loss = inner(chosen)
            return loss * bad if next(calls) == fail_at else loss

        # A constant rate, so that two epochs of four are the same as two of two.
        group = ParameterGroup([x], 0.1)
        return train(group, step_loss, samples=4, batch=2, epochs=epochs, decay=Cosine(1.0)), x

    outcome, x = tuned(4, at)
    assert outcome.undone
    assert not x.requires_grad
    good, expected = tuned(at // 2, -1)  # two steps an epoch
    assert torch.equal(x, expected)
    assert math.isnan(outcome.last) if at < 2 else outcome.last == good.last


def test_moments_that_are_not_finite_undo_an_epoch_even_when_the_values_are_finite() -> None:
    x = torch.ones(2)

    def step_loss(_chosen: Tensor) -> Tensor:
        (1e30 * x).sum().backward()  # its square overflows the second moment, and the update becomes 0
        return torch.zeros(())

    outcome = train(ParameterGroup([x], 0.1), step_loss, samples=1, batch=1, epochs=1)
    assert outcome.undone
    assert x.tolist() == [1, 1]


def test_a_tuner_runs_again_on_new_values_as_if_it_were_new() -> None:
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(3)
    tuner = Tuner([ParameterGroup([x], 0.1, relative=True)], 2, quadratic(x, targets))
    for start, seed in ((1.0, 0), (2.0, 1)):
        x.fill_(start)
        outcome = tuner.run(5, 3, seed)
        fresh = torch.full((3,), start)
        group = ParameterGroup([fresh], 0.1, True)
        expected = train(group, quadratic(fresh, targets), samples=5, batch=2, epochs=3, seed=seed)
        assert torch.equal(x, fresh)
        assert outcome == expected


def test_a_gradient_that_is_not_finite_undoes_everything() -> None:
    x = torch.ones(2)

    def step_loss(_chosen: Tensor) -> Tensor:
        x.sum().backward()
        x.grad[0] = math.nan
        return torch.zeros(())

    assert train(ParameterGroup([x], 0.1), step_loss, samples=1, batch=1, epochs=1).undone
    assert x.tolist() == [1, 1]


def test_a_finished_stage_frees_its_memory_at_once() -> None:
    gc.disable()
    try:
        x = torch.zeros(3)
        tuner = Tuner([ParameterGroup([x], 0.1)], 2, quadratic(x, torch.ones(4, 3)))
        tuner.run(4, 1, 0)
        seen = weakref.ref(tuner)
        tuner.close()
        del tuner
        assert seen() is None
    finally:
        gc.enable()


def test_no_epochs_do_nothing() -> None:
    x = torch.ones(2)
    outcome = train(ParameterGroup([x], 0.1), lambda _chosen: x / 0, samples=4, batch=2, epochs=0)
    assert math.isnan(outcome.first)
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("relative", [False, True])
def test_tensors_in_parts_are_tuned_as_whole_ones(relative: bool) -> None:
    def tuned(parts_of: Callable[[Tensor], list[Tensor]] | None) -> tuple[Tensor, Outcome]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(24, 50, generator=generator)
        targets = torch.randn(6, 24, 50, generator=generator)
        group = ParameterGroup([x], 0.01, relative)
        return x, train(group, quadratic(x, targets), samples=6, batch=2, epochs=3, parts_of=parts_of)

    whole, expected = tuned(None)
    parts, found = tuned(lambda tensor: list(tensor.detach().view(-1).split(500)))
    assert torch.equal(parts, whole)
    assert found == expected


def test_progress_is_told_after_every_step() -> None:
    x, seen = torch.zeros(3), []
    tuner = Tuner([ParameterGroup([x], 0.1)], 2, quadratic(x, torch.ones(3, 3)))
    tuner.run(3, 2, 0, Progress(lambda fraction, _text: seen.append(fraction)))
    assert seen == [0.25, 0.5, 0.75, 1.0]
