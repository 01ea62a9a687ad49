# SPDX-License-Identifier: Apache-2.0
"""Ranks from measured sensitivities: the errors, the power law, equal loss per bit, and the bits they may spend."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.compression import compress
from nanoquant_edge.compression.calibrate.importances import Importance
from nanoquant_edge.compression.calibrate.ranks import allocate_ranks
from nanoquant_edge.compression.calibrate.sensitivities import (
    POINTS,
    fit_power_law,
    measured_errors,
    rank_shares,
    ranks_to_measure,
)
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.rates import layer_bits
from tests.compression.support import Killed, dense_folder, short_recipe, short_run, stop_at, write_text

SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536)]
Layers = dict[str, tuple[int, int]]


def named(blocks: int) -> tuple[Layers, dict[str, int]]:
    layers = {f"{b}.{k}": shape for b in range(blocks) for k, shape in enumerate(SHAPES)}
    return layers, {name: int(name.split(".")[0]) for name in layers}


def errors_of(even: dict[str, int], scales: list[float], exponents: list[float]) -> torch.Tensor:
    rows = [
        [scale * rank**-exponent for rank in ranks_to_measure(even[name])]
        for name, scale, exponent in zip(even, scales, exponents, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def bits(layers: Layers, ranks: dict[str, int]) -> int:
    return sum(layer_bits(*layers[name], rank) for name, rank in ranks.items())


@pytest.mark.parametrize(
    ("even", "ranks"),
    [(256, (128, 256, 384)), (384, (192, 384, 576)), (32, (32, 64, 96)), (64, (32, 64, 96)), (16, (16, 48, 80))],
)
def test_every_layer_is_measured_at_three_ranks(even: int, ranks: tuple[int, ...]) -> None:
    assert ranks_to_measure(even) == ranks


def test_a_power_law_is_found_again_and_kept_sane() -> None:
    ranks = (128, 256, 384)
    law = fit_power_law(ranks, [3.0 * rank**-1.5 for rank in ranks])
    assert (law.scale, law.exponent) == (pytest.approx(3.0), pytest.approx(1.5))
    rising, steep = fit_power_law(ranks, [1.0, 2.0, 3.0]), fit_power_law(ranks, [1.0, 1e-6, 1e-9])
    assert (rising.exponent, steep.exponent) == (0.25, 4.0)
    assert rising(128) < 3.0
    assert fit_power_law(ranks, [0.0, 0.0, 0.0])(256) == 0


@given(st.data(), st.floats(0.55, 3.0), st.sampled_from([0.0, 0.6, 1.0]), st.integers(1, 8))
def test_bits_never_exceed_those_of_even_ranks(data: st.DataObject, bpw: float, depth: float, blocks: int) -> None:
    layers, blocks_of = named(blocks)
    count = len(layers)
    scales = data.draw(st.lists(st.floats(-25, 5), min_size=count, max_size=count))
    exponents = data.draw(st.lists(st.floats(0.1, 5), min_size=count, max_size=count))
    even = allocate_ranks(layers, blocks_of, bpw=bpw)
    shares, saved = rank_shares(errors_of(even, [2.0**x for x in scales], exponents), even, layers)
    ranks = allocate_ranks(layers, blocks_of, bpw=bpw, depth=depth, shares=shares)
    assert bits(layers, ranks) <= bits(layers, even)
    assert all(rank >= 32 and rank % 32 == 0 for rank in ranks.values())
    assert bpw > 1.25 or all(rank <= min(layers[name]) for name, rank in ranks.items())
    assert all(POINTS[0] - 1e-9 <= share <= POINTS[-1] + 1e-9 for share in shares.values())
    assert sum(shares[name] * even[name] * sum(layers[name]) for name in even) <= sum(
        rank * sum(layers[name]) for name, rank in even.items()
    ) * (1 + 1e-9)
    assert -1e-6 <= saved < 1


@given(st.lists(st.floats(-12, 12), min_size=12, max_size=12), st.floats(0.55, 3.0), st.floats(0.3, 3.0))
def test_more_loss_per_bit_never_gets_fewer_bits(logs: list[float], bpw: float, exponent: float) -> None:
    layers = {f"{b}.q": (576, 576) for b in range(12)}
    blocks_of = {name: int(name.split(".")[0]) for name in layers}
    even = allocate_ranks(layers, blocks_of, bpw=bpw)
    shares, _ = rank_shares(errors_of(even, [2.0**x for x in logs], [exponent] * 12), even, layers)
    ranks = allocate_ranks(layers, blocks_of, bpw=bpw, shares=shares)
    ordered = sorted(layers, key=lambda name: (logs[blocks_of[name]], shares[name]))
    for less, more in itertools.pairwise(ordered):
        assert shares[less] <= shares[more] + 1e-9
        # Layers at the same bound want the same; a word that is left goes to one of them.
        assert ranks[less] <= ranks[more] or shares[less] >= shares[more] - 1e-9


@pytest.mark.parametrize("bpw", [0.55, 0.8, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("depth", [0.0, 0.6])
def test_equal_loss_per_bit_gives_the_even_ranks_or_the_ramp(bpw: float, depth: float) -> None:
    layers, blocks_of = named(6)
    even = allocate_ranks(layers, blocks_of, bpw=bpw)
    # Scales at which one more bit saves the same at every even rank.
    scales = [rank**2.5 * sum(layers[name]) for name, rank in even.items()]
    shares, saved = rank_shares(errors_of(even, scales, [1.5] * len(even)), even, layers)
    assert list(shares.values()) == pytest.approx([1.0] * len(even), abs=1e-6)
    assert saved == pytest.approx(0.0, abs=1e-9)
    assert allocate_ranks(layers, blocks_of, bpw=bpw, depth=depth, shares=shares) == allocate_ranks(
        layers, blocks_of, bpw=bpw, depth=depth
    )


def test_layers_that_cost_nothing_give_their_bits_away() -> None:
    layers, blocks_of = named(2)
    even = allocate_ranks(layers, blocks_of, bpw=1.0)
    scales = [0.0 if name.startswith("0.") else 1.0 for name in even]
    shares, _ = rank_shares(errors_of(even, scales, [1.0] * 8), even, layers)
    assert all(shares[name] == POINTS[0] for name in layers if name.startswith("0."))
    assert all(shares[name] > 1 for name in layers if name.startswith("1."))
    nothing, saved = rank_shares(torch.zeros(8, 3, dtype=torch.float64), even, layers)
    assert (set(nothing.values()), saved) == ({1.0}, 0.0)


def test_errors_are_in_one_unit_for_all_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {name: torch.nn.Linear(64, 96, bias=False) for name in "abc"}
    weight = torch.randn(96, 64, generator=generator)
    inputs, outputs = torch.rand(64, generator=generator), torch.rand(96, generator=generator)
    with torch.no_grad():
        for layer, factor in zip(layers.values(), (1.0, 2.0, 1.0), strict=True):
            layer.weight.copy_(factor * weight)
    importances = {name: Importance(inputs, outputs * (9.0 if name == "c" else 1.0)) for name in layers}
    even = dict.fromkeys(layers, 32)
    found = measured_errors(layers, importances, even, short_run())
    assert found.shape == (3, 3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[1], 4 * found[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[2], 9 * found[0], rtol=1e-3, atol=0)
    assert bool((found.diff(dim=1) < 0).all())  # more rank, less error
    target = outputs.sqrt()[:, None] * weight * inputs.sqrt()[None, :]
    assert float(found[0, 0]) < float(target.square().sum())
    assert torch.equal(found, measured_errors(layers, importances, even, short_run()))


def test_a_model_is_compressed_with_measured_ranks_and_goes_on_with_them(tmp_path: Path) -> None:
    model = dense_folder(tmp_path / "m", hidden_size=64, intermediate_size=160, num_hidden_layers=3)
    options: dict[str, Any] = {
        "bpw": 2.0,
        "device": "cpu",
        "compute_dtype": "float32",
        "calibration": write_text(tmp_path),
        "recipe": short_recipe(rank_sensitivity=True, rank_depth=0.6),
    }
    whole = compress(model, tmp_path / "whole", **options)
    plain = compress(model, tmp_path / "plain", **{**options, "recipe": short_recipe()})
    assert whole.settings.ranks != plain.settings.ranks
    assert whole.settings.true_bpw <= plain.settings.true_bpw
    assert whole.settings.recipe["stage_seconds"]["sensitivities"] >= 0
    with pytest.raises(Killed):
        compress(model, tmp_path / "c", **options, progress=stop_at("block 2 of 3"))
    # What was measured is not measured again, so that ranks are those of the finished blocks.
    again = compress(model, tmp_path / "c", resume=True, **options, progress=stop_at("sensitivities"))
    assert Checkpoint(tmp_path / "c").settings.ranks == again.settings.ranks == whole.settings.ranks
    files = [(tmp_path / name / "nanoquant.safetensors").read_bytes() for name in ("whole", "c")]
    assert files[0] == files[1]
