# SPDX-License-Identifier: Apache-2.0
"""Attention of a CUDA library (the real one, emulated, or the stand-in) against float64, with numpy alone.

Memory is the library's own. Every buffer lies between guard bands of 0xFF bytes, and so are all parts of the cache that
hold no token: NaN in both float types and in scales.

`NQ_GUARD_BYTES=0` leaves the bands out, so that compute-sanitizer's memcheck sees what lies outside.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nanoquant_edge.runtimes.cuda.binding import CAttention, CCache, CDevice, CType

__all__ = ["DTYPES", "Case", "Layout", "Library", "Outcome", "check_case", "run_case"]

DTYPES = {CType.FLOAT16: np.dtype(np.float16), CType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
_GUARD = int(os.environ.get("NQ_GUARD_BYTES", "1024"))
_THETA = 1e4


class Library:
    """The functions of nq_cuda_attention.h and of the memory that they work on."""

    def __init__(self, path: str) -> None:
        lib = ctypes.CDLL(path)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        lib.nq_cuda_allocate.argtypes = (size, ctypes.POINTER(pointer))
        lib.nq_cuda_free.argtypes = (pointer,)
        lib.nq_cuda_copy.argtypes = (pointer, pointer, size, pointer)
        lib.nq_cuda_synchronize.argtypes = (pointer,)
        lib.nq_cuda_attend_workspace_bytes.restype = size
        lib.nq_cuda_attend_workspace_bytes.argtypes = (ctypes.POINTER(CAttention),)
        for name in ("rotary_append", "attend", "attend_many"):
            getattr(lib, f"nq_cuda_{name}").argtypes = (ctypes.POINTER(CAttention), pointer)
        self.lib: Any = lib

    def describe(self) -> CDevice:
        """The device that calls run on."""
        device = CDevice()
        assert self.lib.nq_cuda_describe(ctypes.byref(device)) == 0
        return device


class Buffer:
    """An array's copy in the library's memory, between two guard bands."""

    def __init__(self, library: Library, array: np.ndarray) -> None:
        self._lib, self._dtype, self._shape = library.lib, array.dtype, array.shape
        self._bytes = array.nbytes
        self._memory = ctypes.c_void_p()
        self._whole = np.full(array.nbytes + 2 * _GUARD, 0xFF, np.uint8)
        assert self._lib.nq_cuda_allocate(self._whole.nbytes, ctypes.byref(self._memory)) == 0
        self._whole[_GUARD : _GUARD + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._copy(self._memory.value, self._whole.ctypes.data)
        self.pointer = (self._memory.value or 0) + _GUARD

    def _copy(self, to: int | None, source: int | None) -> None:
        assert self._lib.nq_cuda_copy(to, source, self._whole.nbytes, None) == 0
        assert self._lib.nq_cuda_synchronize(None) == 0

    def read(self) -> np.ndarray:
        """What it holds now. Raises AssertionError when a guard band was written."""
        self._copy(self._whole.ctypes.data, self._memory.value)
        inside = slice(_GUARD, _GUARD + self._bytes)
        assert (np.delete(self._whole, np.arange(inside.start, inside.stop)) == 0xFF).all(), "wrote outside"
        return self._whole[inside].view(self._dtype).reshape(self._shape).copy()

    def free(self) -> None:
        """Give the memory back."""
        assert self._lib.nq_cuda_free(self._memory) == 0


@dataclass(frozen=True)
class Layout:
    """A cache: bits of a value, tokens of a page (0: a contiguous cache) and tokens of a sequence at most."""

    bits: int = 16
    page_tokens: int = 0
    capacity: int = 64
    shared: int = 0  # leading pages that all sequences share


@dataclass(frozen=True)
class Case:
    """Sizes of a call: tokens held of each sequence (-1: idle) and new ones, and the model's ways."""

    held: tuple[int, ...]
    new: tuple[int, ...]
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    type: CType = CType.FLOAT16
    cache: Layout = Layout()
    window: int = 0
    soft_cap: float = 0.0
    norms: bool = False
    rotary: bool = True
    fused: bool = False  # nq_cuda_attend instead of append and attend_many
    outliers: bool = False
    seed: int = 0
    compared: int = 1  # every so many tokens' attention is compared


