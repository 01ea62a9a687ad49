# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle's graph with ONNX Runtime so that compressed layers run on this package's kernels, or not at all.

A file may carry the operator's body in standard operators. If our library then fails to register, ONNX Runtime runs
that body, a hundred times slower and without a word. So the bodies are cut out of the model before it is loaded,
unless the caller allows them: without a body, a missing kernel is an error when the session is made.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import NqEdgeError
from ...formats.backends import ONNXRUNTIME
from ...formats.bundle import Bundle
from ...formats.graph import DOMAIN, MODEL_FILE
from ...formats.graph_check import check_graph
from ...formats.onnx_file import MAX_MODEL_BYTES, ModelSummary, rename_data, strip_functions
from ...formats.onnx_outputs import FOLDER_OPTION, with_extra_outputs
from ...system.error_messages import wants_memory
from ...system.extras import install_command
from ...system.native import ort_library_path
from ...system.processors import allowed_processors, default_threads, usable_processors
from ...system.versions import release
from ..options import OpenKeywords, OpenOptions
from .providers import check_started, provider_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KERNEL", "NO_KERNEL", "PORTABLE", "import_onnxruntime", "open_session", "refusal"]

KERNEL, PORTABLE, NO_KERNEL = "nanoquant", "portable", "none"


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        NqEdgeError: NQ-MISSING when it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        message = f"onnxruntime cannot be imported ({error})."
        raise refusal(error, "NQ-MISSING", message=message, hint=f"Run {install_command('cpu')}.") from error
    return onnxruntime


def refusal(error: BaseException, code: str, *, message: str, hint: str = "") -> NqEdgeError:
    """The error to raise when ONNX Runtime refuses: about memory when that ran out, whatever was being done.

    Args:
        error: what was raised.
        code, message, hint: of the error when there was memory enough.
    """
    if wants_memory(error):
        return NqEdgeError("NQ-MEMORY", f"there is too little memory for the model: {str(error).strip()}")
    return NqEdgeError(code, message, hint)


def check_versions(bundle: Bundle, found: str) -> None:
    """Compare a bundle's needs with what is installed.

    Raises:
        NqEdgeError: NQ-BACKEND naming both sides when the backend, its version or the operator's version does not fit.
    """
    low, high = bundle.backend_versions
    if bundle.backend != ONNXRUNTIME:
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle was built for {bundle.backend}, not for onnxruntime.",
            "Run `nq-edge export CHECKPOINT --to onnx`.",
        )
    too_old = low and release(found) < release(low)
    too_new = high and release(found)[: len(release(high))] > release(high)
    if too_old or too_new:
        wanted = f"{low} or newer" if not high else f"{low} to {high}"
        raise NqEdgeError(
            "NQ-BACKEND",
            f"the bundle needs onnxruntime {wanted}, installed is {found}.",
            f"Run pip install 'onnxruntime{'>=' + low if too_old else '<=' + high}', or export again.",
        )
    bundle.check_operator_version()


