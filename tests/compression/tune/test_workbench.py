# SPDX-License-Identifier: Apache-2.0
"""A bench kept from block to block gives what a new one for each block gives: what CUDA graphs rely on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from nanoquant_edge.compression.calibrate.importances import Importance
from nanoquant_edge.compression.execution.block_call import BlockCall, first_inputs, recorded_arguments, same_arguments
from nanoquant_edge.compression.factorize import lb_admm as admm
from nanoquant_edge.compression.options import Recipe
from nanoquant_edge.compression.tune.block_replacements import FusedNorm, fuse_norms, weighted_squares
from nanoquant_edge.compression.tune.layers import module_at
from nanoquant_edge.compression.tune.workbench import BlockResult, Workbench, reconstruct_block
from nanoquant_edge.models import family_of
from tests.compression.support import ORACLE, dense_llama, short_recipe
from tests.tiny import llama_config

CPU = torch.device("cpu")
LINEARS = family_of(llama_config()).linears


class Blocks:
    """The blocks of a tiny model, their calls and their own streams."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.model = dense_llama(**ORACLE)
        self.blocks = self.model.model.layers
        ids = torch.randint(0, 320, (5, 24), generator=torch.Generator().manual_seed(2))
        arguments = recorded_arguments(self.model, self.blocks, ids[:1])
        self.calls = [BlockCall(keywords, CPU, dtype) for keywords in arguments]
        self.streams = [first_inputs(self.model, self.blocks, ids)]
        for block, call in zip(self.blocks, self.calls, strict=True):
            self.streams.append(call.over(block, self.streams[-1], 2))

    def run(self, index: int, recipe: Recipe, bench: Workbench | None, rank: int = 24) -> BlockResult:
        block = self.blocks[index]
        shapes = {name: module_at(block, name).weight.shape for name in LINEARS}
        drift = 0.05 * torch.randn(self.streams[index].shape, generator=torch.Generator().manual_seed(index))
        return reconstruct_block(
            block,
            LINEARS,
            dict.fromkeys(LINEARS, rank),
            {name: Importance(torch.ones(n), torch.full((m,), 1e-4)) for name, (m, n) in shapes.items()},
            torch.linspace(0.5, 1.5, 40),
            self.streams[index] + drift,
            self.streams[index + 1],
            self.calls[index],
            recipe,
            0,
            bench=bench,
        )


@pytest.fixture(scope="module")
def tiny() -> Blocks:
    return Blocks()


@pytest.mark.parametrize("changes", [{}, {"fp_batch": 3, "refresh_inputs": True}], ids=["even", "uneven-refreshed"])
def test_a_kept_bench_gives_the_same_factors(tiny: Blocks, changes: dict[str, Any]) -> None:
    recipe = short_recipe(fp_epochs=2, ste_epochs=2, **changes)
    bench = Workbench(tiny.blocks[0], LINEARS, tiny.calls[0], recipe, keep=True)
    assert bench.serves(tiny.blocks[1], tiny.calls[1])
    # The other rank in between leaves its own stages behind; the third use is the first block again.
    for index, rank in ((0, 24), (1, 24), (1, 40), (0, 24)):
        kept = tiny.run(index, recipe, bench, rank)
        kept_output = tiny.calls[index].over(kept.block, tiny.streams[index], 2)
        fresh = tiny.run(index, recipe, None, rank)
        for name in LINEARS:
            for part in ("u", "v", "scale_out", "scale_in", "bias"):
                assert torch.equal(getattr(kept.factors[name], part), getattr(fresh.factors[name], part)), name
        assert kept.losses == fresh.losses
        assert torch.equal(kept_output, tiny.calls[index].over(fresh.block, tiny.streams[index], 2))


def test_every_tensor_of_a_kept_step_stays_where_it_is(tiny: Blocks) -> None:
    recipe = short_recipe()
    bench = Workbench(tiny.blocks[0], LINEARS, tiny.calls[0], recipe, keep=True)

    def addresses() -> dict[str, int]:
        found = {"inputs": bench.inputs, "targets": bench.targets, "weights": bench.weights}
        found.update({f"memory.{k}": v for k, v in vars(bench._memory).items() if isinstance(v, torch.Tensor)})
        for name in LINEARS:
            found.update({f"open.{name}.{k}": v for k, v in bench.open[name].named_parameters()})
            found.update({f"frozen.{name}.{k}": v for k, v in bench.frozen[name].named_parameters()})
            found.update({f"latent.{name}.{k}": v for k, v in bench.latent[name, 24].named_parameters()})
        for key, tuner in bench._tuners.items():
            tables = (tuner._order, tuner._fractions, tuner._losses, tuner._place, tuner._step, tuner._bases)
            found.update({f"{key}.{i}": value for i, value in enumerate((*tables, tuner._current, *tuner._good))})
            for i, state in enumerate(tuner.optimizer.state.values()):
                found.update({f"{key}.state.{i}.{k}": v for k, v in state.items()})
        for key, problem in bench.problems.items():
            for side in (problem.left, problem.right):
                found.update({f"{key}.{id(side)}.{k}": getattr(side, k) for k in ("primal", "signed", "dual", "right")})
            found.update({f"{key}.{i}": v for i, v in enumerate((*problem.targets, problem.place, problem.penalties))})
        return {name: value.data_ptr() for name, value in found.items() if name != "memory.chosen"}

    tiny.run(0, recipe, bench)
    before = addresses()
    assert len(before) > 100
    tiny.run(1, recipe, bench)
    assert addresses() == before


