# SPDX-License-Identifier: Apache-2.0
"""What the board's Python installs: exact versions, and their wheels where they are fetched now.

A wheel that travels along is named with its hash, so that no index can put another of the same name and version in its
place. This package itself is never looked up on an index.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import NqEdgeError
from ..system.children import run_python
from ..system.files import sha256_of

__all__ = ["PINS", "fetch_wheels", "hashed_lines", "index_lines", "write_page"]

#: Direct requirements of a board that runs on its processor; newest versions that tests ran with, by Python.
#: ONNX Runtime 1.23 and Starlette 1.7 are the last ones for Python 3.10, which JetPack 6 has.
PINS = {
    "3.10": {"onnxruntime": "1.23.2", "numpy": "2.2.6", "starlette": "1.7.0"},
    "": {"onnxruntime": "1.31.1", "numpy": "2.4.6", "starlette": "1.10.0"},
}
_COMMON = {
    "click": "8.5.1",
    "jinja2": "3.1.6",
    "llguidance": "1.9.1",
    "packaging": "26.4",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "uvicorn": "0.54.0",
}


def index_lines(python: str, cuda: str = "") -> list[str]:
    """Requirements that come from an index: what this package needs on a board, at exact versions.

    Args:
        python: the board's version of Python, such as "3.10".
        cuda: the board's version of CUDA, such as "12.6", when an engine runs there; "" otherwise.
    """
    pins = {**_COMMON, **PINS.get(python, PINS[""])}
    lines = [f"{name}=={pin}" for name, pin in sorted(pins.items())]
    if cuda:
        # The Python binding of the board's CUDA; any patch level of its minor version will do.
        lines.append(f"cuda-python=={cuda}.*")
    return lines


def hashed_lines(wheels: list[Path]) -> list[str]:
    """Requirements that are met by these very files: name, version and hash of each, for pip's --require-hashes."""
    lines = []
    for wheel in sorted(wheels):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{re.sub(r'[-_.]+', '-', name).lower()}=={version} --hash=sha256:{sha256_of(wheel)}")
    return lines


def write_page(folder: Path) -> None:
    """Write index.html, which tells pip the hashes of a folder's wheels before it chooses among all indexes."""
    lines = [
        f'<a href="{path.name}#sha256={sha256_of(path)}">{path.name}</a><br>\n' for path in sorted(folder.glob("*.whl"))
    ]
    (folder / "index.html").write_text("<!DOCTYPE html>\n" + "".join(lines), encoding="utf-8")


def fetch_wheels(folder: Path, lines: list[str], *, python: str, architecture: str, glibc: int) -> list[str]:
    """Download the wheels of requirements, and of what they require, for a board.

    Args:
        folder: folder that the wheels go to.
        lines: what `index_lines` returns.
        python: the board's version of Python.
        architecture: the board's architecture, as `uname -m` says it.
        glibc: minor version of the board's GLIBC 2.x.

    Returns:
        The names of all wheels in the folder.

    Raises:
        NqEdgeError: NQ-DEPLOY with pip's last words.
    """
    command = ["download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python, "--dest", str(folder.absolute())]
    command += ["--platform", f"manylinux2014_{architecture}"]
    for minor in range(17, glibc + 1):
        command += ["--platform", f"manylinux_2_{minor}_{architecture}"]
    done = run_python("pip", *command, *lines, capture_output=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: no message"]
        raise NqEdgeError(
            "NQ-DEPLOY",
            f"wheels for Python {python} on {architecture} cannot be fetched: {errors[-1][7:300].rstrip('.')}.",
            "Pass --no-wheels: the board then fetches the same versions itself.",
        )
    names = sorted(path.name for path in folder.glob("*.whl"))
    strange = [name for name in names if not re.fullmatch(r"[\w.+!-]+\.whl", name)]
    if strange:
        raise NqEdgeError("NQ-DEPLOY", f"the index gave a file with an odd name: {strange[0][:200]!r}.")
    return names
