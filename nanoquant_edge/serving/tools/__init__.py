# SPDX-License-Identifier: Apache-2.0
"""Functions that a model may call: how its template writes calls, how they are read, and what holds it to them."""

from __future__ import annotations

from .calls import Call, CallReader
from .formats import ToolFormat, find_format
from .grammars import calls_grammar
from .prompt import explained

__all__ = ["Call", "CallReader", "ToolFormat", "calls_grammar", "explained", "find_format"]
