# SPDX-License-Identifier: Apache-2.0
"""Kept beginnings survive a restart, and nothing but a whole file of the same model is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.tokenizer import Tokenizer
from nanoquant_edge.runtimes import open_slots
from nanoquant_edge.serving import BusyError, Request, Scheduler
from nanoquant_edge.serving.prefix_file import Prefix, read_prefixes, write_prefixes
from tests.serving.scheduling.conftest import Make
from tests.serving.scheduling.test_scheduler import lone, prompt


def test_a_beginning_comes_back_after_a_restart_of_a_real_model(
    tiny_bundle: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    request = Request(ids=prompt(60), max_new_tokens=8)
    with Scheduler(open_slots(Bundle.open(tiny_bundle), threads=1, count=2), tokenizer) as scheduler:
        assert scheduler.save_prefixes(tmp_path / "none") == 0 and not (tmp_path / "none").exists()
        wanted = scheduler.submit(request).result()
        assert scheduler.save_prefixes(tmp_path / "kept") == 67
    with Scheduler(open_slots(Bundle.open(tiny_bundle), threads=1, count=2), tokenizer) as scheduler:
        assert scheduler.load_prefixes(tmp_path / "kept") == 67
        found = scheduler.submit(request).result()
        assert found.reused_tokens == 59 and found.ids == wanted.ids


def test_only_what_has_room_is_taken(make: Make, tmp_path: Path) -> None:
    scheduler, _ = make()
    texts = [Request(ids=prompt(30, seed), max_new_tokens=1) for seed in range(3)]
    for text in texts:
        scheduler.submit(text).result()
    assert scheduler.save_prefixes(tmp_path / "kept") == 90
    small, _ = make(cache_tokens=70)
    assert small.load_prefixes(tmp_path / "kept") == 60
    single, _ = make(slots={"count": 1})
    assert single.load_prefixes(tmp_path / "kept") == 30
    taken = [text for text in texts if single.submit(text).result().reused_tokens == 29]
    assert list(single.submit(texts[1]).result().ids) == lone(texts[1]) and len(taken) >= 1


def test_a_closed_scheduler_refuses(tmp_path: Path, make: Make) -> None:
    scheduler, _ = make()
    scheduler.close()
    with pytest.raises(BusyError):
        scheduler.save_prefixes(tmp_path / "kept")


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    prefixes = [
        Prefix([5, 6], {"tokens": np.array([5, 6], np.int32)}),
        Prefix([7], {"tokens": np.array([7], np.int32)}),
    ]
    write_prefixes(tmp_path / "honest", "fake", prefixes)
    return tmp_path / "honest"


def test_what_is_written_is_read(honest: Path) -> None:
    found = read_prefixes(honest, "fake", most_bytes=1 << 20)
    assert [prefix.ids for prefix in found] == [[5, 6], [7]]
    assert found[0].arrays["tokens"].tolist() == [5, 6]


@pytest.mark.parametrize("place", range(0, 400, 3))
def test_a_damaged_file_is_refused(place: int, honest: Path) -> None:
    content = bytearray(honest.read_bytes())
    content[place % len(content)] ^= 0x11
    honest.write_bytes(content)
    with pytest.raises(NqEdgeError) as caught:
        read_prefixes(honest, "fake", most_bytes=1 << 20)
    assert caught.value.code == "NQ-PREFIX"


@pytest.mark.parametrize("change", ["missing", "short", "large", "other model", "no metadata", "stray", "ids"])
def test_what_is_no_file_of_this_model_is_refused(change: str, honest: Path) -> None:
    form, most = "fake", 1 << 20
    if change == "missing":
        honest.unlink()
    elif change == "short":
        honest.write_bytes(honest.read_bytes()[:-2])
    elif change == "large":
        most = 100
    elif change == "other model":
        form = "another"
    elif change == "no metadata":
        save_file(load_file(honest), honest)
    elif change == "stray":
        write_prefixes(honest, form, [])
        write_prefixes(honest, form, [Prefix([5], {})])
        tensors = load_file(honest) | {"9.tokens": np.zeros(1, np.int32)}
        _rewrite(honest, tensors)
    else:
        _rewrite(honest, {"0.ids": np.zeros((1, 2), np.int32)})
    with pytest.raises(NqEdgeError) as caught:
        read_prefixes(honest, form, most_bytes=most)
    assert caught.value.code == "NQ-PREFIX"


def _rewrite(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """An honest hash over dishonest content."""
    from nanoquant_edge.serving.prefix_file import _digest

    save_file(tensors, path, {"nq_prefixes": "1", "form": "fake", "sha256": _digest(tensors)})


def test_ids_outside_of_the_vocabulary_are_not_taken(make: Make, tmp_path: Path) -> None:
    write_prefixes(tmp_path / "kept", "fake", [Prefix([400], {"tokens": np.array([400], np.int32)}), Prefix([], {})])
    scheduler, _ = make()
    with pytest.raises(NqEdgeError) as caught:  # an empty beginning is an empty tensor
        scheduler.load_prefixes(tmp_path / "kept")
    assert caught.value.code == "NQ-PREFIX"
    write_prefixes(tmp_path / "kept", "fake", [Prefix([400], {"tokens": np.array([400], np.int32)})])
    assert scheduler.load_prefixes(tmp_path / "kept") == 0
