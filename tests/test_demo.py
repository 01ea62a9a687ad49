# SPDX-License-Identifier: Apache-2.0
"""The real model end to end: `nq-edge demo` on SmolLM2-135M, or the folder that it left (NQ_EDGE_DEMO)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished demo."""
    left = os.environ.get("NQ_EDGE_DEMO")
    if left:
        return Path(left)
    folder = tmp_path_factory.mktemp("demo") / "demo"
    texts = ["--texts", str(TEXTS)] if TEXTS.is_dir() else []
    subprocess.run([sys.executable, "-m", "nanoquant_edge", "demo", "--output", str(folder), *texts], check=True)
    return folder


@pytest.fixture(scope="module")
def report(demo: Path) -> dict:
    return json.loads((demo / "report.json").read_text())


def test_every_step_of_the_validation_passes(report: dict) -> None:
    assert report["validation"]["status"] == "pass"
    assert list(report["validation"]["steps"]) == ["layers", "logits", "greedy", "perplexity"]
    assert report["validation"]["kernel"] == "nanoquant"


def test_the_compressed_model_is_damaged_but_a_language_model(report: dict) -> None:
    found = report["validation"]["steps"]["perplexity"]["figures"]["bundle"]
    assert report["perplexity_dense"] < 45
    assert report["perplexity_dense"] < found < 6 * report["perplexity_dense"]


def test_sizes_and_rates(report: dict, demo: Path) -> None:
    assert 1.9 < report["bpw"]["stored"] <= 2.0
    assert report["files"]["bundle"] < 95e6
    assert report["generation"]["peak_memory_mb"] < 600
    assert report["generation"]["decode_tps"] > report["torch_fp32_decode_tps"]


def test_the_bundle_continues_a_text(demo: Path) -> None:
    from nanoquant_edge.runtimes import Generator

    with Generator.from_bundle(demo / "bundle") as generator:
        first = generator.generate("The history of the city begins", max_new_tokens=16)
        again = generator.generate("The history of the city begins", max_new_tokens=16)
    assert first.ids == again.ids
    assert len(first.ids) == 16 or first.finish_reason == "eos"
    assert first.kernel == "nanoquant"


def test_token_ids_equal_transformers_on_a_corpus(demo: Path) -> None:
    from transformers import AutoTokenizer

    from nanoquant_edge.formats.tokenizer import load_tokenizer

    corpus = TEXTS / "wikitext2-test.raw"
    if not corpus.is_file():
        pytest.skip("WikiText-2 is not at hand")
    text = corpus.read_text(encoding="utf-8")[:400_000]
    theirs = AutoTokenizer.from_pretrained(demo / "checkpoint")
    ours = load_tokenizer(demo / "bundle")
    assert list(ours.encode(text)) == theirs(text, verbose=False)["input_ids"]