@dataclass
class Outcome:
    """Largest error of an output head, of an appended head, and of the rotated queries, relative to their norms."""

    output: float
    appended: float
    queries: float
    digest: int = 0  # of all bits of the output


class _Cache:
    """The cache of a case on the host: slots [pages][kv_heads][page_tokens][head_dim], and what they hold."""

    def __init__(self, case: Case, rng: np.random.Generator) -> None:
        layout, sequences = case.cache, len(case.held)
        self.case, self.paged = case, layout.page_tokens > 0
        self.page_tokens = layout.page_tokens or layout.capacity
        each = -(-layout.capacity // self.page_tokens)
        if self.paged:
            own = each - layout.shared
            pages = layout.shared + sequences * own + 1  # and one that nobody has
            order = rng.permutation(pages).astype(np.int32)
            self.table = np.empty((sequences, each), np.int32)
            self.table[:, : layout.shared] = order[: layout.shared]
            self.table[:, layout.shared :] = order[layout.shared : pages - 1].reshape(sequences, own)
        else:
            pages, self.table = sequences, np.arange(sequences, dtype=np.int32)[:, None]
        shape = (pages, case.heads[1], self.page_tokens)
        dtype = np.dtype(np.int8) if layout.bits == 8 else DTYPES[case.type]
        self.arrays = [np.full((*shape, case.head_dim * dtype.itemsize), 0xFF, np.uint8).view(dtype) for _ in range(2)]
        self.scales = [np.full((*shape, 2), 0xFF, np.uint8).view(np.float16)[..., 0].copy() for _ in range(2)]
        for sequence, held in enumerate(case.held):
            for token in range(max(held, 0)):
                page, inside = self.place(sequence, token)
                for kind in range(2):
                    values = rng.normal(size=(case.heads[1], case.head_dim)) * (1 if kind else 1.5)
                    if case.outliers and token % 7 == 3:
                        values[:, 5] *= 60
                    self._keep(kind, page, inside, values)

    def place(self, sequence: int, token: int) -> tuple[int, int]:
        return int(self.table[sequence, token // self.page_tokens]), token % self.page_tokens

    def _keep(self, kind: int, page: int, inside: int, values: np.ndarray) -> None:
        if self.case.cache.bits == 16:
            self.arrays[kind][page, :, inside] = values.astype(DTYPES[self.case.type])
            return
        scales = (np.abs(values).max(-1) / 127).astype(np.float16)
        self.scales[kind][page, :, inside] = scales
        codes = np.rint(values / scales[:, None].astype(np.float64))
        self.arrays[kind][page, :, inside] = np.clip(codes, -127, 127).astype(np.int8)

    def rows(self, arrays: list[np.ndarray], scales: list[np.ndarray], kind: int, places: list) -> np.ndarray:
        """float64 [tokens][kv_heads][head_dim] of the places (page, inside) in a cache like this one."""
        pages, inside = np.array(places, dtype=np.int64).reshape(-1, 2).T
        values = arrays[kind][pages, :, inside].astype(np.float64)
        if self.case.cache.bits == 8:
            values = values * scales[kind][pages, :, inside].astype(np.float64)[..., None]
        return values


def _rotated(case: Case, x: np.ndarray, weight: np.ndarray | None, place: int, frequencies: np.ndarray) -> np.ndarray:
    """float64 [heads][head_dim]: normed and rotated."""
    x = x.astype(np.float64)
    if weight is not None:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight.astype(np.float64)
    if not case.rotary:
        return x
    low, high = np.split(x, 2, -1)
    angles = (np.float32(place) * frequencies).astype(np.float64)
    return np.concatenate(
        (low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles)), -1
    )


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative error of a vector along the last axis; infinite where something is not finite."""
    error = np.linalg.norm(found - expected, axis=-1) / (np.linalg.norm(expected, axis=-1) + 1e-30)
    return float(error.max()) if np.isfinite(error).all() else float("inf")


def _attended(case: Case, query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64 [heads][head_dim]: attention of one token over [tokens][kv_heads][head_dim]."""
    group = case.heads[0] // case.heads[1]
    keys, values = keys.repeat(group, 1), values.repeat(group, 1)
    scores = np.einsum("hd,thd->ht", query, keys) * case.head_dim**-0.5
    if case.soft_cap:
        scores = case.soft_cap * np.tanh(scores / case.soft_cap)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("ht,thd->hd", weights / weights.sum(-1, keepdims=True), values)


def run_case(library: Library, case: Case) -> Outcome:
    """Run a case and compare all that it wrote; what it should leave alone must be as it was.

    Raises:
        AssertionError: a call failed, wrote elsewhere, or left the workspace dirty.
    """
    rng = np.random.default_rng(case.seed)
    heads, kv_heads = case.heads
    dim, dtype, cache = case.head_dim, DTYPES[case.type], _Cache(case, rng)
    starts = np.concatenate(([0], np.cumsum(case.new))).astype(np.int32)
    # Rows of q, k and v lie side by side, as a projection leaves them, and some belong to nobody.
    width, rows = (heads + 2 * kv_heads) * dim + 8, int(starts[-1]) + 1
    given = rng.normal(size=(rows, width))
    if case.outliers:
        given[:, ::17] *= 30
    given = given.astype(dtype)
    frequencies = (_THETA ** -(np.arange(0, dim, 2) / dim)).astype(np.float32)
    weights = (1 + 0.2 * rng.normal(size=(2, dim))).astype(np.float32) if case.norms else None
    poison = np.full((rows, heads * dim * 2), 0xFF, np.uint8).view(dtype)
    held: dict[str, Buffer] = {
        name: Buffer(library, array)
        for name, array in {
            "qkv": given, "y": poison, "positions": np.array(case.held, np.int64), "starts": starts,
            "frequencies": frequencies, "keys": cache.arrays[0], "values": cache.arrays[1],
            "key_scales": cache.scales[0], "value_scales": cache.scales[1], "table": cache.table,
            **({} if weights is None else {"q_norm": weights[0], "k_norm": weights[1]}),
        }.items()
    }  # fmt: skip

    def pointer(name: str, there: bool = True) -> int | None:
        return held[name].pointer if there else None

    eight = case.cache.bits == 8
    call = CAttention(
        type=case.type, sequences=len(case.held), heads=heads, kv_heads=kv_heads, head_dim=dim,
        max_tokens=1 if case.fused else max(case.new), window=case.window, soft_cap=case.soft_cap, scale=dim**-0.5,
        norm_eps=1e-6, q_norm=pointer("q_norm", case.norms), k_norm=pointer("k_norm", case.norms),
        frequencies=pointer("frequencies", case.rotary), positions=pointer("positions"),
        starts=pointer("starts", not case.fused), q=pointer("qkv"), y=pointer("y"),
        k=held["qkv"].pointer + heads * dim * 2, v=held["qkv"].pointer + (heads + kv_heads) * dim * 2,
        q_stride=width, k_stride=width, v_stride=width, y_stride=heads * dim,
        cache=CCache(
            bits=case.cache.bits, page_tokens=cache.page_tokens, pages=cache.arrays[0].shape[0],
            keys=pointer("keys"), values=pointer("values"), key_scales=pointer("key_scales", eight),
            value_scales=pointer("value_scales", eight), page_table=pointer("table", cache.paged),
            table_stride=cache.table.shape[1],
        ),
    )  # fmt: skip
    size = library.lib.nq_cuda_attend_workspace_bytes(ctypes.byref(call))
    assert size > 0
    workspace = held["workspace"] = Buffer(library, np.zeros(size, np.uint8))
    call.workspace, call.workspace_bytes = workspace.pointer, size
    rotated = None
    if case.fused:
        assert library.lib.nq_cuda_attend(ctypes.byref(call), None) == 0
    else:
        assert library.lib.nq_cuda_rotary_append(ctypes.byref(call), None) == 0
        rotated = held["y"].read()
        call.q, call.q_stride, call.k, call.v = call.y, call.y_stride, None, None
        assert library.lib.nq_cuda_attend_many(ctypes.byref(call), None) == 0
    arrays = [held[name].read() for name in ("keys", "values")]
    scales = [held[name].read() for name in ("key_scales", "value_scales")]
    found = held["y"].read()
    assert not workspace.read()[:4096].any(), "the workspace is not ready for the next call"
    for buffer in held.values():
        buffer.read()
        buffer.free()
    return _compare(
        case,
        cache,
        given[:, : width - 8].reshape(rows, -1, dim),
        (frequencies, weights),
        (arrays, scales, found, rotated),
    )


def _compare(case: Case, cache: _Cache, given: np.ndarray, constants: tuple, results: tuple) -> Outcome:
    """Errors of what was written, with everything that should not be written compared bit by bit."""
    (frequencies, weights), (arrays, scales, found, rotated) = constants, results
    heads, kv_heads = case.heads
    untouched = np.ones(len(found), bool)
    kept = [array.copy() for array in arrays]
    kept_scales = [array.copy() for array in scales]
    outcome, row = Outcome(0.0, 0.0, 0.0, hash(found.tobytes())), 0
    for sequence, (held, new) in enumerate(zip(case.held, case.new, strict=True)):
        for index in range(new):
            place, at = held + index, row + index
            if held < 0 or place >= case.cache.capacity:
                continue
            untouched[at] = False
            norm = (None, None) if weights is None else weights
            query = _rotated(case, given[at, :heads], norm[0], place, frequencies)
            if rotated is not None:
                outcome.queries = max(outcome.queries, _relative(rotated[at].reshape(heads, -1).astype(float), query))
            query = query.astype(DTYPES[case.type]).astype(np.float64)
            page, inside = cache.place(sequence, place)
            key = _rotated(case, given[at, heads : heads + kv_heads], norm[1], place, frequencies)
            for kind, expected in enumerate((key, given[at, heads + kv_heads :].astype(np.float64))):
                written = cache.rows(arrays, scales, kind, [(page, inside)])[0]
                if case.cache.bits == 8:
                    # The stated error: half a scale, which is a 254th of the largest, rounded up to float16.
                    scale = scales[kind][page, :, inside].astype(np.float64)
                    largest = np.abs(expected).max(-1) / 127
                    assert (scale >= largest * (1 - 1e-6)).all() and (scale <= largest * (1 + 1e-3) + 2**-24).all()
                    assert (np.abs(written - expected) <= scale[:, None] * 0.501).all()
                else:
                    outcome.appended = max(outcome.appended, _relative(written, expected))
                for array, before in zip(
                    (kept[kind], kept_scales[kind]), (cache.arrays[kind], cache.scales[kind]), strict=True
                ):
                    array[page, :, inside] = before[page, :, inside]
            if index % case.compared not in (0, new - 1):
                continue
            first = max(0, place + 1 - case.window) if case.window else 0
            places = [cache.place(sequence, token) for token in range(first, place + 1)]
            keys, values = (cache.rows(arrays, scales, kind, places) for kind in range(2))
            expected = _attended(case, query, keys, values)
            outcome.output = max(outcome.output, _relative(found[at].reshape(heads, -1).astype(float), expected))
        row += new
    for before, after in zip([*cache.arrays, *cache.scales], [*kept, *kept_scales], strict=True):
        assert np.array_equal(before.view(np.uint8), after.view(np.uint8)), "wrote elsewhere in the cache"
    assert (found[untouched].view(np.uint8) == 0xFF).all(), "wrote a row that should be left alone"
    return outcome


def check_case(library: Library, case: Case) -> None:
    """Run a case and hold its errors to what rounding to its type explains.

    Raises:
        AssertionError: with the case.
    """
    outcome = run_case(library, case)
    # Queries, weights and outputs each round; with bfloat16 by up to 2^-9 of themselves.
    limit = 1e-3 if case.type == CType.FLOAT16 else 6e-3
    assert max(outcome.output, outcome.appended, outcome.queries) <= limit, (outcome, case)
