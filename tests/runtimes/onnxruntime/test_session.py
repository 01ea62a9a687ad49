# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import nanoquant_edge
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.onnx_file import strip_functions, summarize
from nanoquant_edge.runtimes import OpenOptions, remarks
from nanoquant_edge.runtimes.onnxruntime.session import check_versions, open_session, refusal
from nanoquant_edge.system.processors import default_threads, usable_processors

Edit = Callable[..., Path]


def _refusal(folder: Path, **options: object) -> NqEdgeError:
    with pytest.raises(NqEdgeError) as caught:
        open_session(Bundle.open(folder), threads=1, **options)
    return caught.value


def test_the_summary_counts_what_onnx_counts(portable_bundle: Path) -> None:
    data = (portable_bundle / "model.onnx").read_bytes()
    model = onnx.load_from_string(data)
    summary = summarize(data)
    nodes = [node for node in model.graph.node if node.domain == "com.nanoquant"]
    assert summary.operators == {"NanoQuantLinear": len(nodes)}
    assert summary.functions == {"NanoQuantLinear"}
    assert summary.external_files == {"model.onnx.data"}


def test_only_our_functions_are_stripped(portable_bundle: Path) -> None:
    model = onnx.load(portable_bundle / "model.onnx", load_external_data=False)
    other = model.functions.add()
    other.CopyFrom(model.functions[0])
    other.name, other.domain = "Other", "elsewhere"
    stripped = onnx.load_from_string(strip_functions(model.SerializeToString()))
    assert [function.name for function in stripped.functions] == ["Other"]
    assert stripped.graph == model.graph


def test_nested_graphs_and_constants_are_looked_into() -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../w")
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("NanoQuantLinear", [], ["y"], domain="com.nanoquant")], "g", [], [], [tensor]
    )
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner)
    constant = onnx.helper.make_node("Constant", [], ["k"], value=tensor)
    summary = summarize(
        onnx.helper.make_model(onnx.helper.make_graph([node, constant], "m", [], [])).SerializeToString()
    )
    assert summary.operators == {"NanoQuantLinear": 1}
    assert summary.external_files == {"../w"}


def test_graphs_nested_without_end_are_refused() -> None:
    def record(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload) & 0x7F | 0x80, len(payload) >> 7]) + payload

    graph = b""
    for _ in range(40):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        graph = record(1, record(5, record(6, graph)))
    with pytest.raises(NqEdgeError, match="not a valid ONNX file"):
        summarize(record(7, graph))


def test_no_cut_or_changed_file_crashes_the_reader(portable_bundle: Path) -> None:
    data = (portable_bundle / "model.onnx").read_bytes()
    for end in range(0, len(data), 997):
        for piece in (data[:end], data[:end] + b"\xff" + data[end + 1 :]):
            try:
                summarize(piece)
                strip_functions(piece)
            except NqEdgeError as error:
                assert error.code == "NQ-BUNDLE"  # a cut at a record's end is a valid, shorter file


def test_the_kernel_runs_when_the_library_is_there(tiny_bundle: Path, portable_bundle: Path) -> None:
    for folder in (tiny_bundle, portable_bundle):
        for allowed in (False, True):
            _, kernel = open_session(Bundle.open(folder), threads=1, allow_portable=allowed)
            assert kernel == "nanoquant"


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "native"
    folder.mkdir()
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", str(folder))
    return folder


def test_a_missing_library_is_refused_also_when_the_slow_body_is_there(
    no_library: Path, tiny_bundle: Path, portable_bundle: Path
) -> None:
    error = _refusal(tiny_bundle)
    assert error.code == "NQ-NATIVE-MISSING"
    assert str(no_library) in error.message
    assert "--allow-portable" not in error.hint
    error = _refusal(portable_bundle)
    assert error.code == "NQ-NATIVE-MISSING"
    assert "--allow-portable" in error.hint


def test_the_slow_body_runs_when_allowed_and_says_so(no_library: Path, portable_bundle: Path) -> None:
    session, kernel = open_session(Bundle.open(portable_bundle), threads=1, allow_portable=True)
    assert kernel == "portable"
    assert session.get_outputs()[0].name == "logits"


