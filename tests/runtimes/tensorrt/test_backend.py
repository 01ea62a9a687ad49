# SPDX-License-Identifier: Apache-2.0
"""The backend's bookkeeping on an imitated GPU and engine: the same logits and texts as ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import build_model
from nanoquant_edge.exporters.onnx.export import write_model
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from nanoquant_edge.runtimes import Backend, OnnxRuntimeBackend
from nanoquant_edge.runtimes.tensorrt import TensorRTBackend
from tests.runtimes.tensorrt.conftest import CAPACITY, engine_info, write_engine_bundle

TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}
Open = Callable[..., tuple[TensorRTBackend, Any, Any]]


@pytest.fixture
def plain(graph_bundle: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(Bundle.open(graph_bundle.parent / "plain"), threads=1)


def _ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 320, shape)


def test_it_is_a_backend(open_imitation: Open) -> None:
    backend, device, _ = open_imitation()
    assert isinstance(backend, Backend)
    assert (backend.name, backend.kernel, backend.vocab_size, backend.max_context) == (
        "tensorrt", "nanoquant", 320, CAPACITY,
    )  # fmt: skip
    assert (backend.capacity, backend.lengths.size) == (0, 0)
    backend.forward(_ids(1, 3))
    assert (backend.capacity, backend.lengths.tolist()) == (CAPACITY, [3])
    backend.close()
    backend.close()
    assert device.closed and device.used == 0 and device.graphs == 0
    with pytest.raises(NqEdgeError, match="closed"):
        backend.forward(_ids(1, 3))


@pytest.mark.parametrize("graphs", [True, False])
def test_prompts_of_all_lengths_and_steps_after_them(graphs: bool, open_imitation: Open, plain: Any) -> None:
    backend, device, engine = open_imitation(graphs=graphs)
    for length in (1, 2, 15, 16, 17, 33, 80):
        ids = _ids(1, length + 6, seed=length)
        plain.reset()
        backend.reset()
        np.testing.assert_allclose(backend.forward(ids[:, :length]), plain.forward(ids[:, :length]), **TOLERANCE)
        for position in range(length, length + 6):
            step = ids[:, position : position + 1]
            np.testing.assert_allclose(backend.forward(step), plain.forward(step), **TOLERANCE)
        assert backend.lengths.tolist() == [length + 6]
    # One warm-up and one capture serve all seven texts: shapes and addresses never change.
    assert device.captures == (1 if graphs else 0)
    assert device.launches == (7 * 6 if graphs else 0)  # 43 steps but for the one that warms up
    assert engine.enqueued == 1 + 7 * 6 + 1 + 1 + 1 + 2 + 3 + 5


@pytest.mark.parametrize(
    "positions", [[39, 0, 7, 7, 20], list(range(40)), list(range(39, -1, -1)), [], [16], [15, 16, 17, 18, 19, 20]]
)
def test_logits_of_any_positions(positions: list[int], open_imitation: Open, plain: Any) -> None:
    backend, _, _ = open_imitation()
    ids, wanted = _ids(1, 40), np.array([positions], dtype=np.int64).reshape(1, -1)
    np.testing.assert_allclose(backend.forward(ids, wanted), plain.forward(ids, wanted), **TOLERANCE)
    np.testing.assert_allclose(backend.forward(ids[:, :3]), plain.forward(ids[:, :3]), **TOLERANCE)
    one = np.zeros((1, 3), dtype=np.int64)
    np.testing.assert_allclose(backend.forward(ids[:, :1], one), plain.forward(ids[:, :1], one), **TOLERANCE)


def test_a_batch_of_different_lengths(open_imitation: Open, plain: Any) -> None:
    backend, device, _ = open_imitation()
    ids, lengths, then = _ids(3, 21), np.array([21, 4, 17]), _ids(3, 5, seed=1)
    np.testing.assert_allclose(backend.forward(ids, lengths=lengths), plain.forward(ids, lengths=lengths), **TOLERANCE)
    for position in range(5):
        step = then[:, position : position + 1]
        np.testing.assert_allclose(backend.forward(step), plain.forward(step), **TOLERANCE)
    assert backend.lengths.tolist() == [26, 9, 22]
    assert device.captures == 1
    backend.reset()
    plain.reset()
    # Another batch: the old cache goes before the new one comes, and the graph with it.
    np.testing.assert_allclose(backend.forward(then[:2, :1]), plain.forward(then[:2, :1]), **TOLERANCE)
    assert device.graphs == 0
    with pytest.raises(NqEdgeError, match=r"built for 1 to 4 sequences at once, got 5") as caught:
        backend.reset()
        backend.forward(_ids(5, 2))
    assert caught.value.code == "NQ-OPTION" and "--batch 5" in caught.value.hint


def test_a_step_sends_the_token_and_one_element_of_the_mask(open_imitation: Open) -> None:
    backend, device, _ = open_imitation()
    backend.forward(_ids(1, 10))
    for position in range(3):
        backend.forward(np.array([[100 + position]]))
    before, memory = device.uploaded, device.used
    for position in range(5):
        backend.forward(np.array([[200 + position]]))
    assert device.uploaded - before == 5 * 16
    assert device.used == memory


def test_an_array_that_the_caller_changes_and_passes_again(open_imitation: Open, plain: Any) -> None:
    backend, _, _ = open_imitation()
    step = np.zeros((1, 1), dtype=np.int64)
    for token in (7, 8, 9, 10):
        step[0, 0] = token
        np.testing.assert_allclose(backend.forward(step), plain.forward(step), **TOLERANCE)


def test_a_nan_of_one_text_does_not_reach_the_next(open_imitation: Open) -> None:
    backend, device, _ = open_imitation()
    ids = _ids(1, 12)
    expected = backend.forward(ids)
    device.view(*device.cleared[-1]).view(np.float32)[:] = np.nan  # the cache
    assert np.isnan(backend.forward(ids[:, :1])).all()
    backend.reset()
    np.testing.assert_array_equal(backend.forward(ids), expected)


def test_a_cache_that_is_not_written_in_place(
    tmp_path: Path, graph_bundle: Path, open_imitation: Open, plain: Any
) -> None:
    checkpoint = Checkpoint(graph_bundle.parent / "checkpoint")
    model = build_model(read_config(checkpoint.config), checkpoint, dialect="trt103", capacity=CAPACITY)
    (tmp_path / "graph").mkdir()
    write_model(model, tmp_path / "graph/model.onnx")
    info = engine_info(kv=replace(engine_info().kv, in_place=False))
    bundle = write_engine_bundle(graph_bundle, tmp_path / "bundle", info)
    backend, device, _ = open_imitation(bundle, graph=tmp_path / "graph")
    ids, lengths, then = _ids(3, 21), np.array([21, 4, 17]), _ids(3, 5, seed=1)
    np.testing.assert_allclose(backend.forward(ids, lengths=lengths), plain.forward(ids, lengths=lengths), **TOLERANCE)
    for position in range(5):
        step = then[:, position : position + 1]
        np.testing.assert_allclose(backend.forward(step), plain.forward(step), **TOLERANCE)
    # A copy for each row, layer and part: three prompts in 2, 1 and 2 pieces, five steps of three rows.
    assert device.copies == 4 * (5 + 5 * 3)
    assert device.launches == 4


def test_debug_outputs_come_beside_the_logits(graph_bundle: Path, open_imitation: Open) -> None:
    names = ("block.0.output", "block.1.output")
    backend, _, _ = open_imitation(extra_outputs=names)
    plain = OnnxRuntimeBackend(Bundle.open(graph_bundle.parent / "plain"), threads=1, extra_outputs=names)
    ids = _ids(1, 40)
    for piece in (ids, ids[:, :1], ids[:, :1], ids[:, :1], ids[:, :5]):
        np.testing.assert_allclose(backend.forward(piece), plain.forward(piece), **TOLERANCE)
        assert list(backend.extra) == list(names)
        for name in names:
            np.testing.assert_allclose(backend.extra[name], plain.extra[name], **TOLERANCE)
    backend.reset()
    assert backend.extra == {}
    with pytest.raises(NqEdgeError, match=r"does not return 'block\.7\.output'") as caught:
        open_imitation(extra_outputs=("block.7.output",))
    assert caught.value.code == "NQ-OPTION" and "--debug-outputs" in caught.value.hint


def test_no_capture_while_tensorrt_compiles(open_imitation: Open, plain: Any) -> None:
    backend, device, engine = open_imitation()
    engine.capturable = False
    ids = _ids(1, 8)
    for position in range(8):
        if position == 5:
            engine.capturable = True
        step = ids[:, position : position + 1]
        np.testing.assert_allclose(backend.forward(step), plain.forward(step), **TOLERANCE)
    assert (device.captures, device.launches) == (1, 3)


def test_a_step_that_cannot_be_captured_is_enqueued(open_imitation: Open, plain: Any) -> None:
    backend, device, engine = open_imitation()
    engine.fail_in_capture = True
    ids = _ids(1, 5)
    for position in range(5):
        step = ids[:, position : position + 1]
        np.testing.assert_allclose(backend.forward(step), plain.forward(step), **TOLERANCE)
    assert "stream is capturing" in backend.graph_refusal
    assert (device.captures, device.launches, device.graphs) == (1, 0, 0)


def test_a_failed_step_leaves_no_recording_behind(open_imitation: Open) -> None:
    backend, device, engine = open_imitation()
    backend.forward(_ids(1, 1))
    engine.fail_with = "TensorRT refuses the step: Error Code 1: Cuda Runtime"
    with pytest.raises(NqEdgeError, match="refuses the step"):
        backend.forward(_ids(1, 1))
    assert not device.recording and device.graphs == 0
    assert backend.lengths.tolist() == [1]
    backend.close()
    assert device.used == 0


def test_the_capacity_is_the_limit(open_imitation: Open) -> None:
    backend, _, _ = open_imitation()
    backend.forward(_ids(1, CAPACITY))
    with pytest.raises(NqEdgeError, match=rf"{CAPACITY + 1} tokens do not fit .* cache has {CAPACITY} slots") as caught:
        backend.forward(_ids(1, 1))
    assert caught.value.code == "NQ-PROMPT" and "--capacity N" in caught.value.hint
    small, _, _ = open_imitation(max_context=10)
    with pytest.raises(NqEdgeError, match="11 tokens do not fit the context of 10 tokens"):
        small.forward(_ids(1, 11))
    for wrong in (0, CAPACITY + 1, 1.5):
        with pytest.raises(NqEdgeError, match=f"from 1 to the engine's {CAPACITY} tokens"):
            open_imitation(max_context=wrong)


def test_memory_that_is_not_there(open_imitation: Open) -> None:
    backend, device, _ = open_imitation(total=60_000)
    with pytest.raises(NqEdgeError, match=r"has no 0\.\d MB free") as caught:
        backend.forward(_ids(3, 4))
    assert caught.value.code == "NQ-MEMORY"
    backend.reset()
    assert backend.forward(_ids(1, 4)).shape == (1, 1, 320)  # a smaller one fits
    backend.close()
    assert device.used == 0


def test_an_output_larger_than_its_buffer_is_refused_before_it_is_written(open_imitation: Open) -> None:
    backend, _, engine = open_imitation()
    for shape in ((1, 2, 320), (1, 1, -1)):
        engine.output_sizes = {"logits": shape}
        with pytest.raises(NqEdgeError, match=r"would write logits of shape .*, expected is \[1, 1, 320\]") as caught:
            backend.forward(_ids(1, 4))
        assert caught.value.code == "NQ-BUNDLE" and engine.enqueued == 0
    engine.output_sizes = {}
    assert np.isfinite(backend.forward(_ids(1, 4))).all()


@pytest.mark.parametrize("shape", [(1, 0), (3,)])
def test_bad_arguments_are_refused(shape: tuple[int, ...], open_imitation: Open) -> None:
    backend, _, _ = open_imitation()
    with pytest.raises(NqEdgeError, match="input_ids must be"):
        backend.forward(np.zeros(shape, int))
