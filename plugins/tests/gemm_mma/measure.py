# SPDX-License-Identifier: Apache-2.0
"""Times the warp-level product on nine layer shapes: `measure.py LIBRARY [tune]`.

Weights are rotated through at least 150 MB where the row count leaves them in memory's way; CUDA
graphs, medians of replays; beside torch's bf16 product of the dense layer. `tune` times every block
shape for each stage too.
"""

from __future__ import annotations

import ctypes
import statistics
import sys

import torch
from layer import Library, Linear, Pass, RandomLayer, stream

SHAPES = [
    ("1B q/o", 2048, 2048, 992),
    ("1B up", 8192, 2048, 1600),
    ("1B down", 2048, 8192, 1600),
    ("7B q/o", 4096, 4096, 2016),
    ("7B up", 11008, 4096, 2944),
    ("7B down", 4096, 11008, 2944),
    ("70B q/o", 8192, 8192, 4064),
    ("70B up", 28672, 8192, 6336),
    ("70B down", 8192, 28672, 6336),
]


def replay_us(record, repeats: int, inner: int) -> float:
    """Median microseconds of one of the `inner` calls that `record` makes."""
    record()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        record()
    times = []
    for _ in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / inner)
    return statistics.median(times[1:])


def passes(library, layers, x, y, rows, precision):
    """One C pass for each of the layers, sharing a workspace; keeps what must stay alive."""
    made, keep = [], []
    for layer in layers:
        structs = (Linear * 1)(layer.struct())
        p = Pass(layers=structs, count=1, x_type=2, y_type=2, precision=precision, algorithm=3)
        p.rows, p.x, p.x_stride = rows, x.data_ptr(), x.shape[1]
        p.y[0], p.y_stride[0] = y.data_ptr(), y.shape[1]
        p.workspace_bytes = library.c.nq_cuda_workspace_bytes(ctypes.byref(p))
        made.append(p)
        keep.append(structs)
    workspace = torch.empty(made[0].workspace_bytes, dtype=torch.uint8, device="cuda")
    for p in made:
        p.workspace = workspace.data_ptr()
    return made, (keep, workspace)


def main() -> None:
    """Prints one row a layer and row count."""
    library, tune = Library(sys.argv[1]), "tune" in sys.argv
    for name, m, n, r in SHAPES:
        packed = (m + n) * r / 8
        copies = [RandomLayer(n, r, m, 2).build(library) for _ in range(int(150e6 / packed) + 1)]
        dense = [torch.randn(m, n, device="cuda").bfloat16() for _ in range(int(150e6 / m / n / 2) + 1)]
        for rows in (16, 64, 128, 2048):
            few = copies if rows < 2048 else copies[:2]
            x = torch.randn(rows, n, device="cuda").bfloat16()
            y = torch.empty(rows, m, device="cuda", dtype=torch.bfloat16)
            out = torch.empty_like(y)
            repeats = 10 if rows < 2048 else 5

            def timed(precision: int, first: int, second: int, few=few, x=x, y=y, rows=rows, repeats=repeats) -> float:
                library.force(first, second)
                made, keep = passes(library, few, x, y, rows, precision)

                def record() -> None:
                    for p in made:
                        library.ok(library.c.nq_cuda_forward(ctypes.byref(p), stream()))

                result = replay_us(record, repeats, len(made))
                del keep
                return result

            def torch_product(x=x, out=out, some=dense if rows < 2048 else dense[:2]) -> None:
                for weight in some:
                    torch.mm(x, weight.T, out=out)

            some = len(dense if rows < 2048 else dense[:2])
            bf16 = replay_us(torch_product, repeats, some)
            exact, int8 = timed(0, -1, -1), timed(1, -1, -1)
            line = f"{name:9} {rows:5} bf16 {bf16:8.1f} exact {exact:8.1f} {bf16 / exact:5.2f} "
            line += f"int8 {int8:8.1f} {bf16 / int8:5.2f}"
            if tune:
                choices = range(6) if rows < 2048 else range(3)
                for stage in range(2):
                    times = [timed(0, *((c, -1) if stage == 0 else (-1, c))) for c in choices]
                    line += " | " + " ".join(f"{t:.1f}" for t in times)
            print(line, flush=True)
        del copies, dense


if __name__ == "__main__":
    main()
