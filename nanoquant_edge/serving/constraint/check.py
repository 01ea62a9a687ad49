# SPDX-License-Identifier: Apache-2.0
"""Sees that compiling a stranger's grammar ends, in a process that can be killed."""

from __future__ import annotations

from pathlib import Path

from ...errors import NqEdgeError, printable
from ...system.worker import EXPIRED, Worker, WorkerLimits, pack_frame
from .limits import CHECK_LIMITS

__all__ = ["GrammarCheck"]

_SCRIPT = Path(__file__).with_name("check_worker.py")


class GrammarCheck:
    """Compiles grammars in a process of its own, one at a time; starts with the first.

    Args:
        limits: of each.
    """

    def __init__(self, limits: WorkerLimits = CHECK_LIMITS) -> None:
        self._limits = limits
        self._worker = Worker(_SCRIPT, {}, limits)

    def check(self, form: str) -> None:
        """See that a compiled form, as `Grammar.compiled_form` gives it, can be used.

        Raises:
            NqEdgeError: NQ-GRAMMAR when it is not valid, unknown to llguidance, or takes too long or too much memory.
        """
        try:
            answer = self._worker.ask(pack_frame(form))
        except OSError as error:
            raise NqEdgeError("NQ-GRAMMAR", f"no process can be started that checks the grammar ({error}).") from error
        if answer == EXPIRED:
            raise NqEdgeError("NQ-GRAMMAR", f"the grammar takes more than {self._limits.seconds:g} s to compile.")
        if not answer:
            raise NqEdgeError(
                "NQ-GRAMMAR", f"the grammar takes more than {self._limits.memory >> 20} MiB, or ends its compiler."
            )
        if "good" not in answer:
            said = printable(str(answer.get("error"))).strip()[:300].replace("\n", " ")
            raise NqEdgeError("NQ-GRAMMAR", f"the grammar cannot be used: {said}.")

    def close(self) -> None:
        """End the process; the next check starts another."""
        self._worker.close()
