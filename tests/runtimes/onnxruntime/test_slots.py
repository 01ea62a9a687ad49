# SPDX-License-Identifier: Apache-2.0
"""Slots: results of any mix of tokens equal those alone, to the bit where the slots say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import OnnxRuntimeBackend, SlotRow, Slots, open_slots
from nanoquant_edge.runtimes.onnxruntime.slots import OnnxRuntimeSlots

TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}


@pytest.fixture
def slots(tiny_bundle: Path) -> Iterator[Slots]:
    with open_slots(Bundle.open(tiny_bundle), threads=1, count=4) as opened:
        yield opened


def _ids(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(5, 320, count).tolist()
    return found


def _alone(slots: Slots, ids: list[int]) -> np.ndarray:
    """Logits of every token of a text, token by token in an empty slot."""
    slots.truncate(3, 0)
    found = np.concatenate([slots.forward([SlotRow(3, [token])])[0] for token in ids])
    slots.truncate(3, 0)
    return found


def test_they_are_slots_that_agree_with_the_backend(tiny_bundle: Path, slots: Slots) -> None:
    assert isinstance(slots, Slots) and slots.together and slots.kernel == "nanoquant"
    ids = _ids(40)
    (found,) = slots.forward([SlotRow(1, ids, logits=40)])
    with OnnxRuntimeBackend(Bundle.open(tiny_bundle), threads=1) as backend:
        expected = backend.forward(np.array([ids]), np.arange(40)[None])[0]
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert slots.lengths.tolist() == [0, 40, 0, 0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bundle", ["tiny_bundle", "coded_bundle", "narrow_bundle"])
def test_a_text_does_not_depend_on_others_nor_on_how_it_is_cut(
    threads: int, bundle: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(bundle)
    with open_slots(Bundle.open(folder), threads=threads, count=4) as slots:
        texts = [_ids(60, 1), _ids(9, 2), _ids(41, 3)]
        wanted = [_alone(slots, text) for text in texts]
        found: list[list[np.ndarray]] = [[], [], []]
        rng, at = np.random.default_rng(4), [0, 0, 0]
        while any(a < len(text) for a, text in zip(at, texts, strict=True)):
            takes = [min(int(rng.integers(0, 14)), len(text) - a) for a, text in zip(at, texts, strict=True)]
            order = [i for i in rng.permutation(3).tolist() if takes[i]]
            if not order:
                continue
            rows = [SlotRow(i, texts[i][at[i] : at[i] + takes[i]], logits=takes[i]) for i in order]
            for i, logits in zip(order, slots.forward(rows), strict=True):
                found[i].append(logits)
                at[i] += takes[i]
        for parts, one in zip(found, wanted, strict=True):
            if slots.exact:
                np.testing.assert_array_equal(np.concatenate(parts), one)
            np.testing.assert_allclose(np.concatenate(parts), one, **TOLERANCE)


@pytest.fixture(scope="module")
def coded_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("coded")
    export_onnx(tiny_checkpoint(folder / "checkpoint", embedding="int8", vocab_size=321), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def narrow_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and values are kept in 16 bits."""
    from nanoquant_edge.exporters.onnx import export_onnx

    folder = tmp_path_factory.mktemp("narrow") / "bundle"
    export_onnx(tiny_bundle.parent / "checkpoint", folder, cache="float16")
    return folder


def test_keys_and_values_of_16_bits_are_carried_away_too(narrow_bundle: Path, tiny_bundle: Path) -> None:
    ids = _ids(50)
    with open_slots(Bundle.open(narrow_bundle), threads=1, count=2) as slots:
        slots.forward([SlotRow(0, ids)])
        saved = slots.save(0, 49)
        assert {array.dtype.name for array in saved.values()} == {"float16"}
        slots.load(1, saved, 49)
        first, second = (slots.forward([SlotRow(slot, [7])])[0] for slot in (0, 1))
        slots.truncate(0, 49)
        (again,) = slots.forward([SlotRow(0, [ids[49], 7], logits=2)])
        np.testing.assert_array_equal(again[1:], first)
        assert not np.array_equal(first, second)  # the one has a token more before it
        with open_slots(Bundle.open(tiny_bundle), threads=1, count=1) as wide:
            assert wide.form != slots.form and wide.memory.token == 2 * slots.memory.token
            with pytest.raises(NqEdgeError, match="not float32"):
                wide.load(0, saved, 49)


@pytest.fixture(scope="module")
def separate_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose attention is ONNX Runtime's own, so that each slot is a run of its own."""
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.families import family_config
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("separate")
    export_onnx(tiny_checkpoint(folder / "checkpoint", **family_config("opt")), folder / "bundle")
    return folder / "bundle"


def test_a_graph_without_slots_runs_them_one_after_the_other(separate_bundle: Path) -> None:
    with open_slots(Bundle.open(separate_bundle), threads=1, count=3) as slots:
        assert not slots.together
        first, second = [token % slots.vocab_size for token in _ids(7)], [5, 6, 7]
        a, b = slots.forward([SlotRow(2, first), SlotRow(0, second, logits=3)])
        slots.truncate(0, 1)
        (c,) = slots.forward([SlotRow(0, second[1:], logits=2)])
        np.testing.assert_allclose(c, b[1:], **TOLERANCE)
        slots.copy_prefix(2, 1, 6)
        np.testing.assert_allclose(slots.forward([SlotRow(1, first[6:])])[0], a, **TOLERANCE)


