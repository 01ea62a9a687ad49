# SPDX-License-Identifier: Apache-2.0
"""Two processes on one compression (gloo): the same model in both, and what one process alone would have made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoquant_edge.compression import compress
from nanoquant_edge.compression.calibrate.curvature import with_curvature
from nanoquant_edge.compression.calibrate.importances import Moment, collect_importances
from nanoquant_edge.compression.calibrate.sensitivities import measured_errors
from nanoquant_edge.compression.execution.parallel import Team, joined_team, team
from nanoquant_edge.compression.factorize import settings
from nanoquant_edge.compression.factorize.lb_admm import factorize
from nanoquant_edge.compression.factorize.lb_admm_curved import Curvature, factorize_curved
from nanoquant_edge.compression.factorize.metric import metric
from nanoquant_edge.compression.factorize.problem import KeptProblems, Problem
from nanoquant_edge.compression.factorize.settings import AdmmSettings
from nanoquant_edge.compression.tune.optimizer import ParameterGroup, Tuner
from nanoquant_edge.formats.checkpoint import Checkpoint
from tests.compression.support import (
    dense_folder,
    dense_llama,
    even_importances,
    linears_of,
    short_recipe,
    short_run,
    source_of,
    write_text,
)

#: Two processes as torchrun starts them, out of one: imports take longer than all the rest.
SCRIPT = """
import os, sys
from tests.compression.execution.test_parallel import together
child = os.fork()
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "1" if child else "0"
together(*sys.argv[1:])
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
#: One stage whose batch is shared out evenly, one with an uneven last batch, one that is too small to share.
OPTIONS: dict[str, Any] = {
    "recipe": short_recipe(fp_batch=2, kd_batch=3, ste_batch=1, refresh_inputs=True),
    "device": "cpu",
    "compute_dtype": "float32",
    "bpw": 2.0,
}


#: Tensors of a layer's factors.
PARTS = ("u_latent", "v_latent", "scale_out", "scale_in")


def tuned() -> list[float]:
    """A stage with a known loss; seven samples in batches of three."""
    x, targets = torch.zeros(4), torch.randn(7, 4, generator=torch.Generator().manual_seed(0))

    def step_loss(chosen: torch.Tensor) -> torch.Tensor:
        loss = (x - targets[chosen]).square().sum(-1).mean()
        loss.backward()
        return loss.detach()

    outcome = Tuner([ParameterGroup([x], 0.1)], 3, step_loss).run(7, 4, 0)
    return [*x.tolist(), outcome.first, outcome.last]


def importances() -> list[float]:
    """Two sums for each layer of a tiny model, over five windows.

    All five are the same: clipping goes by the largest norms so far, and so by the order of the windows.
    """
    model = dense_llama()
    ids = torch.randint(0, 320, (1, 24), generator=torch.Generator().manual_seed(1)).expand(5, -1)
    found = collect_importances(model, linears_of(model), ids, short_run())
    return [float(part.sum()) for value in found.values() for part in (value.inputs, value.outputs)]


def curvature() -> list[float]:
    """Two sums for each layer of a tiny model, over five windows."""
    model = dense_llama()
    ids = torch.randint(0, 320, (5, 24), generator=torch.Generator().manual_seed(2))
    ones = even_importances(linears_of(model))
    curved = with_curvature(source_of(model), linears_of(model), windows=ids, importances=ones, run=short_run())
    found = [value.curvature for value in curved.values()]
    return [float(part.sum()) for side in found if side is not None for part in (side.diagonal, side.values)]


def sensitivities() -> list[float]:
    """Errors of all layers of one block at three ranks; the layers are shared out."""
    layers = linears_of(dense_llama(num_hidden_layers=1))
    errors = measured_errors(layers, even_importances(layers), dict.fromkeys(layers, 32), short_run())
    return [float(value) for value in errors.flatten()]


def sides() -> list[float]:
    """Two factorizations with a side in each process, and that they are to the bit what one process makes."""
    generator = torch.Generator().manual_seed(3)
    weight, i, o = (torch.randn(*shape, generator=generator) for shape in ((40, 24), (24, 60), (40, 60)))
    curvature = Curvature(metric(i @ i.T / 60 + torch.eye(24)), metric(o @ o.T / 60 + torch.eye(40)))
    found = []
    problem = Problem((40, 24), 16, AdmmSettings(share_sides=True), torch.device("cpu"))
    assert problem.sides_shared == (team().size > 1)
    for dtype, problems in ((torch.float32, None), (torch.float32, KeptProblems()), (torch.bfloat16, None)):
        plain = AdmmSettings(steps=12, dtype=dtype)
        ways = [{"settings": way, "seed": 1, "problems": problems} for way in (plain, replace(plain, share_sides=True))]
        for matrix, around in ((weight, curvature), (weight.T, curvature.transposed())):
            diagonals = {"inputs": around.inputs.diagonal, "outputs": around.outputs.diagonal}
            pairs = [
                [factorize(matrix, 16, **diagonals, **way) for way in ways],
                [factorize_curved(matrix, 16, curvature=around, **way) for way in ways],
            ]
            for alone, shared in pairs:
                assert all(torch.equal(getattr(alone, name), getattr(shared, name)) for name in PARTS)
                found.append(shared.error)
    return found


