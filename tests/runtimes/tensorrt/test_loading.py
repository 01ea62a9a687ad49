# SPDX-License-Identifier: Apache-2.0
"""Opening an engine: the order of the checks, and every refusal, most of them by the real TensorRT for RTX.

Where no GPU is at hand TensorRT for RTX refuses every engine, but a damaged one with other words than a whole one.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.backends import FLAVOURS
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes.tensorrt.loading import (
    Software,
    deserialize,
    make_logger,
    open_engine,
    register_plugin,
)
from nanoquant_edge.runtimes.tensorrt.modules import import_cuda, import_tensorrt
from nanoquant_edge.system.extras import install_command
from nanoquant_edge.system.files import sha256_of
from nanoquant_edge.system.native import TENSORRT_LIBRARY_NAME, tensorrt_library_path
from tests.runtimes.tensorrt.conftest import engine_info, write_engine_bundle


def _have_plugin() -> bool:
    try:
        return tensorrt_library_path().is_file()
    except NqEdgeError:
        return False


needs_plugin = pytest.mark.skipif(not _have_plugin(), reason="the TensorRT plugin is not built")


@pytest.fixture(scope="session")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="session")
def real_engine(rtx: Any) -> bytes:
    """A real engine of one node for sm_86, built without a GPU."""
    builder = rtx.Builder(make_logger(rtx, []))
    network = builder.create_network(0)
    x = network.add_input("x", rtx.float16, (-1, 4))
    y = network.add_unary(x, rtx.UnaryOperation.EXP).get_output(0)
    network.mark_output(y)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (1, 4), (8, 4))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture
def make(graph_bundle: Path, tmp_path: Path) -> Any:
    def bundle(content: bytes = b"x", **changes: Any) -> Bundle:
        return write_engine_bundle(graph_bundle, tmp_path / "bundle", engine_info(**changes), content)

    return bundle


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file under the plugin's name; its content is never run."""
    (tmp_path / "native").mkdir()
    path = tmp_path / "native" / TENSORRT_LIBRARY_NAME
    path.write_bytes(b"not a library")
    monkeypatch.setenv("NQ_EDGE_NATIVE_DIR", str(path.parent))
    return path


def _refused(bundle: Bundle, code: str, *parts: str, **options: Any) -> NqEdgeError:
    with pytest.raises(NqEdgeError) as caught:
        open_engine(bundle, **options)
    assert caught.value.code == code, caught.value
    for part in parts:
        assert part in str(caught.value), caught.value
    return caught.value


def _touched(*_arguments: Any) -> Any:
    raise AssertionError("the GPU was touched before the manifest was checked")


IMITATED = SimpleNamespace(__version__="1.7.1.116", __name__="imitated", ILogger=object)
#: A TensorRT, and no GPU: what is refused with it is refused before a GPU is touched.
WITHOUT_GPU = Software(lambda _flavour: IMITATED, lambda _flavour: None, _touched)


def _refused_by_the_manifest(bundle: Bundle, code: str, *parts: str) -> NqEdgeError:
    return _refused(bundle, code, *parts, software=WITHOUT_GPU)


def test_an_onnx_bundle(graph_bundle: Path) -> None:
    _refused_by_the_manifest(
        Bundle.open(graph_bundle), "NQ-BACKEND", "made for onnxruntime, not for TensorRT", "nq-edge build"
    )


@pytest.mark.parametrize("version", ["1.7.0.99", "1.7.1.115", "1.8.0.1", "2.0.0.1"])
def test_another_tensorrt(version: str, make: Any) -> None:
    _refused_by_the_manifest(
        make(tensorrt_version=version), "NQ-BACKEND",
        f"built by TensorRT for RTX {version}", "installed is 1.7.1.116", "nq-edge build BUNDLE",
    )  # fmt: skip


def test_a_version_compatible_engine_runs_on_newer_ones_only(make: Any, library: Path) -> None:
    older = make(tensorrt_version="1.4.0.76", version_compatible=True)
    _refused_by_the_manifest(older, "NQ-PLUGIN")  # the version passed
    newer = replace(older, engine=replace(older.engine, tensorrt_version="1.9.0.1"))
    _refused_by_the_manifest(newer, "NQ-BACKEND", "needs it or newer 1.x")
    other = replace(older, engine=replace(older.engine, tensorrt_version="0.9.0.1"))
    _refused_by_the_manifest(other, "NQ-BACKEND", "needs it or newer 0.x")


