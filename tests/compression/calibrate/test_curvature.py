# SPDX-License-Identifier: Apache-2.0
"""Dense curvature factors: against their rule in float64, their memory, refusals (docs/METHOD.md, section 10)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.compression import compress
from nanoquant_edge.compression.calibrate.curvature import (
    CurvatureFit,
    bytes_needed,
    input_factors,
    no_room,
    shrunk,
    with_curvature,
)
from nanoquant_edge.compression.calibrate.importances import Importance, collect_importances
from nanoquant_edge.compression.execution import parallel
from nanoquant_edge.compression.sequence import reconstruct_blocks
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.system.progress import Progress
from tests.compression.calibrate.test_importances import observed
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


def fitted(
    model: Any, dtype: torch.dtype = torch.float32, progress: Progress | None = None, free_memory: int | None = None
) -> Any:
    linears = linears_of(model)
    importances = collect_importances(model, linears, WINDOWS, short_run())
    run = short_run(dtype, progress=progress)
    return with_curvature(model, linears, windows=WINDOWS, importances=importances, run=run, free_memory=free_memory)


def test_factors_equal_the_rule_in_float64() -> None:
    model = dense_llama(**ORACLE)
    linears = linears_of(model)
    importances = collect_importances(model, linears, WINDOWS, short_run())
    found = with_curvature(model, linears, windows=WINDOWS, importances=importances, run=short_run())
    double = dense_llama(**ORACLE).double()
    double.load_state_dict(model.state_dict())
    seen = [observed(double, window) for window in WINDOWS]
    for name in linears:
        x, d = (np.concatenate([part[side][name] for part in seen]) for side in (0, 1))
        out, inp = (np.diag(value.double().numpy()) for value in (importances[name].outputs, importances[name].inputs))
        for _ in range(3):
            by_gradient = np.einsum("ti,ij,tj->t", d, np.linalg.inv(out), d)
            by_input = np.einsum("ti,ij,tj->t", x, np.linalg.inv(inp), x)
            out, inp = unit(np.einsum("t,ti,tj->ij", by_input, d, d)), unit(np.einsum("t,ti,tj->ij", by_gradient, x, x))
        np.testing.assert_allclose(found[name].curvature.numpy(), out, rtol=1e-2, atol=1e-3)
        assert torch.equal(found[name].inputs, importances[name].inputs)


def test_input_factors_are_second_moments_and_shared_by_layers_with_one_input() -> None:
    model = dense_llama()
    linears = linears_of(model)
    ours = input_factors(linears, lambda ids: model(ids).logits, WINDOWS, at_once=2)
    double = dense_llama().double()
    double.load_state_dict(model.state_dict())
    for name, factor in ours.items():
        x = np.concatenate([observed(double, window)[0][name] for window in WINDOWS])
        np.testing.assert_allclose(factor.numpy(), unit(x.T @ x), rtol=1e-2, atol=1e-3)
    assert len({id(factor) for factor in ours.values()}) == 4 * len(linears) // 7
    assert not any(layer._forward_pre_hooks for layer in linears.values())


def test_a_fit_finds_factors_that_are_there() -> None:
    # Tokens whose inputs and gradients are independent, with known covariances: L and R are those, but for the size.
    generator = torch.Generator().manual_seed(0)
    mixes = [torch.randn(size, size, generator=generator) for size in (6, 9)]
    layer = torch.nn.Linear(9, 6)
    importance = Importance(torch.ones(9), torch.ones(6))
    fit = CurvatureFit("layer", layer, importance, torch.device("cpu"))
    d, x = (torch.randn(20000, len(mix), generator=generator) @ mix for mix in mixes)
    for index in range(3):
        fit.add(x, d)
        fit.close_pass(last=index == 2, split=False)
    for total, mix in zip((fit.outputs, fit.inputs), mixes, strict=True):
        wanted = mix.T @ mix
        found = total * (wanted.trace() / total.trace())
        assert float((found - wanted).norm() / wanted.norm()) < 0.04


def test_passes_in_bfloat16_find_the_same_factors() -> None:
    model = dense_llama(**ORACLE)
    exact, rounded = fitted(model), fitted(model, dtype=torch.bfloat16)
    for name, importance in exact.items():
        ours, theirs = rounded[name].curvature, importance.curvature
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_layers_without_gradient_have_the_identity() -> None:
    model = dense_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = fitted(model)
    for importance in found.values():
        assert torch.equal(importance.curvature, torch.eye(len(importance.outputs)))


def test_what_is_not_finite_is_refused_by_name() -> None:
    with pytest.raises(NqEdgeError, match=r"curvature of model\.layer holds NaN") as caught:
        shrunk(torch.full((3, 3), math.inf), "model.layer")
    assert caught.value.code == "NQ-NUMERIC"


def test_the_model_is_left_as_it_was() -> None:
    model = dense_llama()
    fitted(model)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in linears_of(model).values())


def test_factors_that_do_not_fit_are_known_before() -> None:
    linears = {"a": torch.nn.Linear(30, 20), "b": torch.nn.Linear(20, 30)}
    fitting, kept_bytes = bytes_needed(linears)
    assert fitting == [8 * (400 + 900)] * 2
    assert kept_bytes == 4 * (400 + 900)
    cpu = torch.device("cpu")
    least = (3 * (fitting[0] + kept_bytes) + 1) // 2
    assert no_room(linears, cpu, free_memory=least) == ""
    assert "curvature needs 0.0 GB on cpu" in no_room(linears, cpu, free_memory=least - 2)
    assert "curvature keeps 0.0 GB on the host" in no_room(linears, cpu, free_memory=100)


def test_groups_of_layers_change_nothing_but_the_passes() -> None:
    model = dense_llama()
    done: list[float] = []
    counted = Progress(lambda fraction, _text: done.append(fraction))
    whole = fitted(model, progress=counted)
    assert len(done) == 3 * len(WINDOWS)  # three passes for all layers at once
    # Room for a third of the layers: in order they fill four groups, as none may be split.
    fitting, kept_bytes = bytes_needed(linears_of(model))
    done.clear()
    parts = fitted(model, progress=counted, free_memory=3 * (sum(fitting) // 3 + kept_bytes) // 2)
    assert len(done) == 4 * 3 * len(WINDOWS)
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)
    assert list(parts) == list(whole)
    for name, importance in whole.items():
        assert torch.equal(parts[name].curvature, importance.curvature)


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
            name: replace(value, curvature=torch.eye(len(value.outputs)))
            for name, value in even_importances(layers).items()
        }
        failing = "model.layers.1.mlp.down_proj"
        importances[failing].curvature *= 1e38  # finite, but not the mean of its diagonal
        ranks, recipe = dict.fromkeys(layers, 32), {"curvature": True, "fp_epochs": 0, "ste_epochs": 0}
        found = reconstruct_blocks(source, WINDOWS, importances=importances, ranks=ranks, run=short_run(**recipe))
    assert found.undone == [f"curvature of {failing}"]
    assert all(math.isfinite(error) for error in found.errors)
