# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle's graph with ONNX Runtime so that compressed layers run on this package's kernels, or not at all.

A file may carry the operator's body in standard operators. If our library then fails to register, ONNX Runtime runs
that body, a hundred times slower and without a word. So the bodies are cut out of the model before it is loaded,
unless the caller allows them: without a body, a missing kernel is an error when the session is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...formats.bundle import Bundle
from ...formats.onnx_file import ModelSummary, strip_functions, summarize
from ...formats.onnx_outputs import FOLDER_OPTION, with_extra_outputs
from ...system.extras import install_command
from ...system.files import path_inside
from ...system.native import ort_library_path
from .providers import CPU, check_started, provider_list

__all__ = ["KERNEL", "NO_KERNEL", "PORTABLE", "open_session"]

MODEL_FILE = "model.onnx"
KERNEL, PORTABLE, NO_KERNEL = "nanoquant", "portable", "none"
#: Versions of com.nanoquant::NanoQuantLinear that this package's library implements.
OPERATOR_VERSIONS = (1,)
#: Weights lie outside of model.onnx; what is left is structure, some 100 KB for 30 layers.
MAX_MODEL_BYTES = 512 << 20


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        NqEdgeError: NQ-MISSING when it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NqEdgeError(
            "NQ-MISSING", f"onnxruntime cannot be imported ({error}).", f"Run {install_command('cpu')}."
        ) from error
    return onnxruntime


def _version(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: "1.23.2+cpu" -> (1, 23, 2)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_versions(bundle: Bundle, found: str) -> None:
    """Compare a bundle's needs with what is installed.

    Raises:
        NqEdgeError: NQ-BACKEND naming both sides when the backend, its version or the operator's version does not fit.
    """
    low, high = bundle.backend_versions
    if bundle.backend != "onnxruntime":
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle was built for {bundle.backend}, not for onnxruntime.",
            "Run `nq-edge export CHECKPOINT --to onnx`.",
        )
    too_old = low and _version(found) < _version(low)
    too_new = high and _version(found)[: len(_version(high))] > _version(high)
    if too_old or too_new:
        wanted = f"{low} or newer" if not high else f"{low} to {high}"
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle needs onnxruntime {wanted}, installed is {found}.",
            f"Run pip install 'onnxruntime{'>=' + low if too_old else '<=' + high}', or export again.",
        )
    if bundle.operator_version not in OPERATOR_VERSIONS:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle uses version {bundle.operator_version} of NanoQuantLinear, this program has version "
            f"{OPERATOR_VERSIONS[-1]}.",
            "Install a newer nanoquant-edge, or export again with this one.",
        )


def open_session(
    bundle: Bundle,
    *,
    threads: int | None = None,
    allow_portable: bool = False,
    extra_outputs: tuple[str, ...] = (),
    spin: bool = True,
    provider: str = CPU,
    profile_prefix: str | None = None,
) -> tuple[Any, str]:
    """Make a session for a bundle's graph.

    Args:
        bundle: an opened bundle.
        threads: worker threads; None takes ONNX Runtime's default, the physical cores.
        allow_portable: run the operator's body in standard operators when the kernel library is not there.
        extra_outputs: names of inner values that become outputs too.
        spin: let idle worker threads wait busily, ONNX Runtime's default. With two threads on two cores it decoded
            faster by a fifth when the machine was idle, and slower by a third when others used it.
        provider: "cpu", or "cuda" for an NVIDIA GPU.
        profile_prefix: path and beginning of a file for ONNX Runtime's profile; None records none.

    Returns:
        The onnxruntime.InferenceSession, and which kernel runs: "nanoquant", "portable" or "none".

    Raises:
        NqEdgeError: NQ-NATIVE-MISSING when the kernels are missing and the body is not allowed or not in the file;
            NQ-BACKEND when versions do not fit, the provider is missing or ONNX Runtime refuses the graph; NQ-BUNDLE or
            NQ-PATH for a bad file.
    """
    runtime = import_onnxruntime()
    check_versions(bundle, runtime.__version__)
    providers = provider_list(runtime, bundle, provider)
    path = path_inside(bundle.folder, MODEL_FILE)
    if not path.is_file() or path.stat().st_size > MAX_MODEL_BYTES:
        raise NqEdgeError("NQ-BUNDLE", f"{path} is missing or too large for a graph without its weights.")
    model = with_extra_outputs(path, extra_outputs, bundle.dtype) if extra_outputs else path.read_bytes()
    summary = summarize(model)
    _check_files(bundle, summary)
    options = _options(runtime, bundle.folder, threads, spin)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    kernel, disabled = _register(options, bundle, summary, allow_portable), None
    if kernel == PORTABLE:
        disabled = ["ConstantFolding"]  # it would unpack every weight: 7 MB of bits become 1.5 GB
        # Seen with 1.23.2: the layout level aborts the process on an inlined body; the level below it does not.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    else:
        model = strip_functions(model)
    try:
        session = runtime.InferenceSession(model, options, providers, disabled_optimizers=disabled)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        text = str(error).strip()
        if kernel == KERNEL and "com.nanoquant" in text and "not a registered" in text:
            raise NqEdgeError(
                "NQ-NATIVE-MISSING", f"the kernel library has no kernel for this bundle: {text}"
            ) from error
        raise NqEdgeError("NQ-BACKEND", f"onnxruntime {runtime.__version__} refuses the graph: {text}") from error
    check_started(runtime, session, provider)
    return session, kernel


def _check_files(bundle: Bundle, summary: ModelSummary) -> None:
    # Names in the manifest were seen to stay inside the folder, so being listed is enough.
    for name in (MODEL_FILE, *sorted(summary.external_files)):
        if name not in bundle.files:
            raise NqEdgeError("NQ-BUNDLE", f"the model needs {name!r}, which the manifest does not list.")


def _options(runtime: Any, folder: Path, threads: int | None, spin: bool) -> Any:
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
        raise NqEdgeError("NQ-OPTION", f"threads must be a whole number from 1 to 1024, got {threads!r}.")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised as well, with a code
    # Shapes change with each chunk and step: patterns would be recorded for nothing, and an arena would keep the
    # largest prefill's memory for good.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry(FOLDER_OPTION, str(folder.resolve()))
    return options


def _register(options: Any, bundle: Bundle, summary: ModelSummary, allow_portable: bool) -> str:
    """Add our operator library to the options; returns which kernel will run."""
    if not summary.operators:
        if bundle.compressed_linears and not allow_portable:
            raise NqEdgeError(
                "NQ-BUNDLE",
                f"the manifest promises {bundle.compressed_linears} compressed layers, the graph has no "
                "com.nanoquant operator.",
            )
        return NO_KERNEL
    try:
        path = ort_library_path()
        try:
            options.register_custom_ops_library(str(path))
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise NqEdgeError("NQ-NATIVE-MISSING", f"{path} cannot be loaded: {str(error).strip()}") from error
    except NqEdgeError as error:
        if not allow_portable:
            raise NqEdgeError(
                error.code,
                f"{error.message} Without it the bundle's compressed layers cannot run"
                + (", or only with the slow body in standard operators." if summary.functions else "."),
                error.hint + (" --allow-portable runs the slow body." if summary.functions else ""),
            ) from error
        if not set(summary.operators) <= summary.functions:
            raise NqEdgeError(
                error.code,
                f"{error.message} The bundle has no body in standard operators to run instead.",
                f"{error.hint} Or run `nq-edge export` again with --portable.",
            ) from error
        return PORTABLE
    return KERNEL
