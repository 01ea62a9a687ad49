# SPDX-License-Identifier: Apache-2.0
"""Registration with a runtime that is too old, played by a table of function pointers."""

from __future__ import annotations

import ctypes

GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
GET_VERSION = ctypes.CFUNCTYPE(ctypes.c_void_p)
CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
STATUS = 0x5AFE  # any address that is not null


class ApiBase(ctypes.Structure):
    _fields_ = (("get_api", GET_API), ("get_version", GET_VERSION))


def test_a_runtime_without_api_18_is_told_so(library: str) -> None:
    messages: list[bytes] = []
    asked: list[int] = []

    @CREATE_STATUS
    def create_status(code: int, message: bytes) -> int:
        messages.append(message)
        return STATUS

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p).value)

    @GET_API
    def get_api(version: int) -> int | None:
        asked.append(version)
        return ctypes.addressof(table) if version == 1 else None

    name = ctypes.create_string_buffer(b"1.16.3")
    base = ApiBase(get_api, GET_VERSION(lambda: ctypes.addressof(name)))
    register = ctypes.CDLL(library).RegisterCustomOps
    register.restype = ctypes.c_void_p
    register.argtypes = [ctypes.c_void_p, ctypes.POINTER(ApiBase)]
    assert register(None, ctypes.byref(base)) == STATUS
    assert asked == [18, 1]
    assert messages == [
        b"NanoQuantLinear: ONNX Runtime 1.16.3 has no API version 18; this library needs ONNX Runtime 1.18 or newer"
    ]
