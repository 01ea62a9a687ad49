# SPDX-License-Identifier: Apache-2.0
"""Files that are never half written, and paths that never leave their folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from .disk import disk_trouble, exchange, lock, remove, remove_stale, scratch_prefix, sync_folder
from .output import output_path
from .written import foreign_content, mark_written

__all__ = [
    "check_new_folder",
    "new_folder",
    "path_inside",
    "read_json",
    "read_text",
    "sha256_of",
    "usual_mode",
    "write_json",
    "write_text",
]

#: Larger than any config, manifest or tokenizer.json seen (Gemma's tokenizer.json is 33 MB).
MAX_JSON_BYTES = 256 << 20


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def path_inside(folder: Path, name: str) -> Path:
    """The path of the file `name` inside `folder`: the one answer to what a name in a file from a stranger may be.

    Use the path that comes back, which was checked, and nothing joined from the name. The snapshots of the Hugging Face
    cache hold links to `blobs` beside them, which are let through.

    Raises:
        NqEdgeError: NQ-PATH when the name is absolute, empty or has a `..`, when one of its folders is a symbolic
            link, or when the file is a link to a place outside the folder.
    """
    if not _is_relative_name(name):
        raise NqEdgeError("NQ-PATH", f"{name[:200]!r} is not a file name inside {folder}.")
    if ".." in name.replace("\\", "/").split("/"):
        raise NqEdgeError("NQ-PATH", f"{name[:200]!r} has a '..' in it, which leads outside {folder}.")
    root = folder.resolve()
    try:
        above = (root / name).parent
        linked = above.resolve() != above
        target = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise NqEdgeError("NQ-PATH", f"{name!r} leads nowhere in {folder}.") from error
    if linked:
        raise NqEdgeError("NQ-PATH", f"{name!r} leads through a link to a folder in {folder}.")
    inside = target != root and root in target.parents
    cached = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not inside and not cached:
        raise NqEdgeError("NQ-PATH", f"{name!r} leads outside {folder}.")
    return target


def _is_relative_name(name: str) -> bool:
    try:
        parts = [part.encode() for part in Path(name).parts]
    except UnicodeEncodeError:  # lone surrogates, which JSON can hold
        return False
    longest = max(map(len, parts), default=0)  # file systems allow 255 bytes
    control = any(ord(letter) < 32 or ord(letter) == 127 for letter in name)  # a list of checksums has lines
    return 0 < longest <= 255 and not control and not Path(name).is_absolute()


def read_text(path: Path, code: str, most_bytes: int = MAX_JSON_BYTES) -> str:
    """A UTF-8 file, its size checked first.

    Args:
        path: the file.
        code: of every refusal.
        most_bytes: that it may have.

    Raises:
        NqEdgeError: `code` when the file is missing, too large or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise NqEdgeError(code, f"{path} has {size} bytes, more than any real file of its kind.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise NqEdgeError(code, f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise NqEdgeError(code, f"{path} is not valid UTF-8 ({error.reason}).") from error


def read_json(path: Path, code: str, most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file, its size checked first.

    Args:
        path: the file.
        code: of every refusal.
        most_bytes: that it may have.

    Raises:
        NqEdgeError: `code` when the file is missing, too large, not JSON, or not an object.
    """
    try:
        value = json.loads(read_text(path, code, most_bytes))
    except (ValueError, RecursionError) as error:
        raise NqEdgeError(code, f"{path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise NqEdgeError(code, f"{path} does not hold a JSON object.")
    return value


def usual_mode(path: Path) -> None:
    """Give a file or folder the mode that new ones get, as the umask says; `tempfile` and some libraries make private
    ones."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """This process's umask, which can be asked for without being set on Linux only; elsewhere the usual one."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented: the old file or the new one, never half; see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 under a temporary name, flush it to disk, then rename: the old file or the new one, never half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        usual_mode(Path(temporary))
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk, so that the rename that follows is safe at power loss."""
    for path in [*folder.rglob("*"), folder]:
        if os.name == "nt" and path.is_dir():  # Windows opens no folders, and flushes files opened for writing only
            continue
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_new_folder(path: Path, overwrite: bool = False) -> None:
    """Refuse an output path before the work for it begins.

    Raises:
        NqEdgeError: NQ-OUTPUT when `path` exists and `overwrite` is false, when it is, or holds, anything that this
            program did not write, or when no folder can be made there.
    """
    path = output_path(path)
    if path.exists():
        if not overwrite:
            raise NqEdgeError("NQ-OUTPUT", f"{path} exists already.")
        reason = foreign_content(path)
        if reason:
            raise NqEdgeError(
                "NQ-OUTPUT", f"{path} {reason}, so it is not replaced.", "Choose another --output, or move it away."
            )
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise NqEdgeError("NQ-OUTPUT", f"cannot write beside {path}: {above} is not a folder that can be written.")


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder beside `path` that takes its name when the block ends well, and vanishes when it does not.

    Raises:
        NqEdgeError: NQ-OUTPUT when `path` exists and `overwrite` is false, when it is, or holds, anything that this
            program did not write, or when it cannot be written.
    """
    path = output_path(path)
    check_new_folder(path, overwrite)
    held = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=scratch_prefix(path)))
        usual_mode(scratch)
        held = lock(scratch)
    except OSError as error:
        raise NqEdgeError("NQ-OUTPUT", f"cannot write beside {path}: {error.strerror}.") from error
    try:
        yield scratch
        mark_written(scratch)
        _sync_tree(scratch)
        _take_place(scratch, path)
        sync_folder(path.parent)
    except BaseException as error:
        remove(scratch)
        trouble = disk_trouble(error) if isinstance(error, Exception) else None
        if trouble is not None:
            raise NqEdgeError(
                "NQ-OUTPUT", f"cannot write {path}: {trouble.strerror}.", "Free some space, or choose another --output."
            ) from error
        raise
    finally:
        if held is not None:
            os.close(held)


def _take_place(scratch: Path, path: Path) -> None:
    """Give the finished folder its name. What stood there is swapped in one step, so that one of them always stands."""
    if not path.exists():
        scratch.rename(path)
    elif exchange(scratch, path):
        remove(scratch)
    else:
        _take_place_in_two_steps(scratch, path)


def _take_place_in_two_steps(scratch: Path, path: Path) -> None:
    """For file systems that cannot swap; what stood there comes back if the second step fails."""
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    path.rename(retired / "old")
    try:
        scratch.rename(path)
    except BaseException:
        (retired / "old").rename(path)
        retired.rmdir()
        raise
    shutil.rmtree(retired)
