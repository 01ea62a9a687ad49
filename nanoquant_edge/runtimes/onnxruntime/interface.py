# SPDX-License-Identifier: Apache-2.0
"""The inputs and outputs that a session must have for this package to fill them."""

from __future__ import annotations

from typing import Any

from ...errors import NqEdgeError
from ...formats.bundle import Bundle
from ...formats.graph import LOGITS, PAST, PRESENT, SLOTS, TOKEN_INPUTS, cache_names

__all__ = ["check_interface", "takes_slots"]


def check_interface(session: Any, bundle: Bundle, extra: tuple[str, ...] = ()) -> None:
    """Refuse a graph whose inputs and outputs are not those that the manifest describes.

    Args:
        session: an onnxruntime.InferenceSession.
        bundle: what it was made from.
        extra: names of outputs that were added.

    Raises:
        NqEdgeError: NQ-BUNDLE.
    """
    try:
        good = _has_interface(session, bundle, extra)
    except UnicodeDecodeError:  # names in a stranger's graph need not be text
        good = False
    if not good:
        raise NqEdgeError(
            "NQ-BUNDLE",
            "the graph's inputs and outputs are not those that the manifest describes.",
            "Run `nq-edge export` again.",
        )


def takes_slots(session: Any) -> bool:
    """Whether the graph takes tokens of several caches in one call, see `formats.graph.SLOTS`."""
    return any(
        value.name == SLOTS and value.type == "tensor(int32)" for value in session.get_overridable_initializers()
    )


def _has_interface(session: Any, bundle: Bundle, extra: tuple[str, ...]) -> bool:
    kv = bundle.kv
    element = {"float32": "tensor(float)", "float16": "tensor(float16)"}.get(kv.dtype)
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    wanted, caches = set(TOKEN_INPUTS), set(cache_names(kv.layers))
    good = set(inputs) == wanted | {PAST + name for name in caches}
    good = good and set(outputs) == {LOGITS, *extra} | {PRESENT + name for name in caches}
    good = good and all(inputs[name].type == "tensor(int64)" for name in wanted)
    good = good and outputs[LOGITS].type == "tensor(float)"
    for name in caches if good else ():
        value = inputs[PAST + name]
        shape = value.shape
        good = good and value.type == element and len(shape) == 4 and shape[1] == kv.heads
        good = good and shape[3] == kv.head_dim
    return good
