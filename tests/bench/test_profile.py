# SPDX-License-Identifier: Apache-2.0
"""Where a decoded token's time goes."""

from __future__ import annotations

from pathlib import Path

from nanoquant_edge.bench import BenchOptions, profile_step
from nanoquant_edge.formats.bundle import Bundle

QUICK = BenchOptions(lengths=(3, 7), new_tokens=4, repetitions=2, threads=1)


def test_a_profile_names_every_node_that_runs(tiny_bundle: Path) -> None:
    profile = profile_step(tiny_bundle, QUICK, context=8)
    layers = Bundle.open(tiny_bundle).kv.layers
    assert profile.operators["NanoQuantLinearGroup"][0] == 2 * layers
    assert profile.operators["NanoQuantLinear"][0] == 2 * layers
    assert profile.operators["NanoQuantAttention"][0] == layers
    assert profile.nodes == sum(count for count, _ in profile.operators.values())
