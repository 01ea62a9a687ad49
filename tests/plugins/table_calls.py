# SPDX-License-Identifier: Apache-2.0
"""nq_cuda_table.h through ctypes, written from the header alone, for tests of the kernels and of the stand-in."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

__all__ = ["Choice", "Embedding", "Normalization", "Output", "Sampling", "Table", "declare", "load"]


class Table(Structure):
    """nq_cuda_table."""

    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("group", c_int64),
        ("bits", c_int32),
        ("type", c_int),
        ("scale_type", c_int),
        ("codes", c_void_p),
        ("scales", c_void_p),
    )


class Embedding(Structure):
    """nq_cuda_embedding."""

    _fields_ = (
        ("table", Table),
        ("type", c_int),
        ("multiplier", c_float),
        ("count", c_int64),
        ("tokens", c_void_p),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("learned", c_void_p),
        ("learned_rows", c_int64),
        ("learned_offset", c_int64),
        ("sequences", c_int64),
        ("positions", c_void_p),
        ("starts", c_void_p),
    )


class Normalization(Structure):
    """nq_cuda_normalization."""

    _fields_ = (
        ("norm", c_int),
        ("type", c_int),
        ("rows", c_int64),
        ("columns", c_int64),
        ("eps", c_float),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("x", c_void_p),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("x_stride", c_int64),
        ("residual_stride", c_int64),
        ("out_stride", c_int64),
    )


class Output(Structure):
    """nq_cuda_output."""

    _fields_ = (
        ("table", Table),
        ("x_type", c_int),
        ("norm", c_int),
        ("norm_eps", c_float),
        ("soft_cap", c_float),
        ("norm_weight", c_void_p),
        ("norm_bias", c_void_p),
        ("rows", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("ends", c_void_p),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class Sampling(Structure):
    """nq_cuda_sampling."""

    _fields_ = (
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("reserved", c_uint32),
        ("seed", c_uint64),
    )


class Choice(Structure):
    """nq_cuda_choice."""

    _fields_ = (
        ("sequences", c_int64),
        ("vocabulary", c_int64),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("tokens", c_void_p),
        ("history", c_void_p),
        ("capacity", c_int64),
        ("positions", c_void_p),
        ("starts", c_void_p),
        ("sampling", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


def declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its table functions."""
    lib.nq_cuda_choice_workspace_bytes.restype = c_size_t
    lib.nq_cuda_choice_workspace_bytes.argtypes = (c_int64, c_int64)
    lib.nq_cuda_head_workspace_bytes.restype = c_size_t
    lib.nq_cuda_head_workspace_bytes.argtypes = (POINTER(Output),)
    lib.nq_cuda_head.argtypes = (POINTER(Output), c_void_p)
    lib.nq_cuda_embed.argtypes = (POINTER(Embedding), c_void_p)
    lib.nq_cuda_norm.argtypes = (POINTER(Normalization), c_void_p)
    lib.nq_cuda_choose.argtypes = (POINTER(Choice), c_void_p)
    lib.nq_cuda_sample.argtypes = (POINTER(Choice), c_void_p)
    lib.nq_cuda_activate.argtypes = (c_int, c_void_p, c_int64, c_void_p, c_void_p)
    return lib


def load(path: Path | str) -> ctypes.CDLL:
    """The library at `path`, declared."""
    return declare(ctypes.CDLL(str(path)))
