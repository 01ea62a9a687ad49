# SPDX-License-Identifier: Apache-2.0
"""NanoQuantLinear against the dense weight it stands for."""

from __future__ import annotations

import copy
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.formats.checkpoint import pack_signs
from nanoquant_edge.hf.linear import NanoQuantLinear, unpack_words
from tests.tiny import random_layer


@pytest.mark.parametrize(
    ("mid", "bias", "cache"), itertools.product([False, True], [False, True], [None, torch.int8, torch.float32])
)
def test_forward_equals_dense_product(mid: bool, bias: bool, cache: torch.dtype | None) -> None:
    packed = random_layer(np.random.default_rng(0), 37, 70, 45, np.float32, bias, mid)
    module = NanoQuantLinear.from_packed(packed)
    module.sign_cache = cache
    x = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(0))
    expected = x.double().numpy() @ packed.dense().T
    if packed.bias is not None:
        expected = expected + packed.bias
    for _ in range(2):  # the second call uses what was kept
        error = np.linalg.norm(module(x).numpy() - expected) / np.linalg.norm(expected)
        assert error < 1e-6
    np.testing.assert_allclose(module.dense(torch.float64).numpy(), packed.dense(), rtol=1e-12)


@given(m=st.integers(1, 70), n=st.integers(1, 70), rank=st.integers(1, 100), seed=st.integers(0, 9))
def test_any_size(m: int, n: int, rank: int, seed: int) -> None:
    packed = random_layer(np.random.default_rng(seed), m, n, rank)
    module = NanoQuantLinear.from_packed(packed)
    np.testing.assert_allclose(module.dense(torch.float64).numpy(), packed.dense(), rtol=1e-12)


@pytest.mark.parametrize("piece", [1, 200, 1 << 20])
def test_rows_are_unpacked_in_pieces(piece: int) -> None:
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (50, 70))
    words = torch.from_numpy(np.array(pack_signs(signs)))
    np.testing.assert_array_equal(unpack_words(words, 70, dtype=torch.float64, piece=piece).numpy(), signs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    packed = random_layer(np.random.default_rng(2), 33, 64, 40)
    module = NanoQuantLinear.from_packed(packed)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    result = module(x)
    assert result.dtype == dtype
    assert torch.equal(result, module(x.float()).to(dtype))


def test_scale_types_are_kept_or_cast_and_words_never() -> None:
    packed = random_layer(np.random.default_rng(3), 8, 40, 9, ml_dtypes.bfloat16)
    module = NanoQuantLinear.from_packed(packed)
    assert module.scale_in.dtype == torch.bfloat16
    assert NanoQuantLinear.from_packed(packed, torch.float32).scale_in.dtype == torch.float32
    module = module.half()
    assert module.scale_out.dtype == torch.float16
    assert module.u_packed.dtype == module.v_packed.dtype == torch.int32


def test_kept_signs_follow_the_words() -> None:
    packed = random_layer(np.random.default_rng(4), 8, 40, 9)
    module = NanoQuantLinear.from_packed(packed, torch.float32)
    x = torch.randn(2, 40, generator=torch.Generator().manual_seed(2))
    before = module(x)
    with torch.no_grad():
        module.u_packed.bitwise_not_()  # every sign of U flips, so the product does too
    assert torch.allclose(module(x), -before)
    module.load_state_dict(NanoQuantLinear.from_packed(packed, torch.float32).state_dict())
    assert torch.allclose(module(x), before)


def test_copies_do_not_carry_the_kept_signs() -> None:
    module = NanoQuantLinear.from_packed(random_layer(np.random.default_rng(5), 80, 400, 90))
    before = len(pickle.dumps(module))
    module(torch.zeros(1, 400))
    assert len(pickle.dumps(module)) == before
    assert torch.equal(copy.deepcopy(module)(torch.ones(1, 400)), module(torch.ones(1, 400)))
    assert "rank=90" in repr(module)


def test_gradient_reaches_the_input() -> None:
    packed = random_layer(np.random.default_rng(6), 8, 40, 9, np.float32)
    x = torch.zeros(1, 40, requires_grad=True)
    NanoQuantLinear.from_packed(packed)(x).sum().backward()
    np.testing.assert_allclose(x.grad[0].numpy(), packed.dense().sum(0), rtol=1e-4, atol=1e-6)
