# SPDX-License-Identifier: Apache-2.0
"""One pass of a transformers model with a key/value cache, by whichever name that version knows the cache."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

__all__ = ["cached_step"]


def cached_step(model: Any, ids: Tensor, cache: Any = None, last: int = 0) -> tuple[Tensor, Any]:
    """Logits of new tokens, and the cache that holds them too.

    transformers 5.24 calls the argument `cache` and warns at each call that says `past_key_values`, as 5.23 needs.

    Args:
        model: transformers causal language model.
        ids: int64 (batch, new tokens).
        cache: what the last call returned; None begins a text.
        last: how many tokens, counted from the end, logits are asked for; 0 takes all.

    Returns:
        Logits (batch, new tokens or `last`, vocabulary), and the cache.
    """
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(input_ids=ids, use_cache=True, logits_to_keep=last, **{name: cache})
    return output.logits, getattr(output, name)
