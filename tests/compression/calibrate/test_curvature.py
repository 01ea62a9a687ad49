# SPDX-License-Identifier: Apache-2.0
"""Dense curvature factors: against their rule in float64, their memory, refusals (docs/METHOD.md, section 10)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.compression import compress
from nanoquant_edge.compression.calibrate import curvature
from nanoquant_edge.compression.calibrate.curvature import (
    CurvatureFit,
    bytes_needed,
    input_factors,
    no_room,
    shrunk,
    with_curvature,
)
from nanoquant_edge.compression.calibrate.importances import Importance, collect_importances
from nanoquant_edge.compression.calibrate.streamed_gradients import gradient_pass_by_blocks
from nanoquant_edge.compression.execution import parallel
from nanoquant_edge.compression.factorize.metric import Metric, metric
from nanoquant_edge.compression.sequence import reconstruct_blocks
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from nanoquant_edge.system.progress import Progress
from tests.compression.calibrate.test_importances import observed
from tests.compression.factorize.test_lb_admm_curved import whole
from tests.compression.support import (
    ORACLE,
    Killed,
    dense_folder,
    dense_llama,
    even_importances,
    linears_of,
    short_recipe,
    short_run,
    stop_at,
    write_text,
)

WINDOWS = torch.randint(0, 320, (3, 24), generator=torch.Generator().manual_seed(5))


def unit(total: np.ndarray) -> np.ndarray:
    """Symmetric sum to mean diagonal 1, a fifth of it the identity."""
    return 0.8 * total / np.diag(total).mean() + 0.2 * np.eye(len(total))


@contextlib.contextmanager
def loaded(folder: Path, stream: bool = False, **changes: Any) -> Iterator[SourceModel]:
    """A tiny model of two blocks, frozen."""
    path = dense_folder(folder / "m", **{"num_hidden_layers": 2, **ORACLE, **changes})
    with load_model(path, stream=stream) as source:
        source.move_to(torch.device("cpu"))
        yield source


def fitted(source: SourceModel, dtype: torch.dtype = torch.float32, progress: Progress | None = None) -> Any:
    linears = {name: source.model.get_submodule(name) for name in source.family.layer_names(2)}
    importances = collect_importances(
        source.model, linears, WINDOWS, short_run(), passes=functools.partial(gradient_pass_by_blocks, source)
    )
    run = short_run(dtype, progress=progress)
    return with_curvature(source, linears, windows=WINDOWS, importances=importances, run=run)


@pytest.mark.parametrize("stream", [False, True])
def test_metrics_are_those_of_factors_by_the_rule_in_float64(tmp_path: Path, stream: bool) -> None:
    with loaded(tmp_path, stream) as source:
        found = fitted(source)
        names = source.family.layer_names(2)
        assert list(found) == names
        with load_model(tmp_path / "m") as resident:
            double = resident.model.double().requires_grad_(True)
    seen = [observed(double, window) for window in WINDOWS]
    for name in names:
        x, d = (np.concatenate([part[side][name] for part in seen]) for side in (0, 1))
        out, inp = (np.diag(value.double().numpy()) for value in (found[name].outputs, found[name].inputs))
        for _ in range(3):  # both at once, as the rule has it
            by_gradient = np.einsum("ti,ij,tj->t", d, np.linalg.inv(out), d)
            by_input = np.einsum("ti,ij,tj->t", x, np.linalg.inv(inp), x)
            out, inp = unit(np.einsum("t,ti,tj->ij", by_input, d, d)), unit(np.einsum("t,ti,tj->ij", by_gradient, x, x))
        same_metric(found[name].curvature, metric(torch.from_numpy(out).float()))


def same_metric(ours: Metric, theirs: Metric, tolerance: float = 1e-2) -> None:
    torch.testing.assert_close(ours.diagonal, theirs.diagonal, rtol=tolerance, atol=1e-3)
    torch.testing.assert_close(whole(ours), whole(theirs), rtol=tolerance, atol=1e-2)


def test_input_factors_are_second_moments_and_shared_by_layers_with_one_input() -> None:
    model = dense_llama()
    linears = linears_of(model)
    ours = input_factors(linears, lambda ids: model(ids).logits, WINDOWS, at_once=2)
    double = dense_llama().double()
    double.load_state_dict(model.state_dict())
    for name, factor in ours.items():
        x = np.concatenate([observed(double, window)[0][name] for window in WINDOWS])
        same_metric(factor, metric(torch.from_numpy(unit(x.T @ x)).float()))
    assert len({id(factor) for factor in ours.values()}) == 4 * len(linears) // 7
    assert not any(layer._forward_pre_hooks for layer in linears.values())


@pytest.mark.parametrize("striped_from", [2048, 3])
def test_a_fit_finds_factors_that_are_there(monkeypatch: pytest.MonkeyPatch, striped_from: int) -> None:
    monkeypatch.setattr(curvature, "_STRIPED_FROM", striped_from)
    # Tokens whose inputs and gradients are independent, with known covariances: L and R are those, but for the size.
    generator = torch.Generator().manual_seed(0)
    mixes = [torch.randn(size, size, generator=generator) for size in (6, 9)]
    layer = torch.nn.Linear(9, 6)
    importance = Importance(torch.ones(9), torch.ones(6))
    fit = CurvatureFit("layer", layer, importance, torch.device("cpu"))
    d, x = (torch.randn(20000, len(mix), generator=generator) @ mix for mix in mixes)
    for _ in range(3):
        fit.add(x, d)
        fit.close_pass(split=False)
    wanted = mixes[0].T @ mixes[0]
    wanted = 0.8 * wanted / wanted.diagonal().mean() + 0.2 * torch.eye(6)
    assert float((fit.total - wanted).norm() / wanted.norm()) < 0.04


def test_passes_in_bfloat16_find_the_same_metrics(tmp_path: Path) -> None:
    with loaded(tmp_path) as source:
        exact, rounded = fitted(source), fitted(source, dtype=torch.bfloat16)
    for name, importance in exact.items():
        ours, theirs = rounded[name].curvature, importance.curvature
        assert ours.vectors.dtype == torch.float32
        assert float((whole(ours) - whole(theirs)).norm() / whole(theirs).norm()) < 0.1


def test_layers_without_gradient_have_the_identity(tmp_path: Path) -> None:
    with loaded(tmp_path) as source:
        source.model.lm_head.weight.zero_()
        found = fitted(source)
    for importance in found.values():
        torch.testing.assert_close(whole(importance.curvature), torch.eye(len(importance.outputs)))


def test_what_is_not_finite_is_refused_by_name() -> None:
    with pytest.raises(NqEdgeError, match=r"curvature of model\.layer holds NaN") as caught:
        shrunk(torch.full((3, 3), math.inf), "model.layer")
    assert caught.value.code == "NQ-NUMERIC"


def test_the_model_is_left_as_it_was_and_progress_only_grows(tmp_path: Path) -> None:
    done: list[float] = []
    with loaded(tmp_path) as source:
        fitted(source, progress=Progress(lambda fraction, _text: done.append(fraction)))
        assert all(parameter.grad is None for parameter in source.model.parameters())
        assert not any(module._forward_hooks for module in source.model.modules())
    assert len(done) == 2 * 3 * len(WINDOWS)  # blocks, passes
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)


def test_factors_that_do_not_fit_are_known_before() -> None:
    linears = {"a": torch.nn.Linear(30, 20), "b": torch.nn.Linear(20, 30)}
    fitting, kept_bytes = bytes_needed(linears, 1)
    assert fitting == 4 * (400 + 900) + 16 * 900
    assert kept_bytes == 4 * (20 * 22 + 30 * 32)
    assert bytes_needed(linears, 2) == (8 * (400 + 900) + 16 * 900, kept_bytes)
    cpu = torch.device("cpu")
    least = (3 * (fitting + kept_bytes) + 1) // 2
    assert no_room(linears, 1, cpu, free_memory=least) == ""
    assert "curvature needs 0.0 GB on cpu" in no_room(linears, 1, cpu, free_memory=least - 2)
    assert "curvature keeps 0.0 GB on the host" in no_room(linears, 1, cpu, free_memory=100)


class Run:
    """A tiny model, a text, and a whole run with curvature to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.text = dense_folder(folder / "m", num_hidden_layers=2, **ORACLE), write_text(folder)

    def compress(self, name: str, **options: Any) -> Checkpoint:
        options = {"recipe": short_recipe(curvature=True), **options}
        settings = {"calibration": self.text, "device": "cpu", "compute_dtype": "float32", "bpw": 2.0, **options}
        return compress(self.model, self.folder / name, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("curved"))


