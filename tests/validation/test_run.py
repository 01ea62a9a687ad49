# SPDX-License-Identifier: Apache-2.0
"""A validation of a tiny bundle: it passes when it should, and names what is wrong when something is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.system.native import NATIVE_DIR_VARIABLE
from nanoquant_edge.system.progress import Progress
from nanoquant_edge.validation import ValidationOptions, validate
from tests.tiny import TEXT, tiny_checkpoint
from tests.validation.conftest import Proof

Spoiler = Callable[[bytes, bytes], Path]


def test_everything_passes_against_torch(proof: Proof) -> None:
    report = proof.report
    assert report.status == "pass"
    assert (report.kernel, report.reference, report.first_diverging) == ("nanoquant", "torch", None)
    assert list(report.steps) == ["layers", "logits", "greedy", "perplexity"]
    assert report.steps["layers"].figures["values"] == 3 * 8
    assert report.steps["layers"].figures["largest error"] < 1e-5
    assert report.steps["logits"].figures["positions"] == 4096
    assert report.steps["greedy"].figures["tokens"] == 4 * 32
    assert "sampled from the reference model" in report.text


def test_everything_passes_against_the_record(proof: Proof) -> None:
    report = validate(proof.bundle, threads=1)
    assert (report.status, report.reference) == ("pass", "recorded")
    assert report.steps["logits"].figures["whole rows"] == 64
    assert report.steps["logits"].figures["positions"] == 4096
    live = proof.report.steps["perplexity"].figures
    assert report.steps["perplexity"].figures["reference"] == pytest.approx(live["reference"], rel=1e-12)
    assert report.steps["perplexity"].figures["bundle"] == pytest.approx(live["bundle"], rel=1e-6)
    measured = Bundle.open(proof.bundle).measured["validation"]
    assert measured["status"] == "pass"
    assert measured["steps"]["logits"]["positions"] == 4096
    assert [entry["rung"] for entry in measured["rungs"]] == [3, 4, 5, 6]  # as earlier versions wrote them
    assert measured["rungs"][1]["positions"] == 4096


def test_the_record_needs_no_torch(proof: Proof) -> None:
    script = (
        "import sys\nfrom nanoquant_edge.cli import main\n"
        "try:\n    main(['validate', sys.argv[1], '--threads', '1', '--json'])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "bad = {'torch', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)\n"
        "assert not bad, bad\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(proof.bundle)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == "pass"


LAYERS = [
    ("model.layers.0.self_attn.q_proj", "v_packed"),
    ("model.layers.0.mlp.gate_proj", "u_packed"),
    ("model.layers.1.self_attn.k_proj", "u_packed"),
    ("model.layers.1.self_attn.v_proj", "v_packed"),
    ("model.layers.1.self_attn.o_proj", "scale_in"),
    ("model.layers.1.mlp.up_proj", "scale_out"),
    ("model.layers.2.mlp.down_proj", "u_packed"),
]


@pytest.mark.parametrize(("layer", "part"), LAYERS)
def test_one_wrong_bit_names_exactly_its_layer(proof: Proof, spoiled: Spoiler, layer: str, part: str) -> None:
    value = np.array(getattr(proof.checkpoint.layer(layer), part))
    old = value.tobytes()
    if part.endswith("packed"):
        value[3, 0] ^= 1  # one sign of the whole matrix
    else:
        value[3] *= -1
    report = validate(spoiled(old, value.tobytes()), threads=1)
    assert report.first_diverging == layer
    assert report.status == "fail"
    assert report.steps["layers"].status == "fail"
    assert layer in report.steps["layers"].note


def test_a_wrong_layer_is_named_against_torch_too(proof: Proof, spoiled: Spoiler) -> None:
    value = np.array(proof.checkpoint.layer("model.layers.1.mlp.gate_proj").v_packed)
    old = value.tobytes()
    value[:, 0] ^= 0x0F0F0F0F  # enough for every step
    folder = spoiled(old, value.tobytes())
    report = validate(folder, proof.checkpoint, threads=1)
    assert report.first_diverging == "model.layers.1.mlp.gate_proj"
    assert [step.status for step in report.steps.values()] == ["fail"] * 4
    assert report.steps["greedy"].figures["forgiven gap"] == 0


def test_a_wrong_norm_inside_a_block_is_seen(proof: Proof, spoiled: Spoiler) -> None:
    name = "model.layers.1.post_attention_layernorm.weight"
    value = proof.checkpoint.tensor(name).astype(np.float32)
    report = validate(spoiled(value.tobytes(), (1.1 * value).astype(np.float32).tobytes()), threads=1)
    assert report.first_diverging == "model.layers.1.mlp.gate_proj"  # the first value that the norm reaches


def test_a_wrong_final_norm_leaves_the_layers_alone(proof: Proof, spoiled: Spoiler) -> None:
    value = proof.checkpoint.tensor("model.norm.weight").astype(np.float32)
    report = validate(spoiled(value.tobytes(), value[::-1].copy().tobytes()), threads=1)
    assert report.steps["layers"].status == "pass"
    assert report.steps["logits"].status == "fail"
    assert report.status == "fail"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_tables_rounded_at_export_are_rounded_in_the_reference(proof: Proof, tmp_path: Path, kind: str) -> None:
    export_onnx(proof.checkpoint, tmp_path / "b", embedding=kind)
    report = validate(tmp_path / "b", proof.checkpoint, threads=1)
    assert report.status == "pass"
    assert report.steps["logits"].figures["positions"] == 4096
    assert report.steps["layers"].figures["largest error"] < 1e-5


def test_float16_has_its_own_limits(proof: Proof, tmp_path: Path) -> None:
    export_onnx(proof.checkpoint, tmp_path / "half", dtype="float16")
    report = validate(tmp_path / "half", proof.checkpoint, threads=1)
    assert report.status == "pass"
    assert report.steps["logits"].limits["smallest cosine"] == 0.999
    assert report.steps["layers"].figures["largest error"] > 1e-5


def test_the_portable_body_is_validated_only_when_allowed(
    proof: Proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(proof.checkpoint, tmp_path / "portable", portable=True)
    monkeypatch.setenv(NATIVE_DIR_VARIABLE, str(tmp_path))
    options = {"windows": 1, "window_length": 32, "new_tokens": 4, "threads": 1}
    with pytest.raises(NqEdgeError, match="does not exist"):
        validate(tmp_path / "portable", proof.checkpoint, **options)
    report = validate(tmp_path / "portable", proof.checkpoint, allow_portable=True, **options)
    assert (report.kernel, report.status) == ("portable", "incomplete")
    assert report.first_diverging is None


def test_too_little_text_proves_nothing(proof: Proof, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    report = validate(
        proof.bundle,
        proof.checkpoint,
        text=tmp_path / "text.txt",
        windows=4,
        window_length=64,
        prompts=["The quick", "東京"],
        new_tokens=5,
        threads=1,
    )
    assert report.status == "incomplete"
    assert not report.passed
    assert [step.status for step in report.steps.values()] == ["pass", "skipped", "pass", "skipped"]
    assert "256 of the 4096 positions" in report.steps["logits"].note
    assert "4 of the 16 windows" in report.steps["perplexity"].note
    assert report.steps["greedy"].figures["prompts"] == 2
    assert report.text == "text text.txt"


def test_windows_are_cut_to_the_context_and_no_continuations_are_told(proof: Proof) -> None:
    report = validate(proof.bundle, proof.checkpoint, windows=1, window_length=999, new_tokens=0, threads=1)
    assert report.window_length == 256
    assert report.steps["greedy"].status == "skipped"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"record": True}, "NQ-OPTION", "need the checkpoint"),
        ({"text": "x"}, "NQ-OPTION", "need the checkpoint"),
        ({"windows": 0}, "NQ-OPTION", "windows must be a whole number from 1"),
        ({"window_length": 1}, "NQ-OPTION", "window_length must be a whole number from 2"),
        ({"new_tokens": -1}, "NQ-OPTION", "new_tokens must be"),
        ({"prompts": [3]}, "NQ-OPTION", "prompts must be texts"),
        ({"provider": "rocm"}, "NQ-OPTION", "cpu, cuda"),
        ({"threads": 0}, "NQ-OPTION", "threads"),
    ],
)
def test_options_are_checked(proof: Proof, options: dict, code: str, message: str) -> None:
    with pytest.raises(NqEdgeError, match=message) as caught:
        validate(proof.bundle, **options)
    assert caught.value.code == code


def test_texts_and_prompts_are_checked(proof: Proof, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a b c")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    for name, message in (("short.txt", "16 windows"), ("binary.txt", "not UTF-8"), ("none.txt", "cannot read")):
        with pytest.raises(NqEdgeError, match=message) as caught:
            validate(proof.bundle, proof.checkpoint, text=tmp_path / name)
        assert caught.value.code == "NQ-TEXT"
    with pytest.raises(NqEdgeError, match="does not fit the context"):
        validate(proof.bundle, proof.checkpoint, prompts=["long " * 300], windows=1)


def test_nothing_to_compare_with(proof: Proof, tmp_path: Path) -> None:
    export_onnx(proof.checkpoint, tmp_path / "plain")
    with pytest.raises(NqEdgeError, match="no recorded reference") as caught:
        validate(tmp_path / "plain")
    assert caught.value.code == "NQ-REFERENCE"
    assert "--against" in caught.value.hint


def test_a_foreign_checkpoint_is_refused(proof: Proof, tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="was not exported from there"):
        validate(proof.bundle, tiny_checkpoint(tmp_path / "other"))


def test_without_torch_the_message_says_what_to_install(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoquant_edge.validation.reference", None)
    with pytest.raises(NqEdgeError, match="needs PyTorch") as caught:
        validate(proof.bundle, proof.checkpoint)
    assert caught.value.code == "NQ-MISSING"


def test_a_failed_outcome_is_recorded_in_full(proof: Proof, spoiled: Spoiler) -> None:
    value = np.array(proof.checkpoint.layer("model.layers.0.mlp.up_proj").scale_out)
    folder = spoiled(value.tobytes(), (2 * value).tobytes())
    seen: list[tuple[float, str]] = []
    report = validate(
        folder,
        proof.checkpoint,
        options=ValidationOptions(record=True, windows=2, threads=1),
        progress=Progress(lambda done, what: seen.append((done, what))),
    )
    assert report.status == "fail"
    assert Bundle.open(folder, verify=True).measured["validation"]["first_diverging"] == "model.layers.0.mlp.up_proj"
    assert seen[0] == (0.0, "rebuilding the dense model in PyTorch")
    assert seen[-1] == (1.0, "done")
    assert seen == sorted(seen, key=lambda entry: entry[0])


def test_the_command(proof: Proof, spoiled: Spoiler, tmp_path: Path) -> None:
    value = np.array(proof.checkpoint.layer("model.layers.0.mlp.up_proj").scale_out)
    bad = spoiled(value.tobytes(), (2 * value).tobytes())
    shutil.copytree(proof.bundle, tmp_path / "good")
    (tmp_path / "good/reference.safetensors").unlink()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = "import sys\nfrom nanoquant_edge.cli import main\nmain(['validate', *sys.argv[1:]])"
        return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)

    good = run(str(proof.bundle), "-t", "1")
    assert good.returncode == 0, good.stderr
    assert "outcome: pass" in good.stdout
    failed = run(str(bad), "-t", "1")
    assert failed.returncode == 1
    assert "first diverging: model.layers.0.mlp.up_proj" in failed.stdout
    error = run(str(tmp_path / "good"))
    assert error.returncode == 2
    assert "reference.safetensors is missing" in error.stderr
    assert "Traceback" not in error.stderr


def test_a_float32_bundle_is_not_validated_on_a_gpu(proof: Proof) -> None:
    with pytest.raises(NqEdgeError, match="runs float16 bundles on a GPU") as caught:
        validate(proof.bundle, threads=1, provider="cuda")
    assert caught.value.code == "NQ-BACKEND"
