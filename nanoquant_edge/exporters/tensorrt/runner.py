# SPDX-License-Identifier: Apache-2.0
"""Runs the compiler in a child process: its progress, its error, or what became of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import CATALOGUE, NqEdgeError
from ...system.children import NEUTRAL_FOLDER, child_environment, python_command
from ...system.progress import Progress

__all__ = ["COMPILER", "compiler_environment", "run_compiler"]

#: What the child runs.
COMPILER = tuple(python_command("nanoquant_edge.exporters.tensorrt.compile"))
_STDERR_BYTES = 2000


def run_compiler(
    folder: Path,
    output: Path,
    *,
    library: Path,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = COMPILER,
) -> dict[str, Any]:
    """Compile the graph of a folder; see `compile.compile_graph` for the result.

    Args:
        folder: holds the graph and its plan.
        output: engine file to write.
        library: the plugin.
        timing_cache: file of measured kernel times.
        progress: told how far it is.
        command: program that compiles: it reads a request and reports events as `compile` does.

    Raises:
        NqEdgeError: what the compiler reported; NQ-FIT when it was killed, NQ-ENGINE when it died otherwise.
    """
    request = {
        "folder": str(folder.absolute()),
        "output": str(output.absolute()),
        "library": str(library.absolute()),
        "timing_cache": None if timing_cache is None else str(timing_cache.absolute()),
    }
    with compiler_environment() as environment, tempfile.TemporaryFile() as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, env=environment, cwd=NEUTRAL_FOLDER, encoding="utf-8", **pipes) as child:
            try:
                result = _converse(child, request, progress or Progress())
                status = child.wait()
            finally:
                if child.poll() is None:
                    child.kill()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _STDERR_BYTES))
        words = " ".join(errors.read().decode("utf-8", "replace").split())[-600:]
    if result is not None and status == 0 and output.is_file():
        result.pop("event")
        return result
    raise _death(status, words)


def _converse(child: subprocess.Popen[str], request: dict[str, Any], progress: Progress) -> dict[str, Any] | None:
    """Ask the compiler, and listen until it ends; returns what it reported at last.

    Raises:
        NqEdgeError: what the compiler reported.
    """
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its status tells
        child.stdin.write(json.dumps(request))
        child.stdin.close()
    result, phases = None, _Phases()
    for line in child.stdout:
        entry = _parse(line)
        if entry.get("event") == "done":
            result = entry
        elif entry.get("event") == "error" and entry.get("code") in CATALOGUE:
            child.wait()
            raise NqEdgeError(entry["code"], str(entry["message"]), entry.get("hint"))
        else:
            progress(phases.fraction(entry), phases.text)
    return result


def _death(status: int, words: str) -> NqEdgeError:
    if status == -signal.SIGKILL:
        return NqEdgeError(
            "NQ-FIT",
            "the builder was killed, most likely because memory ran out.",
            "End other programs, add swap space, or use a smaller --capacity or --prefill.",
        )
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return NqEdgeError(
        "NQ-ENGINE",
        f"the builder {how} and wrote no engine: {words or 'it said nothing'}",
        "Check that TensorRT and the plugin library belong together; otherwise report this message.",
    )


def _parse(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


class _Phases:
    """One fraction from the builder's nested phases: the outermost phase counts, inner ones move it a little."""

    def __init__(self) -> None:
        self.text = "parsing"
        self._outer = ""
        self._done = self._of = 0
        self._shown = 0.0

    def fraction(self, entry: dict[str, Any]) -> float:
        name, done, of = (entry.get(key) for key in ("name", "done", "of"))
        if not isinstance(name, str) or not isinstance(done, int) or not isinstance(of, int):
            return self._shown
        if not self._outer or (entry.get("parent") == "" and done == 0):
            self._outer = name
        self.text = f"building: {name}"
        if name == self._outer:
            self._done, self._of = done, of
            inner = 0.0
        else:
            inner = done / of if of else 0.0
        if self._of:
            self._shown = max(self._shown, min(1.0, (self._done + min(inner, 0.99)) / self._of))
        return self._shown


@contextlib.contextmanager
def compiler_environment() -> Iterator[dict[str, str]]:
    """Environment of the compiler.

    At the first plugin node TensorRT for RTX's parser opens the library by its unversioned name, which the wheel does
    not contain, and the process aborts. A link of that name in a folder of ours, on the library path, mends it.
    """
    environment = child_environment()
    with tempfile.TemporaryDirectory(prefix="nq-edge-") as links:
        library = _rtx_library()
        if library is not None:
            (Path(links) / "libtensorrt_rtx.so").symlink_to(library)
            old = environment.get("LD_LIBRARY_PATH", "")
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(part for part in (links, old) if part)
        yield environment


def _rtx_library() -> Path | None:
    """The wheel's library with the version in its name."""
    try:
        found = importlib.util.find_spec("tensorrt_rtx_libs")
    except (ImportError, ValueError):
        return None
    folders = list(found.submodule_search_locations or []) if found is not None else []
    matches = [path for folder in folders for path in sorted(Path(folder).glob("libtensorrt_rtx.so.*"))]
    return matches[0] if matches else None
