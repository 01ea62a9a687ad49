# SPDX-License-Identifier: Apache-2.0
"""Rung 2 through ONNX Runtime: every instruction set against float64 on the same bits."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins import one_node
from tests.plugins.conftest import Script

pytest.importorskip("onnxruntime")

FLAGS = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}


def lacks(isa: str) -> str | None:
    """Why this processor has no such kernels, or None."""
    arm = platform.machine() in ("aarch64", "arm64")
    if isa == "scalar" or (isa == "neon" and arm):
        return None
    if isa == "neon" or arm:
        return f"{isa} is of another architecture"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    present = set(next(line for line in lines if line.startswith("flags")).split())
    return None if FLAGS[isa] <= present else f"this processor has no {isa}"


def check_grid(result: dict[str, Any]) -> None:
    assert len(result["rows"]) > 250
    bad = [row for row in result["rows"] if not row["error"] <= row["limit"]]
    assert not bad, bad[:5]


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon"])
def test_grid_is_within_the_ladder(isa: str, script: Script) -> None:
    if reason := lacks(isa):
        pytest.skip(reason)
    check_grid(script("one_node.py", NQ_CPU_ISA=isa))


def test_grid_on_the_lowest_supported_onnxruntime(script: Script) -> None:
    python = os.environ.get("NQ_EDGE_LOWEST_PYTHON")
    if not python:
        pytest.skip("NQ_EDGE_LOWEST_PYTHON names no Python with onnxruntime==1.23.2, onnx and numpy")
    result = script("one_node.py", python=python)
    assert result["onnxruntime"].startswith("1.23."), result["onnxruntime"]
    check_grid(result)


def test_padding_bits_never_count(library: str) -> None:
    clean = one_node.make_layer(70, 40, 33)
    rng = np.random.default_rng(7)
    garbage = {"v_packed": one_node.pack(clean.v, rng, True), "u_packed": one_node.pack(clean.u, rng, True)}
    dirty = clean.with_weights(**garbage)
    assert (dirty.weights["v_packed"] != clean.weights["v_packed"]).any()
    for dims in [(1, 1), (1, 9)]:
        x = one_node.make_x(clean, *dims)
        results = [
            one_node.run(one_node.make_session(one_node.make_model(layer), library), layer, x)
            for layer in (clean, dirty)
        ]
        np.testing.assert_array_equal(*results)


def test_not_a_number_reaches_only_its_own_row(library: str) -> None:
    layer = one_node.make_layer(70, 40, 33)
    session = one_node.make_session(one_node.make_model(layer), library)
    x = one_node.make_x(layer, 1, 5)
    clean = one_node.run(session, layer, x)
    x[0, 2, 69] = np.nan
    y = one_node.run(session, layer, x)
    assert np.isnan(y[0, 2]).all()
    np.testing.assert_array_equal(np.delete(y, 2, axis=1), np.delete(clean, 2, axis=1))


def test_float16_overflow_is_infinite(library: str) -> None:
    layer = one_node.make_layer(64, 8, 40, one_node.FLOAT16, bias=False)
    layer = layer.with_weights(scale_out=np.full(40, 1e6, np.float32))
    session = one_node.make_session(one_node.make_model(layer), library)
    y = one_node.run(session, layer, one_node.make_x(layer, 1, 3)).astype(np.float64)
    wanted, _ = layer.reference(one_node.make_x(layer, 1, 3))
    huge = np.abs(wanted) > 65520
    assert huge.any()
    np.testing.assert_array_equal(y[huge], np.sign(wanted[huge]) * np.inf)
