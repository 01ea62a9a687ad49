# SPDX-License-Identifier: Apache-2.0
"""The C interface of the CUDA kernels (plugins/kernels/nq_cuda*.h) through ctypes.

Device memory and streams are plain addresses here, so that any framework can call it; nothing imports PyTorch.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from enum import IntEnum
from functools import cache
from typing import Any

from ...errors import NqEdgeError
from ...system.native import cuda_library_path
from .table_types import CChoice, CEmbedding, CNormalization, COutput

__all__ = [
    "MAX_GROUP",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "Algorithm",
    "CAttention",
    "CCache",
    "CChoice",
    "CDevice",
    "CLinear",
    "CPass",
    "CType",
    "Input",
    "Layout",
    "Precision",
    "Status",
    "check",
    "library",
    "tile_words",
]

MAX_GROUP = 4
TILE_ROWS, TILE_COLUMNS, _TILE_WORDS = 16, 256, 128


class Status(IntEnum):
    """`nq_status`."""

    OK = 0
    BAD_ARGUMENT = 1
    BAD_LAYOUT = 2
    TOO_LARGE = 3
    NO_ISA = 4
    NO_KERNEL = 5
    CUDA_ERROR = 6
    WORKSPACE = 7


class CType(IntEnum):
    """`nq_type`."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2


class Layout(IntEnum):
    """`nq_layout`: orders of the sign words."""

    ROWS_LSB_FIRST = 0
    TILES_16X256 = 1


class Input(IntEnum):
    """`nq_input`: what is applied to x before the first scale."""

    PLAIN = 0
    RMS_NORM = 1
    SILU = 2
    GELU = 3


class Precision(IntEnum):
    """`nq_precision`."""

    EXACT = 0
    INT8 = 1


class Algorithm(IntEnum):
    """`nq_algorithm`."""

    AUTO = 0
    GEMV_BITS = 1
    GEMV_BYTES = 2
    GEMM_MMA = 3
    GEMM_WGMMA = 4


class CLinear(Structure):
    """`nq_linear`."""

    _fields_ = (
        ("in_features", c_int64),
        ("rank", c_int64),
        ("out_features", c_int64),
        ("layout", c_int),
        ("scale_type", c_int),
        ("v_words", c_void_p),
        ("u_words", c_void_p),
        ("scale_in", c_void_p),
        ("scale_mid", c_void_p),
        ("scale_out", c_void_p),
        ("bias", c_void_p),
    )


