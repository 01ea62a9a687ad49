# SPDX-License-Identifier: Apache-2.0
"""How models write calls of functions. A model was trained on what its chat template writes, so the template decides.

The forms were read from published templates: Qwen2.5, Qwen3 and SmolLM3 (`<tool_call>`), Mistral v0.3
(`[TOOL_CALLS]`), Llama 3.1 and 3.2 (a bare object with "parameters").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FORMATS", "ToolFormat", "find_format"]


@dataclass(frozen=True)
class ToolFormat:
    """A way to write calls.

    Attributes:
        name: of the format.
        begin, end: what stands around calls; "" where nothing does and the answer as a whole is a call.
        arguments: name of the object with the arguments, beside "name".
        listed: whether all calls stand in one JSON list between `begin` and `end`; otherwise each has its own marks.
        space: what stands between a mark and the JSON.
        shown: whether the template tells the model about the functions; where not, a system message does.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    listed: bool = False
    space: str = ""
    shown: bool = True


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", space="\n")
FORMATS = (
    HERMES,
    ToolFormat("mistral", "[TOOL_CALLS]", "", listed=True, space=" "),
    ToolFormat("llama", "", "", arguments="parameters"),
)


def find_format(template: str | None) -> ToolFormat:
    """The format of a chat template's text; of one that knows no functions, the format that a system message explains.

    Example:
        >>> find_format("{% if tools %}...<tool_call>...{% endif %}").name
        'hermes'
        >>> find_format("{{ messages }}").shown
        False
    """
    text = template or ""
    if re.search(r"\btools\b", text):
        if "<tool_call>" in text:
            return HERMES
        if "[TOOL_CALLS]" in text:
            return FORMATS[1]
        if "parameters" in text and ("<|python_tag|>" in text or "ipython" in text):
            return FORMATS[2]
    return ToolFormat("explained", HERMES.begin, HERMES.end, space=HERMES.space, shown=False)
