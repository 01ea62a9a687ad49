# SPDX-License-Identifier: Apache-2.0
"""Tiles and layers without a GPU: against the layout's description and against NanoQuantLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import pack_signs
from nanoquant_edge.hf.linear import NanoQuantLinear
from nanoquant_edge.runtimes.cuda.binding import Input
from nanoquant_edge.runtimes.torch import TiledLayer
from nanoquant_edge.runtimes.torch.model import DecoderModel, resolve_device
from nanoquant_edge.runtimes.torch.passes import LinearGroup, Workspace, apply_input
from nanoquant_edge.runtimes.torch.tiles import make_tiles, tile_signs
from tests.tiny import random_layer


def cpu_group(layers: list[TiledLayer], **options: Any) -> LinearGroup:
    return LinearGroup(layers, Workspace(torch.device("cpu")), **options)


def tiled(m: int, n: int, rank: int, seed: int = 0, **options: Any) -> tuple[TiledLayer, NanoQuantLinear]:
    packed = random_layer(np.random.default_rng(seed), m, n, rank, **options)
    reference = NanoQuantLinear.from_packed(packed, torch.float64)
    reference.compute_dtype = torch.float64
    return TiledLayer.from_packed(packed, "cpu"), reference


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 256), (17, 300), (40, 31), (33, 513)])
def test_tiles_follow_the_headers_description(rows: int, columns: int) -> None:
    signs = np.where(np.random.default_rng(rows).random((rows, columns)) < 0.5, -1, 1)
    words = torch.from_numpy(pack_signs(signs))
    noisy = words.clone()
    if columns % 32:  # bits past the last column never count
        noisy[:, -1] |= torch.tensor(-1 << columns % 32, dtype=torch.int32)
    tiles = make_tiles(noisy, columns).view(-1, 32, 4)
    across = -(-columns // 256)

    def word(row: int, column: int) -> int:
        return int(words[row, column]) if row < rows and column < words.shape[1] else 0

    for tile in range(tiles.shape[0]):
        i, j = divmod(tile, across)
        for lane in range(32):
            g, q = divmod(lane, 4)
            expected = [word(16 * i + g + 8 * h, 8 * j + q + 4 * s) for s in (0, 1) for h in (0, 1)]
            assert tiles[tile, lane].tolist() == expected
    assert torch.equal(tile_signs(tiles.reshape(-1), (rows, columns), torch.int32), torch.from_numpy(signs).int())


def test_words_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="need int32 words"):
        make_tiles(torch.zeros((3, 2), dtype=torch.int32), 65)
    with pytest.raises(ValueError, match="need int32 words"):
        make_tiles(torch.zeros((3, 2), dtype=torch.int64), 64)


@pytest.mark.parametrize("options", [{}, {"mid": True, "bias": True, "scale_dtype": np.float32}])
def test_a_layer_stands_for_the_same_weight_as_the_checkpoints(options: dict[str, Any]) -> None:
    layer, reference = tiled(40, 72, 300, **options)
    assert torch.equal(layer.dense(), reference.dense(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_computes_what_nanoquant_linear_computes(dtype: torch.dtype) -> None:
    layer, reference = tiled(40, 72, 51, seed=1, mid=True, bias=True)
    wide = torch.randn(4, 144).to(dtype)
    for x in (wide[:, :72], wide[:, 1:73]):  # the second one's rows begin at odd addresses
        out = torch.full((4, 40), torch.nan)
        cpu_group([layer])(x, out)
        torch.testing.assert_close(out, reference(x.double()).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(Input))
def test_a_group_applies_the_input_function_and_the_residual(kind: Input) -> None:
    pairs = [tiled(m, 48, rank, seed) for seed, (m, rank) in enumerate([(20, 33), (8, 64), (36, 16)])]
    gated = kind in (Input.SILU, Input.GELU)
    norm = torch.rand(48) if kind == Input.RMS_NORM else None
    group = cpu_group([layer for layer, _ in pairs], input=kind, norm_weight=norm, norm_eps=1e-5)
    assert group.offsets == [0, 24, 32]  # segments begin at multiples of 8
    assert group.width == 72
    x, out = torch.randn(5, 96 if gated else 48), torch.full((5, 72), torch.nan)
    residual = torch.randn(5, 72)
    group(x, out, residual)
    ready = apply_input(x, kind, norm_weight=norm, norm_eps=1e-5).double()
    for (_, reference), offset in zip(pairs, group.offsets, strict=True):
        columns = slice(offset, offset + reference.out_features)
        expected = reference(ready) + residual[:, columns]
        torch.testing.assert_close(out[:, columns].double(), expected, rtol=1e-4, atol=1e-4)
    in_place = residual.clone()
    group(x, in_place, in_place)
    torch.testing.assert_close(in_place[:, :20], out[:, :20])


def test_input_functions_are_pytorchs() -> None:
    x = torch.randn(3, 16)
    functional = torch.nn.functional
    weight = torch.rand(16)
    torch.testing.assert_close(
        apply_input(x, Input.RMS_NORM, norm_weight=weight, norm_eps=1e-5), functional.rms_norm(x, (16,), weight, 1e-5)
    )
    torch.testing.assert_close(apply_input(x, Input.SILU), functional.silu(x[:, :8]) * x[:, 8:])
    gelu = functional.gelu(x[:, :8], approximate="tanh")
    torch.testing.assert_close(apply_input(x, Input.GELU), gelu * x[:, 8:])


def test_groups_that_are_none_are_refused() -> None:
    first, other = tiled(8, 16, 32)[0], tiled(8, 24, 32)[0]
    with pytest.raises(NqEdgeError, match="differ in in_features"):
        cpu_group([first, other])
    with pytest.raises(NqEdgeError, match="1 to 4 layers, not 5"):
        cpu_group([first] * 5)


def test_devices_that_are_not_there_are_one_clear_error() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(NqEdgeError, match="neither a CUDA GPU nor the CPU") as caught:
        resolve_device("meta")
    assert caught.value.code == "NQ-OPTION"
    with pytest.raises(NqEdgeError, match="not one that PyTorch knows"):
        resolve_device("gpu")
    with pytest.raises(NqEdgeError, match=r"'cuda:63' does not exist: PyTorch .* sees \d+ NVIDIA GPUs") as caught:
        resolve_device("cuda:63")
    assert caught.value.code == "NQ-CUDA"


def test_a_checkpoint_is_not_even_opened_without_its_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(NqEdgeError, match="pass device='cpu'"):
        DecoderModel.from_checkpoint("/nowhere", device="cuda")
