# SPDX-License-Identifier: Apache-2.0
"""Tables, heads, embeddings and norms by any library with nq_cuda_table.h, against float64.

A device is a function `place` as in tests.plugins.choices. What is written to starts as NaN, as does scratch memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tests.plugins.choices import Place
from tests.plugins.table_calls import Embedding, Normalization, Output, Table

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "Head", "Random", "embed", "norm", "row_errors"]

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
DTYPES = {
    FLOAT32: np.dtype(np.float32),
    FLOAT16: np.dtype(np.float16),
    BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
NONE, RMS, LAYER = 0, 1, 2


def rounded(values: np.ndarray, kind: int) -> np.ndarray:
    """The values in an array of that type."""
    return np.asarray(values, np.float32).astype(DTYPES[kind])


class Random:
    """A random table of any format.

    Attributes:
        dense: what it stands for, float64 (rows, columns).
        arrays: codes and scales as they lie in memory.
    """

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int], bits: int, *, kind: int = FLOAT16, group: int = 0
    ) -> None:
        rows, columns = shape
        self.shape, self.bits, self.kind = shape, bits, kind
        self.group = group or (32 if bits == 4 else columns)
        if bits == 16:
            codes = rounded(rng.normal(size=shape) * 0.02, kind)
            self.dense, self.arrays = codes.astype(np.float64), [codes]
            return
        groups = -(-columns // self.group)
        scales = rounded(rng.normal(size=(rows, groups)) * 0.01, kind)
        least, most = (-127, 127) if bits == 8 else (-8, 7)
        codes = rng.integers(least, most + 1, shape).astype(np.int8)
        spread = np.repeat(scales.astype(np.float64), self.group, 1)[:, :columns]
        self.dense = codes * spread
        if bits == 4:
            even = np.zeros((rows, -(-columns // 2) * 2), np.int8)
            even[:, :columns] = codes
            codes = ((even[:, ::2] & 15) | (even[:, 1::2] << 4)).astype(np.int8)
        self.arrays = [codes, scales]

    def struct(self, place: Place) -> Table:
        """The structure, with the arrays on the device."""
        table = Table(self.shape[0], self.shape[1], self.group, self.bits, self.kind, self.kind)
        table.codes = place(self.arrays[0])[0]
        table.scales = place(self.arrays[1])[0] if self.bits < 16 else None
        return table


def normed(x: np.ndarray, kind: int, eps: float, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The norms in float64."""
    x = x.astype(np.float64)
    if kind == NONE:
        return x
    if kind == LAYER:
        x = x - x.mean(1, keepdims=True)
    x = x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * weight.astype(np.float64)
    return x if bias is None else x + bias


