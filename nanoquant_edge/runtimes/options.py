# SPDX-License-Identifier: Apache-2.0
"""How a bundle is opened: threads, memory, and what may run. Checked when made, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from ..errors import NqEdgeError
from ..system.processors import usable_processors

__all__ = ["CPU", "CUDA", "PROVIDERS", "OpenKeywords", "OpenOptions", "check_whole"]

CPU, CUDA = "cpu", "cuda"
PROVIDERS = (CPU, CUDA)
MAX_THREADS = 1024


def check_whole(name: str, value: Any, *, low: int, high: int) -> None:
    """See that an option is a whole number of a range; numpy's integers are as good as Python's.

    Raises:
        NqEdgeError: NQ-OPTION naming the option, its range and the value.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and low <= value <= high):
        raise NqEdgeError("NQ-OPTION", f"{name} must be a whole number from {low} to {high}, got {value!r}.")


class OpenKeywords(TypedDict, total=False):
    """The fields of `OpenOptions`, as keywords of functions that take them one by one."""

    threads: int | None
    spin: bool
    provider: str
    max_context: int | None
    allow_portable: bool
    trust_bundle_code: bool


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a bundle is opened.

    An engine of TensorRT has no use for `threads`, `spin`, `provider` and `allow_portable`.

    Attributes:
        threads: worker threads; None takes one for each physical core that the process may use. More than there are
            processors would take turns on them: as many as there are run, see `running_threads`.
        spin: let idle worker threads wait busily. With two threads on two cores that decoded faster by a fifth when the
            machine was idle, and slower by a third when others used it.
        provider: where ONNX Runtime computes: "cpu", or "cuda" for an NVIDIA GPU and a float16 bundle.
        max_context: most tokens of a sequence, prompt and text together; None takes the bundle's limit.
        allow_portable: run the slow body in standard operators where the native kernels are missing.
        trust_bundle_code: let machine code inside of a TensorRT engine run.

    Raises:
        NqEdgeError: NQ-OPTION for a value that is out of its range.

    Example:
        >>> OpenOptions(threads=2).threads
        2
    """

    threads: int | None = None
    spin: bool = True
    provider: str = CPU
    max_context: int | None = None
    allow_portable: bool = False
    trust_bundle_code: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_whole("threads", self.threads, low=1, high=MAX_THREADS)
        if self.provider not in PROVIDERS:
            raise NqEdgeError("NQ-OPTION", f"provider must be one of {', '.join(PROVIDERS)}, got {self.provider!r}.")

    @property
    def running_threads(self) -> int | None:
        """Worker threads that run, where a number was asked for: no more than the process may use processors."""
        return None if self.threads is None else min(int(self.threads), usable_processors())

    def context(self, limit: int, owner: str) -> int:
        """Most tokens of a sequence, where the bundle or engine allows `limit`.

        Args:
            limit: tokens that fit.
            owner: whose limit it is, for the message.

        Raises:
            NqEdgeError: NQ-OPTION when `max_context` is not from 1 to the limit.
        """
        if self.max_context is None:
            return limit
        whole = isinstance(self.max_context, int | np.integer) and not isinstance(self.max_context, bool)
        if not (whole and 1 <= self.max_context <= limit):
            raise NqEdgeError(
                "NQ-OPTION", f"max_context must be from 1 to the {owner}'s {limit} tokens, got {self.max_context!r}."
            )
        return int(self.max_context)
