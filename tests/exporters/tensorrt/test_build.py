# SPDX-License-Identifier: Apache-2.0
"""Engines by the real builder of TensorRT for RTX, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.exporters.tensorrt import EngineOptions, build_engine
from nanoquant_edge.exporters.tensorrt.plan import BuildPlan
from nanoquant_edge.exporters.tensorrt.runner import run_compiler
from nanoquant_edge.exporters.tensorrt.toolchain import Toolchain
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.formats.onnx_file import external_tensors
from nanoquant_edge.system.files import sha256_of
from nanoquant_edge.system.native import ort_library_path, tensorrt_library_path
from tests.exporters.tensorrt.support import needs_builder
from tests.tiny import tiny_checkpoint

pytestmark = needs_builder
SMALL = EngineOptions(capacity=64, prefill=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("c") / "c", attention_bias=True, mid=True)


def test_one_engine_for_several_architectures(checkpoint: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    bundle = build_engine(
        checkpoint.folder,
        tmp_path / "e",
        target=("rtx-3060,sm_89", "rtx-5090"),
        options=SMALL,
        progress=lambda fraction, text: seen.append((fraction, text)),
    )
    assert bundle == replace(Bundle.open(tmp_path / "e", verify=True), folder=bundle.folder)
    engine = bundle.engine
    assert engine is not None and bundle.backend == "tensorrt-rtx" and bundle.dialect == "onnx24"
    assert engine.compute_capabilities == ("8.6", "8.9", "12.0") and engine.kv.in_place
    assert (engine.plugin_layers, engine.compressed_linears, bundle.compressed_linears) == (8, 14, 14)
    assert engine.plugin.sha256 == sha256_of(tensorrt_library_path()) and not engine.plugin.embedded
    assert bundle.kv.capacity == 64 and engine.profiles["prefill"].sequence == (1, 32, 32)
    assert engine.profiles["decode"].total == (64, 64, 64)
    assert {"model.engine", "tokenizer.json"} <= set(bundle.files) and not any("onnx" in name for name in bundle.files)
    assert bundle.files["model.engine"].size == bundle.measured["build"]["engine_bytes"] > 1 << 20
    measured = bundle.measured["build"]
    assert 1 << 20 < measured["peak_private_bytes"] < measured["peak_bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen) and len(seen) > 5
    assert any("building" in text for _, text in seen)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"dtype": "bfloat16", "batch": 4, "debug_outputs": "layers"}, 8),
        ({"grouped": False, "debug_outputs": "blocks", "optimization_level": 1, "workspace_mb": 64}, 14),
    ],
)
def test_options_reach_the_engine(checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, Any], layers: int) -> None:
    options = replace(SMALL, **changes)
    bundle = build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", options=options)
    engine = bundle.engine
    assert engine is not None and engine.plugin_layers == layers and engine.precision == options.dtype
    assert engine.profiles["decode"].batch == (1, options.batch, options.batch)
    names = [f"block.{block}.output" for block in range(2)]
    if options.debug_outputs == "layers":
        assert len(engine.debug_outputs) == 16 and [n for n in engine.debug_outputs if n.startswith("block")] == names
    else:
        assert list(engine.debug_outputs) == names


def test_an_embedded_plugin_is_in_the_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = build_engine(checkpoint.folder, tmp_path / "a", target="sm_86", options=SMALL)
    with_code = build_engine(
        checkpoint.folder, tmp_path / "b", target="sm_86", options=replace(SMALL, embed_plugin=True)
    )
    assert with_code.engine is not None and with_code.engine.plugin.embedded
    grown = with_code.files["model.engine"].size - plain.files["model.engine"].size
    assert grown > 0.9 * tensorrt_library_path().stat().st_size


def planned(source: Path, folder: Path) -> Path:
    """A folder with a graph and its plan, as the compiler gets it."""
    folder.mkdir(exist_ok=True)
    target = folder / "graph"

    class Keeping(Toolchain):
        def compile(self, folder: Path, output: Path, **rest: Any) -> dict[str, Any]:
            folder.rename(target)
            raise NqEdgeError("NQ-ENGINE", "stopped here.")

    with pytest.raises(NqEdgeError, match="stopped here"):
        build_engine(source, folder / "e", target="sm_86", options=SMALL, toolchain=Keeping())
    assert not (folder / "e").exists()
    return target


def test_a_bundle_gives_the_same_graph_without_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_onnx(checkpoint, tmp_path / "onnx", portable=True)
    graphs = [planned(checkpoint.folder, tmp_path / "a"), planned(tmp_path / "onnx", tmp_path / "b")]
    hashes = [{path.name: sha256_of(path) for path in graph.iterdir()} for graph in graphs]
    assert hashes[0] == hashes[1] and set(hashes[0]) == {"model.onnx", "model.onnx.data", "nq_build.json"}
    script = (
        "import sys\nfrom nanoquant_edge import build_engine\n"
        "from nanoquant_edge.exporters.tensorrt import EngineOptions\n"
        "options = EngineOptions(capacity=64, prefill=32)\n"
        "build_engine(sys.argv[1], sys.argv[2], target='sm_86', options=options)\nassert 'torch' not in sys.modules"
    )
    arguments = [str(tmp_path / "onnx"), str(tmp_path / "c")]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Bundle.open(tmp_path / "c").engine is not None


def test_tensorrt_parses_the_decomposed_dialect(checkpoint: Checkpoint, tmp_path: Path) -> None:
    decomposed = Toolchain(dialect="trt103")
    bundle = build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", options=SMALL, toolchain=decomposed)
    assert bundle.engine is not None and not bundle.engine.kv.in_place and bundle.engine.compressed_linears == 14


def test_numbers_that_differ_stop_the_build(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = planned(checkpoint.folder, tmp_path)
    replace(BuildPlan.read(graph), compressed_linears=15).write(graph)
    with pytest.raises(NqEdgeError, match="8 plugin layers with 14 compressed layers, the graph 8 with 15") as caught:
        run_compiler(graph, tmp_path / "model.engine", library=tensorrt_library_path())
    assert caught.value.code == "NQ-ENGINE" and not (tmp_path / "model.engine").exists()


def test_a_broken_graph_is_refused_in_the_parsers_words(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = planned(checkpoint.folder, tmp_path)
    whole = (graph / "model.onnx").read_bytes()
    (graph / "model.onnx").write_bytes(whole[:-1000])
    with pytest.raises(NqEdgeError, match="not a valid ONNX") as caught:
        run_compiler(graph, tmp_path / "model.engine", library=tensorrt_library_path())
    assert caught.value.code == "NQ-BUNDLE"
    model = onnx.load_from_string(whole)
    next(node for node in model.graph.node if node.op_type == "TensorScatter").input[0] = "nowhere"
    (graph / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(NqEdgeError, match=r"does not parse model\.onnx") as caught:
        run_compiler(graph, tmp_path / "model.engine", library=tensorrt_library_path())
    assert caught.value.code == "NQ-ENGINE"


def test_lent_weights_make_the_same_engine(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The parser reads the file itself, or is lent our mapping of it: the same weights at the same places.

    The files are not equal: TensorRT orders some outputs by addresses.
    """
    graph = planned(checkpoint.folder, tmp_path)
    run_compiler(graph, tmp_path / "lent.engine", library=tensorrt_library_path())
    script = (
        "import sys, nanoquant_edge.exporters.tensorrt.compile as compile\n"
        "compile.LentWeights = lambda model: None\nsys.exit(compile.main())"
    )
    command = (sys.executable, "-c", script)
    run_compiler(graph, tmp_path / "read.engine", library=tensorrt_library_path(), command=command)
    lent, read = ((tmp_path / name).read_bytes() for name in ("lent.engine", "read.engine"))
    weights = (graph / "model.onnx.data").read_bytes()
    locations = external_tensors((graph / "model.onnx").read_bytes()).values()
    assert len(lent) == len(read) and len(locations) > 50
    for _, start, length in locations:
        weight = weights[start : start + length]
        assert lent.find(weight) == read.find(weight) > 0


def test_another_library_is_not_the_plugin(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="cannot load") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", options=SMALL, library=ort_library_path())
    assert caught.value.code == "NQ-PLUGIN" and not (tmp_path / "e").exists()


def test_a_refittable_engine_needs_the_gpu(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="did not build the engine") as caught:
        build_engine(checkpoint.folder, tmp_path / "e", target="sm_86", options=replace(SMALL, refit=True))
    assert caught.value.code == "NQ-ENGINE" and "Without a GPU" in caught.value.hint


@pytest.mark.slow
def test_the_demo_bundle(tmp_path: Path) -> None:
    demo = Path(__file__).parents[3] / "build" / "demo" / "checkpoint"
    if not demo.is_dir():
        pytest.skip("no demo here; run `make demo`")
    bundle = build_engine(demo, tmp_path / "e", target=("sm_86", "sm_89", "sm_120"))
    assert bundle.engine is not None and bundle.engine.compressed_linears == 210
    measured = bundle.measured["build"]
    assert measured["peak_bytes"] < 1.5 * measured["graph_bytes"] + (1 << 30)
    assert json.loads((tmp_path / "e" / "nq_bundle.json").read_text())["engine"]["plugin_layers"] == 120
