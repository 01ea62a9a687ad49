# SPDX-License-Identifier: Apache-2.0
"""Rung 2 of the numerical ladder for the warp-level product, on a GPU: `check.py LIBRARY SEED`.

Random odd shapes, row counts, inputs, groups and types, every block shape forced, against float64;
outputs are filled with NaN before, results must repeat bit by bit, also inside a CUDA graph. Exits
with 1 and the failing cases when an error is above its bar.
"""

from __future__ import annotations

import ctypes
import random
import sys

import torch
from layer import DTYPES, Library, Linear, Pass, RandomLayer, make_input, reference, stream, uncancelled

BARS = {(1, 1): 1e-3, (2, 2): 2.5e-3, (2, 0): 1e-3, (1, 0): 1e-3}
INT8_BARS = {True: 0.2, False: 3e-2}  # with outliers one channel may rule a group of 256, or not
ROWS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 192, 257, 300]
SIZES = [1, 3, 16, 31, 64, 127, 255, 256, 257, 300, 512, 576, 640, 777, 1152, 1536, 2049, 3000]


def run_case(library: Library, rng: random.Random, plain: bool) -> tuple[str, float, float]:
    """One random case; returns its description, its largest row error, and the bar."""
    rows, n = rng.choice(ROWS), rng.choice(SIZES)
    count = 1 if plain else rng.choice([1, 1, 2, 3, 4])
    x_type = rng.choice([1, 2])
    y_type = rng.choice([x_type, 0])
    kind = 0 if plain else rng.choice([0, 1, 2, 3])
    if kind > 1:
        n = (n + 7) // 8 * 8  # the interface asks for it
    precision = 0 if rng.random() < 0.8 else 1
    scale_type = rng.choice([0, 1, 2])
    outliers = rng.choice([1.0, 100.0, 1000.0 if x_type == 2 else 100.0])
    with_residual = rng.random() < 0.4
    shapes = [rng.randint(-1, 5), rng.randint(-1, 5)]
    library.force(*shapes)
    layers = [
        RandomLayer(
            n,
            rng.choice(SIZES),
            rng.choice(SIZES),
            scale_type,
            rng.random() < 0.7,
            rng.random() < 0.5,
        ).build(library)
        for _ in range(count)
    ]
    x = make_input(rows, 2 * n if kind > 1 else n, x_type, outliers)
    weight = torch.rand(n, device="cuda") + 0.5
    structs = (Linear * count)(*[layer.struct() for layer in layers])
    p = Pass(layers=structs, count=count, x_type=x_type, y_type=y_type, input=kind)
    p.precision, p.algorithm, p.rows = precision, 3, rows
    p.x, p.x_stride, p.norm_eps, p.norm_weight = x.data_ptr(), x.shape[1], 1e-5, weight.data_ptr()
    y_dtype = DTYPES[y_type]
    outs, residuals = [], []
    for i, layer in enumerate(layers):
        stride = (layer.out_features + 7) // 8 * 8
        outs.append(torch.full((rows, stride), float("nan"), device="cuda").to(y_dtype))
        residuals.append(torch.randn(rows, stride, device="cuda").to(y_dtype))
        p.y[i], p.y_stride[i] = outs[i].data_ptr(), stride
        p.residual[i] = residuals[i].data_ptr() if with_residual else None
    size = library.c.nq_cuda_workspace_bytes(ctypes.byref(p))
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")
    p.workspace, p.workspace_bytes = workspace.data_ptr(), size
    library.ok(library.c.nq_cuda_forward(ctypes.byref(p), stream()))
    first = [out.clone() for out in outs]
    for out in outs:
        out.fill_(float("nan"))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(3):  # back to back in one workspace
            library.ok(library.c.nq_cuda_forward(ctypes.byref(p), stream()))
    graph.replay()
    worst = 0.0
    for i, layer in enumerate(layers):
        m = layer.out_features
        if not torch.equal(first[i][:, :m], outs[i][:, :m]):
            worst = float("inf")
        if not torch.isnan(outs[i][:, m:]).all():
            worst = float("inf")
        residual = residuals[i][:, :m] if with_residual else None
        want = reference(layer, x, kind, weight, 1e-5, residual)
        size = want.norm(dim=1)
        if min(m, n, layer.rank) < 16:
            # So few terms may cancel to almost nothing; without cancellation they would be this.
            size = torch.maximum(size, uncancelled(layer, x, kind, weight))
        error = (first[i][:, :m].double() - want).norm(dim=1) / size
        worst = max(worst, torch.nan_to_num(error, nan=float("inf")).max().item())
    sizes = [(layer.rank, layer.out_features, layer.mid, layer.bias) for layer in layers]
    text = f"rows {rows} n {n} {sizes} x {x_type} y {y_type} input {kind} int8 {precision} "
    text += f"scales {scale_type} outliers {outliers:g} residual {with_residual} shapes {shapes}"
    if precision:
        return text, worst, INT8_BARS[outliers > 1 or n < 16 or min(s[0] for s in sizes) < 16]
    # A bfloat16 result of few columns can be off by half a unit in the last place in all of them.
    few = y_type == 2 and min(layer.out_features for layer in layers) < 32
    return text, worst, 2.0**-8 if few else BARS[(x_type, y_type)]


def main() -> int:
    """Runs the cases and prints one line."""
    library, rng = Library(sys.argv[1]), random.Random(int(sys.argv[2]))
    torch.manual_seed(int(sys.argv[2]))
    cases = int(sys.argv[3]) if len(sys.argv) > 3 else 150
    worst: dict[str, float] = {}
    failed = 0
    for case in range(cases):
        text, error, bar = run_case(library, rng, case < 10)
        kind = f"bar {bar:g}"
        worst[kind] = max(worst.get(kind, 0.0), error)
        if error > bar:
            failed += 1
            if failed <= 6:
                print(f"FAIL {error:.3g} > {bar:g}: {text}")
    print(f"{sys.argv[1]}: {cases} cases, {failed} failed; largest errors {worst}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
