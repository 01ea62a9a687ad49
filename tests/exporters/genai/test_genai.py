# SPDX-License-Identifier: Apache-2.0
"""Folders for ONNX Runtime GenAI, and its own generation beside ours.

The real package runs in the Python that NQ_EDGE_GENAI_PYTHON names, or in this one where it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.genai import export_genai
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import Generator
from nanoquant_edge.system.native import ort_library_path
from tests.exporters.onnx.support import have_kernel, open_session
from tests.families import ONE_EACH, family_config
from tests.tiny import tiny_checkpoint

needs_kernel = pytest.mark.skipif(not have_kernel(), reason="the native library is not built")
GENAI_PYTHON = os.environ.get("NQ_EDGE_GENAI_PYTHON") or (sys.executable if find_spec("onnxruntime_genai") else "")
needs_genai = pytest.mark.skipif(
    not GENAI_PYTHON, reason="onnxruntime-genai is not installed; NQ_EDGE_GENAI_PYTHON names none"
)
PROMPT = [17, 260, 44, 91, 300, 12, 205]

#: Greedy ids after a prompt, whole and appended in two parts, as JSON. (Seen with 0.18.0: what is appended after tokens
#: were generated follows the last generated token twice, whatever the model.)
SCRIPT = """
import json, sys
import onnxruntime_genai as og
folder, prompt = sys.argv[1], json.loads(sys.argv[2])
model = og.Model(folder)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=120, do_sample=False)
result = []
for parts in ([prompt], [prompt[:4], prompt[4:]]):
    generator = og.Generator(model, parameters)
    for part in parts:
        generator.append_tokens(part)
    ids = []
    while len(ids) < 40 and not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    result.append(ids)