def test_a_closed_bench_frees_its_stages_at_once(tiny: Blocks) -> None:
    recipe = short_recipe()
    bench = Workbench(tiny.blocks[0], LINEARS, tiny.calls[0], recipe, keep=True)
    tiny.run(0, recipe, bench)
    assert bench.problems is not None
    seen = [weakref.ref(stage) for stage in (*bench._tuners.values(), *bench.problems.values())]
    assert len(seen) > 14
    gc.disable()
    try:
        bench.close()
        assert not any(reference() for reference in seen)
    finally:
        gc.enable()


def test_a_bench_serves_only_blocks_that_are_called_alike(tiny: Blocks) -> None:
    bench = Workbench(tiny.blocks[0], LINEARS, tiny.calls[0], short_recipe(), keep=True)
    other = {**tiny.calls[1].arguments, "position_embeddings": tuple(torch.zeros(1, 24, 16) for _ in range(2))}
    assert not bench.serves(tiny.blocks[1], BlockCall(other, CPU, torch.float32))
    assert not Workbench(tiny.blocks[0], LINEARS, tiny.calls[0], short_recipe()).serves(tiny.blocks[0], tiny.calls[0])
    assert same_arguments({"a": (torch.ones(2), None)}, {"a": (torch.ones(2), None)})
    assert not same_arguments({"a": torch.ones(2)}, {"a": torch.ones(2), "b": None})
    assert not same_arguments(torch.ones(2), torch.ones(2, dtype=torch.float64))


def test_attention_is_remembered_while_the_feed_forward_part_is_tuned(tiny: Blocks) -> None:
    calls: list[str] = []
    bench = Workbench(tiny.blocks[0], LINEARS, tiny.calls[0], short_recipe())
    handle = bench.block.self_attn.register_forward_hook(lambda *_: calls.append("attention"))
    bench.load(tiny.blocks[0], tiny.streams[0], tiny.streams[1], torch.ones(40))
    bench.remember_attention(3)  # the key projection is still open
    assert not calls
    bench.remember_attention(4)
    assert len(calls) == 5
    bench.tune_open(4, 0)
    assert len(calls) == 5
    bench.forget_attention()
    bench.call(bench.block, tiny.streams[0][:1])
    handle.remove()
    assert len(calls) == 6


@pytest.mark.parametrize("plus_one", [False, True])
def test_a_fused_norm_computes_the_same_or_is_not_used(plus_one: bool) -> None:
    class TinyRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.linspace(-1, 1, 12)), 1e-5
            self.broken = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scaled = x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
            return scaled.abs() if self.broken else scaled * (self.weight + plus_one)

    root = nn.Sequential(TinyRMSNorm(), TinyRMSNorm())
    root[1].broken = True
    norm, broken = root[0], root[1]
    assert list(fuse_norms(root, torch.float32)) == ["0"]
    assert isinstance(root[0], FusedNorm)
    assert root[1] is broken
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(root[0](x), norm(x), rtol=1e-5, atol=1e-6)


def test_the_block_loss_and_its_gradient() -> None:
    found = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    wanted, weights = torch.randn(2, 3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    loss = weighted_squares(found, wanted, weights)
    assert float(loss.detach()) == pytest.approx(float((weights * (found - wanted) ** 2).sum().detach() / 2))
    assert torch.autograd.gradcheck(lambda x: weighted_squares(x, wanted, weights), (found,))


def test_factorizations_with_kept_state_are_those_without() -> None:
    kept: dict[Any, Any] = {}
    settings = admm.AdmmSettings(steps=12)
    for seed, shape in enumerate([(24, 16), (16, 24), (24, 16)]):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        i, o = torch.rand(shape[1]), torch.rand(shape[0])
        ours = admm.factorize(w, i, o, 8, settings, 0, kept)
        fresh = admm.factorize(w, i, o, 8, settings, 0)
        assert ours.error == fresh.error
        assert torch.equal(ours.u_latent, fresh.u_latent)
        assert torch.equal(ours.scale_in, fresh.scale_in)
    assert len(kept) == 1  # a wide layer is the transposed problem of a tall one


def test_a_failed_cholesky_falls_back_to_a_general_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    plain = admm.factorize(w, torch.ones(16), torch.ones(24), 8, admm.AdmmSettings(steps=6))
    real, calls = torch.linalg.cholesky_ex, []

    def failing(matrix: torch.Tensor) -> Any:
        calls.append(1)
        factor, info = real(matrix)
        return (factor * float("nan"), info + 3) if len(calls) % 4 == 0 else (factor, info)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    found = admm.factorize(w, torch.ones(16), torch.ones(24), 8, admm.AdmmSettings(steps=6))
    assert len(calls) > 12  # the fast pass, then the one that looks
    assert found.error == pytest.approx(plain.error, rel=1e-3)
