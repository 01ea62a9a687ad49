# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of a kernel: instruction counts of its loops and of the path to its first store.

Needs nvcc and cuobjdump (CUDA's toolkit, or the wheel nvidia-cuda-cuobjdump with its folder on PATH).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Loop", "disassemble", "loops", "path_to_store"]

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\S*\s+(?:!?U?P\w+,\s*)?(?:`\(\S+\)|0x([0-9a-f]+))")


@dataclass(frozen=True)
class Loop:
    """A loop without loops inside: its instructions, how many multiply matrices, how many ask for weights."""

    instructions: int
    products: int
    weights: int


def disassemble(source: Path, architecture: int, folder: Path, include: Path) -> dict[str, list[tuple[int, str]]]:
    """Compile a CUDA file for one architecture, its headers found below `include`.

    Returns:
        mangled kernel name -> (address, instruction with its predicate) in order.

    Raises:
        RuntimeError: when a tool is missing or fails.
    """
    for tool in ("nvcc", "cuobjdump"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} was not found on PATH")
    cubin = folder / f"{source.stem}_{architecture}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-DNDEBUG", f"-arch=sm_{architecture}", f"-I{include}", "-cubin"]
    subprocess.run([*command, "-o", cubin, source], check=True)
    text = subprocess.run(["cuobjdump", "-sass", cubin], check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[tuple[int, str]]] = {}
    name = ""
    for line in text.splitlines():
        if "Function :" in line:
            name = line.split("Function :")[1].strip()
            kernels[name] = []
        elif match := _INSTRUCTION.match(line):
            kernels[name].append((int(match[1], 16), match[2].strip()))
    return kernels


def loops(code: list[tuple[int, str]]) -> list[Loop]:
    """The innermost loops: stretches from the target of a backward branch to the branch."""
    found = []
    for address, text in code:
        branch = _BRANCH.search(text)
        if branch and branch[1] and int(branch[1], 16) < address:
            found.append((int(branch[1], 16), address))
    inner = [
        (begin, end)
        for begin, end in found
        if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in found)
    ]
    made = []
    for begin, end in inner:
        body = [text for address, text in code if begin <= address <= end]
        products = sum(bool(re.search(r"\b(BMMA|IMMA)\b", text)) for text in body)
        weights = sum("LDGSTS" in text for text in body)
        made.append(Loop(len(body), products, weights))
    return made


def path_to_store(code: list[tuple[int, str]]) -> int:
    """Instructions from the wait for the kernel before (sm_90 on) to the first store of a result, loops once."""
    begin = next((i for i, (_, text) in enumerate(code) if "ACQBULK" in text), 0)
    end = next((i for i, (_, text) in enumerate(code) if i > begin and re.search(r"\bSTG?\.E", text)), len(code))
    return end - begin