def test_another_version_of_the_operator(make: Any) -> None:
    _refused_by_the_manifest(
        replace(make(), operator_version=2), "NQ-BACKEND", "version 2 of NanoQuantLinear", "has version 1"
    )


def test_code_inside_of_the_engine(make: Any) -> None:
    plugin = replace(engine_info().plugin, embedded=True)
    _refused_by_the_manifest(make(plugin=plugin), "NQ-TRUST", "plugin library is embedded", "--trust-bundle-code")


def test_a_missing_plugin(make: Any, library: Path) -> None:
    library.unlink()
    _refused_by_the_manifest(make(), "NQ-NATIVE-MISSING", TENSORRT_LIBRARY_NAME, "does not exist")


def test_another_plugin(make: Any, library: Path) -> None:
    error = _refused_by_the_manifest(
        make(), "NQ-PLUGIN", "SHA-256 0000000000000000...", sha256_of(library)[:16], str(library)
    )
    assert "nq-edge build" in error.hint


@pytest.mark.parametrize("change", [{"name": "Other"}, {"version": "2"}, {"namespace": ""}])
def test_another_plugin_by_name(change: dict[str, str], make: Any, library: Path) -> None:
    plugin = replace(engine_info().plugin, sha256=sha256_of(library), **change)
    _refused_by_the_manifest(make(plugin=plugin), "NQ-PLUGIN", "com.nanoquant::NanoQuantLinear version 1")


class _Gpu:
    """What `CudaDevice` says of a GPU; remembers that it was closed."""

    def __init__(self, capability: str = "9.0", free: int = 1 << 30) -> None:
        self.name, self.compute_capability, self._free, self.closed = "NVIDIA H200", capability, free, False

    def memory(self) -> tuple[int, int]:
        return self._free, 2 << 30

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fitting(library: Path, make: Any) -> Any:
    """A bundle whose plugin is the installed one."""
    return lambda **changes: make(plugin=replace(engine_info().plugin, sha256=sha256_of(library)), **changes)


def test_another_gpu(fitting: Any) -> None:
    gpu = _Gpu()
    software = replace(WITHOUT_GPU, open_device=lambda *_arguments: gpu)
    error = _refused(fitting(), "NQ-BACKEND", "compute capability 8.6, 8.9; NVIDIA H200 has 9.0", software=software)
    assert "nq-edge build BUNDLE --target sm_90" in error.hint
    assert gpu.closed


def test_too_little_memory(fitting: Any) -> None:
    gpu = _Gpu("8.9", 30_000)
    # 2 layers of keys and values, 2 heads x 96 slots x 16 channels x 4 bytes.
    words = ("engine 0.0 MB, key/value cache 0.0 MB", "of 2147.5 MB are free", "--capacity")
    _refused(fitting(), "NQ-MEMORY", *words, software=replace(WITHOUT_GPU, open_device=lambda *_arguments: gpu))
    assert gpu.closed


def test_without_a_gpu_or_driver(fitting: Any) -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if not int(cuda.cudaGetDeviceCount()[0]):
        pytest.skip("this machine has a GPU")
    software = Software(lambda _flavour: IMITATED, lambda _flavour: cuda)
    _refused(fitting(), "NQ-CUDA", "needs an NVIDIA GPU and its driver", "nvidia-smi", "--to onnx", software=software)


@pytest.mark.parametrize("flavour", ["rtx", "standard"])
def test_packages_that_are_not_installed(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(flavour.module for flavour in FLAVOURS.values()), "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    extra = {"rtx": "rtx", "standard": "tensorrt"}[flavour]
    for function in (import_tensorrt, import_cuda):
        with pytest.raises(NqEdgeError, match="cannot be imported") as caught:
            function(flavour)
        assert caught.value.code == "NQ-MISSING" and install_command(extra) in caught.value.hint


def test_the_other_flavour_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "tensorrt_rtx" else None)
    with pytest.raises(NqEdgeError, match="built by TensorRT, installed is TensorRT for RTX") as caught:
        import_tensorrt("standard")
    assert caught.value.code == "NQ-BACKEND" and "nq-edge build" in caught.value.hint


def _deserialize(bundle: Bundle, rtx: Any, trusted: bool = False) -> None:
    log: list[str] = []
    deserialize(bundle, rtx, logger=make_logger(rtx, log), log=log, trusted=trusted)