class CPass(Structure):
    """`nq_cuda_pass`."""

    _fields_ = (
        ("layers", POINTER(CLinear)),
        ("count", c_int32),
        ("x_type", c_int),
        ("y_type", c_int),
        ("input", c_int),
        ("precision", c_int),
        ("algorithm", c_int),
        ("rows", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("norm_eps", c_float),
        ("norm_weight", c_void_p),
        ("y", c_void_p * MAX_GROUP),
        ("y_stride", c_int64 * MAX_GROUP),
        ("residual", c_void_p * MAX_GROUP),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class CDevice(Structure):
    """`nq_cuda_device`."""

    _fields_ = (
        ("compute_capability", c_int32),
        ("multiprocessors", c_int32),
        ("one_bit_tensor_cores", c_int32),
        ("warpgroup_mma", c_int32),
    )


class CCache(Structure):
    """`nq_cuda_cache`."""

    _fields_ = (
        ("bits", c_int32),
        ("page_tokens", c_int32),
        ("pages", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("page_table", c_void_p),
        ("table_stride", c_int64),
    )


class CAttention(Structure):
    """`nq_cuda_attention`."""

    _fields_ = (
        ("type", c_int),
        ("sequences", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("max_tokens", c_int32),
        ("window", c_int32),
        ("soft_cap", c_float),
        ("scale", c_float),
        ("norm_eps", c_float),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("frequencies", c_void_p),
        ("positions", c_void_p),
        ("starts", c_void_p),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("y", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("y_stride", c_int64),
        ("cache", CCache),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


_P, _PP = c_void_p, POINTER(c_void_p)
#: function -> (result, arguments)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "nq_cuda_describe": (c_int, (POINTER(CDevice),)),
    "nq_cuda_tile_words": (c_int64, (c_int64, c_int64)),
    "nq_cuda_make_tiles": (c_int, (c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
    "nq_cuda_unmake_tiles": (c_int, (c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
    "nq_cuda_workspace_bytes": (c_size_t, (POINTER(CPass),)),
    "nq_cuda_forward": (c_int, (POINTER(CPass), c_void_p)),
    "nq_cuda_rotary_append": (c_int, (POINTER(CAttention), c_void_p)),
    "nq_cuda_attend_workspace_bytes": (c_size_t, (POINTER(CAttention),)),
    "nq_cuda_attend": (c_int, (POINTER(CAttention), c_void_p)),
    "nq_cuda_attend_many": (c_int, (POINTER(CAttention), c_void_p)),
    "nq_cuda_choose": (c_int, (POINTER(CChoice), c_void_p)),
    "nq_cuda_workspace_bound": (c_size_t, (POINTER(CPass),)),
    "nq_cuda_copy_rows": (c_int, (_P, c_size_t, _P, c_size_t, c_size_t, c_size_t, _P)),
    "nq_cuda_synchronize": (c_int, (_P,)),
    "nq_cuda_device_count": (c_int, (POINTER(c_int32),)),
    "nq_cuda_set_device": (c_int, (c_int32,)),
    "nq_cuda_device_name": (c_int, (c_int32, c_char_p, c_size_t)),
    "nq_cuda_memory_info": (c_int, (POINTER(c_size_t), POINTER(c_size_t))),
    "nq_cuda_allocate": (c_int, (c_size_t, _PP)),
    "nq_cuda_free": (c_int, (_P,)),
    "nq_cuda_allocate_pinned": (c_int, (c_size_t, _PP)),
    "nq_cuda_free_pinned": (c_int, (_P,)),
    "nq_cuda_copy": (c_int, (_P, _P, c_size_t, _P)),
    "nq_cuda_fill": (c_int, (_P, c_uint8, c_size_t, _P)),
    "nq_cuda_stream_create": (c_int, (_PP,)),
    "nq_cuda_stream_destroy": (c_int, (_P,)),
    "nq_cuda_event_create": (c_int, (_PP,)),
    "nq_cuda_event_record": (c_int, (_P, _P)),
    "nq_cuda_event_synchronize": (c_int, (_P,)),
    "nq_cuda_event_elapsed": (c_int, (_P, _P, POINTER(c_float))),
    "nq_cuda_event_destroy": (c_int, (_P,)),
    "nq_cuda_capture_begin": (c_int, (_P,)),
    "nq_cuda_capture_end": (c_int, (_P, _PP)),
    "nq_cuda_graph_launch": (c_int, (_P, _P)),
    "nq_cuda_graph_destroy": (c_int, (_P,)),
    "nq_cuda_embed": (c_int, (POINTER(CEmbedding), _P)),
    "nq_cuda_norm": (c_int, (POINTER(CNormalization), _P)),
    "nq_cuda_activate": (c_int, (c_int, _P, c_int64, _P, _P)),
    "nq_cuda_head_workspace_bytes": (c_size_t, (POINTER(COutput),)),
    "nq_cuda_head": (c_int, (POINTER(COutput), _P)),
    "nq_cuda_choice_workspace_bytes": (c_size_t, (c_int64, c_int64)),
    "nq_cuda_sample": (c_int, (POINTER(CChoice), _P)),
    "nq_cuda_error_text": (c_char_p, ()),
    "nq_status_text": (c_char_p, (c_int,)),
}


@cache
def library() -> Any:
    """The loaded library with typed functions; once per process. Loading needs no GPU.

    Raises:
        NqEdgeError: NQ-NATIVE-MISSING when it is not there or is another library.
    """
    path = cuda_library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NqEdgeError("NQ-NATIVE-MISSING", f"{path} cannot be used: {error}.", "Build it again.") from error
    return loaded


def check(status: int, what: str) -> None:
    """Turn a status into an error.

    Args:
        status: what a function of the library returned.
        what: the call, for the message.

    Raises:
        NqEdgeError: NQ-CUDA unless the status is OK.
    """
    if status == Status.OK:
        return
    text = library().nq_status_text(status).decode()
    if status in (Status.CUDA_ERROR, Status.NO_KERNEL):
        detail = library().nq_cuda_error_text().decode()
        text += f" ({detail})" if detail else ""
    raise NqEdgeError("NQ-CUDA", f"{what} failed: {text}.")


def tile_words(rows: int, columns: int) -> int:
    """int32 words that a rows x columns sign matrix takes in `Layout.TILES_16X256`."""
    return -(-rows // TILE_ROWS) * -(-columns // TILE_COLUMNS) * _TILE_WORDS
