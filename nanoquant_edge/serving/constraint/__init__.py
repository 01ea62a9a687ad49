# SPDX-License-Identifier: Apache-2.0
"""Texts that keep to a form: JSON schemas, regular expressions and grammars, through llguidance (extra `[constrain]`).

`Grammar` says which texts are wanted, `GrammarCheck` sees in a process of its own that compiling it ends, and
`Constrainer` makes the mask that a request carries.
"""

from __future__ import annotations

from .grammar import Grammar
from .mask import Constrainer, GrammarMask

__all__ = ["Constrainer", "Grammar", "GrammarMask"]
