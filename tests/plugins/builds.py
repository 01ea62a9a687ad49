# SPDX-License-Identifier: Apache-2.0
"""Native programs and libraries that tests run, compiled into build/tests before the first test and under no clock.

    python -m tests.plugins.builds NAME...      host, aarch64, sanitized: `make test` and `make sanitize` do this first

Fixtures ask for the same builds: what is there and newer than its sources costs a look at the files' times. A warning
is an error in all of them.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.plugins.tensorrt_headers import cuda_headers, tensorrt_headers

__all__ = ["BUILDS", "CROSS_COMPILER", "SOURCE", "Missing", "build", "emulated_library"]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "plugins"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
_WARNINGS = "-DCMAKE_CXX_FLAGS=-Werror"


class Missing(Exception):
    """A tool that a build needs is not installed; the text names it."""


class Failed(Exception):
    """CMake or the compiler failed; the text ends with what they said."""


@dataclass(frozen=True)
class Build:
    """A folder of build/tests: the tools that it takes, CMake's options and the targets (all of them when empty)."""

    tools: tuple[str, ...] = ("c++",)
    options: tuple[str, ...] = (_WARNINGS,)
    targets: tuple[str, ...] = ()
    source: Path = SOURCE


BUILDS = {
    "emulator": Build(options=(), source=SOURCE / "tests" / "emulator"),
    "host": Build(),
    # Part of "host", in seconds: what the CUDA runtime's tests need of it.
    "stand_in": Build(targets=("nq_stand_in_cuda",)),
    "aarch64": Build(
        tools=(CROSS_COMPILER,),
        options=(
            *(_WARNINGS, f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}"),
            *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        ),
        targets=("nq_selftest", "nq_table_selftest"),
    ),
    # At -O3 the compiler takes four times as long, and what the sanitizers see is the same.
    "sanitized": Build(
        options=(_WARNINGS, "-DNQ_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG")
    ),
}


def _call(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-4000:]}")


def _options(name: str) -> list[str]:
    """CMake's options: nothing of CUDA or TensorRT is compiled but the tests' own programs, where headers are found."""
    found = BUILDS[name]
    if found.source != SOURCE:
        return [*found.options]
    options = [*found.options, "-DNQ_BUILD_TESTS=ON", "-DNQ_CUDA=OFF"]
    tensorrt, cuda = tensorrt_headers(), cuda_headers()
    if name == "aarch64" or tensorrt is None or cuda is None:
        return [*options, "-DNQ_TENSORRT=OFF"]
    options += [f"-DTENSORRT_INCLUDE_DIR={tensorrt}", f"-DNQ_CUDA_HEADERS={cuda}"]
    return [*options, f"-DNQ_EMULATED_LIBRARY={emulated_library()}"] if name == "host" else options


@functools.cache
def build(name: str) -> Path:
    """The folder of a build, brought up to date; several processes wait for each other.

    Raises:
        Missing: A tool is not installed.
        Failed: CMake or the compiler failed.
    """
    missing = [tool for tool in ("cmake", *BUILDS[name].tools) if shutil.which(tool) is None]
    if missing:
        raise Missing(f"not installed: {', '.join(missing)}")
    options, folder = _options(name), ROOT / "build" / "tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configured = folder / ".options"
        said = "\n".join([str(folder), *options])  # a folder that was moved is configured anew
        if not configured.is_file() or configured.read_text() != said:
            generator = ["-G", "Ninja"] if shutil.which("ninja") else []
            (folder / "CMakeCache.txt").unlink(missing_ok=True)
            _call("cmake", "-S", BUILDS[name].source, "-B", folder, *generator, *options)
            configured.write_text(said)
        targets = [word for target in BUILDS[name].targets for word in ("--target", target)]
        _call("cmake", "--build", folder, "-j", str(len(os.sched_getaffinity(0))), *targets)
    return folder


def emulated_library() -> Path:
    """The CUDA kernels over the emulator of a GPU."""
    return build("emulator") / "libnanoquant_cuda_emulated.so"


def main(names: list[str]) -> None:
    """Build what is named. What cannot be built is told, and its tests skip themselves or fail."""
    for name in names:
        try:
            print(f"{name}: {build(name).relative_to(ROOT)}", flush=True)
        except (Missing, Failed) as error:
            print(f"{name}: {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
