# SPDX-License-Identifier: Apache-2.0
"""What `deploy` may be told, checked before any work begins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import NqEdgeError

__all__ = ["DeployOptions"]


@dataclass(frozen=True)
class DeployOptions:
    """Options of a deployment folder.

    Attributes:
        wheels: fetch wheels for the board now; otherwise it installs the same versions from an index itself.
        native: folder with libraries built for the board; None takes the installed ones or cross-compiles.
        build_native: False leaves building the operator's library to the board.
        python: the board's version of Python, such as "3.10"; None takes that of the board's system.

    Raises:
        NqEdgeError: NQ-OPTION for a Python that this package does not run on, or for libraries that are given and not
            wanted.
    """

    wheels: bool = True
    native: Path | None = None
    build_native: bool = True
    python: str | None = None

    def __post_init__(self) -> None:
        if self.python is not None and not re.fullmatch(r"3\.1[0-9]", self.python):
            raise NqEdgeError(
                "NQ-OPTION", f"--python {self.python[:20]!r} is not a Python from 3.10 on.", "Such as 3.10 or 3.12."
            )
        if self.native is not None and not self.build_native:
            raise NqEdgeError("NQ-OPTION", "--native and --no-native exclude each other.", "Pass one of them.")
