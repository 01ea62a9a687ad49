# SPDX-License-Identifier: Apache-2.0
"""How a bundle is opened: threads, memory, and what may run. Checked when made, before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from ..errors import NqEdgeError
from ..system.processors import usable_processors

__all__ = ["AUTO", "CACHE_BITS", "CPU", "CUDA", "PROVIDERS", "TABLES", "OpenKeywords", "OpenOptions", "check_whole"]

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
PROVIDERS = (CPU, CUDA)
#: "cuda", or "cuda:1" for the second GPU.
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
#: How embedding and head may be held on a GPU, and the types of activations there.
TABLES = ("fp16", "int8", "int4")
_DTYPES = ("float16", "bfloat16")
#: Bits of a number in a GPU's key/value cache.
CACHE_BITS = (16, 8)
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
    device: str
    dtype: str | None
    table: str | None
    cache_bits: int


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
        device: "cpu"; "cuda", or "cuda:1" for the second GPU: our own decoder there; "auto" takes a GPU for a
            checkpoint where one is found, and runs a bundle where it was made for.
        dtype: of activations on such a device, "float16" or "bfloat16"; None takes float16, which is
            more exact.
        table: "fp16", "int8" or "int4" to hold embedding and head so there; None keeps what is stored.
        cache_bits: 16, or 8 for a key/value cache of half the size there.

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
    device: str = AUTO
    dtype: str | None = None
    table: str | None = None
    cache_bits: int = 16

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_whole("threads", self.threads, low=1, high=MAX_THREADS)
        if self.provider not in PROVIDERS:
            raise NqEdgeError("NQ-OPTION", f"provider must be one of {', '.join(PROVIDERS)}, got {self.provider!r}.")
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise NqEdgeError("NQ-OPTION", f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}.")
        if self.provider == CUDA and self.device.startswith(CUDA):
            raise NqEdgeError(
                "NQ-OPTION", "provider is for ONNX Runtime, which a CUDA device does without.", "Drop it."
            )
        for name, value, allowed in (("dtype", self.dtype, _DTYPES), ("table", self.table, TABLES)):
            if value is not None and value not in allowed:
                raise NqEdgeError("NQ-OPTION", f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        if self.cache_bits not in CACHE_BITS:
            raise NqEdgeError("NQ-OPTION", f"cache_bits must be 16 or 8, got {self.cache_bits!r}.")

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
