# SPDX-License-Identifier: Apache-2.0
"""The figures against their definitions, and against NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nanoquant_edge.validation.compare import LogitFigures, inner_error, next_token_loss


def _logits(seed: int, rows: int = 70, width: int = 50) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal((rows, width))).astype(np.float32)


def test_whole_rows_against_torch() -> None:
    a, b = _logits(0), _logits(0) + 0.1 * _logits(1)
    figures = LogitFigures()
    figures.add(a[:30], b[:30])
    figures.add(a[30:], b[30:])
    p, q = torch.from_numpy(a).double(), torch.from_numpy(b).double()
    kl = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert figures.positions == 70
    assert figures.kl == pytest.approx(kl.mean().item(), rel=1e-12)
    assert figures.kl_max == pytest.approx(kl.max().item(), rel=1e-12)
    assert figures.top1 == (p.argmax(-1) == q.argmax(-1)).double().mean().item() < 1
    assert figures.cosine_min == pytest.approx(torch.cosine_similarity(p, q).min().item(), rel=1e-12)
    assert figures.max_error == pytest.approx(np.abs(a.astype(float) - b).max(), rel=1e-6)


def test_equal_logits_are_perfect() -> None:
    figures = LogitFigures()
    figures.add(_logits(0), _logits(0))
    assert (figures.kl_sum, figures.max_error, figures.top1) == (0, 0, 1)
    assert figures.cosine_min == pytest.approx(1, abs=1e-15)


def _add_top(figures: LogitFigures, a: np.ndarray, b: np.ndarray, k: int) -> None:
    ids = np.argsort(-a, axis=-1)[:, :k]
    log_sum = torch.from_numpy(a).double().logsumexp(-1).numpy()
    figures.add_top(ids, np.take_along_axis(a, ids, -1), log_sum=log_sum, found=b)


def test_top_tokens_bound_the_kl_from_below() -> None:
    a, b = _logits(0), _logits(0) + 0.1 * _logits(1)
    whole, bounds = LogitFigures(), []
    whole.add(a, b)
    for k in (1, 8, 50):
        part = LogitFigures()
        _add_top(part, a, b, k)
        assert part.top1 == whole.top1
        bounds.append(part.kl)
    assert bounds[0] < bounds[1] < bounds[2] == pytest.approx(whole.kl, rel=1e-9)
    assert bounds[0] > 0
    assert part.max_error == pytest.approx(whole.max_error)


def test_top_tokens_see_mass_that_leaves_them() -> None:
    a = np.zeros((1, 50), np.float32)
    a[0, :8] = 10
    b = a.copy()
    b[0, 30] = 14
    part = LogitFigures()
    _add_top(part, a, b, 8)
    assert part.kl > 1
    assert part.top1 == 0
    assert part.max_error == 0  # the known tokens themselves agree


@pytest.mark.parametrize("row", [0, 69])
def test_nan_is_never_good(row: int) -> None:
    a, b = _logits(0), _logits(0)
    b[row, 3] = np.nan
    whole, part = LogitFigures(), LogitFigures()
    whole.add(a, b)
    _add_top(part, a, b, 8)
    for figures in (whole, part):
        assert not figures.kl <= 1e9
    assert not whole.cosine_min >= -2
    assert not whole.max_error <= 1e9


def test_no_positions() -> None:
    assert math.isnan(LogitFigures().kl)
    assert math.isnan(LogitFigures().top1)


def test_inner_error() -> None:
    a = np.random.default_rng(0).standard_normal((20, 400)).astype(np.float32)
    assert inner_error(a, a).error == 0
    b = a.copy()
    b[:, 7] *= 1.5
    seen = inner_error(a, b)
    assert seen.channel == pytest.approx(0.5, rel=1e-6)
    assert seen.error == pytest.approx(0.5 * np.linalg.norm(a[:, 7]) / np.linalg.norm(a), rel=1e-6)
    assert seen.error < 0.05
    quiet = np.ones((4, 10), np.float32)
    quiet[:, 0] = 0
    louder = quiet.copy()
    louder[:, 0] = 0.01
    assert 0.05 < inner_error(quiet, louder).channel < 0.2


def test_inner_error_of_nothing_and_nan() -> None:
    zero = np.zeros((2, 3), np.float32)
    assert inner_error(zero, zero).channel == 0
    assert inner_error(zero, zero + 1).error == math.inf
    assert inner_error(zero, np.zeros((3, 3), np.float32)).error == math.inf
    spoiled = np.ones((2, 3), np.float32)
    spoiled[0, 0] = np.nan
    assert not inner_error(np.ones((2, 3), np.float32), spoiled).channel <= 1e9


def test_loss() -> None:
    logits, targets = _logits(0), np.arange(70) % 50
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="sum"
    )
    assert next_token_loss(logits, targets) == pytest.approx(expected.item(), rel=1e-12)
    assert next_token_loss(logits[:0], targets[:0]) == 0