def activations(rng: np.random.Generator, rows: int, columns: int, kind: int, *, outliers: bool = True) -> np.ndarray:
    """Rows with outlier channels, at a stride of whole 16 bytes whose padding is NaN."""
    values = rng.normal(size=(rows, -(-columns // 8) * 8))
    if outliers:
        values[:, :: max(1, columns // 3)] *= 100
    values[:, columns:] = np.nan
    return rounded(values, kind)


def row_errors(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative error of a row; NaN where one was not written."""
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        return float("nan")
    return float((np.linalg.norm(found - wanted, axis=1) / (np.linalg.norm(wanted, axis=1) + 1e-30)).max())


@dataclass
class Head:
    """One call of nq_cuda_head with random inputs."""

    lib: Any
    place: Place
    table: Random
    rows: int
    kind: int = FLOAT16
    norm: int = NONE
    bias: bool = False
    soft_cap: float = 0.0
    ends: bool = False
    seed: int = 0

    def run(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Status, logits (rows, vocabulary) and what they should be."""
        rng = np.random.default_rng(self.seed)
        vocabulary, columns = self.table.shape
        x = activations(rng, self.rows + 5 if self.ends else self.rows, columns, self.kind)
        weight = (1 + 0.5 * rng.normal(size=columns)).astype(np.float32)
        bias = rng.normal(size=columns).astype(np.float32) if self.bias else None
        taken = np.arange(self.rows)
        call = Output(table=self.table.struct(self.place), x_type=self.kind, norm=self.norm, norm_eps=1e-5)
        call.soft_cap, call.rows = self.soft_cap, self.rows
        call.norm_weight = self.place(weight)[0]
        call.norm_bias = self.place(bias)[0] if bias is not None else None
        call.x, call.x_stride = self.place(x)[0], x.shape[1]
        if self.ends:
            ends = rng.permutation(self.rows + 5)[: self.rows].astype(np.int32) + 1
            ends[0] = 0
            taken = np.maximum(ends, 1) - 1
            call.ends = self.place(ends)[0]
        stride = vocabulary + 3
        call.logits, logits = self.place(np.full((self.rows, stride), np.nan, np.float32))
        call.logits_stride = stride
        call.workspace_bytes = self.lib.nq_cuda_head_workspace_bytes(ctypes.byref(call))
        call.workspace = self.place(np.full(call.workspace_bytes, 0xFF, np.uint8))[0]
        status = self.lib.nq_cuda_head(ctypes.byref(call), None)
        wanted = normed(x[taken, :columns], self.norm, 1e-5, weight, bias) @ self.table.dense.T
        if self.soft_cap:
            wanted = self.soft_cap * np.tanh(wanted / self.soft_cap)
        found = logits()
        assert np.isnan(found[:, vocabulary:]).all()
        return status, found[:, :vocabulary], wanted


def embed(
    lib: Any,
    place: Place,
    table: Random,
    tokens: np.ndarray,
    *,
    kind: int = FLOAT16,
    multiplier: float = 1.0,
    learned: np.ndarray | None = None,
    positions: list[int] | None = None,
    starts: list[int] | None = None,
) -> tuple[int, np.ndarray]:
    """Status and rows of nq_cuda_embed; learned positions have offset 2 as OPT's."""
    columns = table.shape[1]
    call = Embedding(table=table.struct(place), type=kind, multiplier=multiplier, count=len(tokens))
    call.tokens, call.out_stride = place(np.asarray(tokens, np.int64))[0], -(-columns // 8) * 8
    call.out, out = place(rounded(np.full((len(tokens), call.out_stride), np.nan), kind))
    if learned is not None:
        call.learned, call.learned_rows, call.learned_offset = place(rounded(learned, kind))[0], len(learned), 2
    if positions is not None:
        call.positions, call.sequences = place(np.asarray(positions, np.int64))[0], len(positions)
    if starts is not None:
        call.starts = place(np.asarray(starts, np.int32))[0]
    status = lib.nq_cuda_embed(ctypes.byref(call), None)
    return status, out()[:, :columns]


def norm(
    lib: Any,
    place: Place,
    shape: tuple[int, int],
    kind: int,
    which: int,
    *,
    bias: bool = False,
    residual: bool = False,
    in_place: bool = False,
    seed: int = 0,
) -> tuple[int, np.ndarray, np.ndarray]:
    """Status, rows of nq_cuda_norm and what they should be, float64."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    x = activations(rng, rows, columns, kind)
    weight = (1 + 0.5 * rng.normal(size=columns)).astype(np.float32)
    shift = rng.normal(size=columns).astype(np.float32) if bias else None
    wanted = normed(x[:, :columns], which, 1e-5, weight, shift)
    call = Normalization(norm=which, type=kind, rows=rows, columns=columns, eps=1e-5)
    call.weight, call.bias = place(weight)[0], place(shift)[0] if shift is not None else None
    call.x_stride = call.out_stride = call.residual_stride = x.shape[1]
    call.x, out = place(x)
    call.out = call.x
    if not in_place:
        call.out, out = place(rounded(np.full(x.shape, np.nan), kind))
    if residual:
        given = activations(rng, rows, columns, kind, outliers=False)
        wanted = wanted + given[:, :columns].astype(np.float64)
        call.residual = place(given)[0]
    status = lib.nq_cuda_norm(ctypes.byref(call), None)
    return status, out()[:, :columns], wanted
