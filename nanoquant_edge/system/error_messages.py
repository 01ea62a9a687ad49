# SPDX-License-Identifier: Apache-2.0
"""What the system or a library raised, as one message with a code.

An error that only a mistake of ours can cause (a `KeyError`, an `AssertionError`) is not explained: it keeps its
traceback.
"""

from __future__ import annotations

import errno
import os
import re

from ..errors import NqEdgeError, first_line, printable

__all__ = ["explained", "wants_memory"]

#: What native libraries say when memory runs out: C++, PyTorch, ONNX Runtime, CUDA, the C library.
_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|(?:cannot|can't|could not|failed to|unable to) allocate|allocation failed|"
    r"not enough memory|insufficient memory|DefaultCPUAllocator|failed to map segment",
    re.IGNORECASE,
)
#: Errors of Python itself that the system or an input causes. Others of its errors are mistakes of ours.
_CAUSED = (RuntimeError, OverflowError, EOFError, BufferError, SystemError)
#: Codes of packages and libraries that cannot be used, which is what want of memory looks like from outside.
_BLAMED = ("NQ-MISSING", "NQ-NATIVE-MISSING", "NQ-BACKEND", "NQ-CUDA")
_HINTS = {
    errno.ENOSPC: "Free some space, or choose another place to write.",
    errno.EDQUOT: "Free some space, or choose another place to write.",
    errno.EROFS: "Choose another place to write.",
    errno.EACCES: "Check the permissions of the file and of the folders above it.",
    errno.EPERM: "Check the permissions of the file and of the folders above it.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 1024.",
    errno.ENFILE: "End other programs: the machine has too many open files.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Symbolic links lead in a circle; name the file itself.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path.",
    errno.EISDIR: "Check the path.",
}


def wants_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, whichever library noticed it; causes are looked at too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if not isinstance(error, NqEdgeError) and _NO_MEMORY.search(str(error)[:4000]):
            return True
        error = error.__cause__ or error.__context__
    return False


def explained(error: BaseException) -> NqEdgeError | None:
    """The message for an error that an input, the system or a library caused.

    Args:
        error: whatever was raised.

    Returns:
        The error itself where it is one of ours, unless it blames a library for want of memory; None for a mistake in
        this package, an exit or an interruption.

    Example:
        >>> explained(OSError(28, "No space left on device", "model.onnx")).message
        'model.onnx: No space left on device.'
        >>> explained(KeyError("ours")) is None
        True
    """
    if isinstance(error, NqEdgeError):
        blamed = error.code in _BLAMED and wants_memory(error.__cause__)
        return NqEdgeError("NQ-MEMORY", f"memory ran out: {error.message}") if blamed else error
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return None
    if (isinstance(error, MemoryError | OSError | RuntimeError | ImportError) or _is_foreign(error)) and wants_memory(
        error
    ):
        return NqEdgeError("NQ-MEMORY", f"memory ran out: {first_line(error)}." if str(error) else "memory ran out.")
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeError):
        encoding = getattr(error, "encoding", "this encoding")
        return NqEdgeError(
            "NQ-SYSTEM",
            f"a text cannot be read or written as {encoding}: {getattr(error, 'reason', None) or first_line(error)}.",
            "Use UTF-8: for files, for names of folders, and for the terminal (PYTHONIOENCODING=utf-8).",
        )
    if isinstance(error, RecursionError):
        return NqEdgeError("NQ-SYSTEM", "an input is nested too deeply to be read.")
    if isinstance(error, ImportError):
        return NqEdgeError(
            "NQ-MISSING",
            f"a package is missing or cannot be loaded: {first_line(error)}.",
            "nq-edge doctor says what is here and what to install.",
        )
    if isinstance(error, _CAUSED):
        return NqEdgeError("NQ-SYSTEM", f"{first_line(error)}.")
    if _is_foreign(error):
        library = type(error).__module__.split(".")[0]
        return NqEdgeError("NQ-SYSTEM", f"{library} failed: {first_line(error)}.")
    return None


def _is_foreign(error: BaseException) -> bool:
    """Whether a library made the error's type. Rust's panics are no `Exception`, and each library has its own type."""
    module = type(error).__module__
    return module == "pyo3_runtime" or (isinstance(error, Exception) and module not in ("builtins", "__main__"))


def _of_system(error: OSError) -> NqEdgeError:
    reason = error.strerror or first_line(error)
    name = error.filename if error.filename is not None else error.filename2
    if name is None or isinstance(name, int):
        return NqEdgeError("NQ-SYSTEM", f"{reason}.", _HINTS.get(error.errno or 0))
    shown = printable(os.fsdecode(name) if isinstance(name, str | bytes) else str(name))
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return NqEdgeError("NQ-SYSTEM", f"{shown}: {reason}.", _HINTS.get(error.errno or 0))
