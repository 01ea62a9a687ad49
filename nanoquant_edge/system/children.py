# SPDX-License-Identifier: Apache-2.0
"""Python programs that we start: none of them imports from the folder in which the user, or a model, happens to be.

`python -m` and `python -c` put the working folder in front of the library, so that a `json.py` beside a model would
run. `-P` helps from Python 3.11 on only, and `-I` alone forgets the folders that this process was told to import from.
So a child is isolated, gets this process's import path without the working folder, and begins in the root of the file
system.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["NEUTRAL_FOLDER", "child_environment", "import_path", "python_command", "run_python"]

#: Where children begin: nobody but the administrator writes there.
NEUTRAL_FOLDER = Path(Path(sys.executable).anchor or "/")
#: Variables that may hold a relative path, which means the user's folder, not the child's.
_PATHS = ("NQ_EDGE_NATIVE_DIR",)
#: What the child runs first: its import path, then the module as `python -m` runs it. PyPI's pip is a module too.
_BEGIN = (
    "import sys; import json; sys.path[:] = json.loads(sys.argv.pop(1)); name = sys.argv.pop(1); import runpy; "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str | Path) -> list[str]:
    """The command line that runs a module in an isolated Python, as `python -m MODULE ARGUMENTS` would.

    Start it in `NEUTRAL_FOLDER` with `child_environment()`, and make paths among the arguments absolute.

    Args:
        module: dotted name, such as "nanoquant_edge" or "pip".
        arguments: arguments of the program.
    """
    return [sys.executable, "-I", "-c", _BEGIN, json.dumps(import_path()), module, *map(str, arguments)]


def import_path() -> list[str]:
    """Folders that a child imports from: this process's, but for the working folder; this package's at the very end."""
    root = str(Path(__file__).resolve().parents[2])
    found = [entry for entry in sys.path if Path(entry).is_absolute() and not _is_working_folder(entry)]
    return [*(entry for entry in found if entry != root), root]


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child that begins in another folder.

    Args:
        changes: variables to set besides.
    """
    environment = dict(os.environ)
    for name in _PATHS:
        if environment.get(name):
            environment[name] = str(Path(environment[name]).resolve())
    return {**environment, **(changes or {})}


def run_python(module: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a module in an isolated Python and wait for it.

    Args:
        module: dotted name.
        arguments: arguments of the program; paths must be absolute.
        options: further ones of `subprocess.run`, such as `capture_output` or `timeout`.

    Returns:
        The finished process, its output as text.

    Example:
        >>> run_python("pip", "--version", capture_output=True).returncode
        0
    """
    options = {"cwd": NEUTRAL_FOLDER, "env": child_environment(), "text": True, "errors": "replace", **options}
    return subprocess.run(python_command(module, *arguments), check=False, **options)


def _is_working_folder(entry: str) -> bool:
    try:
        return Path(entry).samefile(Path.cwd())
    except OSError:  # one of them is gone
        return False
