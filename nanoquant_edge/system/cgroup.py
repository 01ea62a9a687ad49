# SPDX-License-Identifier: Apache-2.0
"""What the control group of this process is allowed, which containers and service managers set (Linux).

Version 2 keeps all controllers in one tree, version 1 one tree a controller; both are read, since machines mount them
side by side. A limit of a group holds for the groups inside of it, so the path is followed up to the root of the mount.
In a container the path in `/proc/self/cgroup` may name folders of the host that are not there: those are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["memory_headroom", "memory_limit", "processor_quota"]

#: Version 1 writes a number of about 2^63 where there is no limit.
_UNLIMITED = 1 << 60


def processor_quota(root: Path = Path("/")) -> float | None:
    """Processors whose time this process may use, such as 1.5; None without a quota.

    Args:
        root: folder that holds `proc` and `sys`; tests pass one of their own.
    """
    quotas = []
    for folder, version in _folders("cpu", root):
        if version == 2:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        share, length = _number(quota), _number(period)
        if share and length:
            quotas.append(share / length)
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process and its group may take; None without a limit.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    return min((limit for limit, _folder, _version in _limits(root)), default=None)


def memory_headroom(root: Path = Path("/")) -> int | None:
    """Bytes that the group may still take; None without a limit. Cached files count as free: the system drops them.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    left = []
    for limit, folder, version in _limits(root):
        used = _number(_read(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes"))) or 0
        field = "inactive_file" if version == 2 else "total_inactive_file"
        lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
        cached = next((_number(line[1]) or 0 for line in lines if len(line) == 2 and line[0] == field), 0)
        left.append(max(0, limit - max(0, used - cached)))
    return min(left, default=None)


def _limits(root: Path) -> Iterator[tuple[int, Path, int]]:
    """Limits of memory, the folder that each is from, and the version of its tree."""
    for folder, version in _folders("memory", root):
        for name in ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",):
            limit = _number(_read(folder / name))
            if limit is not None and 0 < limit < _UNLIMITED:
                yield limit, folder, version


def _folders(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Folders of this process's groups with a controller, from the innermost to the mount, and the tree's version."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            folders = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            version = 2
        elif controller in names.split(","):
            folders = [root / "sys/fs/cgroup" / names, root / "sys/fs/cgroup" / controller]
            version = 1
        else:
            continue
        mount = next((folder for folder in folders if folder.is_dir()), None)
        inside = PurePosixPath("/") / path
        if mount is None or ".." in inside.parts:
            continue
        for group in (inside, *inside.parents):
            yield mount / group.relative_to("/"), version


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
