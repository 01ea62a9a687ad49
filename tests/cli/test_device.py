# SPDX-License-Identifier: Apache-2.0
"""`--device`: a checkpoint on a GPU and on the processor, by every verb that opens models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nanoquant_edge.runtimes import Generator, Target
from nanoquant_edge.runtimes.cached_export import cached_folder
from tests.command import run
from tests.tiny import tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoint", seed=4, tie_word_embeddings=False).folder


def test_the_text_is_the_same_on_gpu_and_processor(
    checkpoint: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("-p", "The quick", "-n", "12", "--json")
    assert run("generate", checkpoint, *options, "--device", "cuda") == 0
    gpu = json.loads(capsys.readouterr().out)
    assert run("generate", checkpoint, *options, "--device", "cpu", "-t", "1") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["ids"] == gpu["ids"]
    assert len(gpu["ids"]) == 12
    assert "exported once, into" in told.err
    # The second time it stands there already; once the checkpoint changes it is made anew.
    assert run("generate", checkpoint, *options, "--device", "cpu", "-t", "1") == 0
    assert "exported" not in capsys.readouterr().err
    os.utime(checkpoint / "nanoquant.safetensors", (1, 1))
    assert run("generate", checkpoint, *options, "--device", "cpu", "-t", "1") == 0
    assert "exported" in capsys.readouterr().err


def test_auto_takes_the_gpu_that_is_there(checkpoint: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Target.of(checkpoint).device == "cuda"
    monkeypatch.setenv("NQ_STAND_IN_DEVICES", "0")
    assert Target.of(checkpoint).device == "cpu"
    assert Target.of(cached_folder(checkpoint)).device == "cpu"


def test_what_lies_in_the_way_of_an_export_stays(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached_folder(checkpoint).mkdir()
    assert run("generate", checkpoint, "-p", "x", "--device", "cpu") == 2
    assert "NQ-OUTPUT" in capsys.readouterr().err
    assert list(cached_folder(checkpoint).iterdir()) == []


def test_drawn_texts_and_stops(checkpoint: Path, stand_in: Path) -> None:
    from nanoquant_edge.runtimes import SamplingConfig

    with Generator.open(checkpoint, device="cuda", table="int8", cache_bits=8) as generator:
        drawn = SamplingConfig(temperature=1.0, seed=3)
        first = generator.generate("The quick", max_new_tokens=10, sampling=drawn)
        assert generator.generate("The quick", max_new_tokens=10, sampling=drawn).ids == first.ids
        penalized = SamplingConfig(temperature=1.0, presence_penalty=1.0, seed=3)  # chosen on the host
        assert len(generator.generate("The quick", max_new_tokens=3, sampling=penalized).ids) <= 3


def test_bench_says_where_it_ran(checkpoint: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--lengths", "5", "-n", "4", "-r", "1", "--device", "cuda")
    assert run("bench", checkpoint, *options, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["backend"], report["place"], report["kernel"]) == ("cuda", "cuda", "nanoquant")
    assert report["gpu_mb"] > 0
    assert run("bench", checkpoint, *options) == 0
    assert "GPU memory" in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("--table", "int8"), ("--cache-bits", "8")], ids=["16", "int8", "cache8"])
def test_validate_on_a_device(
    more: tuple[str, ...], checkpoint: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--windows", "3", "--length", "40", "--device", "cuda", "--json")
    assert run("validate", checkpoint, *options, *more) == 1  # incomplete: too little text to prove it
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["device"], report["dtype"]) == ("incomplete", "cuda", "float16")
    assert report["steps"]["layers"]["status"] == report["steps"]["greedy"]["status"] == "pass"
    assert report["steps"]["layers"]["figures"]["values"] == 16


def test_refusals(checkpoint: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in (
        (("generate", checkpoint, "-p", "x", "--device", "tpu"), "device must be"),
        (("generate", checkpoint, "-p", "x", "--device", "cuda:9"), "cuda:9"),
        (("validate", checkpoint, "--record", "--device", "cuda"), "recording"),
        (("generate", checkpoint, "-p", "x", "--device", "cuda", "--provider", "cuda"), "provider"),
    ):
        assert run(*arguments) == 2
        assert word in capsys.readouterr().err
