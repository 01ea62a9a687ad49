# SPDX-License-Identifier: Apache-2.0
"""Versions of programs and libraries, compared by their numbers."""

from __future__ import annotations

from packaging.version import Version

__all__ = ["release"]


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version; what follows them (rc1, .dev3, +cpu) is left out.

    Args:
        version: text of any origin.

    Returns:
        The numbers, or () when the text is no version at all.

    Example:
        >>> release("1.23.2+cpu") < release("1.31")
        True
    """
    try:
        return Version(version).release
    except ValueError:  # InvalidVersion, or a number of thousands of digits
        return ()
