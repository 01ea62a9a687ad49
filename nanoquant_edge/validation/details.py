# SPDX-License-Identifier: Apache-2.0
"""Where a bundle differs from its reference, value by value and token by token: what a report draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .compare import InnerError

__all__ = ["Details"]


@dataclass(frozen=True)
class Details:
    """Errors behind the figures of a `Report`.

    Attributes:
        windows: int64 (count, length), the tokens that were compared.
        kl: float32 (count, length), KL(reference || bundle) in nats of the distribution after each token; a lower bound
            where only the reference's likeliest tokens were recorded.
        same: bool (count, length), whether both sides have the same most likely next token.
        inner: value name -> its error, in order of computation; empty where inner values were not compared.
    """

    windows: NDArray[np.int64]
    kl: NDArray[np.float32]
    same: NDArray[np.bool_]
    inner: dict[str, InnerError] = field(default_factory=dict)
