# SPDX-License-Identifier: Apache-2.0
"""The kernels through ONNX Runtime: every instruction set against float64 on the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.plugins import one_node
from tests.plugins.conftest import Script, check_grid

pytest.importorskip("onnxruntime")


def test_grid_is_within_the_limits(isa: str, script: Script) -> None:
    check_grid(script("one_node", NQ_CPU_ISA=isa), 251)


def test_grid_on_the_lowest_supported_onnxruntime(lowest_python: str, script: Script) -> None:
    result = script("one_node", python=lowest_python)
    assert result["onnxruntime"].startswith("1.23."), result["onnxruntime"]
    check_grid(result, 251)


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