def test_the_real_tensorrt_names_what_is_wrong_with_a_damaged_engine(real_engine: bytes, rtx: Any, make: Any) -> None:
    for content, code, words in (
        (real_engine[: len(real_engine) // 2], "NQ-ENGINE", "it is truncated"),
        (real_engine[:10], "NQ-ENGINE", "it is truncated"),
        (b"\0" * 5000, "NQ-ENGINE", "it is not an engine of this TensorRT"),
        (b"", "NQ-ENGINE", "is empty"),
    ):
        bundle = make(content)
        with pytest.raises(NqEdgeError, match=words) as caught:
            _deserialize(bundle, rtx)
        assert caught.value.code == code and "nq-edge build" in caught.value.hint
        for path in bundle.folder.iterdir():
            path.unlink()
        bundle.folder.rmdir()


def test_the_real_tensorrt_without_a_gpu(real_engine: bytes, rtx: Any, make: Any) -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if not int(cuda.cudaGetDeviceCount()[0]):
        pytest.skip("this machine has a GPU")
    with pytest.raises(NqEdgeError, match="cannot use a GPU") as caught:
        _deserialize(make(real_engine), rtx)
    assert caught.value.code == "NQ-CUDA"


@pytest.mark.parametrize(
    ("words", "code", "meaning"),
    [
        ("The engine plan file is generated for compute capability 8.6, expecting 9.0", "NQ-ENGINE", "other GPUs"),
        ("Cannot find plugin: NanoQuantLinear, version: 1", "NQ-ENGINE", "plugin that is not registered"),
        ("Serialization (version tag mismatch)", "NQ-ENGINE", "by another TensorRT"),
        ("OutOfMemory (requested 7 bytes): out of memory", "NQ-MEMORY", "no room"),
        ("something new", "NQ-ENGINE", "something new"),
    ],
)
def test_other_words_of_tensorrt(words: str, code: str, meaning: str, make: Any) -> None:
    log: list[str] = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, _logger: Any) -> None: ...

        def deserialize_cuda_engine(self, _mapped: Any) -> None:
            log.append(words)

    bundle = make()
    with pytest.raises(NqEdgeError, match=meaning) as caught:
        deserialize(bundle, SimpleNamespace(Runtime=Runtime), logger=None, log=log, trusted=False)
    assert caught.value.code == code


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_host_code_is_allowed_with_the_users_word_only(embedded: bool, trusted: bool, make: Any) -> None:
    seen: list[bool] = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, _logger: Any) -> None: ...

        def deserialize_cuda_engine(self, _mapped: Any) -> None:
            seen.append(self.engine_host_code_allowed)

    bundle = make(plugin=replace(engine_info().plugin, embedded=embedded))
    with pytest.raises(NqEdgeError):
        deserialize(bundle, SimpleNamespace(Runtime=Runtime), logger=None, log=[], trusted=trusted)
    assert seen == [embedded and trusted]


_REGISTER = """
import sys
import tensorrt_rtx
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.extras import install_command
from nanoquant_edge.runtimes.tensorrt.loading import make_logger, register_plugin
log = []
runtime = tensorrt_rtx.Runtime(make_logger(tensorrt_rtx, log))
for library in sys.argv[1:]:
    try:
        register_plugin(tensorrt_rtx, library, log)
        print("registered")
    except NqEdgeError as error:
        print(error)
"""


def _register(*libraries: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _REGISTER, *map(str, libraries)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@needs_plugin
def test_our_plugin_registers_with_the_real_tensorrt_once_and_again(rtx: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(tensorrt_library_path().read_bytes())
    first, second, third = _register(tensorrt_library_path(), tensorrt_library_path(), copy)
    assert (first, second) == ("registered", "registered")
    assert "another library has registered NanoQuantLinear" in third


def test_files_that_are_no_plugin(rtx: Any, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    other = next(Path("/usr/lib").rglob("libz.so.1"), None)
    found = _register(tmp_path / "text.so", *([other] if other else []))
    assert found[0].startswith("[NQ-PLUGIN] TensorRT cannot load the plugin library")
    assert all(line.startswith("[NQ-PLUGIN]") for line in found)


def test_a_library_with_other_plugins() -> None:
    registry = SimpleNamespace(get_creator=lambda *_name: None, load_library=lambda _path: object())
    module = SimpleNamespace(get_plugin_registry=lambda: registry)
    with pytest.raises(NqEdgeError, match=r"/x\.so does not register plugin NanoQuantLinear version 1"):
        register_plugin(module, "/x.so", [])