def test_tokens_are_taken_back_copied_and_carried_away(slots: Slots, tiny_bundle: Path) -> None:
    ids = _ids(100)
    (wanted,) = slots.forward([SlotRow(0, ids, logits=3)])
    slots.truncate(0, 97)
    np.testing.assert_array_equal(slots.forward([SlotRow(0, ids[97:], logits=3)])[0], wanted)
    slots.forward([SlotRow(1, _ids(120, 9))])
    slots.copy_prefix(0, 1, 97)
    np.testing.assert_array_equal(slots.forward([SlotRow(1, ids[97:], logits=3)])[0], wanted)
    saved = slots.save(1, 97)
    slots.truncate(1, 0)
    slots.copy_prefix(0, 0, 5)
    assert slots.lengths.tolist() == [5, 0, 0, 0]
    with open_slots(Bundle.open(tiny_bundle), threads=1, count=1) as other:
        assert other.form == slots.form
        other.load(0, saved, 97)
        np.testing.assert_array_equal(other.forward([SlotRow(0, ids[97:], logits=3)])[0], wanted)


def test_memory_follows_the_tokens(slots: Slots) -> None:
    assert slots.memory.held <= 5 * slots.memory.token
    slots.forward([SlotRow(0, _ids(200))])
    assert slots.memory.held >= 200 * slots.memory.token
    slots.truncate(0, 0)
    assert slots.memory.held < 100 * slots.memory.token
    slots.forward([SlotRow(0, _ids(3))])
    assert slots.lengths[0] == 3


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([], "NQ-OPTION"),
        ([SlotRow(0, [5]), SlotRow(0, [6])], "NQ-OPTION"),
        ([SlotRow(4, [5])], "NQ-OPTION"),
        ([SlotRow(-1, [5])], "NQ-OPTION"),
        ([SlotRow(0, [5, 6], logits=3)], "NQ-OPTION"),
        ([SlotRow(0, [5, 6], logits=-1)], "NQ-OPTION"),
        ([SlotRow(0, [])], "NQ-PROMPT"),
        ([SlotRow(0, [320])], "NQ-PROMPT"),
        ([SlotRow(0, [-1])], "NQ-PROMPT"),
        ([SlotRow(0, [1.5])], "NQ-PROMPT"),  # type: ignore[list-item]
        ([SlotRow(0, [5] * 257)], "NQ-PROMPT"),
        ([SlotRow(i, [5] * 250) for i in range(3)], "NQ-OPTION"),
        ([SlotRow(1, [5]), SlotRow(0, [320])], "NQ-PROMPT"),
    ],
    ids=str,
)
def test_bad_rows_are_refused_and_change_nothing(rows: list[SlotRow], code: str, slots: Slots) -> None:
    with pytest.raises(NqEdgeError) as caught:
        slots.forward(rows)
    assert caught.value.code == code
    assert slots.lengths.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda slots: slots.truncate(0, 4),
        lambda slots: slots.truncate(0, -1),
        lambda slots: slots.truncate(9, 0),
        lambda slots: slots.copy_prefix(0, 1, 4),
        lambda slots: slots.copy_prefix(0, 7, 1),
        lambda slots: slots.save(0, 4),
        lambda slots: slots.load(0, {}, 2),
        lambda slots: slots.load(0, {}, 257),
        lambda slots: slots.load(1, {**slots.save(0, 2), "more": np.zeros(1)}, 2),
        lambda slots: slots.load(1, slots.save(0, 2), 3),
        lambda slots: slots.load(1, {k: v.astype(np.float64) for k, v in slots.save(0, 2).items()}, 2),
        lambda slots: slots.load(1, {k: v * np.float32("nan") for k, v in slots.save(0, 2).items()}, 2),
    ],
)
def test_what_a_slot_does_not_hold_is_refused(call: Callable[[Slots], None], slots: Slots) -> None:
    slots.forward([SlotRow(0, [5, 6, 7])])
    with pytest.raises(NqEdgeError) as caught:
        call(slots)
    assert caught.value.code == "NQ-OPTION"
    assert slots.lengths.tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize("count", [0, -1, 257, 1.0, True])
def test_a_wrong_number_of_slots_is_refused(count: int, tiny_bundle: Path) -> None:
    with pytest.raises(NqEdgeError, match="slots must be"):
        OnnxRuntimeSlots(Bundle.open(tiny_bundle), threads=1, count=count)


def test_closed_slots_refuse_and_close_again(tiny_bundle: Path) -> None:
    slots = open_slots(Bundle.open(tiny_bundle), threads=1, count=2)
    slots.close()
    slots.close()
    with pytest.raises(NqEdgeError, match="closed"):
        slots.forward([SlotRow(0, [5])])
