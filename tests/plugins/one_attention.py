# SPDX-License-Identifier: Apache-2.0
"""Models of one NanoQuantAttention node against float64; runs as a script on a library and prints the errors.

The caches are bound as input and output at once, poisoned past the valid slots, as the runtime does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from tests.plugins.sessions import make_session, to_bytes

__all__ = ["CASES", "make_feeds", "make_model", "make_session", "reference", "run"]

NAMES = ("query", "key", "value", "past_key", "past_value", "last", "cosines", "sines")
RANKS = (3, 3, 3, 4, 4, 1, 2, 2, 1)
INTEGERS, CACHES = ("last", "slots"), ("past_key", "past_value")


def make_model(
    heads: int,
    kv_heads: int,
    dim: int,
    window: int = 0,
    scale: float = 0.1,
    slots: bool = False,
    cache: int = TensorProto.FLOAT,
    **changes: Any,
) -> bytes:
    """A model of one node with symbolic shapes; `changes` replace attributes, None removes one."""
    names = (*NAMES, "slots") if slots else NAMES
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "head_dim": dim, "window": window, "scale": scale}
    attributes = {name: value for name, value in {**attributes, **changes}.items() if value is not None}
    outputs = ["y", "present_key", "present_value"]
    kind = "NanoQuantAttention" if cache == TensorProto.FLOAT else "NanoQuantAttentionHalfCache"
    node = helper.make_node(kind, names, outputs, domain="com.nanoquant", **attributes)
    inputs = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT32 if name in INTEGERS else cache if name in CACHES else TensorProto.FLOAT,
            [f"{name}{d}" for d in range(rank)],
        )
        for name, rank in zip(names, RANKS, strict=False)
    ]
    results = [
        helper.make_tensor_value_info(name, kind, [f"{name}{d}" for d in range(rank)])
        for name, rank, kind in zip(outputs, (3, 4, 4), (TensorProto.FLOAT, cache, cache), strict=True)
    ]
    graph = helper.make_graph([node], "one", inputs, results)
    return to_bytes(graph)


def run(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Y; the caches in `feeds` are updated in place."""
    binding = session.io_binding()
    for name in feeds:
        binding.bind_input(name, "cpu", 0, feeds[name].dtype, feeds[name].shape, feeds[name].ctypes.data)
    y = np.full(feeds["query"].shape, np.nan, np.float32)
    binding.bind_output("y", "cpu", 0, TensorProto.FLOAT, y.shape, y.ctypes.data)
    for part in ("key", "value"):
        cache = feeds[f"past_{part}"]
        binding.bind_output(f"present_{part}", "cpu", 0, cache.dtype, cache.shape, cache.ctypes.data)
    session.run_with_iobinding(binding)
    return y


def rotated(x: np.ndarray, positions: np.ndarray, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """[rows, heads, dim] in float64, halves rotated."""
    cosines, sines = (feeds[name].astype(np.float64)[positions][:, None] for name in ("cosines", "sines"))
    low, high = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], axis=-1)


def reference(feeds: dict[str, np.ndarray], before: list[np.ndarray], heads: int, window: int, scale: float) -> Any:
    """Y in float64 from the caches as they were before the call, in whose type new entries are kept."""
    batch, rows, _ = feeds["query"].shape
    kind = before[0].dtype
    _, kv_heads, _, dim = before[0].shape
    y = np.zeros((batch, rows, heads, dim))
    for b in range(batch):
        first = max(int(feeds["last"][b]) + 1 - rows, 0)
        positions = np.arange(first, first + rows)
        query = rotated(feeds["query"][b].reshape(rows, heads, dim), positions, feeds)
        new = rotated(feeds["key"][b].reshape(rows, kv_heads, dim), positions, feeds)
        keys = np.concatenate([before[0][b, :, :first], new.transpose(1, 0, 2).astype(kind)], axis=1).astype(np.float64)
        fresh = feeds["value"][b].reshape(rows, kv_heads, dim).transpose(1, 0, 2)
        values = np.concatenate([before[1][b, :, :first], fresh.astype(kind)], axis=1).astype(np.float64)
        slots = np.arange(first + rows)
        seen = slots <= positions[:, None]
        if window:
            seen &= slots > positions[:, None] - window
        for head in range(heads):
            scores = np.where(seen, query[:, head] @ keys[head * kv_heads // heads].T * scale, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            y[b, :, head] = weights / weights.sum(-1, keepdims=True) @ values[head * kv_heads // heads]
    return y.reshape(batch, rows, heads * dim)


def make_feeds(
    heads: int, kv_heads: int, dim: int, rows: int, past: list[int], capacity: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs; slots of the caches that hold no token yet are NaN."""
    rng, batch = np.random.default_rng(seed), len(past)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    angles = np.arange(capacity)[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    feeds = {"query": normal(batch, rows, heads * dim) * 3, "key": normal(batch, rows, kv_heads * dim)}
    feeds |= {"value": normal(batch, rows, kv_heads * dim), "last": np.array(past, np.int32) + np.int32(rows - 1)}
    feeds |= {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}
    for part in ("key", "value"):
        cache = normal(batch, kv_heads, capacity, dim)
        for b, length in enumerate(past):
            cache[b, :, length:] = np.nan
        feeds[f"past_{part}"] = cache
    return feeds


#: heads, kv_heads, head_dim, rows, tokens before, capacity, window
CASES = [
    (9, 3, 64, 1, [0], 256, 0),
    (9, 3, 64, 1, [319], 512, 0),
    (9, 3, 64, 40, [0], 64, 0),
    (9, 3, 64, 200, [57], 512, 0),
    (2, 2, 16, 5, [3, 60], 70, 0),
    (4, 1, 80, 33, [0, 0, 0], 64, 0),
    (4, 1, 256, 2, [190], 256, 0),
    (4, 1, 256, 70, [10], 128, 20),
    (8, 2, 32, 1, [100], 128, 7),
    (8, 2, 32, 130, [0], 256, 64),
    (3, 3, 128, 7, [129, 1], 140, 1),
]


def main(library: str) -> None:
    """Run the cases, in one thread and in three, and with a cache of 16 bits."""
    rows = []
    for number, (heads, kv_heads, dim, count, past, capacity, window) in enumerate(CASES):
        for threads, cache, limit in ((1, np.float32, 1e-5), (3, np.float32, 1e-5), (3, np.float16, 3e-4)):
            feeds = make_feeds(heads, kv_heads, dim, count, past, capacity, seed=number)
            feeds |= {name: feeds[name].astype(cache) for name in CACHES}
            before = [feeds[name].copy() for name in CACHES]
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(cache))
            model = make_model(heads, kv_heads, dim, window, dim**-0.5, cache=kind)
            session = make_session(model, library, threads)
            y = run(session, feeds)
            wanted = reference(feeds, before, heads, window, dim**-0.5)
            error = np.linalg.norm(y - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
            kept = all(
                np.array_equal(cache[b, :, :length], old[b, :, :length])
                and np.isnan(cache[b, :, length + count :]).all()
                and np.isfinite(cache[b, :, : length + count]).all()
                for cache, old in zip((feeds["past_key"], feeds["past_value"]), before, strict=True)
                for b, length in enumerate(past)
            )
            worst = float(np.max(np.where(np.isfinite(error), error, np.inf)))
            rows.append({"case": number, "threads": threads, "error": worst, "limit": limit, "kept": bool(kept)})
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1])