text = og.Tokenizer(model).encode("The quick brown fox jumps")
print(json.dumps({"version": og.__version__, "ids": result, "text": [int(number) for number in text]}))
"""


def run_genai(folder: Path, prompt: list[int]) -> dict:
    command = [GENAI_PYTHON, "-c", SCRIPT, str(folder), json.dumps(prompt)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def compare_with_the_real_package(folder: Path, **changes: Any) -> set[int]:
    """Greedy ids of GenAI and of our Generator are equal; returns the different ones."""
    # An end-of-text id that is hardly ever chosen.
    tiny_checkpoint(folder / "c", **{**changes, "eos_token_id": 319})
    (folder / "c" / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 319}))
    export_genai(folder / "c", folder / "g", max_length=128)
    export_onnx(folder / "c", folder / "b", max_length=128)
    found = run_genai(folder / "g", PROMPT)
    with Generator.from_bundle(folder / "b") as generator:
        expected = list(generator.generate_step(PROMPT, max_new_tokens=40))
        text = generator.tokenizer.encode("The quick brown fox jumps")
    assert found["ids"] == [expected, expected]
    assert found["text"] == list(getattr(text, "ids", text))
    return set(expected)


@needs_kernel
@needs_genai
@pytest.mark.parametrize("changes", [{"seed": 2}, {"embedding": "int4", "seed": 5}], ids=["fp16", "int4"])
def test_the_real_package_generates_the_same_ids(tmp_path: Path, changes: dict) -> None:
    # With a head of its own: a tied random one repeats its input, and the comparison would say little.
    assert len(compare_with_the_real_package(tmp_path, tie_word_embeddings=False, **changes)) > 3


@pytest.mark.slow
@needs_kernel
@needs_genai
@pytest.mark.parametrize("family", [name for name in ONE_EACH if name != "opt"])
def test_the_real_package_runs_every_family(tmp_path: Path, family: str) -> None:
    compare_with_the_real_package(tmp_path, seed=3, **family_config(family))


def test_a_family_without_a_model_type_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", **family_config("opt"))
    with pytest.raises(NqEdgeError, match="no model type for opt") as error:
        export_genai(tmp_path / "c", tmp_path / "g")
    assert error.value.code == "NQ-ARCH" and not (tmp_path / "g").exists()


@needs_kernel
def test_the_graph_chooses_the_last_valid_column(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c")
    export_genai(tmp_path / "c", tmp_path / "g", max_length=64)
    plain = open_session(export_onnx(tmp_path / "c", tmp_path / "b", max_length=64).folder / "model.onnx")
    session = open_session(tmp_path / "g" / "model.onnx")
    assert "logits_indices" not in [value.name for value in session.get_inputs()]
    assert session.get_outputs()[0].shape[1] == 1

    def run(which: onnxruntime.InferenceSession, ids: np.ndarray, mask: np.ndarray, cache: dict, **more: np.ndarray):
        binding = which.io_binding()
        for name, value in {"input_ids": ids, "attention_mask": mask, **more}.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("logits", "cpu")
        for name, value in cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        which.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    def fresh() -> dict:
        shape = (2, 2, 32, 16)
        names = [f"{block}.{part}" for block in range(2) for part in ("key", "value")]
        return {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for name in names}

    ids = np.random.default_rng(0).integers(0, 300, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])  # the second prompt is padded on the right
    ours, theirs = fresh(), fresh()
    chosen = run(plain, ids, mask, ours, logits_indices=np.array([[5], [3]]))
    np.testing.assert_array_equal(run(session, ids, mask, theirs), chosen)
    ids, mask = np.array([[7], [8]]), np.array([[1] * 7, [1] * 5 + [0] * 2])
    chosen = run(plain, ids, mask, ours, logits_indices=np.array([[0], [0]]))
    np.testing.assert_array_equal(run(session, ids, mask, theirs), chosen)


def test_configuration_and_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_checkpoint(tmp_path / "c", embedding="int8")
    arguments = ["export", tmp_path / "c", "--to", "genai", "--output", tmp_path / "g", "--json"]
    (tmp_path / "other.so").write_bytes(b"for another processor")
    arguments += ["--custom-ops-library", tmp_path / "other.so", "--max-length", "128"]
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert not caught.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["backend"] == "onnxruntime-genai" and report["embedding"] == "int8"
    config = json.loads((tmp_path / "g" / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert decoder["session_options"]["custom_ops_library"] == "libnanoquant_ort.so"
    assert (tmp_path / "g" / "libnanoquant_ort.so").read_bytes() == b"for another processor"
    assert (decoder["head_size"], decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (16, 4, 2)
    assert config["model"]["type"] == "llama" and config["model"]["eos_token_id"] == 2
    assert config["model"]["context_length"] == config["search"]["max_length"] == 128
    bundle = Bundle.open(tmp_path / "g", verify=True)
    assert "genai_config.json" in bundle.files
    with pytest.raises(NqEdgeError, match=r"made for .onnxruntime-genai.") as error:
        Generator.from_bundle(tmp_path / "g")
    assert error.value.code == "NQ-BACKEND"


def test_what_genai_cannot_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", str(tmp_path))
    with pytest.raises(NqEdgeError) as error:
        export_genai(checkpoint, tmp_path / "g")
    assert error.value.code == "NQ-NATIVE-MISSING"
    with pytest.raises(NqEdgeError, match="there is no library") as error:
        export_genai(checkpoint, tmp_path / "g", library=tmp_path / "absent.so")
    assert error.value.code == "NQ-NATIVE-MISSING"
    config = tmp_path / "c" / "config.json"
    entries = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in entries.items() if key != "eos_token_id"}))
    (tmp_path / "c" / "generation_config.json").unlink()
    with pytest.raises(NqEdgeError, match="names no end-of-text token"):
        export_genai(tmp_path / "c", tmp_path / "g", library=tmp_path / "c" / "config.json")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "genai", "--dialect", "ort"), "--dialect goes with --to onnx, not with --to genai"),
        (("--to", "genai", "--dtype", "float16"), "--dtype goes with --to onnx or tensorrt, not with --to genai"),
        (("--custom-ops-library", "x"), "--custom-ops-library goes with --to genai, not with --to onnx"),
        (("--to", "tensorrt", "--embedding", "int8"), "--embedding goes with --to onnx or genai"),
    ],
)
def test_options_of_other_kinds_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", str(tmp_path), "--output", str(tmp_path / "o"), *arguments])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@needs_kernel
def test_the_installed_library_travels_by_default(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c")
    bundle = export_genai(tmp_path / "c", tmp_path / "g")
    assert (tmp_path / "g" / "libnanoquant_ort.so").read_bytes() == ort_library_path().read_bytes()
    assert "libnanoquant_ort.so" in bundle.files
