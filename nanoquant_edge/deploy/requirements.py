# SPDX-License-Identifier: Apache-2.0
"""What the board's Python installs: exact versions, and their wheels where they are fetched now."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import NqEdgeError
from ..system.children import run_python

__all__ = ["PINS", "fetch_wheels", "requirement_lines"]

#: Direct requirements of a board that runs on its processor; newest versions that tests ran with, by Python.
#: ONNX Runtime 1.23 is the last one for Python 3.10, which JetPack 6 has.
PINS = {
    "3.10": {"onnxruntime": "1.23.2", "numpy": "2.2.6"},
    "": {"onnxruntime": "1.31.1", "numpy": "2.4.6"},
}
_COMMON = {
    "click": "8.5.1",
    "jinja2": "3.1.6",
    "packaging": "26.4",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
}


def requirement_lines(version: str, python: str, cuda: str = "") -> list[str]:
    """Lines of requirements.txt: this package, and what it needs on a board, at exact versions.

    Args:
        version: of this package.
        python: of the board, such as "3.10".
        cuda: of the board, such as "12.6", when an engine runs there; "" otherwise.
    """
    pins = {**_COMMON, **PINS.get(python, PINS[""])}
    lines = [f"nanoquant-edge=={version}", *(f"{name}=={pin}" for name, pin in sorted(pins.items()))]
    if cuda:
        # The Python binding of the board's CUDA; any patch level of its minor version will do.
        lines.append(f"cuda-python=={cuda}.*")
    return lines


def fetch_wheels(folder: Path, lines: list[str], python: str, architecture: str, glibc: int) -> list[str]:
    """Download wheels of everything for the board; this package's own is in `folder` already.

    Args:
        folder: where to.
        lines: of requirements.txt.
        python: of the board.
        architecture: of the board.
        glibc: minor version of the board's GLIBC 2.x.

    Returns:
        The names of all wheels.

    Raises:
        NqEdgeError: NQ-DEPLOY with pip's last words.
    """
    command = ["download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    command += [
        "--implementation",
        "cp",
        "--python-version",
        python,
        "--dest",
        str(folder),
        "--find-links",
        str(folder),
    ]
    command += ["--platform", f"manylinux2014_{architecture}"]
    for minor in range(17, glibc + 1):
        command += ["--platform", f"manylinux_2_{minor}_{architecture}"]
    done = run_python("pip", *command, *lines, capture_output=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: no message"]
        raise NqEdgeError(
            "NQ-DEPLOY",
            f"wheels for Python {python} on {architecture} cannot be fetched: {errors[-1][7:300].rstrip('.')}.",
            "Pass --no-wheels: the board then fetches the versions of requirements.txt itself.",
        )
    names = sorted(path.name for path in folder.glob("*.whl"))
    assert all(re.fullmatch(r"[\w.+!-]+\.whl", name) for name in names), names
    (folder / ".complete").write_text("all wheels of requirements.txt\n", encoding="utf-8")
    return names
