# SPDX-License-Identifier: Apache-2.0
"""Small cases of nq_cuda_table.h in device memory without guard bands, for compute-sanitizer; needs no PyTorch.

compute-sanitizer --tool memcheck python -m tests.plugins.table_grid build/.../libnanoquant_cuda.so
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from nanoquant_edge.runtimes.sampling import SamplingConfig
from tests.plugins import table_cases as cases
from tests.plugins.choices import Chooser, expected_probabilities
from tests.plugins.table_calls import load
from tests.plugins.table_cases import BFLOAT16, FLOAT16, LAYER, RMS, Head, Random


class Device:
    """Arrays in device memory of exactly their size, by the library's own functions."""

    def __init__(self, lib: Any) -> None:
        lib.nq_cuda_allocate.argtypes = (ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p))
        lib.nq_cuda_copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        self._lib = lib
        self._held: list[int] = []

    def place(self, array: np.ndarray) -> tuple[int, Callable[[], np.ndarray]]:
        """The array's address on the device, and what reads it back."""
        array = np.ascontiguousarray(array)
        memory = ctypes.c_void_p()
        assert self._lib.nq_cuda_allocate(max(1, array.nbytes), ctypes.byref(memory)) == 0
        address = int(memory.value or 0)
        self._copy(address, array.ctypes.data, array.nbytes)

        def read() -> np.ndarray:
            back = np.empty_like(array)
            self._copy(back.ctypes.data, address, array.nbytes)
            return back

        self._held.append(address)
        return address, read

    def free(self) -> None:
        """Give all memory back."""
        for address in self._held:
            assert self._lib.nq_cuda_free(ctypes.c_void_p(address)) == 0
        self._held.clear()

    def _copy(self, to: int, origin: int, size: int) -> None:
        assert self._lib.nq_cuda_copy(to, origin, size, None) == 0
        assert self._lib.nq_cuda_synchronize(None) == 0


def _heads(lib: Any, device: Device) -> float:
    worst = 0.0
    for bits, kind in ((16, FLOAT16), (16, BFLOAT16), (8, FLOAT16), (4, FLOAT16)):
        for shape, rows in (((37, 64), 1), ((50, 70), 9), ((300, 576), 16), ((300, 320), 17), ((129, 70), 70)):
            table = Random(np.random.default_rng(rows), shape, bits, kind=kind)
            status, found, wanted = Head(lib, device.place, table, rows, kind=kind, ends=rows < 16).run()
            assert status == 0
            worst = max(worst, cases.row_errors(found, wanted))
            device.free()
    return worst


def _rows(lib: Any, device: Device) -> float:
    worst = 0.0
    table = Random(np.random.default_rng(0), (30, 70), 4)
    status, found = cases.embed(lib, device.place, table, np.array([3, 29, 0]), positions=[0, -1, 3])
    assert status == 0
    worst = max(worst, cases.row_errors(found[[0, 2]], table.dense[[3, 0]]))
    for kind in (RMS, LAYER):
        for shape in ((3, 37), (5, 576)):
            status, found, wanted = cases.norm(lib, device.place, shape, FLOAT16, kind, bias=True, residual=True)
            assert status == 0
            worst = max(worst, cases.row_errors(found, wanted))
    device.free()
    return worst


def _choices(lib: Any, device: Device) -> float:
    for vocabulary in (37, 9001, 70001):
        logits = np.random.default_rng(0).normal(size=(3, vocabulary)).astype(np.float32)
        for options in (
            None,
            {"temperature": 1.0},
            {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
            {"temperature": 3.0, "top_p": 0.99},
        ):
            configs = None if options is None else [SamplingConfig(seed=seed, **options) for seed in range(3)]
            history = np.tile(np.arange(16), (3, 1))
            chooser = Chooser(lib, device.place, vocabulary, [4, -1, 9], history=history)
            status, tokens, _, _ = chooser(logits, configs)
            assert status == 0
            for row in (0, 2):
                if configs is not None:
                    length = 5 if row == 0 else 10
                    expected = expected_probabilities(logits[row], configs[row], history[row, :length])
                    assert expected[tokens[row]] > 0
            device.free()
    return 0.0


def main(path: str) -> int:
    """Run all and print the largest error of each part; the number of parts that failed."""
    lib = load(path)
    device, failed = Device(lib), 0
    for part in (_heads, _rows, _choices):
        try:
            print(f"{part.__name__[1:]}: largest error {part(lib, device):.2g}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {part.__name__[1:]}: {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1])))
