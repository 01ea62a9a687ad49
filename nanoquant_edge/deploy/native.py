# SPDX-License-Identifier: Apache-2.0
"""The operator's library for a board: the user's, the installed one, or cross-compiled."""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from ..errors import NqEdgeError
from ..system.native import ORT_LIBRARY_NAME
from ..system.sources import source_folder

__all__ = ["glibc_needed", "machine_of", "provide_library"]

#: ELF's e_machine -> `uname -m` (ELF gABI, chapter "ELF header").
_MACHINES = {62: "x86_64", 183: "aarch64"}


def provide_library(
    target: Path, architecture: str, *, glibc: int, version: str, given: Path | None = None
) -> list[str]:
    """Put prebuilt libraries into `target`, as far as there is a way to them.

    Args:
        target: folder to write to.
        architecture: the board's architecture, as `uname -m` says it.
        glibc: minor version of the board's GLIBC 2.x; newer libraries are refused.
        version: version of this package.
        given: folder with libraries that the user built.

    Returns:
        Names of the libraries; empty where none could be had, so that the board builds its own.

    Raises:
        NqEdgeError: NQ-DEPLOY for a given library of another architecture or newer than the board's GLIBC.
    """
    target.mkdir(parents=True, exist_ok=True)
    if given is not None:
        libraries = sorted(given.glob("libnanoquant_*.so"))
        if not libraries:
            raise NqEdgeError(
                "NQ-DEPLOY", f"{given} holds no libnanoquant_*.so.", "Pass the folder CMake installed to."
            )
    elif architecture == platform.machine():
        installed = Path(__file__).parents[1] / "_native" / ORT_LIBRARY_NAME
        libraries = [installed] if installed.is_file() else []
    else:
        built = _cross_compile(architecture, version, target)
        libraries = [built] if built else []
    for library in libraries:
        found, needs = machine_of(library), glibc_needed(library)
        if found != architecture:
            raise NqEdgeError(
                "NQ-DEPLOY", f"{library} is for {found}, the board is {architecture}.", "Build it for the board."
            )
        if needs > glibc:
            if given is None:
                return []
            raise NqEdgeError(
                "NQ-DEPLOY",
                f"{library} needs GLIBC 2.{needs}, the board has 2.{glibc}.",
                "Build it on the board, or leave --native out.",
            )
        if library.parent != target:
            shutil.copyfile(library, target / library.name)
    return [library.name for library in libraries]


def machine_of(library: Path) -> str:
    """`uname -m` of the machine that an ELF file is for; "unknown" for anything else."""
    with library.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return "unknown"
    return _MACHINES.get(struct.unpack_from("<H", head, 18)[0], "unknown")


def glibc_needed(library: Path) -> int:
    """Newest minor version of GLIBC 2.x among the symbol versions that the file names."""
    return max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)\0", library.read_bytes())), default=0)


def _cross_compile(architecture: str, version: str, target: Path) -> Path | None:
    compiler, sources = shutil.which(f"{architecture}-linux-gnu-g++"), source_folder()
    if compiler is None or sources is None or shutil.which("cmake") is None:
        return None
    with tempfile.TemporaryDirectory() as work:
        configure = ["cmake", "-S", str(sources), "-B", work, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux"]
        configure += [f"-DCMAKE_SYSTEM_PROCESSOR={architecture}", f"-DCMAKE_CXX_COMPILER={compiler}", "-DNQ_CUDA=OFF"]
        configure += ["-DNQ_TENSORRT=OFF", f"-DSKBUILD_PROJECT_VERSION_FULL={version}"]
        for command in (configure, ["cmake", "--build", work]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
                raise NqEdgeError(
                    "NQ-DEPLOY",
                    f"cross-compiling for {architecture} failed: {tail[0][:300]}.",
                    "Pass --native with a folder of libraries, or --no-native to build them on the board.",
                )
        built = next(Path(work).rglob(ORT_LIBRARY_NAME))
        shutil.copyfile(built, target / ORT_LIBRARY_NAME)
    return target / ORT_LIBRARY_NAME
