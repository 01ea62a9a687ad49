# SPDX-License-Identifier: Apache-2.0
"""`nq-edge inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nanoquant_edge.cli.inspect import command
from nanoquant_edge.formats.checkpoint.naming import model_name
from tests.formats.support import graph_bundle
from tests.tiny import tiny_checkpoint


def test_json_accounts_for_every_byte(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", attention_bias=True, tie_word_embeddings=False, mid=True)
    result = CliRunner().invoke(command, [str(tmp_path / "model"), "--json"])
    report = json.loads(result.output)
    total = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    assert report["total_bytes"] == total == sum(report["bytes"].values())
    assert report["measured_bpw"] == pytest.approx(checkpoint.settings.true_bpw, rel=1e-12)
    assert report["bytes"]["embedding"] == report["bytes"]["head"] == 320 * 40 * 2
    assert report["bytes"]["biases"] == 2 * (64 + 32 + 32 + 40) * 2
    assert report["bytes"]["norms"] == 5 * 40 * 2
    assert report["bytes"]["tokenizer"] > 0
    assert len(report["layers"]) == 14
    first = report["layers"][0]
    assert (first["type"], first["out_features"], first["in_features"]) == ("self_attn.q_proj", 64, 40)
    assert first["bpw"] == pytest.approx(checkpoint.layer(first["name"]).stored_bits / (64 * 40))


def test_tables(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    short = CliRunner().invoke(command, [str(tmp_path / "model")]).output
    assert "self_attn.q_proj" in short
    assert "model.layers.1" not in short
    assert "whole folder" in short
    assert short.startswith("model (llama) compressed to 2.939 bits per weight")
    assert [line.split()[-2:] for line in short.splitlines() if line.startswith("recipe")] == [["not", "recorded"]]
    assert "model.layers.1.mlp.down_proj" in CliRunner().invoke(command, [str(tmp_path / "model"), "--layers"]).output


def test_quantized_tables_are_counted_with_their_scales(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", embedding="int4", tie_word_embeddings=False)
    report = json.loads(CliRunner().invoke(command, [str(tmp_path / "model"), "--json"]).output)
    assert report["bytes"]["embedding"] == report["bytes"]["head"] == 320 * (20 + 2 * 2)
    assert report["total_bytes"] == sum(report["bytes"].values())
    table = {"format": "int4", "rows": 320, "columns": 40, "bits": pytest.approx(8 * 24 / 40)}
    assert report["tables"] == {"model.embed_tokens": table, "lm_head": table}
    output = CliRunner().invoke(command, [str(tmp_path / "model")]).output
    assert "lm_head: 320 x 40, int4, 4.800 bits an entry" in output


def test_bundle(tmp_path: Path) -> None:
    graph_bundle(tmp_path / "b")
    result = CliRunner().invoke(command, [str(tmp_path / "b")])
    assert "model.onnx" in result.output
    assert "14 compressed layers" in result.output
    report = json.loads(CliRunner().invoke(command, [str(tmp_path / "b"), "--json"]).output)
    assert report["total_bytes"] == 12
    assert report["kv"]["head_dim"] == 16


RECIPE = {
    "name": "balanced",
    "seed": 3,
    "device": "cuda",
    "compute_dtype": "bfloat16",
    "seconds": 81.25,
    "kd_loss": [1.25, 0.5],
    "block_errors": [0.1] * 200,
    "stage_seconds": {"tuning": 3.0},
    "source": "/home/me/models/SmolLM2-135M-Instruct.Q4_1.gguf",
    "source_note": "weights dequantised from GGUF",
}
CALIBRATION = {"text": "wikitext2-train-part.raw", "windows": 64, "window_length": 512, "seed": 3, "conversations": 32}


def remembered(folder: Path) -> Path:
    """A checkpoint that remembers how it was made, as compress writes it."""
    tiny_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(recipe=RECIPE, calibration=CALIBRATION)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_how_it_was_made_is_told_in_words(tmp_path: Path) -> None:
    shown = CliRunner().invoke(command, [str(remembered(tmp_path / "model"))]).output
    words = " ".join(shown.split())
    assert shown.startswith("SmolLM2-135M-Instruct.Q4_1 (llama) compressed to")
    assert "balanced, seed 3, on cuda in bfloat16, 81 s, KL to the dense model from 1.250 to 0.500 nats" in words
    assert "wikitext2-train-part.raw: 64 windows of 512 tokens, 32 of them conversations that the model" in words
    assert "weights dequantised from GGUF" in words and "block_errors" not in words


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_it_reads_well_at_80_columns(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = remembered(tmp_path / "checkpoint")
    if kind == "bundle":
        from nanoquant_edge.exporters.onnx import export_onnx

        folder = export_onnx(folder, tmp_path / "bundle").folder
    lines = CliRunner().invoke(command, [str(folder)]).output.splitlines()
    assert lines[0].startswith("SmolLM2-135M-Instruct.Q4_1 (llama) ") and "bits per weight" in lines[0]
    assert max(map(len, lines)) <= 80
    assert not any(mark in line for line in lines for mark in ("{", "['", "…", "None"))
    assert any(line.startswith("next step") and "nq-edge" in line for line in lines)


@pytest.mark.parametrize(
    ("config", "source", "name"),
    [
        ({"_name_or_path": "HuggingFaceTB/SmolLM2-135M"}, "", "HuggingFaceTB/SmolLM2-135M"),
        ({"_name_or_path": "./SmolLM2-135M/"}, "", "SmolLM2-135M"),
        ({}, "/a/b/SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M.Q4_1"),
        ({}, "/h/hub/models--Qwen--Qwen3-0.6B/snapshots/0123abcd", "Qwen/Qwen3-0.6B"),
        ({"_name_or_path": 7}, None, "checkpoint"),
        ({"_name_or_path": ""}, ".", "checkpoint"),
    ],
)
def test_a_model_has_its_own_name(config: dict[str, Any], source: Any, name: str) -> None:
    assert model_name(config, {"source": source}, Path("some/checkpoint")) == name


def test_a_strangers_names_do_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["_name_or_path"] = "[bold]x[/bold]\x1b]0;title\x07"
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    output = CliRunner().invoke(command, [str(tmp_path / "model")], color=True).output
    assert "[bold]x[/bold]?]0;title?" in output.replace("\n", "")


def test_from_the_command_line_without_torch(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    script = (
        "import sys\nfrom nanoquant_edge.cli import main\n"
        "try:\n    main(['inspect', sys.argv[1]])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    good = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    bad = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "[NQ-CKPT]" in bad.stderr
    assert "Traceback" not in bad.stderr
