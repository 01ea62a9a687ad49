# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.kv_layout import KvLayout
from nanoquant_edge.runtimes import OnnxRuntimeBackend
from nanoquant_edge.runtimes.backend import Backend
from nanoquant_edge.runtimes.onnxruntime.kv_cache import KvCache

Edit = Callable[..., Path]
TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}


def _open(folder: Path, **options: object) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(Bundle.open(folder), threads=1, **options)  # type: ignore[arg-type]


@pytest.fixture
def backend(tiny_bundle: Path) -> Iterator[OnnxRuntimeBackend]:
    with _open(tiny_bundle) as opened:
        yield opened


def _ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 320, shape)


def _everywhere(ids: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(ids.shape[1]), (ids.shape[0], 1))


def test_it_is_a_backend(backend: OnnxRuntimeBackend) -> None:
    assert isinstance(backend, Backend)
    assert (backend.name, backend.kernel, backend.vocab_size, backend.max_context) == (
        "onnxruntime", "nanoquant", 320, 256,
    )  # fmt: skip


def test_logits_equal_those_of_pytorch_on_the_same_checkpoint(tiny_bundle: Path, backend: OnnxRuntimeBackend) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    import nanoquant_edge.hf  # noqa: F401 - registers the format

    model = AutoModelForCausalLM.from_pretrained(tiny_bundle.parent / "checkpoint", dtype=torch.float32)
    ids = _ids(1, 40)
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(backend.forward(ids, _everywhere(ids)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 7, 16, 40, 64])
def test_a_prompt_in_chunks_equals_one_piece(chunk: int, tiny_bundle: Path, backend: OnnxRuntimeBackend) -> None:
    ids = _ids(1, 40)
    positions = np.array([[39, 0, 7, 7, 20]])
    expected = backend.forward(ids, positions)
    with _open(tiny_bundle, prefill_chunk=chunk) as chunked:
        np.testing.assert_allclose(chunked.forward(ids, positions), expected, **TOLERANCE)
        np.testing.assert_allclose(chunked.forward(ids[:, :3]), backend.forward(ids[:, :3]), **TOLERANCE)
        assert chunked.lengths.tolist() == [43]


def test_steps_equal_one_piece_also_while_the_cache_grows(tiny_bundle: Path, backend: OnnxRuntimeBackend) -> None:
    ids = _ids(1, 70)
    expected = backend.forward(ids, _everywhere(ids))
    backend.reset()
    backend.close()
    with _open(tiny_bundle, start_capacity=8) as growing:
        capacities = set()
        for position in range(70):
            step = growing.forward(ids[:, position : position + 1])
            np.testing.assert_allclose(step[:, 0], expected[:, position], **TOLERANCE)
            capacities.add(growing.capacity)
        assert capacities == {8, 16, 32, 64, 128}


def test_after_a_reset_the_earlier_text_is_forgotten(backend: OnnxRuntimeBackend) -> None:
    first = backend.forward(_ids(1, 12))
    backend.forward(_ids(1, 5, seed=3))
    backend.reset()
    assert backend.lengths.size == 0
    np.testing.assert_array_equal(backend.forward(_ids(1, 12)), first)


def test_a_batch_of_different_lengths_equals_single_sequences(backend: OnnxRuntimeBackend) -> None:
    ids, lengths, then = _ids(3, 11), np.array([11, 4, 7]), _ids(3, 2, seed=1)
    prompt = backend.forward(ids, lengths=lengths)
    steps = [backend.forward(then[:, position : position + 1]) for position in range(2)]
    assert backend.lengths.tolist() == [13, 6, 9]
    for row, length in enumerate(lengths):
        backend.reset()
        alone = backend.forward(ids[row : row + 1, :length])
        np.testing.assert_allclose(prompt[row : row + 1], alone, **TOLERANCE)
        for position in range(2):
            alone = backend.forward(then[row : row + 1, position : position + 1])
            np.testing.assert_allclose(steps[position][row : row + 1], alone, **TOLERANCE)


def test_the_padding_of_a_single_sequence_is_left_out(tiny_bundle: Path, backend: OnnxRuntimeBackend) -> None:
    ids = _ids(1, 20)
    expected = backend.forward(ids[:, :5])
    with _open(tiny_bundle, prefill_chunk=3) as chunked:
        np.testing.assert_allclose(chunked.forward(ids, lengths=np.array([5])), expected, **TOLERANCE)
        assert chunked.lengths.tolist() == [5]


