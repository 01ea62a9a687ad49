# SPDX-License-Identifier: Apache-2.0
"""What a finished folder needs from the file system: a name taken in one step, names that survive power loss, and an
errno out of whatever a library raised."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import sys
from pathlib import Path

__all__ = ["disk_trouble", "exchange", "lock", "remove", "remove_stale", "scratch_prefix", "sync_folder"]

#: Writing failed for want of room, rights or a working disk; nothing that this program could do better.
_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, so that neither is missing at any moment.

    Returns:
        False where this system or file system cannot (Linux's renameat2 can, on the usual ones).
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return done == 0


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk. Until then a rename may be undone by power loss."""
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_trouble(error: BaseException | None) -> OSError | None:
    """The disk's part in an error: itself, what caused it, or the number that native code wrote into its message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _TROUBLE:
            return error
        found = re.search(r"\(os error (\d+)\)", str(error))  # Rust's standard library, in safetensors
        if found and int(found[1]) in _TROUBLE:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or error.__context__
    return None


def remove(path: Path) -> None:
    """Remove a folder, or a link to one, as far as that goes."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def lock(folder: Path) -> int | None:
    """Mark a folder as in use until the descriptor is closed, at the latest when this process ends.

    Returns:
        A descriptor to close; None where folders cannot be locked (Windows, some network file systems).

    Raises:
        BlockingIOError: when another process, or another part of this one, holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def scratch_prefix(path: Path) -> str:
    """Beginning of the names of scratch folders for `path`; eight random letters follow. Nobody else's names do so."""
    return f".{path.name}.nq-edge-"


def remove_stale(path: Path) -> None:
    """Remove scratch folders of `path` that killed runs left behind: those that no process holds a lock on."""
    for left in path.parent.glob(glob.escape(scratch_prefix(path)) + "????????"):
        if not left.is_dir() or left.is_symlink():
            continue
        with contextlib.suppress(BlockingIOError):
            if (held := lock(left)) is not None:
                remove(left)
                os.close(held)
