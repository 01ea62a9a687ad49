# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle to be served: what guesses ahead, and beginnings that outlive the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.runtimes import OpenOptions
from nanoquant_edge.serving import Request
from nanoquant_edge.serving.opening import open_model
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("draft", ["none", "ngram", "itself"])
def test_whatever_guesses_ahead_the_text_is_the_same(draft: str, tiny_bundle: Path) -> None:
    options = OpenOptions(threads=1, max_context=128)
    with open_model(tiny_bundle, options, slots=2, draft=tiny_bundle if draft == "itself" else draft) as model:
        ids = model.encode_text("A model of language predicts the next token from those")
        outcome = model.writer.submit(Request(ids=ids, max_new_tokens=40, ignore_eos=True)).result()
    with open_model(tiny_bundle, OpenOptions(threads=1), draft="none") as plain:
        wanted = plain.writer.submit(Request(ids=ids, max_new_tokens=40, ignore_eos=True)).result()
    assert outcome.ids == wanted.ids and wanted.drafted == 0
    if draft == "itself":
        assert outcome.accepted == outcome.drafted > 0


def test_a_draft_model_with_another_tokenizer_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    export_onnx(tiny_checkpoint(tmp_path / "checkpoint", vocab_size=321), tmp_path / "bundle")
    with pytest.raises(NqEdgeError, match="another tokenizer"):
        open_model(tiny_bundle, OpenOptions(threads=1), draft=tmp_path / "bundle")
    with pytest.raises(NqEdgeError, match="is not a bundle"):
        open_model(tiny_bundle, OpenOptions(threads=1), draft=tmp_path / "missing")


def test_a_checkpoint_is_served_on_a_gpu(tmp_path: Path, stand_in: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", seed=4, tie_word_embeddings=False).folder
    options = OpenOptions(device="cuda", max_context=200)
    prompts = ["The quick brown fox", "A model of language predicts", "The quick brown fox jumps over the lazy dog"]
    with open_model(checkpoint, options, slots=3) as model:
        assert model.settings.device == "cuda"
        asked = [Request(ids=model.encode_text(text), max_new_tokens=24, ignore_eos=True) for text in prompts]
        together = [running.result().ids for running in [model.writer.submit(request) for request in asked]]
        again = model.writer.submit(asked[0]).result()  # its beginning is kept
    with open_model(checkpoint, options, draft="none") as alone:
        expected = [alone.writer.submit(request).result().ids for request in asked]
    assert together == expected and again.ids == expected[0]
