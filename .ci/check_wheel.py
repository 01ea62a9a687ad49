# SPDX-License-Identifier: Apache-2.0
"""Checks a wheel: that it holds the whole package, and that its libraries deserve its platform tag.

    python .ci/check_wheel.py WHEEL
    python .ci/check_wheel.py --same WHEEL OTHER     both hold the same files, libraries aside

Every library is of the wheel's architecture, needs nothing but libc and asks for no symbol newer than GLIBC 2.35, which
is what JetPack 6 and Ubuntu 22.04 have. pyelftools reads libraries of any architecture.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
NEWEST_GLIBC = (2, 35)
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
ALLOWED = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
#: The library, and the sources from which a board builds its own.
REQUIRED = ("nanoquant_edge/_native/libnanoquant_ort.so", "nanoquant_edge/_sources/plugins/CMakeLists.txt")


def needs_of(library: ELFFile) -> set[str]:
    """Names of the libraries that a library loads."""
    dynamic = library.get_section_by_name(".dynamic")
    return {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")} if dynamic else set()


def newest_glibc(library: ELFFile) -> tuple[int, ...]:
    """The newest version of GLIBC that a library asks for a symbol of; (0, 0) where it asks for none."""
    versions = library.get_section_by_name(".gnu.version_r")
    names = [symbol.name for _, symbols in versions.iter_versions() for symbol in symbols] if versions else []
    found = [tuple(map(int, match[1].split("."))) for name in names if (match := re.fullmatch(r"GLIBC_([\d.]+)", name))]
    return max(found, default=(0, 0))


def problems_of(path: Path, machine: str) -> list[str]:
    """What is wrong with one library."""
    found = []
    with path.open("rb") as file:
        library = ELFFile(file)
        if library["e_machine"] != MACHINES[machine]:
            found.append(f"is not a library for {machine}")
        needed, newest = needs_of(library), newest_glibc(library)
    if needed - ALLOWED:
        found.append(f"needs {', '.join(sorted(needed - ALLOWED))}")
    if newest > NEWEST_GLIBC:
        found.append(f"asks for GLIBC {'.'.join(map(str, newest))}")
    print(
        f"{path.name}: {machine}, newest symbol GLIBC {'.'.join(map(str, newest))}, needs {', '.join(sorted(needed))}"
    )
    return [f"{path.name} {problem}" for problem in found]


def package_files(wheel: str) -> set[str]:
    """Names of a wheel's files in the package, its libraries aside."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("nanoquant_edge/") and "/_native/" not in name}


def tree_files() -> set[str]:
    """Names of the package's files as git knows them."""
    listed = subprocess.run(["git", "ls-files", "nanoquant_edge"], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(listed.stdout.split())


def same(wheel: str, other: str) -> int:
    """Check that two wheels hold the same files; the exit status."""
    different = sorted(package_files(wheel) ^ package_files(other))
    print(f"PROBLEM: only one wheel holds {', '.join(different)}" if different else "both wheels hold the same files")
    return 1 if different else 0


def main(wheel: str) -> int:
    """Check one wheel; the exit status."""
    machine = next((name for name in MACHINES if Path(wheel).stem.endswith(name)), None)
    if machine is None:
        print(f"{wheel} has no platform tag for {' or '.join(MACHINES)}")
        return 1
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        problems = [f"the wheel lacks {name}" for name in REQUIRED if name not in archive.namelist()]
        problems += [f"the wheel lacks {name}" for name in sorted(tree_files() - package_files(wheel))]
        for name in names:
            problems += problems_of(Path(archive.extract(name, folder)), machine)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(same(*sys.argv[2:]) if sys.argv[1] == "--same" else main(sys.argv[1]))
