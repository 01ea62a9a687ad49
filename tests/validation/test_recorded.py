# SPDX-License-Identifier: Apache-2.0
"""`reference.safetensors`: what goes in comes out, and a hostile file is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.validation.expected import ExpectedGreedy, ExpectedWindow
from nanoquant_edge.validation.recorded import RecordedReference, Recorder
from tests.validation.conftest import Proof


class _Made:
    """A reference with made-up numbers."""

    origin, text, inner_tokens = "torch", "made up", 3

    def __init__(self) -> None:
        self.windows = np.random.default_rng(0).integers(0, 320, (2, 10))

    def inner(self) -> dict[str, np.ndarray]:
        return {"b": np.ones((3, 4), np.float32), "a": np.zeros((3, 2), np.float32)}

    def window(self, index: int) -> ExpectedWindow:
        rng = np.random.default_rng(index)
        logits = rng.standard_normal((10, 320)).astype(np.float32)
        ids = np.argsort(-logits, axis=-1)[:, :5]
        top = np.take_along_axis(logits, ids, -1)
        log_sum = np.log(np.exp(logits.astype(float)).sum(-1))
        return ExpectedWindow(1.5 + index, ids, top, log_sum, np.arange(10), logits)

    def greedy(self) -> list[ExpectedGreedy]:
        return [ExpectedGreedy(np.array([5, 6]), np.array([7, 8, 9]), np.array([0.5, 1, 2], np.float32))]


@pytest.fixture
def copy(proof: Proof, tmp_path: Path) -> Path:
    shutil.copytree(proof.bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def _recorded(folder: Path) -> RecordedReference:
    bundle = Bundle.open(folder)
    recorder = Recorder(_Made())
    recorder.inner()
    for index in range(2):
        assert len(recorder.window(index).positions) == 10  # the comparison sees everything
    recorder.greedy()
    recorder.save(folder)
    return RecordedReference(bundle.write())


def test_round_trip(copy: Path) -> None:
    reference, made = _recorded(copy), _Made()
    assert reference.text == "made up"
    np.testing.assert_array_equal(reference.windows, made.windows)
    assert list(reference.inner()) == ["b", "a"]
    np.testing.assert_array_equal(reference.inner()["b"], np.ones((3, 4)))
    assert reference.inner_tokens == 3
    for index in range(2):
        recorded, computed = reference.window(index), made.window(index)
        assert recorded.loss == computed.loss
        np.testing.assert_array_equal(recorded.top_ids, computed.top_ids)
        np.testing.assert_array_equal(recorded.top_logits, computed.top_logits)
        np.testing.assert_array_equal(recorded.log_sum, computed.log_sum)
        assert 0 < len(recorded.positions) < 10
        np.testing.assert_array_equal(recorded.logits, computed.logits[recorded.positions])
    (run,) = reference.greedy()
    np.testing.assert_array_equal(run.tokens, [7, 8, 9])
    np.testing.assert_array_equal(run.gaps, [0.5, 1, 2])
    assert [entry for entry in copy.iterdir() if entry.name.startswith(".ref")] == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    recorder = Recorder(_Made())
    for index in range(2):
        recorder.window(index)
    with pytest.raises(NqEdgeError, match="cannot write") as caught:
        recorder.save(tmp_path / "absent")
    assert caught.value.code == "NQ-OUTPUT"


def _rewrite(folder: Path, change: dict[str, Any], metadata: dict[str, str]) -> Bundle:
    bundle, path = Bundle.open(folder), folder / "reference.safetensors"
    tensors = dict(load_file(path))
    with safe_open(path, framework="np") as file:
        stored = dict(file.metadata())
    for name, value in change.items():
        if value is None:
            tensors.pop(name)
        else:
            tensors[name] = value(tensors[name]) if callable(value) else value
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, {**stored, **metadata})
    return bundle.write()


def _with(place: tuple[int, ...], value: float) -> Any:
    def change(tensor: np.ndarray) -> np.ndarray:
        tensor = tensor.copy()
        tensor[place] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": None}, "has no loss"),
        ({"windows": lambda t: t.astype(np.int64)}, "windows is I64"),
        ({"windows": lambda t: t[0]}, "windows is I32"),
        ({"windows": lambda t: t[:, :1]}, "windows have 1 tokens"),
        ({"windows": np.zeros((1, 5000), np.int32)}, "windows have 5000 tokens"),
        ({"windows": _with((0, 0), 320)}, "outside the vocabulary of 320"),
        ({"windows": _with((0, 0), -1)}, "outside the vocabulary of 320"),
        ({"top_ids": _with((0, 0, 0), 1 << 30)}, "outside the vocabulary"),
        ({"top_ids": np.zeros((16, 256, 321), np.int32)}, "321 likeliest tokens"),
        ({"top_logits": lambda t: t[:, :, :3]}, "top_logits is F32"),
        ({"loss": _with((0,), np.nan)}, "not finite"),
        ({"log_sum": _with((3, 3), np.inf)}, "not finite"),
        ({"whole_logits": lambda t: t[:, :100]}, "whole_logits is F32"),
        ({"whole_places": lambda t: t[::-1]}, "out of order"),
        ({"whole_places": _with((0, 0), -1)}, "outside the windows"),
        ({"whole_places": _with((63, 1), 256)}, "outside the windows"),
        ({"inner.0": lambda t: t[:-1]}, "different numbers of tokens"),
        ({"inner.3": None}, r"has no inner\.3"),
    ],
)
def test_contradictions_are_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    bundle = _rewrite(copy, change, {})
    with pytest.raises(NqEdgeError, match=message) as caught:
        RecordedReference(bundle)
    assert caught.value.code == "NQ-REFERENCE"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"nq_reference": "9"}, "version '9'"),
        ({"inner": "["}, "not JSON"),
        ({"inner": '{"a": 1}'}, "malformed"),
        ({"inner": '["a", "a"]'}, "malformed"),
        ({"inner": json.dumps(["x" * 300])}, "malformed"),
    ],
)
def test_bad_metadata_is_refused(copy: Path, metadata: dict[str, str], message: str) -> None:
    bundle = _rewrite(copy, {}, metadata)
    with pytest.raises(NqEdgeError, match=message) as caught:
        RecordedReference(bundle)
    assert caught.value.code == "NQ-REFERENCE"


def test_continuations_are_checked_when_they_are_read(copy: Path) -> None:
    bundle = _rewrite(copy, {"greedy.1": _with((0,), 999)}, {})
    with pytest.raises(NqEdgeError, match=r"greedy\.1 holds ids outside"):
        RecordedReference(bundle).greedy()


def test_garbage_is_refused(copy: Path) -> None:
    (copy / "reference.safetensors").write_bytes(b"\x80\x04garbage" * 100)
    with pytest.raises(NqEdgeError):
        Bundle.open(copy)
    manifest = json.loads((copy / "nq_bundle.json").read_text())
    manifest["files"]["reference.safetensors"]["size"] = 900
    (copy / "nq_bundle.json").write_text(json.dumps(manifest))
    bundle = Bundle.open(copy, verify=False)
    with pytest.raises(NqEdgeError, match="cannot be read") as caught:
        RecordedReference(bundle)
    assert caught.value.code == "NQ-REFERENCE"
