# SPDX-License-Identifier: Apache-2.0
"""nq_cuda_table.h on a GPU: the cases of tests/plugins/test_tables.py and test_choices.py, larger, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import byref
from typing import Any

import numpy as np
import pytest
import torch

from nanoquant_edge.runtimes.sampling import SamplingConfig
from tests.plugins import table_cases as cases
from tests.plugins.choices import Chooser, expected_probabilities, surprise
from tests.plugins.cuda import capi
from tests.plugins.cuda.layers import Guarded
from tests.plugins.table_calls import Choice, Sampling, declare
from tests.plugins.table_cases import BFLOAT16, FLOAT16, LAYER, NONE, RMS, Head, Random
from tests.plugins.test_choices import CONFIGS, IDS, flat, history_of

pytestmark = pytest.mark.gpu

FORMATS = pytest.mark.parametrize(
    ("bits", "kind"), [(16, FLOAT16), (16, BFLOAT16), (8, FLOAT16), (4, FLOAT16)], ids=["f16", "bf16", "int8", "int4"]
)
LIMITS = {FLOAT16: 1e-3, BFLOAT16: 2**-8}
#: of float32 logits, whose operands are exact: what sums of up to 16384 terms cost
EXACT = 5e-5
Memory = Callable[[np.ndarray], tuple[int, Callable[[], np.ndarray]]]


@pytest.fixture(scope="module")
def lib(cuda: capi.Cuda) -> Any:
    return declare(cuda.lib)


@pytest.fixture
def place() -> Iterator[Memory]:
    """Device memory between guard bands, which are whole at the end."""
    held: list[Guarded] = []

    def put(array: np.ndarray) -> tuple[int, Callable[[], np.ndarray]]:
        raw = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
        guarded = Guarded.of(raw)
        guarded.data.copy_(raw)
        held.append(guarded)

        def read() -> np.ndarray:
            torch.cuda.synchronize()
            found: np.ndarray = guarded.data.cpu().numpy().view(array.dtype).reshape(array.shape)
            return found

        torch.cuda.synchronize()
        return guarded.pointer, read

    yield put
    torch.cuda.synchronize()
    assert not any(bool(guarded.broken()) for guarded in held)


@FORMATS
@pytest.mark.parametrize(
    ("shape", "rows"),
    [((5003, 1024), 1), ((5003, 1024), 16), ((4099, 576), 4), ((3001, 640), 9), ((49152, 576), 1), ((130, 70), 3),
     ((2000, 1024), 17), ((2000, 576), 128), ((1025, 2048), 200), ((1000, 16384), 16), ((130, 70), 40)],
    ids=str,
)  # fmt: skip
def test_the_head(lib: Any, place: Memory, bits: int, kind: int, shape: tuple[int, int], rows: int) -> None:
    table = Random(np.random.default_rng(rows), shape, bits, kind=kind)
    status, found, wanted = Head(lib, place, table, rows, kind=kind).run()
    assert status == 0
    assert cases.row_errors(found, wanted) <= EXACT
    again = Head(lib, place, table, rows, kind=kind).run()[1]
    np.testing.assert_array_equal(found, again)


@FORMATS
@pytest.mark.parametrize("rows", [2, 16, 100])
def test_norms_caps_and_chosen_rows_in_the_head(lib: Any, place: Memory, bits: int, kind: int, rows: int) -> None:
    table = Random(np.random.default_rng(rows), (900, 1152), bits, kind=kind)
    for norm, bias in ((RMS, False), (LAYER, True)):
        status, found, wanted = Head(
            lib, place, table, rows, kind=kind, norm=norm, bias=bias, soft_cap=30.0, ends=True
        ).run()
        assert status == 0
        assert cases.row_errors(found, wanted) <= (LIMITS[kind] if bits == 16 else 1e-3)


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 96), (4, 4096)])
def test_groups_of_scales(lib: Any, place: Memory, bits: int, group: int) -> None:
    table = Random(np.random.default_rng(group), (1000, 960), bits, kind=0, group=group)
    for rows in (1, 16, 80):
        status, found, wanted = Head(lib, place, table, rows, kind=BFLOAT16).run()
        assert status == 0
        assert cases.row_errors(found, wanted) <= EXACT


@FORMATS
def test_embedding(lib: Any, place: Memory, bits: int, kind: int) -> None:
    table = Random(np.random.default_rng(0), (5000, 576), bits, kind=kind)
    tokens = np.random.default_rng(1).integers(0, 5000, 300)
    learned = np.random.default_rng(2).normal(size=(400, 576))
    for positions in (None, [7]):
        status, found = cases.embed(
            lib, place, table, tokens, kind=kind, multiplier=24.0, learned=None if positions is None else learned,
            positions=positions, starts=None if positions is None else [0, 300],
        )  # fmt: skip
        wanted = 24.0 * table.dense[tokens]
        if positions is not None:
            wanted = wanted + cases.rounded(learned, kind).astype(np.float64)[9:309]
        assert status == 0
        assert cases.row_errors(found, wanted) <= LIMITS[kind]


@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=["f16", "bf16"])
def test_norms(lib: Any, place: Memory, kind: int) -> None:
    for shape in ((1, 1024), (16, 576), (2049, 2048), (3, 37)):
        for which, bias, residual in (
            (RMS, False, False),
            (RMS, False, True),
            (LAYER, True, True),
            (NONE, False, True),
        ):
            status, found, wanted = cases.norm(
                lib, place, shape, kind, which, bias=bias, residual=residual, in_place=residual
            )
            assert status == 0
            assert cases.row_errors(found, wanted) <= LIMITS[kind]


@pytest.mark.parametrize("vocabulary", [1, 37, 8193, 151936, 262144])
def test_greedy(lib: Any, place: Memory, vocabulary: int) -> None:
    logits = (np.random.default_rng(vocabulary).normal(size=(5, vocabulary)) * 10 - 20).astype(np.float32)
    logits[1] = -3.0
    logits[2, vocabulary // 2 :] = 77.5
    logits[3] = np.nan
    status, tokens, _, positions = Chooser(lib, place, vocabulary, [0, 3, 2, 1, -1])(logits, None)
    assert status == 0
    assert tokens.tolist() == [int(logits[0].argmax()), 0, vocabulary // 2, -1, -7]
    assert positions.tolist() == [1, 4, 3, 2, -1]


@pytest.mark.parametrize("options", CONFIGS, ids=IDS)
def test_draws_are_distributed_as_the_cpus(lib: Any, place: Memory, options: dict[str, Any]) -> None:
    count, vocabulary, calls = 8192, 300, 4
    logits, history = flat(vocabulary, count), history_of(count)
    chooser = Chooser(lib, place, vocabulary, [4] * count, capacity=8, history=history)
    drawn = []
    for call in range(calls):
        configs = [SamplingConfig(seed=call * count + seed, **options) for seed in range(count)]
        status, tokens, _, _ = chooser(logits, configs)
        assert status == 0
        drawn.append(tokens)
    expected = expected_probabilities(logits[0], SamplingConfig(**options), history[0, :5])
    assert surprise(np.concatenate(drawn), expected) < 5


@pytest.mark.parametrize("vocabulary", [151936, 262144])
@pytest.mark.parametrize("options", CONFIGS, ids=IDS)
def test_draws_of_a_large_vocabulary(lib: Any, place: Memory, options: dict[str, Any], vocabulary: int) -> None:
    count, calls = 32, 16
    logits, history = flat(vocabulary, count) * np.float32(1.5), history_of(count)
    chooser = Chooser(lib, place, vocabulary, [4] * count, capacity=8, history=history)
    drawn = []
    for call in range(calls):
        configs = [SamplingConfig(seed=call * count + seed, **options) for seed in range(count)]
        status, tokens, _, _ = chooser(logits, configs)
        assert status == 0
        drawn.append(tokens)
    assert chooser(logits, configs)[1].tolist() == drawn[-1].tolist()  # and the same again
    expected = expected_probabilities(logits[0], SamplingConfig(**options), history[0, :5])
    assert surprise(np.concatenate(drawn), expected) < 6


@pytest.mark.parametrize(
    "options", [{"top_p": 0.5}, {"top_k": 7}, {"top_k": 100000, "top_p": 0.9, "min_p": 0.5}], ids=str
)
def test_all_equal_logits_and_masks(lib: Any, place: Memory, options: dict[str, Any]) -> None:
    """More candidates than are listed, half of the vocabulary masked."""
    vocabulary, count = 151936, 8
    logits = np.zeros((count, vocabulary), np.float32)
    logits[:, ::2] = -np.inf
    configs = [SamplingConfig(temperature=0.7, seed=seed, **options) for seed in range(count)]
    status, tokens, _, _ = Chooser(lib, place, vocabulary, [0] * count)(logits, configs)
    assert status == 0
    assert (expected_probabilities(logits[0], configs[0])[tokens] > 0).all()
    assert len(set(tokens.tolist())) > count // 2


def test_a_captured_choice_goes_on_at_every_replay(lib: Any, place: Memory) -> None:
    """Places move on the device, so one graph draws a text; the same text comes without a graph."""
    vocabulary, steps = 5000, 20
    logits = torch.randn(2, vocabulary, device="cuda")
    texts = []
    for graphed in (False, True):
        history = torch.zeros(2, 64, dtype=torch.int64, device="cuda")
        positions = torch.tensor([3, -1], device="cuda")
        tokens = torch.zeros(2, dtype=torch.int64, device="cuda")
        given = (Sampling * 2)(*[Sampling(0.9, 50, 0.95, 0.0, 1.2, 0, 11)] * 2)
        sampling = torch.frombuffer(bytearray(bytes(given)), dtype=torch.uint8).cuda()
        size = lib.nq_cuda_choice_workspace_bytes(2, vocabulary)
        workspace = torch.zeros(size, dtype=torch.uint8, device="cuda")
        call = Choice(2, vocabulary, logits.data_ptr(), vocabulary, tokens.data_ptr(), history.data_ptr(), 64)
        call.positions, call.sampling = positions.data_ptr(), sampling.data_ptr()
        call.workspace, call.workspace_bytes = workspace.data_ptr(), size

        def step(call: Choice = call) -> None:
            assert lib.nq_cuda_sample(byref(call), torch.cuda.current_stream().cuda_stream) == 0

        if graphed:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for _ in range(steps):
                graph.replay()
        else:
            for _ in range(steps):
                step()
        torch.cuda.synchronize()
        assert positions.tolist() == [3 + steps, -1]
        assert not history[1].any()
        texts.append(history[0].tolist())
    assert texts[0] == texts[1]
    assert len(set(texts[0][4 : 4 + steps])) > 5
