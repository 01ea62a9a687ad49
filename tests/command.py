# SPDX-License-Identifier: Apache-2.0
"""The command line, called in this process."""

from __future__ import annotations

import pytest

from nanoquant_edge.cli import main

__all__ = ["run"]


def run(*arguments: object) -> int:
    """Exit status of `nq-edge` with these arguments."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)
