# SPDX-License-Identifier: Apache-2.0
"""The C interface of plugins/kernels/nq_cuda.h through ctypes, written from the header alone.

Shares no code with the package, so that a mistake in the package's own binding cannot hide here.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

__all__ = ["ALGORITHMS", "BFLOAT16", "FLOAT16", "FLOAT32", "Cuda", "Device", "Linear", "Pass", "Status"]

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
PLAIN, RMS_NORM, SILU, GELU = 0, 1, 2, 3
EXACT, INT8 = 0, 1
AUTO, GEMV_BITS, GEMV_BYTES, GEMM_MMA, GEMM_WGMMA = 0, 1, 2, 3, 4
TILES = 1
MAX_GROUP = 4

#: every value of nq_algorithm by the name that tests show
ALGORITHMS = {
    "auto": AUTO,
    "gemv_bits": GEMV_BITS,
    "gemv_bytes": GEMV_BYTES,
    "gemm_mma": GEMM_MMA,
    "gemm_wgmma": GEMM_WGMMA,
}


class Status:
    """Values of nq_status."""

    OK, BAD_ARGUMENT, BAD_LAYOUT, TOO_LARGE, NO_ISA, NO_KERNEL, CUDA_ERROR, WORKSPACE = range(8)


class Linear(Structure):
    """nq_linear."""

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


class Pass(Structure):
    """nq_cuda_pass."""

    _fields_ = (
        ("layers", POINTER(Linear)),
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


class Device(Structure):
    """nq_cuda_device."""

    _fields_ = (
        ("compute_capability", c_int32),
        ("multiprocessors", c_int32),
        ("one_bit_tensor_cores", c_int32),
        ("warpgroup_mma", c_int32),
    )


class Cuda:
    """The loaded library; every call returns the status as a number."""

    def __init__(self, path: Path) -> None:
        lib = ctypes.CDLL(str(path))
        self.path = path
        self.lib = lib
        lib.nq_cuda_describe.argtypes = [POINTER(Device)]
        lib.nq_cuda_tile_words.argtypes = [c_int64, c_int64]
        lib.nq_cuda_tile_words.restype = c_int64
        for name in ("nq_cuda_make_tiles", "nq_cuda_unmake_tiles"):
            getattr(lib, name).argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p]
        for name in ("nq_cuda_workspace_bytes", "nq_cuda_workspace_bound"):
            getattr(lib, name).argtypes = [POINTER(Pass)]
            getattr(lib, name).restype = c_size_t
        lib.nq_cuda_forward.argtypes = [POINTER(Pass), c_void_p]
        lib.nq_cuda_error_text.restype = c_char_p
        lib.nq_status_text.restype = c_char_p

    def describe(self) -> Device:
        """nq_cuda_describe of the current device."""
        device = Device()
        status = self.lib.nq_cuda_describe(byref(device))
        assert status == Status.OK, self.text(status)
        return device

    def text(self, status: int) -> str:
        """A status in words, with the CUDA error where there was one."""
        words = self.lib.nq_status_text(status).decode()
        return f"{words} ({self.lib.nq_cuda_error_text().decode()})"

    def workspace_bytes(self, call: Pass) -> int:
        """nq_cuda_workspace_bytes."""
        return int(self.lib.nq_cuda_workspace_bytes(byref(call)))

    def workspace_bound(self, call: Pass) -> int:
        """nq_cuda_workspace_bound."""
        return int(self.lib.nq_cuda_workspace_bound(byref(call)))

    def forward(self, call: Pass, stream: int) -> int:
        """nq_cuda_forward."""
        return int(self.lib.nq_cuda_forward(byref(call), stream))
