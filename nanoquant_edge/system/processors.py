# SPDX-License-Identifier: Apache-2.0
"""Processors that this process may use: fewer than the machine has, in containers, services and under `taskset`."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from .cgroup import processor_quota

__all__ = ["allowed_processors", "default_threads", "usable_processors"]


def allowed_processors() -> frozenset[int]:
    """Numbers of the processors on which the system may run this process (its affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_processors(root: Path = Path("/"), allowed: Collection[int] | None = None) -> int:
    """How many processors this process may keep busy at once: its affinity, and the quota of its control group.

    Args:
        root: folder that holds `proc` and `sys`; tests pass one of their own.
        allowed: numbers of processors; None takes `allowed_processors()`.

    Returns:
        At least 1. A quota of one and a half counts as two, one of 1.2 as one.
    """
    return _within_quota(len(allowed_processors() if allowed is None else allowed), root)


def default_threads(root: Path = Path("/"), allowed: Collection[int] | None = None) -> int:
    """Worker threads to start when nobody asks for a number: one a usable core, whose two halves count once.

    Args:
        root: folder that holds `proc` and `sys`.
        allowed: numbers of processors; None takes `allowed_processors()`.

    Returns:
        At least 1.

    Example:
        >>> 1 <= default_threads() <= usable_processors()
        True
    """
    numbers = allowed_processors() if allowed is None else allowed
    cores = {_siblings(number, root) for number in numbers}
    return _within_quota(len(cores), root)


def _within_quota(processors: int, root: Path) -> int:
    quota = processor_quota(root)
    return max(1, processors if quota is None else min(processors, int(quota + 0.5)))


def _siblings(number: int, root: Path) -> str:
    """The processors that share a core with one, as the system lists them; the number itself where it does not."""
    try:
        path = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        return path.read_text(encoding="ascii").strip() or str(number)
    except (OSError, ValueError):
        return str(number)
