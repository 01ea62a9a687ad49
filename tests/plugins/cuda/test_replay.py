# SPDX-License-Identifier: Apache-2.0
"""Equal bits whatever surrounds a pass: repeated, replayed from a CUDA graph, beside other streams, in a chain."""

from __future__ import annotations

import pytest
import torch

from tests.plugins.cuda import capi, layers

pytestmark = pytest.mark.gpu

HEIGHTS = [1, 5, 8, 17, 130]
SHAPE = (576, 424, 1536)


def make_run(cuda: capi.Cuda, algorithm: int, rows: int, seed: int = 0) -> layers.Run:
    made = [layers.make_layer(cuda, *SHAPE, seed=seed), layers.make_layer(cuda, 576, 65, 192, seed=seed + 1)]
    return layers.Run(cuda, made, layers.make_x(rows, 576, capi.FLOAT16, seed=seed), capi.FLOAT16, algorithm)


def outputs(run: layers.Run) -> list[torch.Tensor]:
    return [y.clone() for y in run.checked()]


def capture(work: object) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()  # type: ignore[operator]
    return graph


@pytest.mark.parametrize("rows", HEIGHTS)
def test_a_pass_repeats_bit_by_bit(rows: int, algorithm: int, cuda: capi.Cuda) -> None:
    run = make_run(cuda, algorithm, rows)
    first = outputs(run)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, outputs(run), strict=True))


@pytest.mark.parametrize("rows", HEIGHTS)
def test_a_graph_replays_what_eager_computes(rows: int, algorithm: int, cuda: capi.Cuda) -> None:
    run = make_run(cuda, algorithm, rows)
    wanted = outputs(run)
    graph = capture(run.launch)
    for _ in range(3):
        run.poison()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(wanted, run.y, strict=True))
    # New contents of x reach the replay.
    run.x_view.copy_(layers.make_x(rows, 576, capi.FLOAT16, seed=99))
    wanted = outputs(run)
    run.poison()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(wanted, run.y, strict=True))
    assert not run.outside()


@pytest.mark.parametrize("rows", HEIGHTS)
def test_four_streams_at_once(rows: int, algorithm: int, cuda: capi.Cuda) -> None:
    runs = [make_run(cuda, algorithm, rows, seed=7 * i) for i in range(4)]
    wanted = [outputs(run) for run in runs]
    for run in runs:
        run.poison()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in runs]
    for _ in range(50):
        for run, stream in zip(runs, streams, strict=True):
            run.launch(stream)
    torch.cuda.synchronize()
    for run, expected in zip(runs, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, run.y, strict=True))
        assert not run.outside()


@pytest.mark.parametrize("graphed", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("rows", HEIGHTS)
def test_a_chain_shares_one_workspace(rows: int, graphed: bool, algorithm: int, cuda: capi.Cuda) -> None:
    """Each layer reads what the one before wrote, and torch writes in between; nothing may start too early."""
    runs = []
    for i in range(6):
        n, m = (576, 1536) if i % 2 == 0 else (1536, 576)
        layer = layers.make_layer(cuda, n, 424 + i, m, seed=i, bias=False)
        x = layers.make_x(rows, n, capi.BFLOAT16, seed=3)
        runs.append(layers.Run(cuda, [layer], x, capi.BFLOAT16, algorithm))
    largest = max(runs, key=lambda run: run.call.workspace_bytes)
    for run in runs:
        run.call.workspace = largest.call.workspace
    first = runs[0].x_view.clone()

    def chain(pause: bool) -> None:
        runs[0].x_view.copy_(first)
        for i, run in enumerate(runs):
            if pause:
                torch.cuda.synchronize()
            run.launch()
            if i + 1 < len(runs):
                if pause:
                    torch.cuda.synchronize()
                torch.mul(run.y[0], 0.25, out=runs[i + 1].x_view)

    def poison() -> None:
        for run in runs:
            run.poison()
            run.x_view.fill_(float("nan"))

    poison()
    chain(pause=True)
    torch.cuda.synchronize()
    wanted = runs[-1].y[0].clone()
    assert wanted.isfinite().all()
    graph = capture(lambda: chain(pause=False)) if graphed else None
    for _ in range(10):
        poison()
        if graph is not None:
            graph.replay()
        else:
            chain(pause=False)
        assert torch.equal(runs[-1].y[0], wanted)
    assert not any(run.outside() for run in runs)


def test_a_direct_chain_without_anything_between(algorithm: int, cuda: capi.Cuda) -> None:
    """One pass's y is the next one's x: 40 passes back to back in a graph, where early starts would show."""
    made = [layers.make_layer(cuda, 1024, 300 + i, 1024, seed=i, bias=False, gain=0.3) for i in range(4)]
    for rows in HEIGHTS:
        x = layers.make_x(rows, 1024, capi.BFLOAT16, outliers=False)
        runs = [layers.Run(cuda, [layer], x, capi.BFLOAT16, algorithm, padding=0) for layer in made]
        for i, run in enumerate(runs):
            run.call.x, run.call.x_stride = runs[i - 1].call.y[0], runs[i - 1].call.y_stride[0]
            run.call.workspace = runs[0].call.workspace

        def chain(runs: list[layers.Run] = runs, pause: bool = False) -> None:
            for i in range(40):
                runs[i % 4].launch()
                if pause:
                    torch.cuda.synchronize()

        runs[-1].y[0].copy_(x)
        chain(pause=True)
        wanted = [run.y[0].clone() for run in runs]
        assert all(y.isfinite().all() for y in wanted)
        graph = capture(chain)
        for _ in range(5):
            for run in runs:
                run.poison()
            runs[-1].y[0].copy_(x)
            graph.replay()
            assert all(torch.equal(a, run.y[0]) for a, run in zip(wanted, runs, strict=True))
