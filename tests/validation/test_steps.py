# SPDX-License-Identifier: Apache-2.0
"""Rules of the steps that a healthy bundle never exercises, on a backend made for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanoquant_edge.system.progress import Progress
from nanoquant_edge.validation.expected import ExpectedGreedy, ExpectedWindow
from nanoquant_edge.validation.steps import LIMITS, compare_greedy, compare_layers, compare_logits

VOCABULARY = 12


class _Scripted:
    """Says the same token (favourite) at each step; `nan` spoils its logits."""

    vocab_size = VOCABULARY

    def __init__(self, favourite: int, nan: bool = False, extra: dict[str, np.ndarray] | None = None) -> None:
        self.row = np.zeros(VOCABULARY, np.float32)
        self.row[favourite] = 5
        if nan:
            self.row[0] = np.nan
        self.extra = extra or {}
        self.fed: list[list[int]] = []

    def reset(self) -> None:
        self.fed.append([])

    def forward(self, ids: np.ndarray, positions: np.ndarray | None = None, lengths: Any = None) -> np.ndarray:
        self.fed[-1] += ids[0].tolist()
        count = 1 if positions is None else positions.shape[1]
        return np.tile(self.row, (1, count, 1))


class _Reference:
    origin, text, inner_tokens = "torch", "", 2

    def __init__(self, windows: int = 2, gap: float = 0.1) -> None:
        self.windows = np.full((windows, 6), 3)
        self.gap = gap

    def greedy(self) -> list[ExpectedGreedy]:
        return [ExpectedGreedy(np.array([1, 2]), np.array([3, 4, 3]), np.array([9, self.gap, 9], np.float32))]

    def window(self, index: int) -> ExpectedWindow:
        row = _Scripted(3).row
        logits = np.tile(row, (6, 1))
        log_sum = np.full(6, np.log(np.exp(row.astype(float)).sum()))
        loss = float(log_sum[0] - 5)
        top = np.argsort(-logits, axis=-1, kind="stable")[:, :2]
        return ExpectedWindow(loss, top, np.take_along_axis(logits, top, -1), log_sum, np.arange(6), logits)


def test_a_near_tie_is_forgiven_and_the_reference_goes_on() -> None:
    backend = _Scripted(3)
    step = compare_greedy(backend, _Reference(gap=0.1), 0.2)  # type: ignore[arg-type]
    assert step.status == "pass"
    assert (step.figures["near ties"], step.figures["different"]) == (1, 0)
    assert backend.fed == [[1, 2, 3, 4]]  # the reference's 4, not the backend's 3


@pytest.mark.parametrize(("gap", "allowance"), [(0.3, 0.2), (0.2, 0.2), (0.1, 0.0)])
def test_other_differences_are_not(gap: float, allowance: float) -> None:
    step = compare_greedy(_Scripted(3), _Reference(gap=gap), np.float32(allowance).item())  # type: ignore[arg-type]
    assert step.status == "fail"
    assert step.note == "prompt 0, token 1: 3 instead of 4"


def test_nan_is_no_choice() -> None:
    step = compare_greedy(_Scripted(3, nan=True), _Reference(), 1e9)  # type: ignore[arg-type]
    assert step.status == "fail"
    assert step.figures["different"] == 3


def test_nan_fails_the_logits() -> None:
    found = compare_logits(
        _Scripted(3, nan=True),  # type: ignore[arg-type]
        _Reference(),
        limits=LIMITS["float32"],
        progress=Progress(),
    )
    assert found.logits.status == found.perplexity.status == "fail"


@pytest.mark.parametrize(("favourite", "status"), [(3, "skipped"), (4, "fail")])
def test_a_short_run_can_fail_but_not_pass(favourite: int, status: str) -> None:
    found = compare_logits(
        _Scripted(favourite),  # type: ignore[arg-type]
        _Reference(),
        limits=LIMITS["float32"],
        progress=Progress(),
    )
    assert found.logits.status == found.perplexity.status == status
    assert found.details.kl.shape == found.details.same.shape == _Reference().windows.shape


def test_inner_values_are_optional_but_never_silently() -> None:
    found = compare_layers(
        _Scripted(3),  # type: ignore[arg-type]
        np.zeros(2, np.int64),
        expected={},
        limits=LIMITS["float32"],
    )
    assert (found.step.status, found.first) == ("skipped", None)
    assert "no inner values" in found.step.note


def test_the_first_difference_in_order_is_named() -> None:
    good = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    extra = {"b.output": good[None], "c.output": good[None] + 1, "a.output": good[None] * np.nan}
    expected = {"b.output": good, "c.output": good, "a.output": good}
    found = compare_layers(
        _Scripted(3, extra=extra),  # type: ignore[arg-type]
        np.zeros(2, np.int64),
        expected=expected,
        limits=LIMITS["float16"],
    )
    assert (found.step.status, found.first) == ("fail", "c")
    assert found.step.figures["differing"] == 2
    assert not found.step.figures["largest error"] <= 1e9
    assert list(found.errors) == list(expected)
    assert found.errors["b.output"].error == 0
