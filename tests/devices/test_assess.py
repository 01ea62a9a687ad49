# SPDX-License-Identifier: Apache-2.0
"""Fit and forecast: exact where it can be, monotonic, labelled, and the same from every kind of input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.devices import assess, forecast, open_model, target_named
from nanoquant_edge.devices.gpu_time import Code, Gpu, half_us
from nanoquant_edge.devices.model import ModelFacts
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.models.config_reader import read_config
from tests.runtimes.tensorrt.conftest import write_engine_bundle
from tests.tiny import llama_config, tiny_checkpoint

LLAMA_1B = llama_config(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131072,
)


def write_config(folder: Path, **changes: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA_1B, **changes}))
    return str(folder)


def model(bpw: float = 1.0, table: str = "float16") -> ModelFacts:
    return ModelFacts("llama", "configuration", read_config(LLAMA_1B), bpw, table)


def test_sizes_are_those_of_the_published_model() -> None:
    # arXiv 2602.06694, table of sizes: Llama-3.2-1B at 1.0 bit with a 16-bit table is 0.65 GB; 2.47 GB dense.
    facts = model()
    assert facts.body_weights == 973078528 and facts.table_elements == 262668288
    assert facts.body + facts.tables == pytest.approx(0.65e9, rel=0.01) and facts.dense == pytest.approx(
        2.47e9, rel=0.01
    )
    assert facts.head == facts.tables and model(table="int4").tables == pytest.approx(facts.tables * 4.5 / 16)
    untied = replace(facts, config=replace(facts.config, tied=False))
    assert untied.tables == 2 * facts.tables and untied.head == facts.tables


def test_a_checkpoint_and_its_bundle_agree_with_their_files(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "checkpoint")
    folder = tmp_path / "checkpoint"
    found = open_model(str(folder))
    weights = (folder / "nanoquant.safetensors").stat().st_size
    assert found.kind == "checkpoint" and 0 < weights - found.body - found.tables < 20000  # the header
    exported = export_onnx(folder, tmp_path / "bundle")
    bundle = open_model(str(tmp_path / "bundle"))
    files = sum(file.size for name, file in exported.files.items() if name.startswith("model.onnx"))
    assert bundle.kind == "bundle" and bundle.body + bundle.tables == files
    small = export_onnx(folder, tmp_path / "small", embedding="int8")
    assert open_model(str(small.folder)).tables < bundle.tables
    assert bundle.config == found.config and bundle.bpw == Checkpoint(folder).settings.target_bpw
    assert found.at(bpw=found.bpw) is found and found.at(bpw=0.5).bytes_on_disk is None


def test_an_engine_counts_with_the_bytes_of_its_file(tmp_path: Path) -> None:
    export_onnx(tiny_checkpoint(tmp_path / "checkpoint"), tmp_path / "graph")
    write_engine_bundle(tmp_path / "graph", tmp_path / "engine", content=b"x" * 100_000)
    found = open_model(str(tmp_path / "engine"))
    assert found.body + found.tables == 100_000


def test_a_configuration_alone_is_enough(tmp_path: Path) -> None:
    found = open_model(write_config(tmp_path / "m"), bpw=0.8, table="int8")
    assert (found.kind, found.bpw, found.table) == ("configuration", 0.8, "int8")


def test_a_hub_id_reads_its_configuration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str]] = []

    def download(repo: str, name: str, revision: str | None = None) -> str:
        asked.append((repo, name))
        return str(Path(write_config(tmp_path / "m")) / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert open_model("meta-llama/Llama-3.2-1B").kind == "hub" and asked == [("meta-llama/Llama-3.2-1B", "config.json")]


def test_offline_is_respected() -> None:
    pytest.importorskip("huggingface_hub")
    script = "from nanoquant_edge.devices import open_model; open_model('nobody/nothing-at-all')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "NQ-HUB" in done.stderr and "HF_HUB_OFFLINE forbids" in done.stderr


def test_devices_import_neither_torch_nor_the_compression() -> None:
    script = (
        "import sys, nanoquant_edge.devices, nanoquant_edge.devices.doctor, nanoquant_edge.deploy\n"
        "import nanoquant_edge.models.hub\n"
        "bad = [n for n in sys.modules if n == 'torch' or n.startswith('nanoquant_edge.compression')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_fits_and_what_does_not() -> None:
    found = assess(model(), target_named("orin-nano-4gb"), context=2048)
    assert found.fit.fits and found.largest_context >= 2048 and found.best_bpw == 3.0
    assert found.fit.parts["key/value cache"] == 2 * 16 * 8 * 64 * 2 * 2048
    assert not assess(model(3.0), target_named("orin-nano-4gb"), context=131072).fit.fits
    small = assess(model(), target_named("pi5"), context=2048)
    assert small.fit.parts["runtime"] and "engine code" not in small.fit.parts
    assert small.fit.parts["key/value cache"] == 2 * found.fit.parts["key/value cache"]  # float32
    big = replace(model(), config=replace(model().config, num_layers=400))
    none = assess(big.at(1.0), target_named("orin-nano-4gb"), context=2048)
    assert not none.fit.fits and none.largest_context == 0 and none.best_bpw is None
    wide = assess(model(table="int8"), target_named("rtx-3050"), context=4096)  # TensorRT graphs hold 16-bit tables
    assert (
        wide.fit == assess(model(), target_named("rtx-3050"), context=4096).fit
        and "counted as float16" in wide.notes[0]
    )
    assert assess(model(table="int8"), target_named("pi5"), context=4096).notes == ()
    limit = assess(model(), target_named("rtx-3050"), context=4096)
    assert assess(model(), target_named("rtx-3050"), context=limit.largest_context).fit.fits


def test_known_quality_stands_beside() -> None:
    rows = assess(model(), target_named("thor")).quality
    assert [row.bpw for row in rows] == [0.55, 0.8, 1.0] and {row.kind for row in rows} == {"published"}
    assert rows[-1].ppl == 25.59 and all(row.ppl > row.ppl_dense for row in rows)
    other = replace(model(), config=replace(model().config, num_layers=17))
    assert assess(other, target_named("thor")).quality == ()


def test_forecasts_are_ordered() -> None:
    nano, agx = target_named("orin-nano-8gb"), target_named("agx-orin")

    def decode(context: int, *rate: Any) -> float:
        return forecast(nano, model(*rate), context=context).decode.middle

    speeds = [forecast(nano, model(), context=2048).decode, forecast(agx, model(), context=2048).decode]
    assert speeds[0].middle < speeds[1].middle and all(one.low < one.middle < one.high for one in speeds)
    assert decode(512, 0.55) > decode(512, 2.0)
    assert decode(512, 1.0, "int4") > 1.5 * decode(512)
    assert decode(256) > decode(32768)
    slow = forecast(nano, model(), context=512, power_mode="15W")
    fast = forecast(nano, model(), context=512, power_mode="maxn_super")
    assert slow.decode.middle < fast.decode.middle and slow.watts == 15
    assert slow.kind == "forecast" and slow.joules_per_token == pytest.approx(15 / slow.decode.middle)
    for name in ("pi5", "x86-laptop", "xavier-nx"):
        found = forecast(target_named(name), model(), context=512)
        assert found.path == "CPU" and found.decode.high > 2 * found.decode.low


def test_no_gpu_beats_its_bandwidth() -> None:
    for name in ("orin-nano-8gb", "rtx-3050", "rtx-4090", "rtx-5090", "thor", "h200"):
        target = target_named(name)
        found = forecast(target, model(), context=1)
        assert target.bandwidth_gbs
        assert found.decode.high < target.bandwidth_gbs * 1e9 / (model().body + model().head), name


def test_a_half_is_never_faster_than_its_floors() -> None:
    gpu = Gpu(87, 8, 1.02, 102)
    time = half_us(gpu, Code.typical(True), rows=8192, columns=8192)
    assert time > 8192 * 8192 / 8 / 102e3 and time < half_us(gpu, Code.typical(True), rows=16384, columns=8192)
    assert half_us(gpu, Code.typical(False), rows=8192, columns=8192) >= time and not Gpu(120, 170, 2.41, 1792).bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("M", "-d", "orin-nano-8gb", "--bpw", "9"),
            "[NQ-OPTION] bits per weight must lie between 0.05 and 8, not 9.0",
        ),
        (
            ("M", "-d", "orin-nano-8gb", "--context", "999999"),
            "[NQ-OPTION] context 999999 is not between 1 and the model's",
        ),
        (("M", "-d", "orin-nano-8gb", "--power-mode", "9W"), "[NQ-OPTION] jetson-orin-nano-8gb has no power mode '9W'"),
        (("M", "-d", "agx-orin", "--power-mode", "30W"), "clocks of jetson-agx-orin-64gb in power mode 30W are not"),
        (("M", "-d", "nowhere"), "[NQ-TARGET] target 'nowhere' is not known"),
        (("no such model", "-d", "pi5"), "[NQ-MODEL] 'no such model' does not exist here and is not a hub id"),
        (("EMPTY", "-d", "pi5"), "has neither nq_bundle.json nor config.json"),
        (("MOE", "-d", "pi5"), "[NQ-ARCH] architecture 'mixtral' is not supported"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "M": write_config(tmp_path / "m"),
        "MOE": write_config(tmp_path / "moe", model_type="mixtral"),
        "EMPTY": str(tmp_path / "empty"),
    }
    with pytest.raises(SystemExit) as caught:
        main(["devices", "fit", *(places.get(word, word) for word in arguments)])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folder = write_config(tmp_path / "m")
    for arguments, status, words in (
        (["devices"], 0, "jetson-orin-nano-8gb"),
        (["devices", "show", "orin-nano-8gb"], 0, "assumed by this project"),
        (["devices", "show", "xavier-nx"], 0, "JetPack 5 brings Python 3.8"),
        (["devices", "show", "this"], 0, "cores"),
        (["devices", "fit", folder, "-d", "orin-nano-8gb"], 0, "forecast, not measured"),
        (["devices", "fit", folder, "-d", "this", "--table", "int8"], 0, "on the CPU"),
        (["devices", "fit", folder, "-d", "sm_87"], 0, "Cannot be judged"),
        (
            ["devices", "fit", folder, "-d", "orin-nano-4gb", "--context", "131072"],
            1,
            "Does not fit Jetson Orin Nano 4 GB",
        ),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out = capsys.readouterr()
        assert (caught.value.code or 0) == status and words in out.out, (arguments, out)


def test_the_verb_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_config(tmp_path / "m")
    found = {}
    for arguments in (["devices", "--json"], ["devices", "show", "pi5", "--json"]):
        with pytest.raises(SystemExit):
            main(arguments)
        found[arguments[1]] = json.loads(capsys.readouterr().out)
    assert found["--json"]["devices"]["rtx-4060"]["memory_gb"] == 8 and found["show"]["name"] == "raspberry-pi-5-8gb"
    with pytest.raises(SystemExit):
        main(["devices", "fit", folder, "-d", "rtx-3050", "--json"])
    fit = json.loads(capsys.readouterr().out)
    assert fit["fits"] and fit["forecast"]["kind"] == "forecast" and fit["quality"][0]["kind"] == "published"
    assert set(fit["forecast"]["decode_tps"]) == {"low", "middle", "high"}


@pytest.mark.parametrize(
    "arguments", [["show", "orin-nano-8gb"], ["show", "rtx-4060"], ["show", "pi5"], ["fit", "MODEL", "-d", "pi5"]]
)
def test_it_reads_well_at_80_columns(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = write_config(tmp_path / "Llama-3.2-1B")
    with pytest.raises(SystemExit):
        main(["devices", *(folder if word == "MODEL" else word for word in arguments)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(mark in line for line in lines for mark in ("{", "['", "…", "None", "_gb", "_ghz"))
    if arguments[0] == "fit":
        assert lines[0].startswith("Fits Raspberry Pi 5 8 GB: ") and "tokens/s (forecast)" in " ".join(lines[:2])
        assert any("Llama-3.2-1B (llama): 1 bit per weight" in line for line in lines)
    else:
        assert sum(line.startswith("- ") for line in lines) == len({line for line in lines if line.startswith("- ")})
