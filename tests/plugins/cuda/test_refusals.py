# SPDX-License-Identifier: Apache-2.0
"""Misuse gives the right status, enqueues nothing and leaves no CUDA error behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.plugins.cuda import capi, layers
from tests.plugins.cuda.capi import Status

pytestmark = pytest.mark.gpu

Change = Callable[[layers.Run], Any]


def field(name: str, value: Any) -> Change:
    return lambda run: setattr(run.call, name, value)


def shifted(name: str, by: int) -> Change:
    return lambda run: setattr(run.call, name, getattr(run.call, name) + by)


def layer_field(name: str, value: Any, index: int = 0) -> Change:
    return lambda run: setattr(run.structs[index], name, value)


def entry(name: str, value: int) -> Change:
    return lambda run: getattr(run.call, name).__setitem__(0, value)


def moved(name: str) -> Change:
    return lambda run: setattr(run.structs[0], name, getattr(run.structs[0], name) + 4)


CHANGES: dict[str, tuple[Change, int]] = {
    "no layers": (field("layers", None), Status.BAD_ARGUMENT),
    "count 0": (field("count", 0), Status.BAD_ARGUMENT),
    "count 5": (field("count", 5), Status.BAD_ARGUMENT),
    "float32 x": (field("x_type", capi.FLOAT32), Status.BAD_ARGUMENT),
    "unknown x type": (field("x_type", 7), Status.BAD_ARGUMENT),
    "other 16-bit y": (field("y_type", capi.BFLOAT16), Status.BAD_ARGUMENT),
    "unknown y type": (field("y_type", -1), Status.BAD_ARGUMENT),
    "unknown input": (field("input", 4), Status.BAD_ARGUMENT),
    "unknown precision": (field("precision", 2), Status.BAD_ARGUMENT),
    "unknown algorithm": (field("algorithm", 9), Status.BAD_ARGUMENT),
    "no rows": (field("rows", 0), Status.BAD_ARGUMENT),
    "negative rows": (field("rows", -3), Status.BAD_ARGUMENT),
    "too many rows": (field("rows", 2**31), Status.TOO_LARGE),
    "no x": (field("x", None), Status.BAD_ARGUMENT),
    "x off by 2 bytes": (shifted("x", 2), Status.BAD_ARGUMENT),
    "x off by 8 bytes": (shifted("x", 8), Status.BAD_ARGUMENT),
    "short x stride": (field("x_stride", 64), Status.BAD_ARGUMENT),
    "crooked x stride": (shifted("x_stride", 1), Status.BAD_ARGUMENT),
    "no y": (entry("y", 0), Status.BAD_ARGUMENT),
    "y off by 2 bytes": (lambda run: run.call.y.__setitem__(0, run.call.y[0] + 2), Status.BAD_ARGUMENT),
    "short y stride": (entry("y_stride", 8), Status.BAD_ARGUMENT),
    "residual off": (lambda run: run.call.residual.__setitem__(0, run.call.y[0] + 2), Status.BAD_ARGUMENT),
    "norm without weight": (field("input", capi.RMS_NORM), Status.BAD_ARGUMENT),
    "gated x too narrow": (field("input", capi.SILU), Status.BAD_ARGUMENT),
    "no workspace": (field("workspace", None), Status.WORKSPACE),
    "workspace off": (shifted("workspace", 16), Status.WORKSPACE),
    "layout 0": (layer_field("layout", 0), Status.BAD_LAYOUT),
    "layout 2": (layer_field("layout", 2), Status.BAD_LAYOUT),
    "no inputs": (layer_field("in_features", 0), Status.BAD_ARGUMENT),
    "rank 0": (layer_field("rank", 0), Status.BAD_ARGUMENT),
    "no outputs": (layer_field("out_features", -1), Status.BAD_ARGUMENT),
    "huge rank": (layer_field("rank", 2**31), Status.TOO_LARGE),
    "unknown scale type": (layer_field("scale_type", 3), Status.BAD_ARGUMENT),
    "no v": (layer_field("v_words", None), Status.BAD_ARGUMENT),
    "no u": (layer_field("u_words", None), Status.BAD_ARGUMENT),
    "no scale_in": (layer_field("scale_in", None), Status.BAD_ARGUMENT),
    "no scale_out": (layer_field("scale_out", None), Status.BAD_ARGUMENT),
    "v off by 4 bytes": (moved("v_words"), Status.BAD_ARGUMENT),
    "scale_mid off": (moved("scale_mid"), Status.BAD_ARGUMENT),
    "bias off": (moved("bias"), Status.BAD_ARGUMENT),
    "two in_features": (layer_field("in_features", 95, 1), Status.BAD_ARGUMENT),
    "two scale types": (layer_field("scale_type", capi.FLOAT16, 1), Status.BAD_ARGUMENT),
}


def make_run(cuda: capi.Cuda, algorithm: int = capi.AUTO, rows: int = 3) -> layers.Run:
    made = [layers.make_layer(cuda, 96, 70, 130), layers.make_layer(cuda, 96, 33, 40)]
    return layers.Run(cuda, made, layers.make_x(rows, 96, capi.FLOAT16), capi.FLOAT16, algorithm)


@pytest.mark.parametrize("what", CHANGES)
def test_misuse_is_refused(what: str, cuda: capi.Cuda) -> None:
    run = make_run(cuda)
    run.poison()
    change, status = CHANGES[what]
    change(run)
    assert cuda.forward(run.call, torch.cuda.current_stream().cuda_stream) == status
    torch.cuda.synchronize()
    assert all(y.isnan().all() for y in run.y), "something ran"


@pytest.mark.parametrize("eps", [-1.0, float("nan")])
def test_a_bad_epsilon_is_refused(eps: float, cuda: capi.Cuda) -> None:
    run = make_run(cuda)
    run.call.input, run.call.norm_weight, run.call.norm_eps = capi.RMS_NORM, run.call.x, eps
    assert cuda.forward(run.call, 0) == Status.BAD_ARGUMENT


def test_a_gated_width_that_splits_a_load_is_refused(cuda: capi.Cuda) -> None:
    layer = layers.make_layer(cuda, 100, 70, 130)
    run = layers.Run(cuda, [layer], layers.make_x(3, 200, capi.FLOAT16), capi.FLOAT16, input=capi.SILU)
    assert cuda.forward(run.call, torch.cuda.current_stream().cuda_stream) == Status.BAD_ARGUMENT


def test_a_workspace_one_byte_short_is_refused(algorithm: int, cuda: capi.Cuda) -> None:
    for rows in (1, 8, 9, 130):
        run = make_run(cuda, algorithm, rows)
        size = cuda.workspace_bytes(run.call)
        assert size > 0
        run.call.workspace_bytes = size - 1
        assert cuda.forward(run.call, 0) == Status.WORKSPACE


def test_an_invalid_description_has_no_workspace(cuda: capi.Cuda) -> None:
    run = make_run(cuda)
    run.call.rows = 0
    assert cuda.workspace_bytes(run.call) == 0
    assert cuda.lib.nq_cuda_workspace_bytes(None) == 0


def test_null_is_refused(cuda: capi.Cuda) -> None:
    assert cuda.lib.nq_cuda_forward(None, None) == Status.BAD_ARGUMENT
    assert cuda.lib.nq_cuda_describe(None) == Status.BAD_ARGUMENT


def test_an_algorithm_that_the_device_lacks_says_so(cuda: capi.Cuda) -> None:
    device = cuda.describe()
    for name, present in (("gemv_bits", device.one_bit_tensor_cores), ("gemm_wgmma", device.warpgroup_mma)):
        run = make_run(cuda)
        run.call.algorithm = capi.ALGORITHMS[name]
        if not present:
            assert cuda.workspace_bytes(run.call) == 0
            assert cuda.forward(run.call, 0) == Status.NO_KERNEL


def test_the_device_is_described_as_torch_sees_it(cuda: capi.Cuda) -> None:
    device = cuda.describe()
    properties = torch.cuda.get_device_properties(0)
    assert device.compute_capability == 10 * properties.major + properties.minor
    assert device.multiprocessors == properties.multi_processor_count
    assert bool(device.one_bit_tensor_cores) == (properties.major in (8, 9))
