# SPDX-License-Identifier: Apache-2.0
"""The backend that a bundle's manifest asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import NqEdgeError
from ..formats.backends import BOARD_BUILD, ENGINE_BACKENDS, ONNXRUNTIME
from ..formats.bundle import Bundle
from .backend import Backend
from .options import CPU, OpenKeywords, OpenOptions
from .slots import Slots

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["open_backend", "open_slots", "remarks"]


def open_backend(
    bundle: Bundle,
    options: OpenOptions | None = None,
    *,
    extra_outputs: tuple[str, ...] = (),
    engine_opener: Callable[..., Any] | None = None,
    **keywords: Unpack[OpenKeywords],
) -> Backend:
    """Open a bundle with ONNX Runtime or TensorRT, whichever it was made for.

    Args:
        bundle: an opened bundle.
        options: how it is opened.
        extra_outputs: inner values to return beside the logits.
        engine_opener: what opens an engine instead of `runtimes.tensorrt.open_engine`.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: NQ-BACKEND for a backend that this program does not know, and whatever opening raises.

    Example:
        >>> with open_backend(Bundle.open("bundle"), threads=1) as backend:
        ...     backend.name
        'onnxruntime'
    """
    options = replace(options or OpenOptions(), **keywords)
    if bundle.backend in ENGINE_BACKENDS:
        from .tensorrt import TensorRTBackend, open_engine

        return TensorRTBackend(bundle, options, extra_outputs=extra_outputs, opener=engine_opener or open_engine)
    if bundle.backend == BOARD_BUILD:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"{bundle.folder} holds a graph from which the board builds its engine, and no engine yet.",
            "Copy the folder to the board, run build.sh there, and use the bundle that it writes.",
        )
    if bundle.backend != ONNXRUNTIME:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle was made for {bundle.backend[:40]!r}, this program runs onnxruntime, tensorrt and "
            "tensorrt-rtx.",
            "Install a newer nanoquant-edge, or export again with this one.",
        )
    from .onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, options, extra_outputs=extra_outputs)


def open_slots(
    bundle: Bundle, options: OpenOptions | None = None, *, count: int = 4, **keywords: Unpack[OpenKeywords]
) -> Slots:
    """Open a bundle for several sequences at once.

    Args:
        bundle: an opened bundle.
        options: how it is opened.
        count: sequences that may be held at once; backends with a single one hold one.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: NQ-BACKEND for a backend that this program does not know, and whatever opening raises.

    Example:
        >>> with open_slots(Bundle.open("bundle"), threads=1, count=2) as slots:
        ...     slots.count
        2
    """
    options = replace(options or OpenOptions(), **keywords)
    if bundle.backend != ONNXRUNTIME or options.provider != CPU:
        from .single_slot import SingleSlot

        return SingleSlot(open_backend(bundle, options))
    from .onnxruntime.slots import OnnxRuntimeSlots

    return OnnxRuntimeSlots(bundle, options, count=count)


def remarks(bundle: Bundle, options: OpenOptions | None = None) -> tuple[str, ...]:
    """What a user must know wherever a bundle runs: how far its backend is proved, and what was not done as asked.

    Args:
        bundle: an opened bundle.
        options: how it is opened.
    """
    found: list[str] = []
    if bundle.engine is not None:
        from .tensorrt import UNPROVED

        found.append(UNPROVED)
    elif options is not None and options.threads is not None and options.running_threads != options.threads:
        found.append(
            f"{options.threads} threads were asked for; this process may use {options.running_threads} processors, so "
            f"{options.running_threads} threads run: more would only take turns."
        )
    return tuple(found)
