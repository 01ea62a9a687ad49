# SPDX-License-Identifier: Apache-2.0
"""Memory, as the system itself tells it: what this process takes, what is free, and giving freed memory back."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

from .cgroup import memory_headroom

__all__ = [
    "memory_available",
    "peak_memory_mb",
    "private_memory_mb",
    "resident_memory_mb",
    "return_freed_memory",
]


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


def private_memory_mb() -> float:
    """Resident memory without pages that are mapped from files, in MB (10^6 bytes); 0 where the system cannot tell."""
    return _status_mb("RssAnon:")


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


def memory_available(root: Path = Path("/"), address_space: int | None = None) -> int | None:
    """Bytes of memory that this process can still take.

    The least of what the machine has left (`MemAvailable`), what the limit of the control group leaves, and what the
    limit of the address space (`ulimit -v`) leaves.

    Args:
        root: folder that holds `proc` and `sys`; tests pass one of their own.
        address_space: most bytes of address space; None asks the system.

    Returns:
        None where the system does not tell (it is not Linux).
    """
    limit = _address_space_limit() if address_space is None else address_space
    left = None if limit is None else max(0, limit - int(_status_mb("VmSize:") * 1e6))
    return _least(_meminfo("MemAvailable:", root), memory_headroom(root), left)


def _least(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def _address_space_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _meminfo(field: str, root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None
