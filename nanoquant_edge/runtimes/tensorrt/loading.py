# SPDX-License-Identifier: Apache-2.0
"""From a bundle to a loaded engine: the manifest first, then the plugin, then the GPU, and the engine file last.

TensorRT runs machine code that lies in an engine only when its runtime is told so, and it is told so only with the
user's word (`trusted`). The plugin library comes from this package, never from the bundle.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import NqEdgeError
from ...formats.bundle import Bundle
from ...formats.engine import PLUGIN
from ...system.native import tensorrt_library_path
from .cache import DeviceCache
from .device import CudaDevice, Device
from .engine import Engine, TensorRTEngine
from .modules import import_cuda, import_tensorrt
from .requirements import build_command, check_capability, check_memory, check_plugin, check_software, engine_of

__all__ = ["Software", "deserialize", "make_logger", "open_engine", "register_plugin"]

#: Lines of TensorRT's log kept for messages.
_LOG_LINES = 64
#: A cache of compiled kernels is some MB.
_MAX_CACHE_BYTES = 1 << 30
#: Sign in TensorRT's log -> what is wrong, in our words.
_SIGNS = (
    (("blobsize failed", "minbuffersize", "size of the engine", "end of the"), "it is truncated"),
    (("magictag", "magic tag", "malformed"), "it is not an engine of this TensorRT"),
    (("compute capability", "compute 8", "generated for a different"), "it was built for other GPUs"),
    (("plugin", "creator"), "it needs a plugin that is not registered"),
    (("serialization version", "version tag", "version mismatch"), "it was built by another TensorRT"),
)


@dataclass(frozen=True)
class Software:
    """Where TensorRT, CUDA and the GPU come from; tests put others in their place.

    Attributes:
        import_tensorrt, import_cuda: flavour of an engine -> the module that runs it, and cuda-python's runtime.
        open_device: (the CUDA module, which GPU) -> the GPU.
    """

    import_tensorrt: Callable[[str], Any] = import_tensorrt
    import_cuda: Callable[[str], Any] = import_cuda
    open_device: Callable[[Any, int], Device] = CudaDevice


def open_engine(
    bundle: Bundle, *, trusted: bool = False, device_index: int = 0, software: Software | None = None
) -> tuple[Device, Engine]:
    """Check everything, then load the engine.

    Args:
        bundle: an opened bundle.
        trusted: code inside of the engine may run.
        device_index: which GPU.
        software: other modules and another GPU than the installed ones.

    Returns:
        The GPU and the engine on it; the caller closes both.

    Raises:
        NqEdgeError: NQ-BACKEND, NQ-TRUST, NQ-MISSING, NQ-NATIVE-MISSING, NQ-PLUGIN, NQ-CUDA, NQ-MEMORY or NQ-ENGINE.
    """
    software = software or Software()
    engine = engine_of(bundle)
    module = software.import_tensorrt(engine.flavour)
    check_software(bundle, engine, found=str(module.__version__), trusted=trusted)
    cuda = software.import_cuda(engine.flavour)
    library = None
    if not engine.plugin.embedded:
        library = tensorrt_library_path()
        check_plugin(engine, library)
    device = software.open_device(cuda, device_index)
    try:
        check_capability(engine, device.compute_capability, device.name)
        cache = DeviceCache(device, engine.kv).bytes_for(1)
        check_memory({"engine": bundle.files[engine.file].size, "key/value cache": cache}, *device.memory())
        log: list[str] = []
        logger = make_logger(module, log)
        if library is not None:
            register_plugin(module, str(library), log)
        return device, deserialize(bundle, module, logger=logger, log=log, trusted=trusted)
    except BaseException:
        device.close()
        raise


def make_logger(module: Any, log: list[str]) -> Any:
    """A TensorRT logger that keeps warnings and errors, the newest last.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        log: where they go; at most a few dozen lines stay.
    """

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                log.append(str(message).strip()[:500])
                del log[:-_LOG_LINES]

    return Logger()


def register_plugin(module: Any, library: str, log: list[str]) -> None:
    """Load the plugin library into TensorRT's registry, unless it is there already.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        library: path of the library.
        log: of a logger that TensorRT knows.

    Raises:
        NqEdgeError: NQ-PLUGIN when TensorRT cannot load it, or it registers another plugin.
    """
    registry = module.get_plugin_registry()
    if registry.get_creator(*PLUGIN) is not None:
        if _is_loaded(library):
            return
        raise NqEdgeError(
            "NQ-PLUGIN",
            f"another library has registered {PLUGIN[0]} with TensorRT in this process already.",
            f"Start a new process, and let nothing but nanoquant-edge load {library}.",
        )
    log.clear()
    if registry.load_library(library) is None:
        raise NqEdgeError("NQ-PLUGIN", f"TensorRT cannot load the plugin library {library}. {_words(log)}")
    if registry.get_creator(*PLUGIN) is None:
        raise NqEdgeError(
            "NQ-PLUGIN", f"{library} does not register plugin {PLUGIN[0]} version {PLUGIN[1]} of {PLUGIN[2]}."
        )


def _is_loaded(library: str) -> bool:
    """Whether the process holds this very library, as after a build in the same process."""
    try:
        ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def deserialize(bundle: Bundle, module: Any, *, logger: Any, log: list[str], trusted: bool) -> TensorRTEngine:
    """The engine of a bundle in GPU memory. The file is mapped, not read, so that it costs no host memory of its own.

    Args:
        bundle: an opened bundle with an engine.
        module: `tensorrt` or `tensorrt_rtx`.
        logger: a logger that writes to `log`.
        log: TensorRT's words, for messages.
        trusted: code inside of the engine may run.

    Raises:
        NqEdgeError: NQ-ENGINE or NQ-CUDA with TensorRT's words when it refuses, NQ-MEMORY.
    """
    engine = engine_of(bundle)
    path = bundle.path(engine.file)
    runtime = module.Runtime(logger)
    if trusted and engine.host_code:
        runtime.engine_host_code_allowed = True
    cache = bundle.path(engine.runtime_cache) if engine.runtime_cache else None
    content = b""
    if cache is not None and cache.stat().st_size <= _MAX_CACHE_BYTES:
        content = cache.read_bytes()
    log.clear()
    if not path.stat().st_size:
        raise NqEdgeError("NQ-ENGINE", f"{path} is empty.", f"Run `{build_command()}`.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        found = runtime.deserialize_cuda_engine(mapped)
    if found is None:
        raise _refusal(str(path), log)
    return TensorRTEngine(module, runtime, engine=found, log=log, runtime_cache=content)


def _refusal(path: str, log: list[str]) -> NqEdgeError:
    words = _words(log)
    small = words.lower()
    for signs, meaning in _SIGNS:
        if any(sign in small for sign in signs):
            return NqEdgeError(
                "NQ-ENGINE", f"TensorRT cannot load {path}: {meaning}. {words}", f"Run `{build_command()}`."
            )
    if "out of memory" in small or "outofmemory" in small:
        return NqEdgeError("NQ-MEMORY", f"the GPU has no room for {path}. {words}")
    if "cudaerror 35" in small or "driver" in small:
        return NqEdgeError("NQ-CUDA", f"TensorRT cannot use a GPU to load {path}. {words}")
    return NqEdgeError("NQ-ENGINE", f"TensorRT cannot load {path}. {words}", f"Run `{build_command()}`.")


def _words(log: list[str]) -> str:
    """TensorRT's first words of a failure: what follows are its consequences."""
    return f"TensorRT says: {'; '.join(log[:2])}" if log else "TensorRT does not say why."
