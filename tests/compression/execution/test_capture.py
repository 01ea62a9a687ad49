# SPDX-License-Identifier: Apache-2.0
"""Captured steps: the bookkeeping over a stand-in for CUDA, and on a GPU the same results as launch by launch."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.execution import capture
from nanoquant_edge.compression.execution.block_call import BlockCall, first_inputs, recorded_arguments
from nanoquant_edge.compression.execution.capture import WARM_UP, Replayed, captured
from nanoquant_edge.compression.factorize import lb_admm as admm
from nanoquant_edge.compression.tune.distillation import distill_scales
from nanoquant_edge.compression.tune.workbench import Workbench, reconstruct_block
from nanoquant_edge.models import family_of
from tests.compression.support import dense_llama, linears_of, short_recipe, teacher_of
from tests.tiny import llama_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class FakeGraph:
    """Replays what was called between the beginning and the end of its capture."""

    recorded: list[Any]

    def replay(self) -> None:
        self.recorded.append("replay")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """torch.cuda as far as captures need it; yields what happened."""
    happened: list[Any] = []

    class Stream:
        def wait_stream(self, _other: Any) -> None:
            pass

    @contextlib.contextmanager
    def graph(target: FakeGraph, pool: Any, stream: Any) -> Iterator[None]:
        happened.append(("pool", pool))
        target.recorded = happened
        yield

    pools = iter(range(100))
    for name, value in {
        "graph_pool_handle": lambda: next(pools),
        "Stream": Stream,
        "stream": lambda _stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "synchronize": lambda: None,
        "CUDAGraph": FakeGraph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Replayed, "_stream", None)
    yield happened
    Replayed._living.clear()


def test_on_a_cpu_the_step_is_itself() -> None:
    def step() -> None:
        raise AssertionError

    assert captured(step, CPU, step) is step


def test_a_step_is_warmed_up_captured_and_restored(fake: list[Any]) -> None:
    calls: list[str] = []
    replayed = captured(lambda: calls.append("step"), CUDA, lambda: calls.append("restore"))
    assert calls == ["step"] * (WARM_UP + 1) + ["restore"]
    replayed()
    replayed()
    assert fake[-2:] == ["replay", "replay"]
    assert len(calls) == WARM_UP + 2


def test_what_a_step_holds_lives_as_long_as_its_graph(fake: list[Any]) -> None:
    class Table:
        pass

    seen: list[weakref.ref[Table]] = []

    def made() -> Any:
        table = Table()
        seen.append(weakref.ref(table))
        return captured(lambda: id(table), CUDA, lambda: None)

    replayed = made()
    gc.collect()
    assert seen[0]() is not None
    del replayed
    gc.collect()
    assert seen[0]() is None


def test_graphs_share_a_pool_until_the_last_is_gone(fake: list[Any]) -> None:
    def pool() -> Any:
        return next(what[1] for what in reversed(fake) if what[0] == "pool")

    first = captured(lambda: None, CUDA, lambda: None)
    pools = [pool()]
    second = captured(lambda: None, CUDA, lambda: None)
    pools.append(pool())
    del first, second
    gc.collect()
    third = captured(lambda: None, CUDA, lambda: None)
    assert pools[0] == pools[1]
    assert pool() != pools[0]
    del third


def test_a_step_that_cannot_be_captured_is_launched(fake: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def broken(*_arguments: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(capture, "Replayed", broken)
    with pytest.warns(UserWarning, match="launched one by one: operation not permitted$"):
        step = captured(lambda: calls.append("step"), CUDA, lambda: calls.append("restore"))
    step()
    assert calls == ["restore", "step"]


@pytest.mark.gpu
@needs_gpu
def test_factorizations_in_a_graph_are_those_launched_one_by_one() -> None:
    kept: dict[Any, Any] = {}
    settings = admm.AdmmSettings(steps=40)
    for seed in range(2):
        w = torch.randn(192, 96, generator=torch.Generator().manual_seed(seed)).cuda()
        i, o = torch.rand(96, device=CUDA), torch.rand(192, device=CUDA)
        ours, plain = (admm.factorize(w, i, o, 64, settings, 0, state) for state in (kept, None))
        assert isinstance(next(iter(kept.values()))._step, Replayed)
        assert ours.error == pytest.approx(plain.error, rel=1e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_tuned_in_graphs_is_the_one_tuned_launch_by_launch(
    dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    linears = family_of(llama_config()).linears
    losses = []
    for keep in (True, False):
        model = dense_llama().cuda()
        model.set_attn_implementation("sdpa")
        blocks = model.model.layers
        ids = torch.randint(0, 320, (6, 64), generator=torch.Generator().manual_seed(2))
        importances = collect_importances(model, linears_of(model), ids, 0.2, dtype=dtype)
        recipe = short_recipe(fp_epochs=3, ste_epochs=3, kd_epochs=3, fp_batch=4, refresh_inputs=True)
        stream = first_inputs(model, blocks, ids.cuda())
        compressed, factors, found, bench = stream.clone(), {}, [], None
        for index, (block, keywords) in enumerate(
            zip(blocks, recorded_arguments(model, blocks, ids[:1].cuda()), strict=True)
        ):
            call = BlockCall(keywords, CUDA, dtype)
            bench = bench or Workbench(block, linears, call, recipe, keep=keep, at_once=2)
            targets = call.over(block, stream, 2)
            prefix = f"model.layers.{index}."
            here = {name: importances[prefix + name] for name in linears}
            result = reconstruct_block(
                block,
                linears,
                dict.fromkeys(linears, 32),
                here,
                here["mlp.down_proj"].outputs,
                compressed,
                targets,
                call,
                recipe,
                0,
                bench=bench,
            )
            compressed, stream = call.over(bench.block, compressed, 2), targets
            factors.update({prefix + name: value for name, value in result.factors.items()})
            found += [outcome[1].last for outcome in result.losses.values()]
        del bench, result
        outcome = distill_scales(model, blocks, factors, ids, teacher_of(model, ids).to(dtype), recipe, 0, CUDA, dtype)
        losses.append([*found, outcome.first, outcome.last])
    assert not [w for w in recwarn if "no CUDA graph" in str(w.message)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if dtype == torch.float32 else 0.2)
