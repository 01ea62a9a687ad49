# SPDX-License-Identifier: Apache-2.0
"""The terminal, as every table and progress bar of ours uses it: text stays text, whatever a file calls itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["plain", "terminal"]


def terminal(stderr: bool = False) -> Console:
    """A console of rich that takes no square brackets as markup, no `:name:` as a picture, and colours no numbers.

    Args:
        stderr: write to standard error.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def plain(text: object, style: str = "") -> Text:
    """A stranger's text for a table or a line: control characters become question marks.

    Args:
        text: anything that `str` makes a text of.
        style: a style of rich, such as "bold".
    """
    from rich.text import Text

    return Text(printable(str(text)), style=style)
