# SPDX-License-Identifier: Apache-2.0
"""A process that renders a chat template, and can be killed: no step of Python or C outlives its time.

Rendering has a process of its own, which stays for the next chat (`system.worker`). Starting it takes what importing
Jinja takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..system.worker import EXPIRED, Worker, WorkerLimits, pack_frame

__all__ = ["TemplateLimits", "TemplateProcess"]

_SCRIPT = Path(__file__).with_name("template_worker.py")


@dataclass(frozen=True)
class TemplateLimits:
    """What a rendering may take.

    Attributes:
        seconds: until the text is there.
        memory: bytes of address space beyond what Python and Jinja take; Linux only.
        characters: of the text. A context of 128 k tokens is about half a million characters.
    """

    seconds: float = 5.0
    memory: int = 512 << 20
    characters: int = 8 << 20


class TemplateProcess:
    """Renders one template, one chat at a time; starts when first needed, and again after it was killed.

    Args:
        source: Jinja text.
        limits: of each rendering.
    """

    def __init__(self, source: str, limits: TemplateLimits) -> None:
        self._limits = limits
        # Six bytes a character, as JSON escapes it: what is longer comes from no honest worker.
        most = WorkerLimits(limits.seconds, limits.memory, 6 * limits.characters + 1000)
        self._worker = Worker(_SCRIPT, {"source": source, "characters": limits.characters}, most)

    def render(self, names: Mapping[str, Any]) -> str:
        """The text of a chat.

        Args:
            names: what the template sees; plain data.

        Raises:
            NqEdgeError: NQ-TEMPLATE when the template fails or exceeds its limits, or no process can be started.
        """
        try:
            frame = pack_frame(dict(names))
        except ValueError as error:
            raise NqEdgeError("NQ-TEMPLATE", f"the chat cannot be passed to its template: {error}.") from error
        try:
            answer = self._worker.ask(frame)
        except OSError as error:
            raise _not_started(error) from error
        if answer == EXPIRED:
            answer = {"error": f"ran longer than {self._limits.seconds:g} s"}
        elif not answer:  # killed, or ended by itself
            answer = {"error": f"took more than {self._limits.memory >> 20} MiB, or ended its process"}
        if "text" not in answer:
            raise NqEdgeError("NQ-TEMPLATE", f"the chat template {_printable(str(answer.get('error')))}.")
        return str(answer["text"])

    def start(self) -> None:
        """Start the process now, so that it is ready when it is needed; returns at once.

        Raises:
            NqEdgeError: NQ-TEMPLATE when no process can be started.
        """
        try:
            self._worker.start()
        except OSError as error:
            raise _not_started(error) from error

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        self._worker.close()


def _not_started(error: OSError) -> NqEdgeError:
    return NqEdgeError("NQ-TEMPLATE", f"no process can be started for the chat template ({error}).")


def _printable(text: str) -> str:
    """Words of a stranger's template: no control sequence reaches a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
