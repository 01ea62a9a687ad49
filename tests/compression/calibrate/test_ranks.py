# SPDX-License-Identifier: Apache-2.0
"""The rank rule against known ranks and rates (docs/METHOD.md, section 2) and against bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanoquant_edge.compression import PRESETS
from nanoquant_edge.compression.calibrate.ranks import allocate_ranks
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.rates import layer_bits, rank_for_rate
from tests.tiny import random_layer

#: hidden, query width, key/value width, feed-forward width of published models
MODELS = {
    "Gemma-3-270M": (640, 1024, 256, 2048),
    "Gemma-3-1B": (1152, 1024, 256, 6912),
    "Qwen3-0.6B": (1024, 2048, 1024, 3072),
    "Qwen3-4B": (2560, 4096, 1024, 9728),
    "Llama-3.2-1B": (2048, 2048, 512, 8192),
    "Llama-3-8B": (4096, 4096, 1024, 14336),
    "Llama-2-7B": (4096, 4096, 4096, 11008),
    "Llama-2-70B": (8192, 8192, 1024, 28672),
    "SmolLM2-135M": (576, 576, 192, 1536),
    "TinyLlama-1.1B": (2048, 2048, 256, 5632),
}


def shapes(model: str) -> list[tuple[int, int]]:
    """(out, in) of q, k, v, o, gate, up, down."""
    hidden, query, key, wide = MODELS[model]
    return [
        (query, hidden),
        (key, hidden),
        (key, hidden),
        (hidden, query),
        (wide, hidden),
        (wide, hidden),
        (hidden, wide),
    ]


def true_rate(layers: list[tuple[int, int]], bpw: float) -> float:
    bits = sum(layer_bits(m, n, rank_for_rate(m, n, bpw)) for m, n in layers)
    return bits / sum(m * n for m, n in layers)


@pytest.mark.parametrize(
    ("model", "bpw", "ranks", "rate"),
    [
        ("Gemma-3-270M", 1.0, (352, 160, 352, 448), 0.9482),
        ("Gemma-3-270M", 0.8, (288, 128, 288, 352), 0.7607),
        ("Gemma-3-270M", 0.55, (192, 64, 192, 224), 0.4974),
        ("Gemma-3-1B", 1.0, (512, 192, 512, 960), 0.9873),
        ("Gemma-3-1B", 0.55, (256, 96, 256, 512), 0.5318),
        ("Qwen3-0.6B", 1.0, (640, 480, 640, 736), 0.9729),
        ("Qwen3-0.6B", 0.8, (512, 384, 512, 576), 0.7729),
        ("Qwen3-4B", 1.0, (1536, 704, 1536, 1984), 0.9864),
        ("Llama-3.2-1B", 1.0, (992, 384, 992, 1600), 0.9857),
        ("Llama-3-8B", 1.0, (2016, 800, 2016, 3168), 0.9982),
        ("Llama-2-7B", 1.0, (2016, 2016, 2016, 2944), 0.9918),
        ("Llama-2-70B", 0.55, (2208, 480, 2208, 3488), 0.5488),
        ("SmolLM2-135M", 1.0, (256, 128, 256, 384), 0.9557),
        ("TinyLlama-1.1B", 1.0, (992, 192, 992, 1472), 0.9877),
    ],
)
def test_the_table_of_published_models(model: str, bpw: float, ranks: tuple[int, ...], rate: float) -> None:
    layers = shapes(model)
    found = [rank_for_rate(m, n, bpw) for m, n in layers]
    assert found == [ranks[0], ranks[1], ranks[1], ranks[2], ranks[3], ranks[3], ranks[3]]
    assert true_rate(layers, bpw) == pytest.approx(rate, abs=6e-5)


def test_a_rate_is_never_exceeded_and_nearly_reached() -> None:
    for model in MODELS:
        for bpw in (0.55, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0):
            reached = true_rate(shapes(model), bpw)
            assert reached <= bpw
            capped = any(rank_for_rate(m, n, bpw) == min(m, n) for m, n in shapes(model))
            assert reached > bpw - 0.17 or capped


def test_the_cap_holds_up_to_one_and_a_quarter_bits_only() -> None:
    assert rank_for_rate(512, 512, 1.25) <= 512
    assert rank_for_rate(65536, 256, 1.25) == rank_for_rate(256, 65536, 1.25) == 256
    assert rank_for_rate(65536, 256, 1.26) == 288
    assert rank_for_rate(512, 512, 3.0) > 512
    assert rank_for_rate(4096, 4096, 2.0) == 4064


def test_small_layers_get_a_rank_that_exists() -> None:
    assert rank_for_rate(40, 16, 0.05) == 16
    assert rank_for_rate(64, 64, 0.05) == 32
    assert rank_for_rate(1, 1, 1.0) == 1


@pytest.mark.parametrize("bpw", [0.0, 0.049, 8.01, -1.0, math.nan, math.inf])
def test_impossible_rates_are_refused(bpw: float) -> None:
    with pytest.raises(NqEdgeError, match=r"between 0\.05 and 8") as caught:
        rank_for_rate(64, 64, bpw)
    assert caught.value.code == "NQ-OPTION"


@pytest.mark.parametrize(("m", "n", "rank"), [(96, 64, 32), (40, 72, 33), (7, 5, 3)])
def test_bits_are_those_of_a_stored_layer(m: int, n: int, rank: int) -> None:
    assert layer_bits(m, n, rank) == random_layer(np.random.default_rng(0), m, n, rank).stored_bits


#: Multiples of the even rank by kind of layer, as a measurement might give them.
SHARES = {"q_proj": 0.85, "k_proj": 0.9, "v_proj": 1.1, "up_proj": 1.05, "down_proj": 1.15}


def shares_of(layers: dict[str, tuple[int, int]]) -> dict[str, float]:
    return {name: SHARES.get(name.rpartition(".")[2], 1.0) for name in layers}


def whole_model(model: str, blocks: int) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    named = {f"{b}.{k}": shape for b in range(blocks) for k, shape in zip(kinds, shapes(model), strict=True)}
    return named, {name: int(name.split(".")[0]) for name in named}


@pytest.mark.parametrize("model", ["SmolLM2-135M", "Gemma-3-270M", "Qwen3-0.6B"])
@pytest.mark.parametrize("bpw", [0.55, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0])
def test_shifted_ranks_spend_no_more_bits_and_nearly_as_many(model: str, bpw: float) -> None:
    layers, blocks = whole_model(model, 12)
    even = allocate_ranks(layers, blocks, bpw=bpw)
    assert even == {name: rank_for_rate(*shape, bpw) for name, shape in layers.items()}
    shifted = allocate_ranks(layers, blocks, bpw=bpw, depth=0.6, shares=shares_of(layers))

    def bits(ranks: dict[str, int]) -> int:
        return sum(layer_bits(*layers[name], rank) for name, rank in ranks.items())

    assert 0.985 * bits(even) < bits(shifted) <= bits(even)
    assert all(rank >= 32 and (rank % 32 == 0 or rank == min(layers[name])) for name, rank in shifted.items())
    if bpw <= 1.25:
        assert all(rank <= min(layers[name]) for name, rank in shifted.items())


def test_bits_move_to_later_blocks_and_to_the_layers_with_larger_shares() -> None:
    layers, blocks = whole_model("Qwen3-0.6B", 28)
    ranks = allocate_ranks(layers, blocks, bpw=1.0, depth=0.6, shares=shares_of(layers))
    assert ranks["0.up_proj"] < ranks["14.up_proj"] < ranks["27.up_proj"]
    assert ranks["14.q_proj"] < ranks["14.o_proj"]
    assert ranks["14.k_proj"] <= ranks["14.v_proj"]
    assert ranks["14.gate_proj"] <= ranks["14.up_proj"] < ranks["14.down_proj"]
    growth = ranks["27.up_proj"] / ranks["0.up_proj"]
    assert growth == pytest.approx(math.exp(0.6), rel=0.1)


@pytest.mark.parametrize("model", ["SmolLM2-135M", "Gemma-3-270M", "Qwen3-0.6B"])
@pytest.mark.parametrize("bpw", [0.55, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("shifted", [False, True])
def test_filled_ranks_spend_the_rate_but_for_less_than_a_word(model: str, bpw: float, shifted: bool) -> None:
    layers, blocks = whole_model(model, 12)
    changes = {"depth": 0.6, "shares": shares_of(layers)} if shifted else {}
    ranks = allocate_ranks(layers, blocks, bpw=bpw, fill=True, **changes)
    left = bpw * sum(m * n for m, n in layers.values())
    left -= sum(layer_bits(*layers[name], rank) for name, rank in ranks.items())
    words = [
        layer_bits(*layers[name], rank + 32) - layer_bits(*layers[name], rank)
        for name, rank in ranks.items()
        if bpw > 1.25 or rank < min(layers[name])
    ]
    assert 0 <= left < min(words)
    assert all(rank % 32 == 0 or rank == min(layers[name]) for name, rank in ranks.items())
    if not shifted:
        even = allocate_ranks(layers, blocks, bpw=bpw)
        assert all(even[name] <= rank <= even[name] + 32 for name, rank in ranks.items())


def test_filled_ranks_do_not_depend_on_the_order_of_layers() -> None:
    layers, blocks = whole_model("SmolLM2-135M", 30)
    turned = dict(reversed(layers.items()))
    assert allocate_ranks(layers, blocks, bpw=0.55, fill=True) == allocate_ranks(turned, blocks, bpw=0.55, fill=True)


def test_a_rate_below_the_least_ranks_is_not_filled() -> None:
    layers, blocks = {f"{b}.up_proj": (40, 40) for b in range(4)}, {f"{b}.up_proj": b for b in range(4)}
    assert allocate_ranks(layers, blocks, bpw=0.5, fill=True) == dict.fromkeys(layers, 32)


def test_the_smallest_layers_keep_the_least_rank() -> None:
    layers, blocks = {f"{b}.up_proj": (40, 40) for b in range(4)}, {f"{b}.up_proj": b for b in range(4)}
    assert allocate_ranks(layers, blocks, bpw=0.5, depth=2.0, shares=shares_of(layers)) == dict.fromkeys(layers, 32)


@pytest.mark.parametrize(("model", "count"), [("SmolLM2-135M", 30), ("Gemma-3-270M", 18)])
def test_the_default_recipe_never_spends_more_than_the_official_one(model: str, count: int) -> None:
    layers, blocks = whole_model(model, count)
    weights = sum(m * n for m, n in layers.values())
    default, official = PRESETS["full"], PRESETS["official"]
    for bpw in (step / 100 for step in range(55, 301, 5)):
        rates = [
            sum(layer_bits(*layers[name], rank) for name, rank in ranks.items()) / weights
            for ranks in (
                allocate_ranks(layers, blocks, bpw=bpw, depth=recipe.rank_depth) for recipe in (official, default)
            )
        ]
        assert 0.998 * rates[0] < rates[1] <= rates[0] <= bpw
