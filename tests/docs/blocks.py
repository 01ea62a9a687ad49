# SPDX-License-Identifier: Apache-2.0
"""Commands and programs in code blocks of Markdown pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "blocks"]

#: What stands before a block that no test can run; the reason is for whoever reads the source.
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        line: where it begins.
        language: after the fence; "" for an indented block.
        text: without its indentation.
        reason: why it is not run; "" when it is.
    """

    line: int
    language: str
    text: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """Words after `nq-edge` of each such command; comments and prompts are left out."""
        whole = self.text.replace("\\\n", " ")
        lines = (line.strip().removeprefix("$ ") for line in whole.splitlines())
        return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("nq-edge ")]

    @property
    def is_python(self) -> bool:
        """Whether it is a program."""
        return self.language == "python" or bool(re.match(r"(from|import) nanoquant_edge", self.text))


def blocks(page: Path) -> Iterator[Block]:
    """All code blocks of a page, fenced and indented ones."""
    lines = page.read_text(encoding="utf-8").splitlines()
    index, reason, blank = 0, "", True
    while index < len(lines):
        line = lines[index]
        if (marked := NOT_RUN.search(line)) is not None:
            reason = marked[1]
        elif line.lstrip().startswith("```"):
            start, indent = index, len(line) - len(line.lstrip())
            index += 1
            while not lines[index].lstrip().startswith("```"):
                index += 1
            body = "\n".join(part[indent:] for part in lines[start + 1 : index])
            yield Block(start + 1, line.strip().removeprefix("```"), body, reason)
            reason = ""
        elif blank and line.startswith("    "):
            start, indent = index, len(line) - len(line.lstrip())
            while index + 1 < len(lines) and (
                lines[index + 1].startswith(" " * indent) or not lines[index + 1].strip()
            ):
                index += 1
            yield Block(start + 1, "", "\n".join(part[indent:] for part in lines[start : index + 1]).rstrip(), reason)
            reason = ""
        elif line.strip():
            reason = ""
        blank = not lines[index].strip() or NOT_RUN.search(lines[index]) is not None
        index += 1
