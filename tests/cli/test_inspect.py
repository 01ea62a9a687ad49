# SPDX-License-Identifier: Apache-2.0
"""`nq-edge inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nanoquant_edge.cli.inspect import command
from tests.formats.test_bundle import _bundle
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
    assert "recipe: not recorded" in short
    assert "model.layers.1.mlp.down_proj" in CliRunner().invoke(command, [str(tmp_path / "model"), "--layers"]).output


def test_quantized_tables_are_counted_with_their_scales(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", embedding="int4", tie_word_embeddings=False)
    report = json.loads(CliRunner().invoke(command, [str(tmp_path / "model"), "--json"]).output)
    assert report["bytes"]["embedding"] == report["bytes"]["head"] == 320 * (20 + 2 * 2)
    assert report["total_bytes"] == sum(report["bytes"].values())
    table = {"format": "int4", "rows": 320, "columns": 40, "bits": pytest.approx(8 * 24 / 40)}
    assert report["tables"] == {"model.embed_tokens": table, "lm_head": table}
    output = CliRunner().invoke(command, [str(tmp_path / "model")]).output
    assert "table lm_head: 320 x 40, int4, 4.800 bits an entry" in output


def test_bundle(tmp_path: Path) -> None:
    _bundle(tmp_path / "b")
    result = CliRunner().invoke(command, [str(tmp_path / "b")])
    assert "model.onnx" in result.output
    assert "14 compressed layers" in result.output
    report = json.loads(CliRunner().invoke(command, [str(tmp_path / "b"), "--json"]).output)
    assert report["total_bytes"] == 12
    assert report["kv"]["head_dim"] == 16


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