def test_extra_outputs_come_beside_the_logits(tiny_bundle: Path, backend: OnnxRuntimeBackend) -> None:
    ids = _ids(1, 10)
    names = ("block.0.output", "block.1.output")
    with _open(tiny_bundle, extra_outputs=names, prefill_chunk=4) as more:
        np.testing.assert_allclose(more.forward(ids), backend.forward(ids), **TOLERANCE)
        assert {name: value.shape for name, value in more.extra.items()} == dict.fromkeys(names, (1, 10, 40))
        assert np.abs(more.extra[names[0]] - more.extra[names[1]]).max() > 0.01
        more.reset()
        assert more.extra == {}
    assert backend.extra == {}
    with pytest.raises(NqEdgeError, match="no value"):
        _open(tiny_bundle, extra_outputs=("no.such.value",))


def test_the_portable_body_gives_the_same_logits(
    portable_bundle: Path, backend: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", str(tmp_path))
    with _open(portable_bundle, allow_portable=True) as slow:
        assert slow.kernel == "portable"
        ids = _ids(1, 9)
        np.testing.assert_allclose(slow.forward(ids), backend.forward(ids), **TOLERANCE)


def test_float16_bundles_run(tiny_bundle: Path, tmp_path: Path, backend: OnnxRuntimeBackend) -> None:
    from nanoquant_edge.exporters.onnx import export_onnx

    export_onnx(tiny_bundle.parent / "checkpoint", tmp_path / "half", dtype="float16")
    with _open(tmp_path / "half") as half:
        ids = _ids(1, 9)
        found, expected = half.forward(ids), backend.forward(ids)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((np.zeros((1, 257), int),), "NQ-PROMPT", "257 tokens do not fit the context of 256"),
        ((np.array([[320]]),), "NQ-PROMPT", "token id 320 is outside the vocabulary of 320"),
        ((np.array([[-1]]),), "NQ-PROMPT", "token id -1"),
        ((np.zeros((1, 0), int),), "NQ-OPTION", "input_ids must be"),
        ((np.zeros(3, int),), "NQ-OPTION", "input_ids must be"),
        ((np.zeros((1, 3), int), np.array([[3]])), "NQ-OPTION", "positions must lie from 0 to 2"),
        ((np.zeros((1, 3), int), np.array([[-1]])), "NQ-OPTION", "positions must lie"),
        ((np.zeros((1, 3), int), np.array([0])), "NQ-OPTION", "positions must be"),
        ((np.zeros((2, 3), int), np.array([[2], [2]]), np.array([3, 2])), "NQ-OPTION", "positions must lie"),
        ((np.zeros((1, 3), int), None, np.array([4])), "NQ-OPTION", "lengths must be"),
        ((np.zeros((2, 3), int), None, np.array([3])), "NQ-OPTION", "lengths must be"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, code: str, message: str, backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        backend.forward(*arguments)
    assert caught.value.code == code
    backend.forward(_ids(1, 3))  # and nothing is broken


def test_a_batch_cannot_change_or_continue_by_several_tokens(backend: OnnxRuntimeBackend) -> None:
    backend.forward(_ids(2, 3))
    with pytest.raises(NqEdgeError, match="cache holds 2 sequences"):
        backend.forward(_ids(1, 1))
    with pytest.raises(NqEdgeError, match="one token at a time"):
        backend.forward(_ids(2, 2))


def test_the_context_can_be_made_smaller_but_not_larger(tiny_bundle: Path) -> None:
    with _open(tiny_bundle, max_context=10) as small:
        small.forward(_ids(1, 10))
        assert small.capacity == 10
        with pytest.raises(NqEdgeError, match="11 tokens do not fit the context of 10"):
            small.forward(_ids(1, 1))
    for wrong in (0, 257, 1.5):
        with pytest.raises(NqEdgeError, match="from 1 to the bundle's 256") as caught:
            _open(tiny_bundle, max_context=wrong)
        assert caught.value.code == "NQ-OPTION"


def test_want_of_memory_in_a_step_is_called_so(tiny_bundle: Path) -> None:
    class Full(KvCache):
        def reserve(self, batch: int, tokens: int) -> bool:
            raise MemoryError("Unable to allocate 5.00 GiB")

    class Small(OnnxRuntimeBackend):
        def make_cache(self, bundle: Bundle, start_capacity: int) -> KvCache:
            return Full(bundle.kv, self.max_context, start_capacity=start_capacity)

    with Small(Bundle.open(tiny_bundle), threads=1) as backend, pytest.raises(NqEdgeError) as caught:
        backend.forward(_ids(1, 3))
    assert caught.value.code == "NQ-MEMORY" and "5.00 GiB" in caught.value.message


def test_a_closed_backend_says_so(tiny_bundle: Path) -> None:
    backend = _open(tiny_bundle)
    backend.close()
    backend.close()
    assert backend.capacity == 0
    with pytest.raises(NqEdgeError, match="closed"):
        backend.forward(_ids(1, 1))


@pytest.mark.parametrize(
    "kv", [{"layers": 1}, {"layers": 3}, {"heads": 4}, {"head_dim": 32}, {"dtype": "float16"}], ids=str
)
def test_a_manifest_that_contradicts_the_graph_is_refused(kv: dict, tiny_bundle: Path, edit_bundle: Edit) -> None:
    layout = {"layers": 2, "heads": 2, "head_dim": 16, "dtype": "float32", "max_capacity": 256} | kv
    with pytest.raises(NqEdgeError, match="not those that the manifest describes") as caught:
        _open(edit_bundle(tiny_bundle, kv=layout))
    assert caught.value.code == "NQ-BUNDLE"


def test_a_capacity_beyond_the_graphs_position_tables_is_an_error_not_a_crash(
    tiny_bundle: Path, edit_bundle: Edit
) -> None:
    layout = {"layers": 2, "heads": 2, "head_dim": 16, "dtype": "float32", "max_capacity": 4096}
    with _open(edit_bundle(tiny_bundle, kv=layout)) as backend, pytest.raises(NqEdgeError, match="ONNX Runtime failed"):
        backend.forward(_ids(1, 300))


def test_a_wrong_vocabulary_is_an_error_not_a_crash(tiny_bundle: Path, edit_bundle: Edit) -> None:
    for size in (10, 5000):
        with pytest.raises(NqEdgeError) as caught, _open(edit_bundle(tiny_bundle, vocab_size=size)) as backend:
            backend.forward(np.array([[1]]))
        assert caught.value.code in ("NQ-BUNDLE", "NQ-BACKEND")


def test_a_graph_with_other_inputs_is_refused(tiny_bundle: Path, edit_bundle: Edit) -> None:
    model = onnx.load(tiny_bundle / "model.onnx", load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(NqEdgeError, match="not those that the manifest describes"):
        _open(edit_bundle(tiny_bundle, files={"model.onnx": model.SerializeToString()}))


def test_the_cache_grows_by_doubling_up_to_its_limit_and_keeps_its_content() -> None:
    cache = KvCache(KvLayout(layers=2, heads=3, head_dim=4, dtype="float16", capacity=5000), 1500)
    assert cache.reserve(1, 10)
    assert (cache.capacity, cache.bytes) == (256, 2 * 2 * 3 * 256 * 4 * 2)
    cache.lengths = np.array([10])
    cache.keys[1][0, 2, :10] = 7
    assert not cache.reserve(1, 256)
    assert cache.reserve(1, 257)
    assert cache.capacity == 512
    assert (cache.keys[1][0, 2, :10] == 7).all()
    assert cache.reserve(1, 1500)
    assert cache.capacity == 1500
    cache.clear()
    assert cache.reserve(4, 20)
    assert cache.keys[0].shape == (4, 3, 256, 4)
    assert not cache.keys[1].any()
    cache.release()
    assert cache.bytes == 0


def test_a_name_that_is_no_text_is_an_error_not_a_traceback(tiny_bundle: Path, edit_bundle: Edit) -> None:
    content = (tiny_bundle / "model.onnx").read_bytes()
    assert b"capacity" in content
    with pytest.raises(NqEdgeError) as caught:
        _open(edit_bundle(tiny_bundle, files={"model.onnx": content.replace(b"capacity", b"capa\x80ity")}))
    assert caught.value.code in ("NQ-BUNDLE", "NQ-BACKEND")
