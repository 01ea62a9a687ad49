# SPDX-License-Identifier: Apache-2.0
"""What `nq-edge build` and `nq-edge export --to tensorrt` have in common: options, progress and table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import printable
from .arguments import InputPath
from .layout import figures
from .streams import echo_json

if TYPE_CHECKING:
    from ..formats.bundle import Bundle

__all__ = ["engine_options", "make_engine"]

_OPTIONS = (
    click.option("--target", "targets", multiple=True, help="GPU or board, such as rtx-4060, sm_86; several times."),
    click.option("--capacity", help="Cache slots: a number, or max for all that fits [default: 2048 or what fits]."),
    click.option("--batch", type=click.IntRange(1, 256), help="Most sequences at once [default: 1]."),
    click.option("--prefill", type=click.IntRange(min=1), help="Most prompt tokens in one pass [default: 512]."),
    click.option("--positions", type=click.IntRange(min=1), help="Most rows of logits in one pass [default: 16]."),
    click.option("--no-groups", is_flag=True, help="A plugin layer of its own for each compressed layer."),
    click.option("--refit", is_flag=True, help="Weights of the engine can be exchanged."),
    click.option("--version-compatible", is_flag=True, help="Newer TensorRT may load it (standard TensorRT)."),
    click.option("--embed-plugin", is_flag=True, help="Put the plugin library into the engine."),
    click.option("--debug-outputs", type=click.Choice(["blocks", "layers"]), help="Return inner values as well."),
    click.option("--timing-cache", type=InputPath(), help="Kernel times, kept from build to build."),
    click.option("--optimization-level", type=click.IntRange(0, 5), help="TensorRT's builder level."),
    click.option("--workspace", type=click.IntRange(min=1), help="Most scratch memory of TensorRT's kernels, in MB."),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; they arrive as keyword arguments that `make_engine` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_engine(source: Path, output: Path, *, dtype: str | None, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Build, show progress, and print a table or JSON.

    Args:
        source: checkpoint or bundle.
        output: bundle folder.
        dtype: activation type, None for float16.
        overwrite: replace a bundle.
        as_json: print JSON.
        given: the values of `engine_options`.

    Raises:
        NqEdgeError: see `build_engine`.
    """
    from ..errors import NqEdgeError
    from ..exporters.tensorrt import EngineOptions, build_engine
    from .progress import shown_progress

    if not given["targets"]:
        raise NqEdgeError(
            "NQ-TARGET", "no target is named.", "Add --target, such as rtx-4060, sm_86 or jetson-orin-nano-8gb."
        )
    numbers = {name: given[name] for name in ("batch", "prefill", "positions") if given[name] is not None}
    options = EngineOptions(
        dtype=dtype or "float16",
        capacity=_capacity(given["capacity"]),
        grouped=not given["no_groups"],
        refit=given["refit"],
        version_compatible=given["version_compatible"],
        embed_plugin=given["embed_plugin"],
        debug_outputs=given["debug_outputs"] or "",
        timing_cache=given["timing_cache"],
        optimization_level=given["optimization_level"],
        workspace_mb=given["workspace"],
        **numbers,
    )
    with shown_progress("building", hidden=as_json) as report:
        bundle = build_engine(
            source, output, target=given["targets"], options=options, overwrite=overwrite, progress=report
        )
    if as_json:
        echo_json(_summary(bundle))
    else:
        _print_table(bundle)


def _capacity(text: str | None) -> int | None:
    if text is None:
        return None
    if text == "max":
        return 0
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 1 << 31):
        raise click.BadParameter(f"{text!r} is neither a number of tokens nor 'max'.", param_hint="'--capacity'")
    return int(text)


def _summary(bundle: Bundle) -> dict[str, object]:
    engine = bundle.engine
    return {
        "bundle": str(bundle.folder),
        "backend": bundle.backend,
        "dialect": bundle.dialect,
        "dtype": bundle.dtype,
        "built": engine is not None,
        "tensorrt_version": engine.tensorrt_version if engine else None,
        "compute_capabilities": list(engine.compute_capabilities) if engine else None,
        "capacity": bundle.kv.capacity,
        "plugin_layers": engine.plugin_layers if engine else None,
        "compressed_linears": bundle.compressed_linears,
        "true_bpw": bundle.true_bpw,
        "files": {name: entry.size for name, entry in bundle.files.items()},
        "total_bytes": sum(entry.size for entry in bundle.files.values()),
        **bundle.measured.get("build", {}),
    }


def _print_table(bundle: Bundle) -> None:
    from ..system.terminal import terminal

    console = terminal()
    build, engine = bundle.measured["build"], bundle.engine
    fits = build.get("preflight", [])
    if fits:
        titles = [fit["target"] for fit in fits]
        rows = [(part, *(f"{fit['parts'][part] / 1e6:.1f}" for fit in fits)) for part in fits[0]["parts"]]
        rows.append(("needed", *(f"{fit['needed'] / 1e6:.1f}" for fit in fits)))
        known = ("not known" if fit["available"] is None else f"{fit['available'] / 1e6:.1f}" for fit in fits)
        rows.append(("available", *known))
        console.print(figures(("memory on the target, MB", *titles), rows))
        console.print("Weights and cache are exact, the rest is estimated.")
    folder = printable(str(bundle.folder))
    total = sum(entry.size for entry in bundle.files.values()) / 1e6
    form = f"{bundle.compressed_linears} compressed layers at {bundle.true_bpw:.3f} bits per weight, {bundle.dtype}"
    if engine is None:
        console.print(f"{folder}: {total:.1f} MB, {form}, cache {bundle.kv.capacity}, {build['seconds']:.1f} s")
        console.print(
            "No engine yet: TensorRT builds it on the device. Copy the folder there and run build.sh (README.md).",
            style="bold",
        )
        return
    console.print(
        f"{folder}: {total:.1f} MB, {form} in {engine.plugin_layers} plugin layers, cache {bundle.kv.capacity}"
    )
    console.print(
        f"TensorRT {engine.tensorrt_version}, compute capability {', '.join(engine.compute_capabilities)}; "
        f"{build['seconds']:.1f} s, peak host memory {build['peak_bytes'] / 1e6:.0f} MB. "
        "This project has not run such an engine on a GPU (docs/TENSORRT.md)."
    )
