# SPDX-License-Identifier: Apache-2.0
"""The floor's arithmetic, and the rates that it is made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
import pytest

from nanoquant_edge.bench import MachineRates, floor_of
from nanoquant_edge.bench.floor import count_work, machine_rates
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.onnx_file import initializers


def test_work_is_counted_in_the_file(tiny_bundle: Path) -> None:
    read, signs = count_work(Bundle.open(tiny_bundle))
    model = onnx.load(tiny_bundle / "model.onnx")
    sizes = {t.name: len(onnx.numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer}
    assert {name: size for name, (_, size) in initializers((tiny_bundle / "model.onnx").read_bytes()).items()} == sizes
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    packed = [shape for name, shape in shapes.items() if name.endswith("_packed")]
    assert len(packed) == 2 * Bundle.open(tiny_bundle).compressed_linears
    assert signs == sum(rows * words * 32 for rows, words in packed)
    assert read == sum(size for name, size in sizes.items() if not name.startswith("rotary."))


def test_the_floor_is_the_larger_term_and_the_nodes(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    read, signs = count_work(opened)
    slow_memory = floor_of(opened, MachineRates(1, 1e-3, 1e9, 2.0), nodes=10, context=5)
    slow_core = floor_of(opened, MachineRates(1, 1e9, 1e-3, 2.0), nodes=10, context=5)
    cache = 2 * opened.kv.layers * opened.kv.heads * opened.kv.head_dim * 5 * 4
    assert slow_memory.total_ms == pytest.approx((read + cache) / 1e3 + 0.02)
    assert slow_core.total_ms == pytest.approx(signs / 1e3 + 0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_rates_follow_from_the_clock_and_the_kernels(threads: int) -> None:
    ticks, signs = itertools.count(), iter([3e9, 7e9, 5e9, 1e9, 2e9])
    rates = machine_rates(threads, clock=lambda: next(ticks) / 1e3, sign_rate=lambda: next(signs))
    # Every copy and every run takes one tick, a millisecond; the copy reads and writes 48 MiB.
    assert rates.copy_gbs == pytest.approx(threads * 2 * 48 * 2**20 / 1e-3 / 1e9)
    assert (rates.threads, rates.sign_gops, rates.node_us) == (threads, pytest.approx(7 * threads), 0)


def test_a_longer_chain_takes_longer() -> None:
    rates = machine_rates(1)
    assert 0.01 < rates.node_us < 1000
    assert rates.copy_gbs > 0 < rates.sign_gops
