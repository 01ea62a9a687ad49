# SPDX-License-Identifier: Apache-2.0
"""Versions of many origins, by their numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.system.versions import release


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.23.2", (1, 23, 2)),
        ("1.23.2+cpu", (1, 23, 2)),
        ("1.24rc1", (1, 24)),  # and not 241
        ("1.24.0.dev20250101003", (1, 24, 0)),
        ("1.7.1.116", (1, 7, 1, 116)),
        ("10.3.0.26-1+cuda12.5", (10, 3, 0, 26)),
        ("", ()),
        ("newest", ()),
        ("²", ()),
        ("1" * 5000, ()),
    ],
)
def test_only_the_numbers_count(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers


@given(st.text())
def test_no_text_is_an_error(version: str) -> None:
    assert all(type(number) is int for number in release(version))