def open_session(
    bundle: Bundle,
    options: OpenOptions | None = None,
    *,
    extra_outputs: tuple[str, ...] = (),
    profile_prefix: str | None = None,
    runtime: Any = None,
    **keywords: Unpack[OpenKeywords],
) -> tuple[Any, str]:
    """Make a session for a bundle's graph.

    Args:
        bundle: an opened bundle.
        options: how it is opened.
        extra_outputs: names of inner values that become outputs too.
        profile_prefix: path and beginning of a file for ONNX Runtime's profile; None records none.
        runtime: the onnxruntime module; None imports it.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Returns:
        The onnxruntime.InferenceSession, and which kernel runs: "nanoquant", "portable" or "none".

    Raises:
        NqEdgeError: NQ-NATIVE-MISSING when the kernels are missing and the body is not allowed or not in the file;
            NQ-BACKEND when versions do not fit, the provider is missing or ONNX Runtime refuses the graph; NQ-BUNDLE or
            NQ-PATH for a bad file.
    """
    options = replace(options or OpenOptions(), **keywords)
    runtime = runtime or import_onnxruntime()
    check_versions(bundle, runtime.__version__)
    providers = provider_list(runtime, bundle, options.provider)
    path = bundle.path(MODEL_FILE)
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise NqEdgeError("NQ-BUNDLE", f"{path} is too large for a graph without its weights.")
    model = with_extra_outputs(path, extra_outputs, bundle.dtype) if extra_outputs else path.read_bytes()
    summary = check_graph(model, bundle.files)
    model, folder = _found(model, bundle, summary)
    settings = _settings(runtime, folder, options)
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile_prefix
    kernel, disabled = _register(settings, bundle, summary, options.allow_portable), None
    if kernel == PORTABLE:
        disabled = ["ConstantFolding"]  # it would unpack every weight: 7 MB of bits become 1.5 GB
        # Seen with 1.23.2: the layout level aborts the process on an inlined body; the level below it does not.
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    else:
        model = strip_functions(model)
    try:
        session = runtime.InferenceSession(model, settings, providers, disabled_optimizers=disabled)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        text = str(error).strip()
        if kernel == KERNEL and DOMAIN in text and "not a registered" in text:
            raise NqEdgeError(
                "NQ-NATIVE-MISSING", f"the kernel library has no kernel for this bundle: {text}"
            ) from error
        message = f"onnxruntime {runtime.__version__} refuses the graph: {text}"
        raise refusal(error, "NQ-BACKEND", message=message) from error
    check_started(runtime, session, options.provider)
    return session, kernel


def _found(model: bytes, bundle: Bundle, summary: ModelSummary) -> tuple[bytes, Path]:
    """The model with the names under which its weights are stored, and their folder: ONNX Runtime follows no links.

    Raises:
        NqEdgeError: NQ-PATH when a file leads outside of the bundle, NQ-BUNDLE when they lie in several folders.
    """
    stored = {name: bundle.path(name) for name in summary.external_files}
    folders = {path.parent for path in stored.values()} or {bundle.folder.resolve()}
    if len(folders) > 1:
        raise NqEdgeError("NQ-BUNDLE", f"the weights of {bundle.folder} lie in several folders.")
    renamed = {name: path.name for name, path in stored.items() if path.name != name}
    return (rename_data(model, renamed) if renamed else model), folders.pop()


def _settings(runtime: Any, folder: Path, options: OpenOptions) -> Any:
    """ONNX Runtime's session options."""
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.running_threads or _default_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what fails is raised as well, with a code
    # Shapes change with each chunk and step: patterns would be recorded for nothing, and an arena would keep the
    # largest prefill's memory for good.
    settings.enable_mem_pattern = False
    settings.enable_cpu_mem_arena = False
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    settings.add_session_config_entry(FOLDER_OPTION, os.fsencode(folder.resolve()))  # a name need not be UTF-8
    return settings


def _default_threads() -> int:
    """0, for ONNX Runtime's own choice, which is the machine's cores; else those that this process may use."""
    every = os.cpu_count() or 1
    if len(allowed_processors()) == every == usable_processors():
        return 0
    return default_threads()


def _register(settings: Any, bundle: Bundle, summary: ModelSummary, allow_portable: bool) -> str:
    """Add our operator library to the session options; returns which kernel will run."""
    if not summary.operators:
        if bundle.compressed_linears and not allow_portable:
            raise NqEdgeError(
                "NQ-BUNDLE",
                f"the manifest promises {bundle.compressed_linears} compressed layers, the graph has no "
                f"{DOMAIN} operator.",
            )
        return NO_KERNEL
    try:
        path = ort_library_path()
        try:
            settings.register_custom_ops_library(str(path))
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise refusal(
                error, "NQ-NATIVE-MISSING", message=f"{path} cannot be loaded: {str(error).strip()}"
            ) from error
    except NqEdgeError as error:
        if error.code == "NQ-MEMORY":
            raise
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