def test_the_slow_body_is_opened_without_constant_folding(no_library: Path, portable_bundle: Path) -> None:
    # Whether folding would unpack the weights depends on the body, which may be another exporter's.
    seen = []

    def recorded(*arguments: object, **options: object) -> object:
        seen.append(options["disabled_optimizers"])
        return onnxruntime.InferenceSession(*arguments, **options)

    runtime = SimpleNamespace(**{**vars(onnxruntime), "InferenceSession": recorded})
    open_session(Bundle.open(portable_bundle), threads=1, allow_portable=True, runtime=runtime)
    assert seen == [["ConstantFolding"]]


def test_without_library_and_body_allowing_it_does_not_help(no_library: Path, tiny_bundle: Path) -> None:
    error = _refusal(tiny_bundle, allow_portable=True)
    assert error.code == "NQ-NATIVE-MISSING"
    assert "--portable" in error.hint


def test_a_broken_library_is_refused(no_library: Path, portable_bundle: Path) -> None:
    (no_library / "libnanoquant_ort.so").write_bytes(b"\x7fELF broken")
    error = _refusal(portable_bundle)
    assert error.code == "NQ-NATIVE-MISSING"
    assert "cannot be loaded" in error.message
    _, kernel = open_session(Bundle.open(portable_bundle), threads=1, allow_portable=True)
    assert kernel == "portable"


def test_a_library_that_registers_nothing_does_not_leave_the_slow_body_running(
    no_library: Path, portable_bundle: Path, tmp_path: Path
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "empty.c"
    source.write_text("void *RegisterCustomOps(void *options, const void *api) { return 0; }\n")
    target = str(no_library / "libnanoquant_ort.so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(source)], check=True)
    error = _refusal(portable_bundle)
    assert error.code == "NQ-NATIVE-MISSING"
    assert "no kernel for this bundle" in error.message


def test_a_library_inside_the_bundle_is_never_loaded(
    no_library: Path, portable_bundle: Path, edit_bundle: Edit
) -> None:
    real = Path(nanoquant_edge.__file__).parent / "_native" / "libnanoquant_ort.so"
    folder = edit_bundle(portable_bundle, files={"libnanoquant_ort.so": real.read_bytes()})
    assert _refusal(folder).code == "NQ-NATIVE-MISSING"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "tensorrt-build"}, "built for tensorrt-build"),
        ({"backend_versions": ["99.1", ""]}, "needs onnxruntime 99.1 or newer, installed is 1."),
        ({"backend_versions": ["1.0", "1.2"]}, "needs onnxruntime 1.0 to 1.2, installed is 1."),
        ({"operator_version": 2}, "version 2 of NanoQuantLinear"),
        ({"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_bundles_for_something_else_are_refused(
    fields: dict, message: str, tiny_bundle: Path, edit_bundle: Edit
) -> None:
    error = _refusal(edit_bundle(tiny_bundle, **fields))
    assert error.code == "NQ-BACKEND"
    assert message in error.message


def test_versions_are_compared_as_numbers(tiny_bundle: Path, edit_bundle: Edit) -> None:
    bundle = Bundle.open(edit_bundle(tiny_bundle, backend_versions=["1.9", "1.31"]))
    check_versions(bundle, "1.31.1")
    check_versions(bundle, "1.10.0+cpu")
    with pytest.raises(NqEdgeError, match=r"1\.9 to 1\.31"):
        check_versions(bundle, "1.32.0")
    with pytest.raises(NqEdgeError, match=r"1\.9 to 1\.31"):
        check_versions(bundle, "1.8.9")


def test_a_graph_without_our_operator_is_refused(tiny_bundle: Path, edit_bundle: Edit) -> None:
    model = onnx.load(tiny_bundle / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.domain == "com.nanoquant":
            node.domain, node.op_type = "", "Identity"
    error = _refusal(edit_bundle(tiny_bundle, files={"model.onnx": model.SerializeToString()}))
    assert error.code == "NQ-BUNDLE"
    assert "no com.nanoquant operator" in error.message


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "unlisted.bin"])
def test_weights_outside_of_the_bundle_are_refused(location: str, tiny_bundle: Path, edit_bundle: Edit) -> None:
    model = onnx.load(tiny_bundle / "model.onnx", load_external_data=False)
    external = next(t for t in model.graph.initializer if t.external_data)
    next(entry for entry in external.external_data if entry.key == "location").value = location
    folder = edit_bundle(tiny_bundle, files={"model.onnx": model.SerializeToString()})
    error = _refusal(folder)
    if location == "unlisted.bin":
        assert error.code == "NQ-BUNDLE" and "'unlisted.bin', which the manifest does not list" in error.message
    else:
        assert error.code == "NQ-PATH" and "no file of its own folder" in error.message


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x3a\xff\xff\xff\xff\x7f"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tiny_bundle: Path, edit_bundle: Edit) -> None:
    assert _refusal(edit_bundle(tiny_bundle, files={"model.onnx": content})).code in ("NQ-BUNDLE", "NQ-BACKEND")