#: What each process works out, alone and together.
SHARED = (tuned, importances, curvature, sensitivities, sides)


def together(model: str, text: str, output: str) -> None:
    """This process's part of everything; what it found goes to a file beside the output."""
    torch.set_num_threads(1)
    with joined_team(torch.device("cpu")) as (joined, _):
        assert joined.size == 2
        settings.LEAST_SHARED_ENTRIES = 0  # else no layer of a tiny model is large enough
        found: dict[str, Any] = {work.__name__: work() for work in SHARED}
        checkpoint = compress(Path(model), Path(output), calibration=Path(text), **OPTIONS)
        streamed = Path(output).with_name("streamed")
        compress(Path(model), streamed, calibration=Path(text), stream_weights=True, **OPTIONS)
        for name, folder in (("weights", Path(output)), ("streamed", streamed)):
            found[name] = hashlib.sha256((folder / "nanoquant.safetensors").read_bytes()).hexdigest()
        found |= {"rank": joined.rank, "kd_loss": checkpoint.settings.recipe["kd_loss"]}
    Path(output).with_name(f"rank{joined.rank}.json").write_text(json.dumps(found))


def test_two_processes_make_one_model(tmp_path: Path) -> None:
    model, text = dense_folder(tmp_path / "m"), write_text(tmp_path)
    # What torchrun does: the store is its own, on a port that the system chooses while it is opened.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", SCRIPT, *map(str, (model, text, tmp_path / "pair"))]
    subprocess.run(command, env={**os.environ, **common}, check=True)
    alone = compress(model, tmp_path / "alone", calibration=text, **OPTIONS)
    expected = {work.__name__: work() for work in SHARED}
    one, two = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert (one.pop("rank"), two.pop("rank")) == (0, 1)
    assert one == two
    assert one["streamed"] == one["weights"]
    # Sums are taken in another order, so figures agree to rounding; a sign may flip, so the model to its loss.
    assert one["tuned"] == pytest.approx(expected["tuned"], rel=1e-4)
    assert one["importances"] == pytest.approx(expected["importances"], rel=1e-3)
    assert one["curvature"] == pytest.approx(expected["curvature"], rel=1e-2)
    assert one["sides"] == pytest.approx(expected["sides"], rel=0.06)
    # Each is one process's, and nothing is added to it but zeros.
    assert one["sensitivities"] == expected["sensitivities"]
    assert one["kd_loss"] == pytest.approx(alone.settings.recipe["kd_loss"], rel=0.1)
    assert Checkpoint(tmp_path / "pair").settings.ranks == alone.settings.ranks
    assert not list(tmp_path.glob("*.resume"))


def test_what_was_clipped_lower_elsewhere_is_rescaled() -> None:
    class Other(Team):
        """Stands for a process whose clip is 6 and whose total is 100 in each channel."""

        def largest(self, value: torch.Tensor) -> torch.Tensor:
            return value.clamp_min(6.0)

        def add(self, tensors: Any) -> None:
            for tensor in tensors:
                tensor.add_(100.0)

    moment = Moment()
    moment.add(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]))
    alone = moment.total.clone()
    moment.combine(Other(0, 2))
    torch.testing.assert_close(moment.total, alone * 4 + 100)
    assert float(moment.clip) == 6.0


def test_one_process_is_a_team_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    device = torch.device("cpu")
    with joined_team(device) as (alone, process_device):
        assert (alone, process_device) == (Team(), device)
        assert team() == Team()
        assert not alone.splits(8)
        x = torch.ones(3)
        alone.add([x])
        alone.take_first([x])
        assert x.tolist() == [1, 1, 1]


def test_rows_are_shared_where_there_are_enough() -> None:
    rows = torch.arange(5)
    assert [Team(rank, 2).share(rows).tolist() for rank in range(2)] == [[0, 2, 4], [1, 3]]
    assert [Team(rank, 2).share(rows[:1]).tolist() for rank in range(2)] == [[0], [0]]
    assert not Team(0, 2).splits(1)
    assert Team(0, 2).splits(2)
