# SPDX-License-Identifier: Apache-2.0
"""Compression with the blocks' weights on disk: the importances and the bytes that the loaded model gives."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoquant_edge.compression import compress, pipeline
from nanoquant_edge.compression.calibrate import streamed_gradients as streaming
from nanoquant_edge.compression.calibrate.importances import collect_importances
from nanoquant_edge.compression.calibrate.streamed_gradients import gradient_pass_by_blocks
from nanoquant_edge.compression.execution import parallel
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import SourceModel
from tests.compression.support import (
    ORACLE,
    Killed,
    dense_folder,
    family_folder,
    short_recipe,
    short_run,
    stop_at,
    write_text,
)
from tests.families import FAMILY_CONFIGS, ONE_EACH


def layers_of(source: SourceModel) -> dict[str, torch.nn.Linear]:
    names = source.family.layer_names(source.decoder.num_layers)
    return {name: source.model.get_submodule(name) for name in names}


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_importances_by_blocks_are_those_of_the_whole_model(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    ids = torch.randint(3, 320, (4, 24), generator=torch.Generator().manual_seed(1))
    folder = family_folder(tmp_path / "m", name)
    with load_model(folder, stream=True) as streamed, load_model(folder) as resident:
        passes = functools.partial(gradient_pass_by_blocks, streamed)
        ours = collect_importances(streamed.model, layers_of(streamed), ids, short_run(dtype), passes=passes)
        theirs = collect_importances(resident.model, layers_of(resident), ids, short_run(dtype))
        # The same operations in the same order.
        for layer, expected in theirs.items():
            assert torch.equal(ours[layer].inputs, expected.inputs), layer
            assert torch.equal(ours[layer].outputs, expected.outputs), layer
        assert not any(layer._forward_hooks for layer in layers_of(streamed).values())


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 80])
def test_every_input_comes_in_its_turn(count: int, limit: int) -> None:
    steps: list[int] = []

    def forward(index: int, stream: torch.Tensor) -> torch.Tensor:
        steps.append(index)
        assert int(stream) == index
        return stream + 1

    inputs = streaming.InputStreams(torch.zeros(()), forward, limit)
    for goal in reversed(range(count + 1)):
        assert int(inputs.of(goal)) == goal
        assert inputs.held <= limit
    if limit == streaming.KEPT_STREAMS:
        assert len(steps) < 3 * count + 1
    elif limit == 1:
        assert len(steps) == count * (count + 1) // 2


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with load_model(dense_folder(tmp_path / "m"), stream=True) as source:
        source.model.model.norm.weight.data.fill_(float("inf"))
        with pytest.raises(NqEdgeError, match="window 0 is") as caught:
            gradient_pass_by_blocks(source, torch.arange(16)[None], short_run())
        assert caught.value.code == "NQ-NUMERIC"
        assert all(parameter.is_meta for parameter in source.model.model.layers.parameters())


def run(model: Path, output: Path, stream: bool | None, **options: Any) -> Checkpoint:
    settings: dict[str, Any] = {"recipe": short_recipe(), "device": "cpu", "compute_dtype": "float32", **options}
    checkpoint = compress(model, output, stream_weights=stream, **settings)
    assert stream is None or checkpoint.settings.recipe["streamed"] is stream
    return checkpoint


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def same_files(tmp_path: Path, model: Path, **options: Any) -> None:
    """Both ways write the same bytes; what is measured on the way is the same too."""
    options = {"calibration": write_text(tmp_path), "bpw": 2.0, **options}
    streamed, resident = (run(model, tmp_path / str(way), way, **options) for way in (True, False))
    assert files(streamed.folder) == files(resident.folder)
    for figure in ("block_errors", "kd_loss", "undone"):
        assert streamed.settings.recipe[figure] == resident.settings.recipe[figure]


@pytest.mark.parametrize("name", ONE_EACH)
def test_streamed_compression_writes_the_same_bytes(tmp_path: Path, name: str) -> None:
    same_files(tmp_path, family_folder(tmp_path / "m", name), recipe=short_recipe(refresh_inputs=True, admm_steps=2))


@pytest.mark.parametrize(
    "options",
    [
        {"compute_dtype": "bfloat16"},
        {"embedding": "int8"},
        {"recipe": short_recipe(rank_sensitivity=True, curvature=True)},
        {"recipe": short_recipe(kd_epochs=0, ste_epochs=0)},
    ],
    ids=["bfloat16", "int8", "sensitivity", "short"],
)
def test_so_do_all_options(tmp_path: Path, options: dict[str, Any]) -> None:
    same_files(tmp_path, dense_folder(tmp_path / "m", **ORACLE), **options)


def test_either_way_goes_on_where_the_other_stopped(tmp_path: Path) -> None:
    model, text = dense_folder(tmp_path / "m"), write_text(tmp_path)
    run(model, tmp_path / "whole", False, calibration=text)
    with pytest.raises(Killed):
        run(model, tmp_path / "c", False, calibration=text, progress=stop_at("distilling scales"))
    seen: list[str] = []
    run(
        model, tmp_path / "c", True, calibration=text, resume=True, progress=lambda _fraction, words: seen.append(words)
    )
    assert any("2 finished blocks" in words for words in seen)
    assert files(tmp_path / "c") == files(tmp_path / "whole")


@pytest.mark.parametrize(("limit", "streamed"), [(1 << 40, False), (1000, True)])
def test_memory_decides_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, streamed: bool
) -> None:
    monkeypatch.setattr(pipeline, "resident_limit", lambda _device: limit)
    seen: list[str] = []
    options = {"calibration": write_text(tmp_path), "progress": lambda _fraction, words: seen.append(words)}
    checkpoint = run(dense_folder(tmp_path / "m"), tmp_path / "c", None, **options)
    assert checkpoint.settings.recipe["streamed"] is streamed
    assert ("weights are read block by block" in seen) is streamed
    assert ("the weights are in memory" in seen) is not streamed


def test_half_of_the_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "memory_available", lambda: 1000)
    assert streaming.resident_limit(torch.device("cpu")) == 500
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert streaming.resident_limit(torch.device("cpu")) == 250
    monkeypatch.setattr(parallel, "memory_available", lambda: None)
    assert streaming.resident_limit(torch.device("cpu")) > 1 << 60


def test_a_model_that_is_not_in_memory_cannot_write_its_own_text(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="cannot write its own calibration text") as caught:
        run(dense_folder(tmp_path / "m"), tmp_path / "c", True, calibration=None)
    assert caught.value.code == "NQ-OPTION"
    assert "--no-stream-weights" in caught.value.hint
    assert not list(tmp_path.glob("c*"))


def test_streams_that_a_gpu_has_no_room_for_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1480, 4000))
    assert streaming.streams_device(100, gpu) == gpu
    assert streaming.streams_device(102, gpu) == torch.device("cpu")
    monkeypatch.setattr(parallel, "memory_available", lambda: 10000)
    assert streaming.resident_limit(gpu) == 740


def test_large_streams_and_wide_blocks_take_no_more_of_a_gpu() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [streaming.kept_streams(size << 30, gpu) for size in (1, 2, 4)] == [6, 3, 2]
    assert streaming.kept_streams(100, gpu) == streaming.kept_streams(4 << 30, cpu) == streaming.KEPT_STREAMS
    with torch.device("meta"):
        small, wide = torch.nn.Linear(64, 64), torch.nn.Linear(65536, 65536)
    assert [streaming.windows_in_a_block(block, 2048, gpu) for block in (small, wide)] == [8, 2]
    assert streaming.windows_in_a_block(small, 2048, cpu) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kept_on", ["cuda", "cpu"])
def test_on_a_gpu_both_ways_end_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, kept_on: str
) -> None:
    monkeypatch.setattr(streaming, "streams_device", lambda _size, _device: torch.device(kept_on))
    model, text = dense_folder(tmp_path / "m", **ORACLE), write_text(tmp_path)
    options = {"calibration": text, "bpw": 2.0, "device": "cuda", "compute_dtype": dtype, "embedding": "int8"}
    one, other = (run(model, tmp_path / str(way), way, **options).settings.recipe for way in (True, False))
    # Runs on a GPU differ among themselves: a sign may flip.
    assert one["block_errors"] == pytest.approx(other["block_errors"], rel=0.05)
    assert one["kd_loss"] == pytest.approx(other["kd_loss"], rel=0.2)
