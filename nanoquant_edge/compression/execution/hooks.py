# SPDX-License-Identifier: Apache-2.0
"""Watching layers while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["watched"]


@contextlib.contextmanager
def watched(
    layers: Mapping[str, nn.Module], hook_of: Callable[[str], Callable[..., Any]], before: bool = False
) -> Iterator[None]:
    """Hooks on layers for as long as this lasts.

    Args:
        layers: name -> layer.
        hook_of: takes a name, returns its forward hook.
        before: call it before the layer runs, with the inputs alone.
    """
    handles = []
    try:
        for name, layer in layers.items():
            handles.append((layer.register_forward_pre_hook if before else layer.register_forward_hook)(hook_of(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
