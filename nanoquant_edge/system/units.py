# SPDX-License-Identifier: Apache-2.0
"""Sizes and rates in words, for people."""

from __future__ import annotations

__all__ = ["bits_text", "size_text"]


def size_text(size: float) -> str:
    """Bytes for people, in units of 1000.

    Example:
        >>> size_text(45_320_000)
        '45.3 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.{0 if size >= 100 else 1}f} {unit}"
        size /= 1000
    raise AssertionError


def bits_text(rate: float) -> str:
    """A rate for people.

    Example:
        >>> bits_text(1.0), bits_text(0.55)
        ('1 bit per weight', '0.55 bits per weight')
    """
    return f"{rate:.4g} {'bit' if rate == 1 else 'bits'} per weight"
