# SPDX-License-Identifier: Apache-2.0
"""A workbench kept from block to block gives what a new one for each block gives: what CUDA graphs rely on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from nanoquant_edge.compression.execution.block_call import BlockCall, first_inputs, recorded_arguments, same_arguments
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune import workbench
from nanoquant_edge.compression.tune.block_replacements import FusedNorm, fuse_norms, weighted_squares
from nanoquant_edge.compression.tune.layers import module_at
from nanoquant_edge.compression.tune.reconstruction import BlockResult, reconstruct_block
from nanoquant_edge.compression.tune.workbench import Workbench
from nanoquant_edge.models import family_of
from tests.compression.support import ORACLE, dense_llama, even_importances, short_run
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

    def workbench(self, run: Run, keep: bool | None = None) -> Workbench:
        """A workbench made for the first block."""
        return Workbench(self.blocks[0], LINEARS, self.calls[0], run.recipe, keep=keep)

    def reconstruct(self, index: int, run: Run, workbench: Workbench, rank: int = 24) -> BlockResult:
        """Load a block with a compressed stream that differs a little from the dense one, and compress it."""
        block = self.blocks[index]
        drift = 0.05 * torch.randn(self.streams[index].shape, generator=torch.Generator().manual_seed(index))
        workbench.load(
            block,
            inputs=self.streams[index] + drift,
            targets=self.streams[index + 1],
            loss_weights=torch.linspace(0.5, 1.5, 40),
        )
        importances = even_importances({name: module_at(block, name) for name in LINEARS}, outputs=1e-4)
        return reconstruct_block(workbench, dict.fromkeys(LINEARS, rank), importances, run)


def tensors_of(value: Any, name: str = "", known: set[int] | None = None) -> dict[str, torch.Tensor]:
    """Every tensor that an object of this package, a container or a module holds, however deep; by path."""
    known = set() if known is None else known
    if isinstance(value, torch.Tensor):
        return {name: value}
    if id(value) in known:
        return {}
    known.add(id(value))
    parts: dict[Any, Any] = {}
    if isinstance(value, dict):
        parts = {
            number if isinstance(key, torch.Tensor) else key: part for number, (key, part) in enumerate(value.items())
        }
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, nn.Module | torch.optim.Optimizer) or type(value).__module__.startswith("nanoquant_edge"):
        parts = vars(value)
    return {key: found for part in parts for key, found in tensors_of(parts[part], f"{name}.{part}", known).items()}


@pytest.fixture(scope="module")
def tiny() -> Blocks:
    return Blocks()


@pytest.mark.parametrize("changes", [{}, {"fp_batch": 3, "refresh_inputs": True}], ids=["even", "uneven-refreshed"])
def test_a_kept_workbench_gives_the_same_factors(tiny: Blocks, changes: dict[str, Any]) -> None:
    run = short_run(fp_epochs=2, ste_epochs=2, **changes)
    workbench = tiny.workbench(run, keep=True)
    assert workbench.serves(tiny.blocks[1], tiny.calls[1])
    # The other rank in between leaves its own stages behind; the third use is the first block again.
    for index, rank in ((0, 24), (1, 24), (1, 40), (0, 24)):
        kept = tiny.reconstruct(index, run, workbench, rank)
        kept_output = tiny.calls[index].over(kept.block, tiny.streams[index], 2)
        fresh = tiny.reconstruct(index, run, tiny.workbench(run), rank)
        for name in LINEARS:
            for part in ("u_words", "v_words", "scale_out", "scale_in", "bias"):
                assert torch.equal(getattr(kept.factors[name], part), getattr(fresh.factors[name], part)), name
        assert kept.losses == fresh.losses
        assert torch.equal(kept_output, tiny.calls[index].over(fresh.block, tiny.streams[index], 2))


def test_every_tensor_of_a_kept_step_stays_at_its_address(tiny: Blocks) -> None:
    run = short_run()
    workbench = tiny.workbench(run, keep=True)

    def addresses() -> dict[str, int]:
        found = tensors_of(workbench)
        return {name: value.data_ptr() for name, value in found.items() if not name.endswith(".chosen")}

    tiny.reconstruct(0, run, workbench)
    before = addresses()
    assert len(before) > 300
    assert any("latent" in name for name in before)
    assert any("dual" in name for name in before)
    assert any("exp_avg" in name for name in before)
    tiny.reconstruct(1, run, workbench)
    assert addresses() == before


def test_a_closed_workbench_frees_its_stages_at_once(tiny: Blocks) -> None:
    run = short_run()
    workbench = tiny.workbench(run, keep=True)
    tiny.reconstruct(0, run, workbench)
    seen = [weakref.ref(stage) for stage in (*workbench.tuners.values(), *workbench.problems.all())]
    assert len(seen) > 14
    gc.disable()
    try:
        workbench.close()
        assert not any(reference() for reference in seen)
    finally:
        gc.enable()


def test_a_workbench_serves_only_blocks_that_are_called_alike(tiny: Blocks) -> None:
    workbench = tiny.workbench(short_run(), keep=True)
    other = {**tiny.calls[1].arguments, "position_embeddings": tuple(torch.zeros(1, 24, 16) for _ in range(2))}
    assert not workbench.serves(tiny.blocks[1], BlockCall(other, CPU, torch.float32))
    assert not tiny.workbench(short_run()).serves(tiny.blocks[0], tiny.calls[0])
    assert same_arguments({"a": (torch.ones(2), None)}, {"a": (torch.ones(2), None)})
    assert not same_arguments({"a": torch.ones(2)}, {"a": torch.ones(2), "b": None})
    assert not same_arguments(torch.ones(2), torch.ones(2, dtype=torch.float64))


def test_attention_is_remembered_while_the_feed_forward_part_is_tuned(tiny: Blocks) -> None:
    calls: list[str] = []
    workbench = tiny.workbench(short_run())
    handle = workbench.block.self_attn.register_forward_hook(lambda *_: calls.append("attention"))
    workbench.load(tiny.blocks[0], inputs=tiny.streams[0], targets=tiny.streams[1], loss_weights=torch.ones(40))
    workbench.remember_attention(3)  # the key projection is still open
    assert not calls
    workbench.remember_attention(4)
    assert len(calls) == 5
    workbench.tune_open(4, 0)
    assert len(calls) == 5
    workbench.attention.release()
    workbench.forward(tiny.streams[0][:1])
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


def test_latent_layers_of_long_ago_are_given_up_where_all_take_too_much(
    tiny: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short_run(fp_epochs=0, admm_steps=1)
    kept = tiny.workbench(run, keep=True)
    tiny.reconstruct(0, run, kept, rank=24)
    monkeypatch.setattr(workbench, "_KEPT_BYTES", 0)
    gone = weakref.ref(kept.latent[LINEARS[0], 24])
    tiny.reconstruct(1, run, kept, rank=16)
    assert list(kept.latent) == [(LINEARS[-1], 16)]
    assert [key for key in kept.tuners if key[1]] == [(LINEARS[-1], 16)]
    assert gone() is None
