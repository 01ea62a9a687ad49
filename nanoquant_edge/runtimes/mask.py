# SPDX-License-Identifier: Apache-2.0
"""What holds a text to a form while it is written; `serving.constraint` makes such masks of schemas and grammars."""

from __future__ import annotations

from typing import Protocol

import numpy as np

__all__ = ["TokenMask"]


class TokenMask(Protocol):
    """What holds a text to a form, token by token; made for one request, called by whoever chooses its tokens.

    An exception ends the request it belongs to, and no other.
    """

    @property
    def finished(self) -> bool:
        """Whether the text is complete: it ends here, with reason "stop"."""
        ...

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next: 32-bit integers [ceil(vocabulary / 32)], bit i mod 32 of element i div 32.

        None allows all. The array is read at once, and nothing of it is kept.
        """
        ...

    def push(self, token: int) -> None:
        """Be told the token that was chosen; one of those allowed, or an end-of-sequence id."""
        ...