def test_a_missing_model_is_refused(tiny_bundle: Path, edit_bundle: Edit) -> None:
    assert _refusal(edit_bundle(tiny_bundle, files={"model.onnx": None})).code == "NQ-BUNDLE"


@pytest.mark.parametrize("threads", [0, -1, 1.5, 5000])
def test_a_bad_number_of_threads_is_refused(threads: object, tiny_bundle: Path) -> None:
    with pytest.raises(NqEdgeError, match="threads must be") as caught:
        open_session(Bundle.open(tiny_bundle), threads=threads)  # type: ignore[arg-type]
    assert caught.value.code == "NQ-OPTION"


@pytest.fixture
def one_processor() -> Iterator[None]:
    """This thread may run on one processor only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def _started(folder: Path, threads: int | None) -> int:
    """Worker threads that a session is told to start; 0 is ONNX Runtime's own choice."""
    seen: list[int] = []

    def recorded(model: bytes, settings: Any, *arguments: object, **options: object) -> object:
        seen.append(settings.intra_op_num_threads)
        return onnxruntime.InferenceSession(model, settings, *arguments, **options)

    runtime = SimpleNamespace(**{**vars(onnxruntime), "InferenceSession": recorded})
    open_session(Bundle.open(folder), threads=threads, runtime=runtime)
    return seen[0]


@pytest.mark.parametrize("threads", [None, 1, 64, np.int64(64)])
def test_threads_are_those_of_one_processor_where_that_is_all(
    threads: int | None, one_processor: None, tiny_bundle: Path
) -> None:
    assert _started(tiny_bundle, threads) == 1


def test_threads_are_no_more_than_the_processors(tiny_bundle: Path) -> None:
    usable = usable_processors()
    assert _started(tiny_bundle, 1) == 1
    assert _started(tiny_bundle, 1000) == usable
    free = len(os.sched_getaffinity(0)) == usable == os.cpu_count()
    assert _started(tiny_bundle, None) == (0 if free else default_threads())


def test_more_threads_than_processors_are_told(one_processor: None, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    (told,) = remarks(bundle, OpenOptions(threads=64))
    assert told.startswith("64 threads were asked for; this process may use 1 processors, so 1 threads run")
    assert remarks(bundle, OpenOptions(threads=1)) == remarks(bundle, OpenOptions()) == remarks(bundle) == ()


@pytest.mark.parametrize("words", ["std::bad_alloc", "Failed to allocate memory for requested buffer of size 7"])
def test_want_of_memory_is_called_so_whenever_it_shows(words: str, tiny_bundle: Path) -> None:
    def failing(*_arguments: object, **_options: object) -> object:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : {words}")

    runtime = SimpleNamespace(**{**vars(onnxruntime), "InferenceSession": failing})
    with pytest.raises(NqEdgeError, match="too little memory") as caught:
        open_session(Bundle.open(tiny_bundle), threads=1, runtime=runtime)
    assert caught.value.code == "NQ-MEMORY"
    assert "version" not in caught.value.message and "install" not in caught.value.hint
    error = refusal(
        OSError("libx.so: cannot map zero-fill pages: Cannot allocate memory"), "NQ-NATIVE-MISSING", message="x"
    )
    assert error.code == "NQ-MEMORY"
    assert refusal(RuntimeError("opset 99"), "NQ-BACKEND", message="x").code == "NQ-BACKEND"


def test_a_missing_onnxruntime_names_the_extra(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = _refusal(tiny_bundle)
    assert error.code == "NQ-MISSING"
    assert "pip install 'onnxruntime>=" in error.hint
