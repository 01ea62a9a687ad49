# SPDX-License-Identifier: Apache-2.0
"""Types of arguments that several verbs take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..system.output import steady_output

__all__ = ["InputPath", "OutputPath"]


class InputPath(click.Path):
    """A file or folder that is read. Whether it can be is said by its reader, with a code."""

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)


class OutputPath(click.Path):
    """The value of --output, which keeps its meaning when the working folder itself is replaced by the output."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Make a path of the word on the command line."""
        return steady_output(Path(os.fsdecode(super().convert(value, param, ctx))))