def test_a_run_says_so_and_continues_to_the_same_bytes(run: Run) -> None:
    whole = run.compress("whole").settings.recipe
    assert whole["curvature"] is True
    assert whole["undone"] == []
    plain = run.compress("plain", recipe=short_recipe(refresh_inputs=True)).settings.recipe
    assert plain["block_errors"] != whole["block_errors"]
    with pytest.raises(Killed):
        run.compress("stopped", progress=stop_at("block 2 of 2"))
    run.compress("stopped", resume=True)
    weights = [(run.folder / name / "nanoquant.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_without_room_a_run_goes_on_with_diagonals_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "memory_available", lambda: 1000)
    said: list[str] = []
    shown = {"progress": lambda _fraction, text: said.append(text)}
    found = run.compress("small", stream_weights=False, **shown).settings.recipe
    assert found["curvature"] is False
    assert "curvature keeps 0.0 GB on the host, where 0.0 GB may be taken" in found["left_out"][0]
    assert any("for want of memory" in text for text in said)
    plain = run.compress("diagonal", recipe=short_recipe()).settings.recipe
    assert plain["block_errors"] == found["block_errors"]
    assert plain["left_out"] == []


def test_a_layer_that_fails_under_curvature_takes_its_diagonals(run: Run) -> None:
    with load_model(run.model) as source:
        source.model.requires_grad_(False)
        layers = {name: source.model.get_submodule(name) for name in source.family.layer_names(2)}
        importances = {
            name: replace(value, curvature=metric(torch.eye(len(value.outputs))))
            for name, value in even_importances(layers).items()
        }
        failing = "model.layers.1.mlp.down_proj"
        importances[failing].curvature.diagonal.mul_(3e38)  # finite, but not its mean
        ranks, recipe = dict.fromkeys(layers, 32), {"curvature": True, "fp_epochs": 0, "ste_epochs": 0}
        found = reconstruct_blocks(source, WINDOWS, importances=importances, ranks=ranks, run=short_run(**recipe))
    assert found.undone == [f"curvature of {failing}"]
    assert all(math.isfinite(error) for error in found.errors)
