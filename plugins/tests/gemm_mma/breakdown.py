# SPDX-License-Identifier: Apache-2.0
"""Microseconds of each launch of a pass, by torch's profiler: `breakdown.py LIBRARY`."""

from __future__ import annotations

import ctypes
import sys

import torch
from layer import Library, RandomLayer, stream
from measure import SHAPES, passes


def main() -> None:
    """Prints the mean time of the planes and product kernels for some layers and row counts."""
    library = Library(sys.argv[1])
    for name, m, n, r in (SHAPES[0], SHAPES[5], SHAPES[7]):
        layer = RandomLayer(n, r, m, 2).build(library)
        for rows in (16, 128, 2048):
            x = torch.randn(rows, n, device="cuda").bfloat16()
            y = torch.empty(rows, m, device="cuda", dtype=torch.bfloat16)
            for precision in (0, 1):
                made, keep = passes(library, [layer], x, y, rows, precision)
                library.c.nq_cuda_forward(ctypes.byref(made[0]), stream())
                torch.cuda.synchronize()
                kinds = [torch.profiler.ProfilerActivity.CUDA]
                with torch.profiler.profile(activities=kinds) as profiler:
                    for _ in range(3):
                        library.c.nq_cuda_forward(ctypes.byref(made[0]), stream())
                    torch.cuda.synchronize()
                events = [e for e in profiler.events() if e.device_time > 0]
                events.sort(key=lambda e: e.time_range.start)
                times = [f"{e.name.split('mma::')[-1][:24]} {e.device_time:.1f}" for e in events]
                print(f"{name} rows {rows} int8 {precision}: " + "; ".join(times[-4:]))
                del keep


if __name__ == "__main__":
    main()
