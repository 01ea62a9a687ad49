# SPDX-License-Identifier: Apache-2.0
"""Parts of parts of a step, as fractions of the whole."""

from __future__ import annotations

import pytest

from nanoquant_edge.system.progress import Progress


def test_a_part_of_a_part_is_told_as_a_fraction_of_the_whole() -> None:
    shown: list[tuple[float, str]] = []
    whole = Progress(lambda fraction, text: shown.append((fraction, text)))
    blocks = whole.part(0.2, 0.8, "blocks: ")
    blocks.part(0.5, 1.0, "second: ")(0.5, "tuning")
    assert shown == [(pytest.approx(0.2 + 0.6 * 0.75), "blocks: second: tuning")]


def test_nothing_is_shown_by_default() -> None:
    Progress()(0.5, "quietly")


def test_any_function_can_be_told() -> None:
    shown: list[float] = []
    told = Progress.to(lambda fraction, _text: shown.append(fraction))
    told.part(0.5, 1.0)(0.5, "")
    assert shown == [0.75]
    part = told.part(0.0, 0.5)
    assert Progress.to(part) is part
    Progress.to(None)(0.5, "quietly")
    assert shown == [0.75]
