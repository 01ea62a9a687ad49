# SPDX-License-Identifier: Apache-2.0
"""Memory, as the system itself tells it: what this process takes, what is free, and giving freed memory back."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

__all__ = ["memory_available", "peak_memory_mb", "resident_memory_mb", "return_freed_memory"]


def peak_memory_mb() -> float:
    """Most memory that was resident since the process began, in MB (10^6 bytes); 0 where the system cannot tell.

    Linux's VmHWM first: its getrusage figure is inherited from the parent process.
    """
    if found := _status_mb("VmHWM:"):
        return found
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resident_memory_mb() -> float:
    """Resident memory of this process now, in MB (10^6 bytes); 0 where the system cannot tell."""
    return _status_mb("VmRSS:")


def _status_mb(field: str) -> float:
    """A field of Linux's process status, in MB; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def return_freed_memory() -> None:
    """Give freed memory back to the system where the C library keeps it (glibc); elsewhere nothing is needed."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_available() -> int | None:
    """Bytes of host memory that a new process can take (Linux, `MemAvailable`); None where that is not told."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
