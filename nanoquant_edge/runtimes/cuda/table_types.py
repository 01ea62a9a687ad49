# SPDX-License-Identifier: Apache-2.0
"""The structures of plugins/kernels/nq_cuda_table.h for ctypes; what their fields mean is told there."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum

__all__ = ["HEAD_ROWS", "CChoice", "CEmbedding", "CNormalization", "COutput", "CSampling", "CTable", "Norm"]

#: `NQ_CUDA_HEAD_ROWS`: most rows that one read of the head's table serves.
HEAD_ROWS = 16


class Norm(IntEnum):
    """`nq_norm`."""

    NONE = 0
    RMS = 1
    LAYER = 2


class CTable(Structure):
    """`nq_cuda_table`: an embedding or head in 16, 8 or 4 bits."""

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


class CEmbedding(Structure):
    """`nq_cuda_embedding`."""

    _fields_ = (
        ("table", CTable),
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


class CNormalization(Structure):
    """`nq_cuda_normalization`."""

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


class COutput(Structure):
    """`nq_cuda_output`: the head."""

    _fields_ = (
        ("table", CTable),
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


class CSampling(Structure):
    """`nq_cuda_sampling`: how one sequence's next token is drawn."""

    _fields_ = (
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("reserved", c_uint32),
        ("seed", c_uint64),
    )


class CChoice(Structure):
    """`nq_cuda_choice`."""

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
