# SPDX-License-Identifier: Apache-2.0
"""What a grammar may cost, wherever it is compiled."""

from __future__ import annotations

from typing import Any

from ...system.worker import WorkerLimits

__all__ = ["CHECK_LIMITS", "parser_limits"]

#: Of the process that compiles a grammar first. A schema of a hundred properties takes 10 ms there.
CHECK_LIMITS = WorkerLimits(seconds=3.0, memory=512 << 20, answer=1 << 14)


def parser_limits() -> Any:
    """llguidance's limits: a mask within some 10 ms, and 40 MB for a lexer's states, of up to 2 kB each."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=20_000, step_lexer_fuel=100_000, verbose_errors=False)
