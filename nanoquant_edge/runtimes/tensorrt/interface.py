# SPDX-License-Identifier: Apache-2.0
"""Does the engine have the inputs, outputs and profiles that the manifest describes?

TensorRT computes on bare addresses: a tensor that is larger than the buffer behind it would be read or written beyond
its end. So every tensor is compared before any memory is bound to it.
"""

from __future__ import annotations

from ...errors import NqEdgeError
from ...formats.engine import EngineInfo, Span
from ...formats.graph import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_INDICES,
    PAST,
    PRESENT,
    TOKEN_INPUTS,
    cache_names,
)
from .engine import Engine, TensorInfo

__all__ = ["check_interface"]


def check_interface(loaded: Engine, engine: EngineInfo, vocab_size: int) -> None:
    """Compare a loaded engine with the manifest.

    Args:
        loaded: the engine.
        engine: the manifest's entry.
        vocab_size: width of the logits.

    Raises:
        NqEdgeError: NQ-BUNDLE naming the first tensor or profile that differs.
    """
    kv = engine.kv
    heads = (-1, kv.heads, kv.capacity, kv.head_dim)
    rows = heads if kv.in_place else (-1, kv.heads, -1, kv.head_dim)
    wanted: dict[str, tuple[bool, str, tuple[int, ...] | None]] = {
        **dict.fromkeys(TOKEN_INPUTS, (True, "int64", (-1, -1))),
        LOGITS: (False, "float32", (-1, -1, vocab_size)),
        **dict.fromkeys(engine.debug_outputs, (False, engine.precision, None)),
    }
    for name in cache_names(engine.kv.layers):
        wanted[PAST + name] = (True, kv.dtype, heads)
        wanted[PRESENT + name] = (False, kv.dtype, rows)
    if odd := set(wanted) ^ set(loaded.tensors):
        name = min(odd)
        raise _differs(f"it has {'no' if name in wanted else 'an unknown'} tensor {name[:100]}")
    for name, (is_input, dtype, shape) in wanted.items():
        _check_tensor(loaded.tensors[name], is_input, dtype, shape)
        if name.startswith(PRESENT) and kv.in_place:
            alias = loaded.alias(name)
            if alias not in (None, PAST + name.removeprefix(PRESENT)):
                raise _differs(f"{name} shares the memory of {alias}")
    if loaded.profiles != len(engine.profiles):
        raise _differs(f"it has {loaded.profiles} optimization profiles, the manifest {len(engine.profiles)}")
    _check_profiles(loaded, engine)


def _check_tensor(tensor: TensorInfo, is_input: bool, dtype: str, shape: tuple[int, ...] | None) -> None:
    if tensor.is_input != is_input:
        raise _differs(f"{tensor.name} is {'an input' if tensor.is_input else 'an output'}")
    if tensor.dtype != dtype:
        raise _differs(f"{tensor.name} is {tensor.dtype}, the manifest says {dtype}")
    if shape is None:  # a debug output: [batch, sequence, channels], whatever their number
        good = len(tensor.shape) == 3 and 0 < tensor.shape[2] < 1 << 24
        shape = (-1, -1, -1)
    else:
        # A profile that allows one value only makes the dimension fixed.
        good = len(shape) == len(tensor.shape)
        good = good and all(size in (found, -1) for size, found in zip(shape, tensor.shape, strict=True))
    if not good:
        raise _differs(f"{tensor.name} has shape {list(tensor.shape)}, the manifest says {list(shape)}")


def _check_profiles(loaded: Engine, engine: EngineInfo) -> None:
    kv = engine.kv
    for title, profile in engine.profiles.items():
        described: dict[str, tuple[Span, ...]] = {
            INPUT_IDS: (profile.batch, profile.sequence),
            ATTENTION_MASK: (profile.batch, profile.total),
            LOGITS_INDICES: (profile.batch, profile.positions),
        }
        fixed: list[Span] = [(size, size, size) for size in (kv.heads, kv.capacity, kv.head_dim)]
        described.update({PAST + name: (profile.batch, *fixed) for name in cache_names(engine.kv.layers)})
        for name, spans in described.items():
            shape = loaded.tensors[name].shape
            # A tensor whose sizes are all fixed has them in every profile.
            found = loaded.profile_shape(name, profile.index) if -1 in shape else (shape,) * 3
            for index, kind in ((0, "smallest"), (2, "largest")):
                says = tuple(span[index] for span in spans)
                if tuple(found[index]) != says:
                    raise _differs(
                        f"profile {title} has {kind} shape {list(found[index])} of {name}, the manifest says "
                        f"{list(says)}"
                    )


def _differs(what: str) -> NqEdgeError:
    return NqEdgeError(
        "NQ-BUNDLE", f"the engine is not the one that the manifest describes: {what}.", "Run `nq-edge build` again."
    )
