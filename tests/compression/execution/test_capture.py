# SPDX-License-Identifier: Apache-2.0
"""Captured steps: the bookkeeping over a fake of torch.cuda, and on a GPU the same results as launch by launch."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.execution.block_call import BlockCall, first_inputs, recorded_arguments
from nanoquant_edge.compression.execution.capture import WARM_UP, GraphPool, Replayed, captured
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.factorize.problem import KeptProblems
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.compression.run import Run
from nanoquant_edge.compression.tune.distillation import distill_scales
from nanoquant_edge.compression.tune.reconstruction import reconstruct_block
from nanoquant_edge.compression.tune.workbench import Workbench
from nanoquant_edge.models import family_of
from tests.compression.support import dense_llama, linears_of, short_recipe, teacher_of
from tests.tiny import llama_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class FakeCuda:
    """torch.cuda as far as captures need it; notes what happened.

    Args:
        refuses: what a capture fails with.
    """

    def __init__(self, refuses: str = "") -> None:
        self.happened: list[Any] = []
        self._refuses, self._pools = refuses, itertools.count()

    def graph_pool_handle(self) -> int:
        return next(self._pools)

    def Stream(self) -> FakeCuda:
        return self

    def current_stream(self) -> FakeCuda:
        return self

    def wait_stream(self, _other: Any) -> None:
        pass

    def stream(self, _stream: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        pass

    def CUDAGraph(self) -> FakeCuda:
        return self

    def replay(self) -> None:
        self.happened.append("replay")

    @contextlib.contextmanager
    def graph(self, _graph: Any, pool: int, stream: Any) -> Iterator[None]:
        if self._refuses:
            raise RuntimeError(self._refuses)
        self.happened.append(pool)
        yield


def test_on_a_cpu_the_step_is_itself() -> None:
    def step() -> None:
        raise AssertionError

    assert captured(step, CPU, step) is step


def test_a_step_is_warmed_up_captured_and_restored() -> None:
    cuda, calls = FakeCuda(), []
    replayed = captured(lambda: calls.append("step"), CUDA, lambda: calls.append("restore"), GraphPool(cuda))
    assert calls == ["step"] * (WARM_UP + 1) + ["restore"]
    replayed()
    replayed()
    assert cuda.happened == [0, "replay", "replay"]
    assert len(calls) == WARM_UP + 2


def test_what_a_step_holds_lives_as_long_as_its_graph() -> None:
    class Table:
        pass

    def made() -> tuple[Callable[[], None], weakref.ref[Table]]:
        table = Table()
        return captured(lambda: id(table), CUDA, lambda: None, GraphPool(FakeCuda())), weakref.ref(table)

    replayed, table = made()
    gc.collect()
    assert table() is not None
    del replayed
    gc.collect()
    assert table() is None


def test_graphs_share_a_pool_until_the_last_is_gone() -> None:
    cuda = FakeCuda()
    graphs = GraphPool(cuda)
    steps = [captured(lambda: None, CUDA, lambda: None, graphs) for _ in range(2)]
    assert cuda.happened == [0, 0]
    steps.clear()
    gc.collect()
    captured(lambda: None, CUDA, lambda: None, graphs)
    assert cuda.happened == [0, 0, 1]


def test_a_step_that_cannot_be_captured_is_launched() -> None:
    calls: list[str] = []
    graphs = GraphPool(FakeCuda(refuses="operation not permitted\nwhen stream is capturing"))
    with pytest.warns(UserWarning, match="launched one by one: operation not permitted$"):
        step = captured(lambda: calls.append("step"), CUDA, lambda: calls.append("restore"), graphs)
    assert calls == ["step"] * WARM_UP + ["restore"]
    step()
    assert calls[-1] == "step"


@pytest.mark.gpu
@needs_gpu
def test_factorizations_in_a_graph_are_those_launched_one_by_one() -> None:
    reused = KeptProblems()
    settings = AdmmSettings(steps=40)
    for seed in range(2):
        w = torch.randn(192, 96, generator=torch.Generator().manual_seed(seed)).cuda()
        sides = {"inputs": torch.rand(96, device=CUDA), "outputs": torch.rand(192, device=CUDA)}
        ours, plain = (factorize(w, 64, **sides, settings=settings, problems=problems) for problems in (reused, None))
        assert [type(problem.step) for problem in reused.all()] == [Replayed]
        assert ours.error == pytest.approx(plain.error, rel=1e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_tuned_in_graphs_is_the_one_tuned_launch_by_launch(
    dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    linears = family_of(llama_config()).linears
    recipe = short_recipe(fp_epochs=3, ste_epochs=3, kd_epochs=3, fp_batch=4, refresh_inputs=True)
    run = Run(recipe, CUDA, dtype)
    losses = []
    for keep in (True, False):
        model = dense_llama().cuda()
        model.set_attn_implementation("sdpa")
        blocks = model.model.layers
        ids = torch.randint(0, 320, (6, 64), generator=torch.Generator().manual_seed(2))
        importances = collect_importances(model, linears_of(model), ids, run)
        stream = first_inputs(model, blocks, ids.cuda())
        compressed, factors, found, workbench = stream.clone(), {}, [], None
        for index, (block, keywords) in enumerate(
            zip(blocks, recorded_arguments(model, blocks, ids[:1].cuda()), strict=True)
        ):
            call = BlockCall(keywords, CUDA, dtype)
            workbench = workbench or Workbench(block, linears, call, recipe, keep=keep, at_once=2)
            targets = call.over(block, stream, 2)
            prefix = f"model.layers.{index}."
            block_importances = {name: importances[prefix + name] for name in linears}
            loss_weights = block_importances["mlp.down_proj"].outputs
            workbench.load(block, inputs=compressed, targets=targets, loss_weights=loss_weights)
            result = reconstruct_block(workbench, dict.fromkeys(linears, 32), block_importances, run)
            compressed, stream = call.over(workbench.block, compressed, 2), targets
            factors.update({prefix + name: value for name, value in result.factors.items()})
            found += [outcome[1].last for outcome in result.losses.values()]
        del workbench, result
        teacher = teacher_of(model, ids).to(dtype)
        outcome = distill_scales(model, blocks, factors, windows=ids, teacher=teacher, run=run)
        losses.append([*found, outcome.first, outcome.last])
    assert not [w for w in recwarn if "no CUDA graph" in str(w.message)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if dtype == torch.float32 else 0.2)
